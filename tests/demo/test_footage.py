"""Windows of a video: which there are, which frames they have, how often frames are decoded, and what damage costs."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lavila.data.loader import ClipLoader, Pictures, clip_sizes
from lavila.demo import footage
from lavila.demo.footage import (
    FootageError,
    Look,
    LostWindow,
    Window,
    WindowPictures,
    find_videos,
    one_ahead,
    read_windows,
    uncovered,
    windows_of,
)
from lavila.ingest.decoded import FrameReader
from lavila.ingest.encode import EncodeSettings, Interval, encode_clip
from lavila.ingest.jobs import clip_row
from lavila.ingest.video_files import EncodeError
from lavila.plan.crops import ViewChoice
from lavila.plan.frames import FrameChoice
from lavila.plan.plans import Ranks, ViewPlan
from lavila.records import Clip
from lavila.shards.reader import open_shard_set
from lavila.shards.writer import SetContents, ShardWriter, write_manifest
from tests.footage import Coding, numbered_picture, read_number, write_numbered_video, write_video

MEAN, STD = (0.0, 0.0, 0.0), (255.0, 255.0, 255.0)
LOOK = Look(frames=4, size=112, mean=MEAN, std=STD)
FPS = 10
SLOW = Coding(fps=Fraction(FPS), gop=10)


@pytest.fixture(scope="module")
def numbered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight seconds whose frames show their numbers."""
    return write_numbered_video(tmp_path_factory.mktemp("footage") / "a.mp4", 80, SLOW)


def seconds(*pairs: tuple[float, float]) -> list[Window]:
    return [Window(start=start, stop=stop) for start, stop in pairs]


def read(path: Path, windows: list[Window], *looks: Look) -> list[WindowPictures]:
    found = []
    for one in read_windows(path, windows, looks or [LOOK]):
        assert isinstance(one, WindowPictures), one
        found.append(one)
    return found


def numbers_in(one: WindowPictures, look: int = 0) -> list[int]:
    """What the pictures of a window say. They are squares out of the middle, so the lost edges are put back."""
    said = []
    for picture in one.videos[look]:
        levels = (picture.transpose(1, 2, 0) * 255).clip(0, 255).astype(np.uint8)
        side = len(levels)
        wide = np.zeros((side, side * 4 // 3, 3), np.uint8)
        edge = (wide.shape[1] - side) // 2
        wide[:, edge : edge + side] = levels
        wide[:, :edge], wide[:, edge + side :] = levels[:, :1], levels[:, -1:]
        said.append(read_number(wide))
    return said


# ---------------------------------------------------------------- which windows


def test_windows_come_every_so_often_and_end_with_the_video() -> None:
    assert windows_of(0, 5, every=1, length=2) == seconds((0, 2), (1, 3), (2, 4), (3, 5), (4, 5))
    assert windows_of(0, 4.5, every=2, length=2) == seconds((0, 2), (2, 4))  # a quarter of a window is not one
    assert windows_of(0, 5.5, every=2, length=2)[-1] == Window(start=4, stop=5.5)
    assert windows_of(10, 10.5, every=2, length=2) == seconds((10, 10.5))  # unless there is no other
    assert windows_of(3, 3, every=1, length=1) == []
    with pytest.raises(FootageError, match="every 0 s"):
        windows_of(0, 1, every=0, length=1)


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0.01, 30)), max_size=12), st.floats(1, 100))
def test_what_is_uncovered_and_what_is_covered_fill_the_video(spans: list[tuple[float, float]], stop: float) -> None:
    covered = [(start, start + length) for start, length in spans]
    gaps = uncovered(covered, start=0.0, stop=stop)
    assert all(0 <= a < b <= stop for a, b in gaps)
    assert all(b <= c for (_, b), (c, _) in itertools.pairwise(gaps))
    for second in np.linspace(0, stop, 50, endpoint=False).tolist():
        inside = any(a <= second < b for a, b in covered)
        assert inside != any(a <= second < b for a, b in gaps), second


