"""Writes an mp4 with some packets of another one, in the plain form (ISO/IEC 14496-12). Nothing is decoded."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from itertools import groupby

from lavila.data.streams.boxes import BOX_HEADER
from lavila.data.streams.mp4 import Mp4, Packets, shown_order

FTYP = struct.pack(">I4s4sI", 28, b"ftyp", b"isom", 0x200) + b"isomiso2mp41"  # as FFmpeg begins an mp4
# Places of fields from the start of a box of version 0, with its header.
MVHD_DURATION, TKHD_DURATION, MDHD_DURATION = 24, 28, 24


def write_mp4(source: Mp4, kept: Sequence[int]) -> bytes:
    """An mp4 with some packets of another one. The distance of frames is as before, and the first comes at time 0.

    `kept`: places of packets in decoding order, ascending. A decoder must be able to decode them without the others.
    """
    packets, boxes, delta, count = source.packets, source.boxes, source.delta, len(kept)
    shown = shown_order([packets.numbers[place] for place in kept])
    sizes = [packets.sizes[place] for place in kept]
    sync = [number for number, place in enumerate(kept, start=1) if packets.keys[place]]
    movie_unit, unit = source.units
    media, movie = count * delta, -(-count * delta * movie_unit // unit)  # durations
    stbl = _box(
        b"stbl",
        boxes[b"stsd"],
        _table(b"stts", [count, delta], entries=1),
        _table(b"stss", sync, entries=len(sync)),
        _composition([delta * (number - place) for place, number in enumerate(shown)]),
        _table(b"stsc", [1, count, 1], entries=1),
        _table(b"stsz", [count, *sizes], entries=0),  # where others count their entries, it has the size of all packets
        _table(b"stco", [len(FTYP) + BOX_HEADER], entries=1),
    )
    minf = _box(b"minf", boxes[b"vmhd"], boxes[b"dinf"], stbl)
    mdia = _box(b"mdia", _timed(boxes[b"mdhd"], MDHD_DURATION, media), boxes[b"hdlr"], minf)
    trak = _box(b"trak", _timed(boxes[b"tkhd"], TKHD_DURATION, movie), mdia)
    moov = _box(b"moov", _timed(boxes[b"mvhd"], MVHD_DURATION, movie), trak)
    return b"".join([FTYP, struct.pack(">I4s", BOX_HEADER + sum(sizes), b"mdat"), *_pieces(packets, kept), moov])


def _timed(box: bytes, at: int, duration: int) -> bytes:
    """A box with another duration."""
    return box[:at] + struct.pack(">I", duration) + box[at + 4 :]


def _composition(shifts: Sequence[int]) -> bytes:
    """The table ctts (version 1, signed) in runs of equal values; nothing if frames are shown as they are decoded."""
    if not any(shifts):
        return b""
    runs: list[int] = []
    for shift, same in groupby(shifts):
        runs += [sum(1 for _ in same), shift]
    return _box(b"ctts", struct.pack(f">II{len(runs)}i", 1 << 24, len(runs) // 2, *runs))


def _pieces(packets: Packets, kept: Sequence[int]) -> list[memoryview]:
    """The bytes of the packets; those that follow each other in one piece. Nothing is copied."""
    data, starts, sizes = memoryview(packets.data), packets.starts, packets.sizes
    pieces: list[memoryview] = []
    start = stop = 0
    for place in kept:
        if starts[place] != stop:
            pieces.append(data[start:stop])
            start = starts[place]
        stop = starts[place] + sizes[place]
    return [*pieces, data[start:stop]]


def _box(kind: bytes, *content: bytes) -> bytes:
    return b"".join([struct.pack(">I4s", BOX_HEADER + sum(map(len, content)), kind), *content])


def _table(kind: bytes, numbers: Sequence[int], *, entries: int) -> bytes:
    """A box of version 0 with a number of entries and the numbers in them."""
    return _box(kind, struct.pack(f">II{len(numbers)}I", 0, entries, *numbers))
