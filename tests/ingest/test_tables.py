"""Files whose tables, headers and frames disagree, and packets that give no picture: no other picture is stored."""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import pytest

from lavila.ingest.encode import EncodeError, EncodeSettings, Interval, encode_clip, probe_video
from tests.footage import Coding, numbered_picture, read_numbers, write_numbered_video
from tests.ingest.fields import write_fields
from tests.ingest.test_losses import shown, without

FRAMES = 60
SMALL = EncodeSettings(codec="h264", short_side=48, speed="ultrafast", crf=18)


def write(path: Path, **coding: Any) -> Path:
    return write_numbered_video(path, FRAMES, Coding(gop=10, **coding), height=64, width=64)


def assert_right(path: Path) -> None:
    found = shown(path, range(FRAMES))
    assert {number: seen for number, seen in found.items() if seen not in (None, number)} == {}
    assert None in found.values()


def test_an_avi_that_lacks_a_frame_is_refused(tmp_path: Path) -> None:
    """All frames behind it would be stored one frame early."""
    data = write(tmp_path / "a.avi", codec="mpeg4").read_bytes()
    chunks = [at for at in range(len(data)) if data.startswith(b"00dc", at)][:FRAMES]
    (tmp_path / "b.avi").write_bytes(data[: chunks[25]] + data[chunks[26] :])
    with pytest.raises(EncodeError):
        encode_clip(tmp_path / "b.avi", interval=Interval(start_second=1.2, stop_second=1.6), settings=SMALL)
    hole = bytearray(data)
    hole[chunks[25] + 4 : chunks[25] + 8] = bytes(4)  # the size of the chunk; the index lists it as it was
    (tmp_path / "c.avi").write_bytes(hole)
    assert_right(tmp_path / "c.avi")


def test_an_avi_that_begins_late_is_read_from_its_first_frame(tmp_path: Path) -> None:
    data = bytearray(write(tmp_path / "a.avi", codec="mpeg4").read_bytes())
    at = data.index(b"strh") + 8 + 28  # dwStart
    data[at : at + 4] = (2000).to_bytes(4, "little")
    (tmp_path / "b.avi").write_bytes(data)
    clip = encode_clip(tmp_path / "b.avi", interval=Interval(start_second=0.4, stop_second=0.8), settings=SMALL)
    assert read_numbers(clip.data) == list(range(10, 20))


def test_an_mp4_with_places_for_some_frames_only_is_refused(tmp_path: Path) -> None:
    data = bytearray(write(tmp_path / "a.mp4").read_bytes())
    at = data.index(b"stsz") + 12  # sample_count
    assert int.from_bytes(data[at : at + 4], "big") == FRAMES
    data[at : at + 4] = (20).to_bytes(4, "big")
    (tmp_path / "b.mp4").write_bytes(data)
    with pytest.raises(EncodeError, match=r"60 frames and the places of 20"):
        probe_video(tmp_path / "b.mp4")


def test_damage_that_only_libvpx_notices(tmp_path: Path) -> None:
    video = write(tmp_path / "a.webm", codec="libvpx-vp9")
    with av.open(str(video)) as container:
        packet = [bytes(one) for one in container.demux(video=0) if one.size][30]  # a keyframe
    data = video.read_bytes()
    at = data.index(packet) + len(packet) // 2
    video.write_bytes(data[:at] + bytes(8) + data[at + 8 :])
    found = shown(video, range(FRAMES))
    assert [number for number, seen in found.items() if seen is None] == list(range(30, 40))
    assert all(seen in (None, number) for number, seen in found.items())


