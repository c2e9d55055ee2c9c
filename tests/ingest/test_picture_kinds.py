"""Dolby Vision whose colours only Dolby shows is refused; other profiles are HDR10 or HLG; spherical video is named."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from lavila.ingest.encode import EncodedClip, EncodeError, EncodeSettings, Interval, encode_clip
from tests.footage import Coding, write_numbered_video
from tests.ingest.hdr_video import HLG, PQ, columns, signal_of, write_hdr

SMALL = EncodeSettings(codec="h264", short_side=48, speed="ultrafast", crf=18)
PATH_OF_ENTRIES = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd")


def stored(path: Path) -> EncodedClip:
    return encode_clip(path, interval=Interval(start_second=0.0, stop_second=None), settings=SMALL)


def box(kind: bytes, *content: bytes) -> bytes:
    inside = b"".join(content)
    return struct.pack(">I4s", 8 + len(inside), kind) + inside


def with_box(path: Path, new: bytes, *, tag: bytes | None = None) -> Path:
    """Add a box to the entry of the only stream of an mp4 whose tables lie at its end. `tag`: the entry's new kind."""
    data = bytearray(path.read_bytes())
    at, stop, sizes = 0, len(data), []
    for kind in PATH_OF_ENTRIES:
        while data[at + 4 : at + 8] != kind:
            at += int.from_bytes(data[at : at + 4], "big")
            assert at < stop, kind
        sizes.append(at)
        at += 8
    at += 8  # version and number of entries
    sizes.append(at)
    if tag is not None:
        data[at + 4 : at + 8] = tag
    end = at + int.from_bytes(data[at : at + 4], "big")
    for place in sizes:
        data[place : place + 4] = (int.from_bytes(data[place : place + 4], "big") + len(new)).to_bytes(4, "big")
    data[end:end] = new
    path.write_bytes(data)
    return path


# Spherical video


def test_spherical_video_is_named_and_stored_as_it_lies(tmp_path: Path) -> None:
    plain = write_numbered_video(tmp_path / "a.mp4", 5, height=48, width=96)
    data = stored(plain).data
    whole = struct.pack(">4x4I", 0, 0, 0, 0)
    projection = box(b"proj", box(b"prhd", bytes(16)), box(b"equi", whole))
    clip = stored(with_box(plain, box(b"sv3d", box(b"svhd", bytes(5)), projection)))
    assert clip.kind.row() == {"projection": "equirectangular"}
    assert clip.data == data


def test_ordinary_video_has_nothing_to_note(tmp_path: Path) -> None:
    assert (
        stored(write_numbered_video(tmp_path / "a.mp4", 5, Coding(rotation=90), height=48, width=96)).kind.row() == {}
    )


# Dolby Vision


def golomb(number: int) -> str:
    digits = f"{number + 1:b}"
    return "0" * (len(digits) - 1) + digits


def metadata(*, profile: int, full_range: bool) -> bytes:
    """A unit of Dolby Vision metadata (RPU) in its least form: every channel passes unchanged."""
    fields: list[tuple[int, int] | str] = [
        (2, 6),
        (18, 11),
        (profile, 4),
        (0, 4),
        (1, 1),
    ]  # type, format, profile, level
    fields += [(0, 1), (0, 2), golomb(23), (1, 2), (full_range, 1)]  # fixed-point numbers with 23 bits
    fields += [golomb(2), golomb(2), golomb(4), (0, 1), (0, 3), (0, 1), (1, 1)]  # depths of 10, 10 and 12; no residual
    fields += [(0, 1), (0, 1), golomb(0), golomb(0), golomb(0)]  # no display metadata, no earlier mapping
    for _ in range(3):
        fields += [golomb(0), (0, 10), (1023, 10)]  # two pivots
    fields += [golomb(0), golomb(0)]  # one partition
    for _ in range(3):
        fields += [golomb(0), golomb(0), (0, 1), golomb(0), (0, 23), golomb(2), (0, 23)]  # a polynomial: 0 + 1 x
    text = "".join(one if isinstance(one, str) else f"{int(one[0]):0{one[1]}b}" for one in fields)
    text += "0" * (-len(text) % 8)
    body = int(text, 2).to_bytes(len(text) // 8, "big")
    content = b"\x19" + body + crc32_mpeg2(body).to_bytes(4, "big") + b"\x80"
    return b"\x7c\x01" + escaped(content)


def crc32_mpeg2(data: bytes) -> int:
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte << 24
        for _ in range(8):
            value = (value << 1 ^ (0x04C11DB7 if value >> 31 else 0)) & 0xFFFFFFFF
    return value


def escaped(content: bytes) -> bytes:
    """Keep start codes from the content of a unit."""
    out = bytearray()
    for byte in content:
        if byte <= 3 and out[-2:] == b"\0\0":
            out.append(3)
        out.append(byte)
    return bytes(out)


def with_units(source: Path, path: Path, unit: bytes) -> Path:
    """The same video with a unit behind each of its pictures."""
    with av.open(str(source)) as container, av.open(str(path), "w") as out:
        copy: Any = out.add_stream_from_template(container.streams.video[0])
        for packet in _packets(container):
            new: Any = av.Packet(bytes(packet) + len(unit).to_bytes(4, "big") + unit)
            for name in ("pts", "dts", "time_base", "duration", "is_keyframe"):
                setattr(new, name, getattr(packet, name))
            new.stream = copy
            out.mux(new)
    return path


def _packets(container: Any) -> Iterator[Any]:
    return (packet for packet in container.demux(video=0) if packet.size)


@pytest.mark.parametrize("name", ["b.mp4", "b.mkv", "b.ts"])
@pytest.mark.parametrize("transfer", [PQ, HLG], ids=["PQ", "HLG"])
def test_metadata_decide_by_profile(tmp_path: Path, transfer: int, name: str) -> None:
    """Profile 5 has RPU profile 0 and full range. Profile 8 has RPU profile 1, upon HDR10 (8.1) or HLG (8.4)."""
    base = write_hdr(tmp_path / "a.mp4", columns(signal_of(np.array([20.0, 203.0]), transfer)), transfer)
    own = with_units(base, tmp_path / f"5{name}", metadata(profile=0, full_range=True))
    with pytest.raises(EncodeError, match="profile 5"):
        stored(own)
    compatible = with_units(base, tmp_path / f"8{name}", metadata(profile=1, full_range=False))
    clip = stored(compatible)
    assert clip.kind.row() == {"hdr": {PQ: "PQ", HLG: "HLG"}[transfer]}
    assert clip.data == stored(base).data


def test_without_metadata_the_kind_of_the_entry_decides(tmp_path: Path) -> None:
    """dvh1 says that ordinary decoders show wrong colours; hvc1 with a record of profile 8 that they do not."""
    base = write_hdr(tmp_path / "a.mp4", columns(signal_of(np.array([20.0, 203.0]), HLG)), HLG)
    data = base.read_bytes()
    own = box(b"dvcC", bytes([1, 0, 5 << 1, 0b00001_1_0_1, 0]), bytes(19))
    with pytest.raises(EncodeError, match="profile 5"):
        stored(with_box(base, own, tag=b"dvh1"))
    base.write_bytes(data)
    compatible = box(b"dvvC", bytes([1, 0, 8 << 1, 0b00001_1_0_1, 0x40]), bytes(19))
    assert stored(with_box(base, compatible, tag=b"hvc1")).kind.hdr == "HLG"
