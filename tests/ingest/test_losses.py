"""Frames that were lost on their way: under every time lies the right picture, or the clip is refused."""

from __future__ import annotations

import random
from collections.abc import Collection
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from lavila.ingest.encode import EncodeError, EncodeSettings, Interval, encode_clip
from lavila.ingest.source_video import SourceVideo
from lavila.ingest.video_files import Limits
from tests.footage import (
    Coding,
    Picture,
    numbered_picture,
    read_number,
    read_numbers,
    rgb,
    write_numbered_video,
    write_video,
)

FRAMES, GROUP, HEIGHT, WIDTH = 60, 20, 48, 64
RATE = 25
SMALL = EncodeSettings(codec="h264", short_side=48, speed="ultrafast", crf=18)
TS_PACKET = 188  # bytes


def without(source: Path, path: Path, lost: Collection[int]) -> Path:
    """The same packets but for those whose number, in decoding order, is in `lost`."""
    with av.open(str(source)) as container, av.open(str(path), "w") as out:
        copy: Any = out.add_stream_from_template(container.streams.video[0])
        packets = [packet for packet in container.demux(video=0) if packet.size]
        for number, packet in enumerate(packets):
            if number not in lost:
                packet.stream = copy
                out.mux(packet)
    return path


def shown(path: Path, numbers: range = range(FRAMES)) -> dict[int, int | None]:
    """The number on the picture for the time of each frame; None where it is refused. Only frames that there are."""
    found: dict[int, int | None] = {}
    for number in numbers:
        try:
            with SourceVideo(path, Limits()) as source:
                for frame in source.frames_at([Fraction(number, RATE)]):
                    found[number] = read_number(rgb(frame))
        except EncodeError:
            found[number] = None
    return found


@pytest.fixture(scope="module", params=[0, 2], ids=["no b", "b"])
def b_frames(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory, b_frames: int) -> dict[str, Path]:
    """A whole video of each container, by its ending."""
    folder = tmp_path_factory.mktemp("sound")
    coding = Coding(gop=GROUP, b_frames=b_frames)
    return {
        name: write_numbered_video(folder / f"a.{name}", FRAMES, coding, height=HEIGHT, width=WIDTH)
        for name in ("flv", "ts", "mp4")
    }


@pytest.mark.parametrize("name", ["flv", "ts"])
def test_every_frame_of_a_whole_file_is_stored(sound: dict[str, Path], name: str) -> None:
    clip = encode_clip(sound[name], interval=Interval(start_second=0.0, stop_second=None), settings=SMALL)
    assert read_numbers(clip.data) == list(range(FRAMES))


# In decoding order: in a group, its end, its keyframe, the keyframe with its neighbours.
LOST: list[tuple[int, ...]] = [(25,), (26,), (30, 31), (39,), (38, 39), (40,), (19, 20, 21)]


@pytest.mark.parametrize("lost", LOST, ids=str)
@pytest.mark.parametrize("name", ["flv", "ts"])
def test_no_neighbour_stands_for_a_lost_frame(
    tmp_path: Path, sound: dict[str, Path], name: str, lost: tuple[int, ...]
) -> None:
    found = shown(without(sound[name], tmp_path / f"a.{name}", lost), range(15, 45))
    assert {number: seen for number, seen in found.items() if seen not in (None, number)} == {}
    refused = [number for number, seen in found.items() if seen is None]
    assert refused and min(refused) >= min(lost) - 3, "frames before the loss stay sound"
    if lost[-1] < 39 and lost[0] > 20:
        assert all(found[number] == number for number in range(40, 45)), "and so does the next group"


@pytest.mark.parametrize("lost", [(25,), (30, 31), (40,)], ids=str)
def test_a_lost_reference_is_found_in_an_mp4_too(
    tmp_path: Path, sound: dict[str, Path], b_frames: int, lost: tuple[int, ...]
) -> None:
    if b_frames and lost == (26,):
        pytest.skip("no frame refers to it")
    found = shown(without(sound["mp4"], tmp_path / "a.mp4", lost), range(15, 45))
    assert {number: seen for number, seen in found.items() if seen not in (None, number)} == {}
    assert None in found.values()


def test_a_clip_over_the_gap_says_why(tmp_path: Path) -> None:
    video = write_numbered_video(tmp_path / "a.flv", FRAMES, Coding(gop=GROUP, b_frames=0), height=HEIGHT, width=WIDTH)
    gap = without(video, tmp_path / "b.flv", {38, 39})
    with pytest.raises(EncodeError, match=r"lost between 1\.48 s and 1\.60 s"):
        encode_clip(gap, interval=Interval(start_second=1.2, stop_second=1.9), settings=SMALL)
    assert read_numbers(
        encode_clip(gap, interval=Interval(start_second=1.6, stop_second=2.0), settings=SMALL).data
    ) == list(range(40, 50))


