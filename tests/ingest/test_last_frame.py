"""Clips that begin while the last frame of their video is shown: they get that frame."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest

from lavila.ingest.encode import EncodeError, EncodeSettings, Interval, encode_chunk, encode_clip
from lavila.records import Clip
from lavila.shards.chunks import ChunkError, ChunkIndex
from tests.footage import NTSC_60, Coding, read_numbers, write_numbered_video

FRAMES = 25
FAST = EncodeSettings(codec="h264", speed="ultrafast", short_side=48)


@pytest.fixture(scope="module", params=[Fraction(25), NTSC_60], ids=["25", "59.94"])
def video(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Fraction]:
    path = tmp_path_factory.mktemp("video") / "v.mp4"
    return write_numbered_video(path, FRAMES, Coding(fps=request.param), height=48, width=64), request.param


@pytest.mark.parametrize("share", [0.1, 0.49, 0.51, 0.9])  # of the last frame's time, at which the clip begins
@pytest.mark.parametrize("rule", ["edges", "duration", "fractional"])
@pytest.mark.parametrize("settings", [FAST, EncodeSettings(**{**vars(FAST), "margin": 0.2})], ids=["", "margin"])
def test_a_clip_that_begins_in_the_last_frame(
    share: float, rule: str, settings: EncodeSettings, video: tuple[Path, Fraction]
) -> None:
    path, fps = video
    start = float((FRAMES - 1 + Fraction(share)) / fps)
    clip = encode_clip(path, interval=Interval(start_second=start, stop_second=start + 1, rule=rule), settings=settings)  # type: ignore[arg-type]
    assert (clip.num_frames, clip.start_frame, clip.frames_after) == (1, FRAMES - 1, 0)
    assert read_numbers(clip.data)[clip.first_frame :] == [FRAMES - 1]


def test_a_clip_of_chosen_frames_too(video: tuple[Path, Fraction]) -> None:
    path, fps = video
    interval = Interval(start_second=float((FRAMES - Fraction(1, 4)) / fps), stop_second=None)
    clip = encode_clip(path, interval=interval, settings=FAST, choose=lambda inside, after, rate: range(inside))
    assert read_numbers(clip.data) == [FRAMES - 1]


def test_a_clip_after_the_last_frame_is_none(video: tuple[Path, Fraction]) -> None:
    path, fps = video
    for frames in (FRAMES, FRAMES + Fraction(1, 4), FRAMES + 3):
        start = float(frames / fps) + 1e-9
        with pytest.raises(EncodeError) as caught:
            encode_clip(path, interval=Interval(start_second=start, stop_second=start + 1), settings=FAST)
        assert caught.value.after_end


def test_the_same_in_chunks(video: tuple[Path, Fraction]) -> None:
    path, fps = video
    chunk = encode_chunk(path, number=0, seconds=2, settings=FAST)
    row = {**{name: value for name, value in vars(chunk).items() if name != "data"}, "chunk_id": "v_0"}
    index = ChunkIndex([row], {})

    def begin(frames: Fraction) -> Clip:
        start = float(frames / fps)
        return Clip(clip_id="c", video_id="v", video_path="v.mp4", start_second=start, stop_second=start + 1)

    for share in (0.1, 0.49, 0.51, 0.9):
        place = index.locate(begin(FRAMES - 1 + Fraction(share)), chunk_ids=["v_0", "v_1"], rule="edges")
        assert (place.first_frame, place.num_frames, place.frames_after) == (FRAMES - 1, 1, 0)
    with pytest.raises(ChunkError):
        index.locate(begin(FRAMES + Fraction(1, 100)), chunk_ids=["v_0", "v_1"], rule="edges")
