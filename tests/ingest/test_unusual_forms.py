"""Sound files of forms that few writers use are stored whole: no check for damage takes them for damaged ones."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import pytest

from lavila.ingest.encode import EncodeSettings, Interval, encode_clip
from lavila.ingest.vpx import without_modes
from tests.footage import Coding, read_numbers, write_numbered_video

FRAMES = 40
CODING = Coding(gop=8, b_frames=0)
SEGMENT, CLUSTER, TRACKS, TRACK = b"\x18\x53\x80\x67", b"\x1f\x43\xb6\x75", b"\x16\x54\xae\x6b", b"\xae"
SIMPLE_BLOCK, CHECKSUM, CUES, SEEK_HEAD = b"\xa3", b"\xbf", b"\x1c\x53\xbb\x6b", b"\x11\x4d\x9b\x74"


def numbers(video: Path, stop: float | None = None) -> list[int]:
    settings = EncodeSettings(codec="h264", short_side=48, speed="ultrafast")
    return read_numbers(
        encode_clip(video, interval=Interval(start_second=0.0, stop_second=stop), settings=settings).data
    )


def written(path: Path, coding: Coding = CODING) -> Path:
    return write_numbered_video(path, FRAMES, coding, height=48, width=64)


def elements(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Name and content of the elements of a part of a Matroska file."""
    at = 0
    while at < len(data):
        name = data[at : at + 9 - data[at].bit_length()]
        at += len(name)
        length = 9 - data[at].bit_length()
        begin = at + length
        at = begin + int.from_bytes(data[at:begin], "big") - (1 << 7 * length)
        yield name, data[begin:at]


def element(name: bytes, content: bytes) -> bytes:
    return name + (1 << 56 | len(content)).to_bytes(8, "big") + content


def rewritten(data: bytes, block: Callable[[bytes], bytes], *, track: bytes = b"") -> bytes:
    """A Matroska file without index and checksums, whose blocks are others, with more in the header of its track."""
    whole = b""
    for name, content in elements(data):
        if name == SEGMENT:
            parts = b""
            for kind, part in elements(content):
                if part[:1] == CHECKSUM:
                    part = part[6:]
                if kind == CLUSTER:
                    inside = (
                        block(one) if name == SIMPLE_BLOCK else element(name, one) for name, one in elements(part)
                    )
                    part = b"".join(inside)
                elif kind == TRACKS:
                    part = b"".join(element(name, one + track * (name == TRACK)) for name, one in elements(part))
                parts += b"" if kind in (CUES, SEEK_HEAD) else element(kind, part)
            content = parts
        whole += element(name, content)
    return whole


def encoding(content: bytes) -> bytes:
    """ContentEncodings of a track that is compressed."""
    return element(b"\x6d\x80", element(b"\x62\x40", element(b"\x50\x34", content)))


def grouped(content: bytes, extra: bytes) -> bytes:
    """A BlockGroup with a reference unless it is a keyframe, and with a part that writers seldom use."""
    flags = content[3]
    reference = b"" if flags & 0x80 else element(b"\xfb", b"\xd8")
    return element(b"\xa0", element(b"\xa1", content[:3] + bytes([flags & 0x7F]) + content[4:]) + reference + extra)


FORMS: dict[str, tuple[Callable[[bytes], bytes], bytes]] = {
    "header removed": (
        lambda block: element(SIMPLE_BLOCK, block[:4] + block[6:]),
        encoding(element(b"\x42\x54", b"\3") + element(b"\x42\x55", bytes(2))),
    ),
    "zlib": (
        lambda block: element(SIMPLE_BLOCK, block[:4] + zlib.compress(block[4:])),
        encoding(element(b"\x42\x54", b"\0")),
    ),
    "priority": (lambda block: grouped(block, element(b"\xfa", b"\1")), b""),
    "slices": (lambda block: grouped(block, element(b"\x8e", element(b"\xe8", element(b"\xcc", b"\0")))), b""),
}


@pytest.mark.parametrize("pause", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_matroska(tmp_path: Path, form: str, pause: bool) -> None:
    times = tuple(40 * number + (1000 if number >= 20 else 0) for number in range(FRAMES)) if pause else ()
    video = written(tmp_path / "a.mkv", Coding(gop=8, b_frames=0, milliseconds=times))
    block, track = FORMS[form]
    data = rewritten(video.read_bytes(), block, track=track)
    assert data != rewritten(video.read_bytes(), lambda content: element(SIMPLE_BLOCK, content))
    video.write_bytes(data)
    assert sorted(set(numbers(video, 2.4 if pause else None))) == list(range(FRAMES - 5 * pause))


@pytest.mark.parametrize("without", [1, 11])
def test_sizes_behind_the_tags_of_an_flv(tmp_path: Path, without: int) -> None:
    video = written(tmp_path / "a.flv")
    data, at = bytearray(video.read_bytes()), 13
    while at < len(data):
        size = 11 + int.from_bytes(data[at + 1 : at + 4], "big")
        data[at + size : at + size + 4] = (size - without).to_bytes(4, "big")
        at += size + 4
    video.write_bytes(data)
    assert numbers(video) == list(range(FRAMES))


@pytest.mark.parametrize("before", [100, 300, 1000])
def test_a_transport_stream_behind_something_else(tmp_path: Path, before: int) -> None:
    video = written(tmp_path / "a.ts")
    video.write_bytes(bytes(before) + video.read_bytes())
    assert numbers(video) == list(range(FRAMES))


def test_a_second_delimiter_of_a_muxer(tmp_path: Path) -> None:
    video, twice = written(tmp_path / "a.ts"), tmp_path / "b.ts"
    with av.open(str(video)) as source, av.open(str(twice), "w") as out:
        stream = out.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                other = av.Packet(b"\0\0\0\1\x09\xf0" + bytes(packet))
                other.pts, other.dts, other.time_base, other.stream = packet.pts, packet.dts, packet.time_base, stream
                other.is_keyframe = packet.is_keyframe
                out.mux(other)
    assert numbers(twice) == list(range(FRAMES))


def test_zeros_in_the_modes_of_vp8() -> None:
    """Strong noise has 73 zeros in a row there, at speeds that depend on the machine's load."""
    modes, rest = bytes(80), bytes(range(1, 100))
    frame = (len(modes) << 5 | 1).to_bytes(3, "little") + modes + rest
    keyframe = (len(modes) << 5).to_bytes(3, "little") + b"\x9d\x01\x2a" + bytes(4) + modes + rest
    assert without_modes("vp8", frame) == without_modes("vp8", keyframe) == rest
    assert without_modes("vp9", frame) == frame