@pytest.mark.parametrize("name", ["flv", "ts"])
def test_a_pause_of_the_camera_is_no_loss(tmp_path: Path, sound: dict[str, Path], b_frames: int, name: str) -> None:
    """The encoder counts on, so nothing is missing: a player shows the frame before for as long."""
    times = [40 * n + (400 if n >= 30 else 0) for n in range(FRAMES)]
    coding = Coding(gop=GROUP, b_frames=b_frames, milliseconds=tuple(times))
    video = write_numbered_video(tmp_path / f"a.{name}", FRAMES, coding, height=HEIGHT, width=WIDTH)
    found = shown(video, range(24, 50))
    expected = {n: n if n < 30 else 29 if n < 35 else 30 if n < 40 else n - 10 for n in found}
    assert {n: (seen, expected[n]) for n, seen in found.items() if seen != expected[n] and n != 34} == {}


def test_irregular_film_is_no_loss(tmp_path: Path) -> None:
    """A camera in the dark leaves frames out as it likes, across keyframes, too."""
    chance = random.Random(3)
    times = np.cumsum([chance.choice([40, 40, 80, 120]) for _ in range(FRAMES)])
    coding = Coding(gop=7, milliseconds=tuple(int(time) for time in times))
    for name in ("flv", "ts"):
        video = write_numbered_video(tmp_path / f"a.{name}", FRAMES, coding, height=HEIGHT, width=WIDTH)
        assert None not in shown(video, range(0, 90, 7)).values()


def _grainy(number: int) -> Picture:
    grain = np.random.default_rng(number).integers(-25, 26, (HEIGHT, WIDTH, 1))
    picture: Picture = (numbered_picture(number, height=HEIGHT, width=WIDTH) + grain).clip(0, 255).astype(np.uint8)
    return picture


@pytest.mark.parametrize("codec", ["libx264", "mpeg2video"])
def test_bytes_lost_from_a_transport_stream(tmp_path: Path, b_frames: int, codec: str) -> None:
    """Frames have many packets of 188 bytes here; whole frames and keyframes are lost, or parts of them."""
    coding = Coding(codec=codec, gop=GROUP, b_frames=b_frames, crf=23)
    data = write_video(tmp_path / "a.ts", map(_grainy, range(FRAMES)), coding).read_bytes()
    refused = 0
    for seed in range(6):
        chance = random.Random(seed)
        count = chance.choice([1, 2, 8, 16, 32, 60])
        at = chance.randrange(10, len(data) // TS_PACKET - count)
        video = tmp_path / f"{seed}.ts"
        video.write_bytes(data[: TS_PACKET * at] + data[TS_PACKET * (at + count) :])
        found = shown(video, range(0, FRAMES, 3))
        assert {number: seen for number, seen in found.items() if seen not in (None, number)} == {}, (seed, at, count)
        refused += None in found.values()
    assert refused >= 3


# Signs besides the stream


@pytest.mark.parametrize("cluster", [1, 2])
def test_a_frame_that_the_index_lists_and_the_file_has_not(tmp_path: Path, cluster: int) -> None:
    """FFmpeg leaves out a damaged part of a Matroska file, and finds the next sound one, if there is one."""
    coding = Coding(codec="libvpx-vp9", gop=8, crf=30)
    video = tmp_path / "a.webm"
    data = bytearray(write_numbered_video(video, 400, coding, height=HEIGHT, width=WIDTH).read_bytes())
    starts = [at for at in range(len(data)) if data.startswith(b"\x1f\x43\xb6\x75", at)]
    data[starts[cluster] : starts[cluster] + 4] = bytes(4)
    video.write_bytes(data)
    found = shown(video, range(0, 400, 3))
    assert {number: seen for number, seen in found.items() if seen not in (None, number)} == {}
    assert None in found.values() and found[0] == 0


def test_hevc_in_a_transport_stream_is_read_behind_a_seek(tmp_path: Path) -> None:
    """A seek lands between keyframes, and this decoder raises errors for what refers to frames before."""
    coding = Coding(codec="libx265", gop=GROUP)
    video = write_numbered_video(tmp_path / "a.ts", FRAMES, coding, height=HEIGHT, width=WIDTH)
    numbers = range(0, FRAMES, 7)
    assert shown(video, numbers) == {number: number for number in numbers}