def interlaced(path: Path) -> Path:
    options = {"x264-params": "tff=1:keyint=20:bframes=3:scenecut=0", "crf": "12", "preset": "fast"}
    with av.open(str(path), "w") as out:
        stream: Any = out.add_stream("libx264", rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for number in range(FRAMES):
            picture = numbered_picture(number, height=64, width=64)
            frame: Any = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("name", ["mp4", "mkv", "ts", "flv"])
def test_interlaced_film_with_lost_pictures(tmp_path: Path, name: str) -> None:
    video = interlaced(tmp_path / f"a.{name}")
    for lost in ({25}, {26}, {27}, {30, 31}, {40}, {5}, {57}):
        assert_right(without(video, tmp_path / f"b.{name}", lost))


@pytest.mark.parametrize("name", ["mp4", "mkv", "ts", "flv"])
def test_fields_that_are_packets_with_lost_ones(tmp_path: Path, name: str) -> None:
    pictures = [numbered_picture(number, height=64, width=64) for number in range(FRAMES)]
    video = write_fields(tmp_path / f"a.{name}", pictures, apart=True)
    for lost in ({31, 32}, {40}, {41}, {50, 51, 52}):
        assert_right(without(video, tmp_path / f"b.{name}", lost))


def with_edits(data: bytes, edits: list[tuple[int, int]]) -> bytes:
    """An mp4 with another edit list: (milliseconds, first tick) of each part; tick -1 = nothing is shown."""
    at = data.index(b"elst") - 4
    size = int.from_bytes(data[at : at + 4], "big")
    rows = b"".join(struct.pack(">IiI", *edit, 1 << 16) for edit in edits)
    box = struct.pack(">I4sII", 16 + len(rows), b"elst", 0, len(edits)) + rows
    out = bytearray(data[:at] + box + data[at + size :])
    for name in (b"edts", b"trak", b"moov"):  # the boxes around it; the pictures lie before them
        place = out.rindex(name, 0, at) - 4
        grown = int.from_bytes(out[place : place + 4], "big") + len(box) - size
        out[place : place + 4] = grown.to_bytes(4, "big")
    return bytes(out)


@pytest.mark.parametrize(
    ("edits", "expected"),
    [
        ([(2000, 10)], [*range(18, 25)]),
        ([(500, -1), (2400, 0)], [*range(8, 15)]),  # seconds count from the first frame
        ([(400, 0), (1200, 30)], [8, 9, *range(30, 35)]),
        ([(400, 0), (400, 0)], [8, 9, *range(5)]),
    ],
    ids=["start", "nothing first", "two parts", "one part twice"],
)
def test_edit_lists_count(tmp_path: Path, edits: list[tuple[int, int]], expected: list[int]) -> None:
    """`edits`: milliseconds and first frame; the clip lasts from 0.3 s to 0.6 s."""
    data = write(tmp_path / "a.mp4").read_bytes()
    begin = struct.unpack_from(">i", data, data.index(b"elst") + 16)[0]
    ticks = [(length, -1 if frame < 0 else begin + 512 * frame) for length, frame in edits]
    (tmp_path / "b.mp4").write_bytes(with_edits(data, ticks))
    clip = encode_clip(tmp_path / "b.mp4", interval=Interval(start_second=0.3, stop_second=0.6), settings=SMALL)
    assert read_numbers(clip.data) == expected


def test_slow_motion_within_a_film(tmp_path: Path) -> None:
    """A phone films 240 frames a second in the middle: every stored frame is the nearest one."""
    steps = [1000 / 240 if 20 <= number < 40 else 1000 / 30 for number in range(FRAMES)]
    times = tuple(round(sum(steps[:number])) for number in range(FRAMES))
    video = write(tmp_path / "a.mp4", milliseconds=times)
    for start in (0.2, 0.6, 1.0):
        clip = encode_clip(video, interval=Interval(start_second=start, stop_second=start + 0.2), settings=SMALL)
        dues = [1000 * (clip.start_frame + place) / clip.source_fps for place in range(clip.num_frames)]
        nearest = [min(range(FRAMES), key=lambda one, due=due: abs(times[one] - due)) for due in dues]  # type: ignore[misc]
        assert read_numbers(clip.data) == nearest
