"""The numbers in H.264's headers: which pictures are missing, in which order they are shown, which are fields."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from lavila.ingest.h264 import PictureCounter, Place
from lavila.ingest.h264_headers import Bits, NotUnderstood, units
from lavila.ingest.hevc import HevcCounter

FRAMES = 40
CODINGS = {
    "plain": {"x264-params": "bframes=0:keyint=16:scenecut=0"},
    "b-frames": {"x264-params": "bframes=3:b-adapt=0:keyint=16:scenecut=0"},
    "pyramid": {"x264-params": "bframes=5:b-adapt=0:b-pyramid=normal:keyint=32:scenecut=0"},
    "open groups": {"x264-params": "bframes=3:b-adapt=0:open-gop=1:keyint=16:scenecut=0"},
    "weights": {"x264-params": "bframes=3:weightp=2:weightb=1:ref=6:keyint=250:scenecut=0"},
    "interlaced": {"x264-params": "bframes=2:tff=1:keyint=16:scenecut=0"},
    "baseline": {"profile": "baseline"},
    "slices": {"x264-params": "slices=4:bframes=2:keyint=16"},
    "matrices": {"x264-params": "cqm=jvt:bframes=2:keyint=16"},
    "refreshed": {"x264-params": "intra-refresh=1:bframes=0:keyint=16"},
}


def coded(path: Path, options: dict[str, str], pix_fmt: str = "yuv420p") -> Path:
    with av.open(str(path), "w") as out:
        stream: Any = out.add_stream("libx264", rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = 64, 48, pix_fmt
        stream.codec_context.thread_count = 1
        for number in range(FRAMES):
            # It fades, for which encoders write tables of weights.
            grey = np.random.default_rng(number // 4).integers(0, 255, (48, 64, 3)) * (FRAMES - number) // FRAMES
            frame: Any = av.VideoFrame.from_ndarray(grey.astype(np.uint8), format="rgb24").reformat(format=pix_fmt)
            frame.pts, frame.time_base = number, Fraction(1, 25)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def packets(path: Path) -> tuple[bytes, list[tuple[bytes, int]]]:
    """The decoder's configuration; bytes and time of each packet."""
    with av.open(str(path)) as container:
        stream: Any = container.streams.video[0]
        found = [(bytes(packet), packet.pts) for packet in container.demux(stream) if packet.size]
        return bytes(stream.codec_context.extradata or b""), found


def places(counter: PictureCounter | HevcCounter, data: list[bytes]) -> list[Place]:
    """What a new counter says of each packet; it understands all of them."""
    found = [counter.place(packet) for packet in data]
    assert None not in found
    return [place for place in found if place is not None]


@pytest.mark.parametrize("ending", ["mp4", "ts"])
@pytest.mark.parametrize("name", CODINGS)
def test_nothing_is_missing_in_a_whole_stream_and_order_is_that_of_the_screen(
    tmp_path: Path, name: str, ending: str
) -> None:
    extradata, found = packets(coded(tmp_path / f"a.{ending}", CODINGS[name]))
    seen = places(PictureCounter(extradata), [data for data, _ in found])
    assert not any(place.missing or place.second_field for place in seen)
    if any(place.order is None for place in seen):
        assert name in ("plain", "baseline", "refreshed")
        return
    keys = [(place.group, place.order, time) for place, (_, time) in zip(seen, found, strict=True)]
    assert [time for *_, time in sorted(keys)] == sorted(time for *_, time in keys)


@pytest.mark.parametrize("pix_fmt", ["yuv444p", "yuv422p", "gray", "yuv420p10le"])
def test_other_pixels(tmp_path: Path, pix_fmt: str) -> None:
    options = {"x264-params": "bframes=3:weightp=2:keyint=16"}
    extradata, found = packets(coded(tmp_path / "a.mp4", options, pix_fmt))
    assert not any(place.missing for place in places(PictureCounter(extradata), [data for data, _ in found]))


@pytest.mark.parametrize("name", ["plain", "b-frames", "weights", "interlaced", "slices"])
def test_a_missing_reference_is_found_and_a_frame_to_which_none_refers_is_not(tmp_path: Path, name: str) -> None:
    extradata, found = packets(coded(tmp_path / "a.mp4", CODINGS[name]))
    data = [packet for packet, _ in found]
    groups = [place.group for place in places(PictureCounter(extradata), data)]
    for lost in range(1, FRAMES - 1):
        slices = [unit for unit in units(data[lost], 4) if unit[0] & 0b11111 in (1, 5)]
        referred = slices[0][0] >> 5 & 0b11 > 0
        last_of_group = groups[lost + 1] != groups[lost]
        after = places(PictureCounter(extradata), data[:lost] + data[lost + 1 :])[lost:]
        assert any(place.missing for place in after) == (referred and not last_of_group), lost


def test_numbers_that_begin_anew_at_will_are_no_loss() -> None:
    """Memory management control operation 5: the picture behind it has frame_num 1, as after a keyframe."""
    counter = PictureCounter(b"\0\0\1" + SEQUENCE + b"\0\0\1" + PICTURE)
    sent = [(5, 0, None), (1, 1, None), (1, 2, 5), (1, 1, None), (1, 2, 1), (1, 4, None)]
    found = [counter.place(b"\0\0\1" + slice_unit(*one)) for one in sent]
    assert [place.missing for place in found if place is not None] == [False, False, False, False, False, True]


@pytest.mark.parametrize("packet", [b"", b"\0\0\1", b"\0\0\1\x65", b"\0\0\1\x65\x88", b"\0\0\1\x41\x80" + b"\0" * 50])
def test_what_is_not_understood_is_not_known(packet: bytes) -> None:
    assert PictureCounter(b"\0\0\1" + SEQUENCE + b"\0\0\1" + PICTURE).place(packet) is None
    assert PictureCounter(b"").place(packet) is None


def test_bits() -> None:
    bits = Bits(bytes([0b1_010_011_0, 0b0100_0000, 0, 0, 3, 1]))
    assert [bits.golomb() for _ in range(4)] == [0, 1, 2, 3]
    bits.read(4)
    assert bits.read(24) == 1, "the byte 3 behind two zeros is no content"
    with pytest.raises(NotUnderstood):
        bits.read(1)


# A stream written by hand: frame_num has 4 bits, and the order of decoding is that of the screen (type 2).


def packed(*fields: str) -> bytes:
    """Bits, closed like a unit."""
    text = "".join(fields) + "1"
    text += "0" * (-len(text) % 8)
    return int(text, 2).to_bytes(len(text) // 8, "big")


def golomb(number: int) -> str:
    digits = f"{number + 1:b}"
    return "0" * (len(digits) - 1) + digits


BASELINE = f"{66:08b}" + "0" * 8 + f"{30:08b}"
SEQUENCE = b"\x67" + packed(BASELINE, *map(golomb, (0, 0, 2, 4)), "0", *map(golomb, (3, 2)), "1", "1", "0", "0")
PICTURE = b"\x68" + packed(
    *map(golomb, (0, 0)), "0", "0", *map(golomb, (0, 0, 0)), "0", "00", *map(golomb, (0,) * 3), "000"
)


def slice_unit(kind: int, frame_num: int, operation: int | None) -> bytes:
    """The header of a slice of type I, with a memory management control operation."""
    head = [*map(golomb, (0, 7, 0)), f"{frame_num:04b}"]
    if kind == 5:
        return b"\x65" + packed(*head, golomb(0), "00")
    marking = "0" if operation is None else "1" + golomb(operation) + (golomb(0) if operation == 1 else "") + golomb(0)
    return b"\x41" + packed(*head, marking)
