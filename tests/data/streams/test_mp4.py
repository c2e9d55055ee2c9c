"""What is not as our encoder writes it is passed on whole, and tables that do not fit their bytes are an error."""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import pytest

from lavila.data.streams.boxes import TableError
from lavila.data.streams.mp4 import read_mp4
from lavila.data.streams.reduction import Stream, reduced
from tests.data.streams.videos import FRAMES, VIDEOS, Video, chosen, decoded
from tests.footage import Coding, write_numbered_video

WANTED = [2, 30, 31]
Find = Callable[[str, str], Video]


def box(data: bytes, name: bytes) -> tuple[int, int]:
    """Begin and end of the first box of a name."""
    start = data.index(name, 0) - 4
    return start, start + struct.unpack_from(">I", data, start)[0]


def changed(data: bytes, at: int, value: bytes) -> bytes:
    return data[:at] + value + data[at + len(value) :]


def remuxed(data: bytes, path: Path, **options: str) -> bytes:
    """The same packets, written by the muxer for the name of `path`, or with other options."""
    with av.open(io.BytesIO(data)) as source, av.open(str(path), "w", container_options=options) as container:
        copy: Any = container.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.size:
                packet.stream = copy
                container.mux(packet)
    return path.read_bytes()


def whole(stream: Stream, data: bytes) -> bool:
    return bool(stream.whole) and stream.data is data and stream.frames.tolist() == WANTED


def test_files_of_other_writers_are_passed_on_whole(tmp_path: Path, video_of: Find) -> None:
    sound = write_numbered_video(tmp_path / "sound.mp4", 40, Coding(sound=True)).read_bytes()
    mpeg4 = write_numbered_video(tmp_path / "mpeg4.mp4", 40, Coding(codec="mpeg4")).read_bytes()
    times = (*range(0, 1600, 40), 1700)
    varying = write_numbered_video(tmp_path / "vfr.mp4", 41, Coding(milliseconds=times)).read_bytes()
    others = [remuxed(video_of("h264", "one group").data, tmp_path / name) for name in ("a.mkv", "a.ts")]
    for data in (sound, mpeg4, varying, *others, b"", b"no video at all"):
        assert whole(reduced(data, WANTED), data)
    one = video_of("h264", "one group").data
    start = box(one, b"elst")[0]
    for at, value in ((16, 2500), (20, 512 * 4)):  # the edit ends early; it begins late
        data = changed(one, start + at, struct.pack(">I", value))
        assert whole(reduced(data, WANTED), data)
    brand = one + b"\0\0\0\x0cuuid1234"
    assert whole(reduced(brand, WANTED), brand)


def test_what_other_writers_write_in_our_form_is_reduced(tmp_path: Path, video_of: Find) -> None:
    """FFmpeg's own defaults for H.264 (a pyramid, groups of 250), and a header before the packets."""
    path = write_numbered_video(tmp_path / "plain.mp4", FRAMES, Coding(gop=25, b_frames=3))
    fast = remuxed(video_of("hevc", "groups of 20").data, tmp_path / "fast.mp4", movflags="faststart")
    assert fast.index(b"moov") < fast.index(b"mdat")
    for data in (path.read_bytes(), fast):
        stream = reduced(data, WANTED)
        assert not stream.whole and len(stream.data) < 0.8 * len(data)
        before, after = decoded(data), decoded(stream.data)
        assert [after[number] for number in stream.frames] == [before[number] for number in WANTED]


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9, 0.999])
def test_truncated_files_are_an_error(share: float, one: Video) -> None:
    with pytest.raises(TableError):
        reduced(one.data[: int(share * len(one.data))], WANTED)


def test_fragments_that_are_missing_at_the_end_are_noticed(video_of: Find) -> None:
    data = video_of("vp9", "fragments").data
    last = [found.start() - 4 for found in re.finditer(b"moof", data)][-1]
    assert len(read_mp4(data[:last]).packets.sizes) == FRAMES - 1  # three seconds are 25 frames more than two chunks
    with pytest.raises(TableError, match="frame 74"):
        reduced(data[:last], [74])
    without = data[: data.rindex(b"mdat") - 4]
    with pytest.raises(TableError):
        reduced(without, [3])


def packets_of(stream: Stream) -> list[bytes]:
    packets = read_mp4(stream.data).packets
    return [packets.packet(place) for place in range(len(packets.sizes))]


@pytest.mark.parametrize(("codec", "layout"), [v for v in VIDEOS if v[0] in ("h264", "vp9")], ids=" ".join)
def test_a_changed_byte_of_a_header_never_gives_other_frames(codec: str, layout: str, video_of: Find) -> None:
    """It is noticed, passed on whole, or without effect. Bytes that set up the decoder are not looked at here."""
    one = video_of(codec, layout)
    sound = reduced(one.data, WANTED)
    expected = (packets_of(sound), sound.frames.tolist())
    coded = [
        range(found.end(), found.end() + struct.unpack_from(">I", one.data, found.start() - 4)[0] - 8)
        for found in re.finditer(b"mdat", one.data)
    ]
    config = range(*box(one.data, b"avcC" if codec == "h264" else b"vpcC"))
    counts = {"error": 0, "whole": 0, "more": 0, "same": 0}
    for at in range(len(one.data)):
        if at in config or any(at in span for span in coded):
            continue
        for mask in (1, 0x80):
            data = changed(one.data, at, bytes([one.data[at] ^ mask]))
            try:
                stream = reduced(data, WANTED)
            except TableError:
                counts["error"] += 1
                continue
            if stream.whole:
                counts["whole"] += 1
            elif (packets_of(stream), stream.frames.tolist()) == expected:
                counts["same"] += 1
            else:
                found = decoded(stream.data)
                assert [found[number] for number in stream.frames] == chosen(WANTED, one), at
                counts["more"] += 1
    assert counts["error"] > 100 and counts["whole"] > 20 and counts["same"] > 100, counts


def test_a_length_that_a_plain_mp4_cannot_say_is_passed_on_whole(video_of: Find) -> None:
    one = video_of("vp9", "one group").data  # without a ctts
    one = one.replace(b"edts", b"free")  # an edit list would not fit the other times
    start = box(one, b"stts")[0]
    for delta in (1 << 28, 0xFFFFFFFF):  # 75 such frames take more than 31 bits
        data = changed(one, start + 20, struct.pack(">I", delta))
        assert whole(reduced(data, WANTED), data)
    assert not reduced(changed(one, start + 20, struct.pack(">I", 1 << 24)), WANTED).whole
