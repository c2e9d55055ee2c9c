"""Reads the packets of an mp4 as our encoder writes it. Nothing is decoded.

Names and layouts of boxes are those of ISO/IEC 14496-12. Two forms are read: a plain mp4 (layout "clips"), and a header
with any of the fragments that follow it (layout "chunks"). Each has one video track, and all of its media data is
packets of that track.

A file of another form is not wrong: `OtherForm` says what is not as expected. A file whose tables do not fit its bytes
is damaged, whoever wrote it: `TableError`. Decoders make pictures of such a file without an error.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lavila.data.streams.boxes import BOX_HEADER, OtherForm, Span, TableError, boxes_in, children
from lavila.data.streams.tables import check_places, fragment_table, joined, plain_table

VISUAL_SAMPLE_ENTRY = 86  # bytes of an entry of stsd before the boxes in it, with its header
CODECS = {  # sample entry -> codec, and the box that sets up its decoder
    b"avc1": ("h264", b"avcC"),
    b"hvc1": ("hevc", b"hvcC"),
    b"hev1": ("hevc", b"hvcC"),
    b"vp09": ("vp9", b"vpcC"),
    b"av01": ("av1", b"av1C"),
}
TOP = {b"ftyp", b"free", b"moov", b"moof", b"mdat"}
EXTRADATA = {"h264", "hevc", "av1"}  # codecs whose decoder box FFmpeg's decoders take; VP9 needs none

TIMESCALE = 20  # place of this field in mvhd and mdhd of version 0, from the start of the box
LONGEST = 1 << 31  # lengths below fit in the tables of a plain mp4, with and without a sign


Groups = Mapping[int, Sequence[int]]
"""The wanted packets of groups of pictures: the place where decoding may begin -> wanted places. All ascend."""


@dataclass(frozen=True, slots=True)
class Packets:
    """The coded frames of a video, in decoding order. Each packet holds one frame that is shown."""

    codec: str  # h264, hevc, vp9, av1, or another name
    config: bytes  # what sets up the decoder: avcC, hvcC, av1C or vpcC without the box header
    data: bytes  # the bytes in which the packets lie
    starts: list[int]  # [P] first byte of each
    sizes: list[int]  # [P] bytes of each
    numbers: list[int]  # [P] 0-based number of each frame in the order in which frames are shown
    keys: list[bool]  # [P] whether the file says that decoding may begin here

    def packet(self, place: int) -> bytes:
        """The bytes of a packet."""
        start = self.starts[place]
        return self.data[start : start + self.sizes[place]]

    def view(self, place: int) -> memoryview:
        """The same without a copy, to look at the first bytes of a packet."""
        start = self.starts[place]
        return memoryview(self.data)[start : start + self.sizes[place]]


@dataclass(frozen=True, slots=True)
class Mp4:
    """An mp4 with one video track."""

    packets: Packets
    width: int  # pixels
    height: int
    delta: int  # time from one frame to the next, in units of the track
    units: tuple[int, int]  # units of time in a second: of the movie, of the track
    boxes: dict[bytes, bytes]  # the boxes of the header that do not depend on the packets, with their headers

    @property
    def extradata(self) -> bytes:
        """What FFmpeg's decoder is given before the first packet."""
        return self.packets.config if self.packets.codec in EXTRADATA else b""


def read_mp4(data: bytes) -> Mp4:
    """The packets of an mp4.

    Raises:
        OtherForm: our encoder does not write such files.
        TableError: the tables do not fit the bytes.
    """
    try:
        return _read(data)
    except (struct.error, KeyError) as error:  # fields beyond the end, missing boxes
        raise TableError("the header of the mp4 is damaged or incomplete") from error