def test_videos_of_a_folder(tmp_path: Path) -> None:
    names = ("b.MP4", "notes.txt", "sub/c.webm", "sub/empty/readme", "chunks.mp4/0.mp4", "index/made/e.mp4")
    for name in (*names, ".hidden/d.mp4", "._b.MP4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "sub/again").symlink_to(tmp_path)  # round in a circle
    found = [path.relative_to(tmp_path).as_posix() for path in find_videos(tmp_path, without=tmp_path / "index")]
    assert found == ["b.MP4", "chunks.mp4", "sub/c.webm"]
    assert find_videos(tmp_path / "notes.txt") == [tmp_path / "notes.txt"]  # a file is taken at its word
    for wrong in ("sub/empty", "nothing"):
        with pytest.raises(FootageError, match=wrong):
            find_videos(tmp_path / wrong)


def test_a_name_that_is_no_text_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.mp4").touch()
    latin = Path(os.fsdecode(os.fsencode(tmp_path) + b"/gr\xfcn.mp4"))  # as an old archive unpacks it
    latin.touch()
    assert find_videos(tmp_path) == [tmp_path / "a.mp4"]
    assert "gr\ufffdn.mp4" in caplog.text
    with pytest.raises(FootageError, match="gr\ufffdn"):
        find_videos(latin)


# ---------------------------------------------------------------- which pictures


def test_frames_are_those_in_the_middle_of_equal_parts(numbered: Path) -> None:
    found = read(numbered, seconds((0, 2), (1, 3), (4, 4.4)))
    assert [numbers_in(one) for one in found] == [[2, 7, 12, 16], [12, 17, 22, 26], [40, 41, 42, 42]]
    assert [read_number(one.middle) for one in found] == [12, 22, 42]


def test_pictures_are_those_of_a_shard_set(tmp_path: Path) -> None:
    """But for the lossy coding of the set, which here costs little."""
    pictures = (numbered_picture(n, height=360, width=640) for n in range(30))
    video = write_video(tmp_path / "a.mp4", pictures, Coding(fps=Fraction(10), matrix=1, range=2))
    interval = Interval(start_second=0.4, stop_second=2.4, rule="duration")
    encoded = encode_clip(video, interval=interval, settings=EncodeSettings(codec="h264", crf=1))
    clip = Clip(clip_id="a", video_id="a", video_path="a.mp4", start_second=0.4, stop_second=2.4)
    (tmp_path / "set").mkdir()
    with ShardWriter(tmp_path / "set", 0) as writer:
        row = writer.add("a", encoded.data, clip_row(clip, encoded))
    facts = {"dataset": "x", "split": "val", "encoder": {"codec": "h264"}, "span_rule": "duration"}
    write_manifest(tmp_path / "set", rows=[row], shards=[writer.file], contents=SetContents(classes={}, facts=facts))
    shards = open_shard_set(tmp_path / "set")
    plan = ViewPlan(
        clip_sizes(shards),
        frames=FrameChoice(frames=4),
        views=ViewChoice(size=112, crops="center"),
        batch_size=1,
        ranks=Ranks(),
    )
    (batch,) = ClipLoader(shards, plan, pictures=Pictures(mean=MEAN, std=STD), threads=1)
    theirs = batch.video[0, 0].transpose(0, 1).numpy()
    (ours,) = read(video, seconds((0.4, 2.4)))
    difference = 255 * np.abs(ours.videos[0] - theirs)
    assert difference.mean() < 1.0 and difference.max() < 12, (difference.mean(), difference.max())


def test_each_model_gets_its_own_pictures_of_a_window(numbered: Path) -> None:
    other = Look(frames=8, size=64, mean=(10.0, 20.0, 30.0), std=(100.0, 50.0, 25.0))
    (both,) = read(numbered, seconds((1, 3)), LOOK, other)
    (alone,) = read(numbered, seconds((1, 3)), other)
    assert [video.shape for video in both.videos] == [(4, 3, 112, 112), (8, 3, 64, 64)]
    np.testing.assert_array_equal(both.videos[1], alone.videos[0])
    levels = both.videos[1] * np.array(other.std)[:, None, None] + np.array(other.mean)[:, None, None]
    assert levels.min() > 30 and levels.max() < 220  # the picture has levels from 50 to 200


def test_change_is_that_of_the_part_that_moves_most(tmp_path: Path) -> None:
    still = np.full((144, 256, 3), 90, np.uint8)

    def with_hand(number: int) -> np.ndarray:
        picture = still.copy()
        picture[40:72, 8 * number : 8 * number + 32] = 180  # a fortieth of the picture
        return picture

    quiet = write_video(tmp_path / "quiet.mp4", (still for _ in range(20)), SLOW)
    hand = write_video(tmp_path / "hand.mp4", (with_hand(n) for n in range(20)), SLOW)
    assert read(quiet, seconds((0, 2)))[0].change < 1.0
    assert read(hand, seconds((0, 2)))[0].change > 20.0
    one_frame = Look(frames=1, size=112, mean=MEAN, std=STD)
    assert read(quiet, seconds((0, 2)), one_frame)[0].change == math.inf  # one frame says nothing of it


# ---------------------------------------------------------------- how much is decoded


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The times of all frames that are decoded."""
    times: list[int] = []
    decode = FrameReader.frames

    def counting(reader: FrameReader) -> Iterator[Any]:
        for one in decode(reader):
            times.append(one.pts)
            yield one

    monkeypatch.setattr(FrameReader, "frames", counting)
    return times


def test_overlapping_windows_decode_and_draw_each_frame_once(
    numbered: Path, decoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []
    monkeypatch.setattr(footage, "planes_of", lambda frame, of=footage.planes_of: drawn.append(0) or of(frame))
    windows = windows_of(0, 8, every=0.5, length=2)
    found = read(numbered, windows)
    assert len(found) == len(windows) > 12
    assert len(decoded) == len(set(decoded)) <= 80
    distinct = {number for one in found for number in numbers_in(one)}
    assert len(drawn) == len(distinct) < 4 * len(windows)


def test_windows_that_are_planned_in_groups_are_the_same(
    numbered: Path, decoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    windows = windows_of(0, 8, every=0.5, length=1)
    whole = [numbers_in(one) for one in read(numbered, windows)]
    decoded.clear()
    monkeypatch.setattr(footage, "AT_ONCE", 5)
    assert [numbers_in(one) for one in read(numbered, windows)] == whole
    assert len(decoded) < 80 + 3 * 30  # a group begins at the keyframe before it
    late = seconds((7, 8), *((8.5 + n, 9.5 + n) for n in range(7)))
    assert [isinstance(one, LostWindow) for one in read_windows(numbered, late, [LOOK])] == [False] + [True] * 7


def test_long_gaps_are_skipped(tmp_path: Path, decoded: list[int]) -> None:
    video = write_numbered_video(tmp_path / "long.mp4", 340, SLOW)
    found = read(video, seconds((0, 2), (30, 32)))
    assert [numbers_in(one)[0] for one in found] == [2, 302]
    assert len(decoded) < 60


def test_one_ahead_gives_all_items_and_passes_errors_on() -> None:
    def items() -> Iterator[int]:
        yield from range(3)
        raise KeyError("x")

    ahead = one_ahead(items())
    assert [next(ahead) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(KeyError):
        next(ahead)
    assert list(one_ahead(iter([]))) == []


# ---------------------------------------------------------------- what is not there


def test_windows_past_the_end_are_cut_or_lost(numbered: Path) -> None:
    first, cut, late = read_windows(numbered, seconds((6, 8), (7, 9), (8.5, 10.5)), [LOOK])
    assert isinstance(first, WindowPictures) and numbers_in(first) == [62, 67, 72, 76]
    assert isinstance(cut, WindowPictures) and cut.window == Window(start=7, stop=8.0)
    assert numbers_in(cut)[-1] <= 79
    assert isinstance(late, LostWindow) and "7.90 s" in late.reason


def test_a_file_that_is_cut_short_loses_only_what_is_missing(numbered: Path, tmp_path: Path) -> None:
    whole = write_numbered_video(tmp_path / "whole.mkv", 80, SLOW).read_bytes()
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(whole[: len(whole) * 5 // 8])
    found = list(read_windows(cut, windows_of(0, 8, every=1, length=1), [LOOK]))
    good = [one for one in found if isinstance(one, WindowPictures)]
    assert len(found) == 8 and 3 <= len(good) <= 6
    assert [numbers_in(one)[0] for one in good] == [10 * n + numbers_in(good[0])[0] for n in range(len(good))]
    assert isinstance(found[-1], LostWindow) and "header says 8.00 s" in found[-1].reason


def test_damage_in_the_middle_costs_the_windows_that_need_it(numbered: Path, tmp_path: Path) -> None:
    content = bytearray(numbered.read_bytes())
    third = len(content) // 3
    content[third : third + 400] = bytes(400)
    damaged = tmp_path / "damaged.mp4"
    damaged.write_bytes(content)
    found = list(read_windows(damaged, windows_of(0, 8, every=1, length=1), [LOOK]))
    assert len(found) == 8
    lost = [one for one in found if isinstance(one, LostWindow)]
    assert 1 <= len(lost) <= 4
    for one in found:
        if isinstance(one, WindowPictures):
            assert all(int(10 * one.window.start) <= n < int(10 * one.window.stop) for n in numbers_in(one))


def test_what_is_no_video_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"no video" * 100)
    with pytest.raises(EncodeError, match=r"a\.mp4"):
        list(read_windows(tmp_path / "a.mp4", seconds((0, 1)), [LOOK]))