def _read(data: bytes) -> Mp4:
    if data[4:8] != b"ftyp":
        raise OtherForm("not an mp4")
    top = boxes_in(data, (0, len(data)))
    kinds = [kind for kind, _ in top]
    if kinds.count(b"moov") != 1 or not set(kinds) <= TOP:
        raise OtherForm("other boxes than those of one header and its media data")
    header = _Header.read(data, top[kinds.index(b"moov")][1])
    if header.fragmented:
        moofs = [start for kind, (start, _) in top if kind == b"moof"]
        table = joined([fragment_table(data, start, header.defaults) for start in moofs])
    elif b"moof" in kinds:
        raise OtherForm("fragments without a header for them")
    else:
        table = plain_table(data, header.children, header.edit)
    check_places(table, [(start + BOX_HEADER, stop) for kind, (start, stop) in top if kind == b"mdat"])
    length, (movie_unit, unit) = table.delta * len(table.sizes), header.units
    if max(length, length * movie_unit // unit) >= LONGEST:
        raise OtherForm("a length of more than 31 bits")
    packets = Packets(
        codec=header.codec,
        config=header.config,
        data=data,
        starts=table.starts,
        sizes=table.sizes,
        numbers=table.numbers,
        keys=table.keys,
    )
    return Mp4(packets, header.width, header.height, table.delta, header.units, header.kept)


def shown_order(times: Sequence[int]) -> list[int]:
    """The number of each frame in the order of the frames' times. TableError if two have the same time."""
    ordered = sorted(times)
    numbers = {time: number for number, time in enumerate(ordered)}
    if len(numbers) != len(times):
        raise TableError("its frames do not have distinct times")
    return [numbers[time] for time in times]


@dataclass(frozen=True, slots=True)
class _Header:
    """What moov says of a video, besides its tables."""

    codec: str
    config: bytes
    width: int
    height: int
    fragmented: bool
    defaults: tuple[int, int, int]  # duration, size and flags of packets whose fragment does not say them
    units: tuple[int, int]  # as in Mp4
    edit: tuple[int, int] | None  # the edit list: its length and its beginning, both in units of the track, rounded up
    children: dict[bytes, Span]  # the tables
    kept: dict[bytes, bytes]

    @classmethod
    def read(cls, data: bytes, span: Span) -> _Header:
        moov = children(data, span)
        trak = children(data, moov[b"trak"])
        mdia = children(data, trak[b"mdia"])
        minf = children(data, mdia[b"minf"])
        stbl = children(data, minf[b"stbl"])
        places = {**moov, **trak, **mdia, **minf, **stbl}
        names = (b"mvhd", b"tkhd", b"mdhd", b"hdlr", b"vmhd", b"dinf", b"stsd")
        kept = {name: data[slice(*places[name])] for name in names if name in places}
        if set(kept) != set(names):
            raise OtherForm("not a video track")
        if any(kept[name][BOX_HEADER] != 0 for name in (b"mvhd", b"tkhd", b"mdhd")):
            raise OtherForm("times of 64 bits")
        movie_unit, unit = (struct.unpack_from(">I", kept[name], TIMESCALE)[0] for name in (b"mvhd", b"mdhd"))
        if not movie_unit or not unit:
            raise TableError("the header of the mp4 has no unit of time")
        entry = kept[b"stsd"][BOX_HEADER + 8 :]
        count = struct.unpack_from(">I", kept[b"stsd"], BOX_HEADER + 4)[0]
        if count != 1 or entry[4:8] not in CODECS or len(entry) != struct.unpack_from(">I", entry)[0]:
            raise OtherForm("another codec, or several sample descriptions")
        codec, name = CODECS[entry[4:8]]
        config = children(entry, (VISUAL_SAMPLE_ENTRY - BOX_HEADER, len(entry)))[name]
        width, height = struct.unpack_from(">HH", entry, 32)
        defaults = (0, 0, 0)
        if b"mvex" in moov:
            trex = children(data, moov[b"mvex"])[b"trex"]
            defaults = struct.unpack_from(">III", data, trex[0] + BOX_HEADER + 12)
        return cls(
            codec=codec,
            config=entry[config[0] + BOX_HEADER : config[1]],
            width=width,
            height=height,
            fragmented=b"mvex" in moov,
            defaults=defaults,
            units=(movie_unit, unit),
            edit=_edit(data, trak, movie_unit, unit),
            children=stbl,
            kept=kept,
        )


def _edit(data: bytes, trak: dict[bytes, Span], movie_unit: int, unit: int) -> tuple[int, int] | None:
    """Length and beginning of the one edit; None without an edit list. Other edit lists are of another form."""
    if b"edts" not in trak:
        return None
    start, stop = children(data, trak[b"edts"])[b"elst"]
    if stop - start != 28 or data[start + BOX_HEADER] != 0:
        raise OtherForm("an edit list of several parts")
    count, length, begin, rate = struct.unpack_from(">IIiI", data, start + 12)
    if count != 1 or begin < 0 or rate != 1 << 16:
        raise OtherForm("an edit list that delays or slows the video")
    return -(-length * unit // movie_unit), begin
