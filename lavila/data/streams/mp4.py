"""Reads the packets of an mp4 as our encoder writes it. Nothing is decoded.

Names and layouts of boxes are those of ISO/IEC 14496-12. Two forms are read: a plain mp4 (layout "clips"), and a header
with any of the fragments that follow it (layout "chunks"). Each has one video track, and all of its media data is
packets of that track.

A file of another form is not wrong: `OtherForm` says what is not as expected. A file whose tables do not fit its bytes
is damaged, whoever wrote it: `TableError`. Decoders make pictures of such a file without an error.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, pairwise, repeat
from operator import add

from lavila.errors import UserError

Span = tuple[int, int]
"""First byte, and the byte after the last."""

BOX_HEADER = 8  # bytes: the size with these bytes, and the type
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
# The flags of tfhd and trun say which fields are there (8.8.7 and 8.8.8).
TFHD_DURATION, TFHD_SIZE, TFHD_FLAGS = 0x8, 0x10, 0x20
DEFAULT_BASE_IS_MOOF = 0x20000
TRUN_DATA_OFFSET, TRUN_FIRST_FLAGS = 0x1, 0x4
TRUN_DURATION, TRUN_SIZE, TRUN_FLAGS, TRUN_COMPOSITION = 0x100, 0x200, 0x400, 0x800
NON_SYNC = 0x10000  # sample_is_non_sync_sample


class TableError(UserError):
    """A video whose tables do not fit its bytes, with the reason in one line."""


class OtherForm(UserError):
    """A video of another form than our encoder's. The message says what is not as expected."""


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


@dataclass(frozen=True, slots=True)
class Mp4:
    """An mp4 with one video track."""

    packets: Packets
    width: int  # pixels
    height: int
    delta: int  # time from one frame to the next, in units of the track
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
    top = list(_boxes(data, (0, len(data))))
    kinds = [kind for kind, _ in top]
    if kinds.count(b"moov") != 1 or not set(kinds) <= TOP:
        raise OtherForm("other boxes than those of one header and its media data")
    header = _Header.read(data, top[kinds.index(b"moov")][1])
    if header.fragmented:
        moofs = [start for kind, (start, _) in top if kind == b"moof"]
        table = _joined([_fragment(data, start, header.defaults) for start in moofs])
    elif b"moof" in kinds:
        raise OtherForm("fragments without a header for them")
    else:
        table = _tables(data, header.children, header.edit)
    _check_places(table, [(start + BOX_HEADER, stop) for kind, (start, stop) in top if kind == b"mdat"])
    packets = Packets(
        codec=header.codec,
        config=header.config,
        data=data,
        starts=table.starts,
        sizes=table.sizes,
        numbers=table.numbers,
        keys=table.keys,
    )
    return Mp4(packets, header.width, header.height, table.delta, header.kept)


def shown_order(times: Sequence[int]) -> list[int]:
    """The number of each frame in the order of the frames' times. TableError if two have the same time."""
    ordered = sorted(times)
    numbers = {time: number for number, time in enumerate(ordered)}
    if len(numbers) != len(times):
        raise TableError("its frames do not have distinct times")
    return [numbers[time] for time in times]


def _boxes(data: bytes, span: Span) -> Iterator[tuple[bytes, Span]]:
    """Type and place of each box in a span of bytes, its header with it. Raises TableError unless they fill it."""
    at, stop = span
    while at < stop:
        size = int.from_bytes(data[at : at + 4], "big")
        if size == 1:
            raise OtherForm("a box of more than 4 GiB")
        if size < BOX_HEADER or at + size > stop:
            raise TableError(f"a part of the mp4 that begins at byte {at} does not end where its header says")
        yield data[at + 4 : at + BOX_HEADER], (at, at + size)
        at += size


def _children(data: bytes, span: Span) -> dict[bytes, Span]:
    """The boxes in a box, by type. Raises OtherForm if there are two of one type."""
    inside = list(_boxes(data, (span[0] + BOX_HEADER, span[1])))
    found = dict(inside)
    if len(found) != len(inside):
        raise OtherForm("two tracks, or two tables of one kind")
    return found


@dataclass(frozen=True, slots=True)
class _Header:
    """What moov says of a video, besides its tables."""

    codec: str
    config: bytes
    width: int
    height: int
    fragmented: bool
    defaults: tuple[int, int, int]  # duration, size and flags of packets whose fragment does not say them
    edit: tuple[int, int] | None  # the edit list: its length and its beginning, both in units of the track, rounded up
    children: dict[bytes, Span]  # the tables
    kept: dict[bytes, bytes]

    @classmethod
    def read(cls, data: bytes, span: Span) -> _Header:
        moov = _children(data, span)
        trak = _children(data, moov[b"trak"])
        mdia = _children(data, trak[b"mdia"])
        minf = _children(data, mdia[b"minf"])
        stbl = _children(data, minf[b"stbl"])
        places = {**moov, **trak, **mdia, **minf, **stbl}
        names = (b"mvhd", b"tkhd", b"mdhd", b"hdlr", b"vmhd", b"dinf", b"stsd")
        kept = {name: data[slice(*places[name])] for name in names if name in places}
        if set(kept) != set(names):
            raise OtherForm("not a video track")
        if any(kept[name][BOX_HEADER] != 0 for name in (b"mvhd", b"tkhd", b"mdhd")):
            raise OtherForm("times of 64 bits")
        if not all(struct.unpack_from(">I", kept[name], TIMESCALE)[0] for name in (b"mvhd", b"mdhd")):
            raise TableError("the header of the mp4 has no unit of time")
        entry = kept[b"stsd"][BOX_HEADER + 8 :]
        count = struct.unpack_from(">I", kept[b"stsd"], BOX_HEADER + 4)[0]
        if count != 1 or entry[4:8] not in CODECS or len(entry) != struct.unpack_from(">I", entry)[0]:
            raise OtherForm("another codec, or several sample descriptions")
        codec, name = CODECS[entry[4:8]]
        config = _children(entry, (VISUAL_SAMPLE_ENTRY - BOX_HEADER, len(entry)))[name]
        width, height = struct.unpack_from(">HH", entry, 32)
        defaults = (0, 0, 0)
        if b"mvex" in moov:
            trex = _children(data, moov[b"mvex"])[b"trex"]
            defaults = struct.unpack_from(">III", data, trex[0] + BOX_HEADER + 12)
        return cls(
            codec=codec,
            config=entry[config[0] + BOX_HEADER : config[1]],
            width=width,
            height=height,
            fragmented=b"mvex" in moov,
            defaults=defaults,
            edit=_edit(data, trak, kept),
            children=stbl,
            kept=kept,
        )


def _edit(data: bytes, trak: dict[bytes, Span], kept: dict[bytes, bytes]) -> tuple[int, int] | None:
    """Length and beginning of the one edit; None without an edit list. Other edit lists are of another form."""
    if b"edts" not in trak:
        return None
    start, stop = _children(data, trak[b"edts"])[b"elst"]
    if stop - start != 28 or data[start + BOX_HEADER] != 0:
        raise OtherForm("an edit list of several parts")
    count, length, begin, rate = struct.unpack_from(">IIiI", data, start + 12)
    if count != 1 or begin < 0 or rate != 1 << 16:
        raise OtherForm("an edit list that delays or slows the video")
    whole, own = (struct.unpack_from(">I", kept[box], TIMESCALE)[0] for box in (b"mvhd", b"mdhd"))
    return -(-length * own // whole), begin


@dataclass(frozen=True, slots=True)
class _Table:
    """Where the packets lie and when their frames are shown, by decoding order."""

    spans: list[Span]  # the stretches of bytes that hold packets without a gap
    starts: list[int]
    sizes: list[int]
    numbers: list[int]  # of the frames, as they are shown
    keys: list[bool]
    first: int  # the time at which the first frame is shown
    delta: int  # time from one packet to the next


def _tables(data: bytes, stbl: dict[bytes, Span], edit: tuple[int, int] | None) -> _Table:
    """The packets of a plain mp4."""

    def numbers(name: bytes, fields: int = 1, kind: str = "I") -> tuple[int, ...]:
        """The numbers in a table of entries with some fields each."""
        start, stop = stbl[name]
        count = fields * struct.unpack_from(">I", data, start + BOX_HEADER + 4)[0]
        if stop - start != BOX_HEADER + 8 + 4 * count:
            raise TableError(f"the table {name.decode()} of the mp4 has another length than it says")
        return struct.unpack_from(f">{count}{kind}", data, start + BOX_HEADER + 8)

    sizes = _sizes(data, stbl[b"stsz"])
    frames, durations = len(sizes), numbers(b"stts", 2)
    if len(durations) != 2:
        raise OtherForm("a frame rate that varies")
    if durations[0] != frames or not durations[1]:
        raise TableError(f"times for {durations[0]} packets, and there are {frames}")
    delta = durations[1]
    times = list(range(0, delta * frames, delta))
    if b"ctts" in stbl:
        runs = numbers(b"ctts", 2, "i")
        if sum(runs[::2]) != frames or min(runs[::2]) < 0:
            raise TableError("the table ctts of the mp4 is not for all of its packets")
        times = list(map(add, times, chain.from_iterable(map(repeat, runs[1::2], runs[::2]))))
    first, shown = _numbered(times, delta)
    if edit is not None and (first != edit[1] or first + delta * frames > edit[0] + edit[1]):
        raise OtherForm("an edit list that hides frames")
    keys = [True] * frames
    if b"stss" in stbl:
        keys = [False] * frames
        for number in numbers(b"stss"):
            if not 1 <= number <= frames:
                raise TableError("the table stss of the mp4 names packets that are not there")
            keys[number - 1] = True
    spans, starts = _places(numbers(b"stsc", 3), numbers(b"stco"), sizes)
    return _Table(spans, starts, sizes, shown, keys, first, delta)


def _sizes(data: bytes, span: Span) -> list[int]:
    """The table stsz: the bytes of each packet."""
    at = span[0] + BOX_HEADER + 4
    same, frames = struct.unpack_from(">II", data, at)
    if span[1] - at != 8 + (0 if same else 4 * frames):
        raise TableError("the table stsz of the mp4 has another length than it says")
    if not frames or frames > len(data):
        raise TableError("the mp4 holds no frames, or more than bytes")
    return [same] * frames if same else list(struct.unpack_from(f">{frames}I", data, at + 8))


def _places(runs: Sequence[int], offsets: Sequence[int], sizes: Sequence[int]) -> tuple[list[Span], list[int]]:
    """The bytes of each chunk of packets, and the first byte of each packet.

    `runs`: stsc, as rows of a chunk's number (from 1), how many packets it and those after it have, and 1.
    """
    firsts, counts = runs[::3], runs[1::3]
    if set(runs[2::3]) != {1}:
        raise OtherForm("several sample descriptions")
    spans: list[Span] = []
    starts: list[int] = []
    for first, stop, count in zip(firsts, [*firsts[1:], len(offsets) + 1], counts, strict=True):
        if first != len(spans) + 1 or stop <= first or stop > len(offsets) + 1:
            raise TableError("the table stsc of the mp4 is not for all of its media data")
        for offset in offsets[first - 1 : stop - 1]:
            ends = list(accumulate(sizes[len(starts) : len(starts) + count], initial=offset))
            starts += ends[:-1]
            spans.append((offset, ends[-1]))
    if len(starts) != len(sizes):
        raise TableError(f"places for {len(starts)} packets, and there are {len(sizes)}")
    return spans, starts


def _fragment(data: bytes, start: int, defaults: tuple[int, int, int]) -> _Table:
    """The packets of one fragment, whose moof begins at byte `start`."""
    moof = _children(data, (start, start + struct.unpack_from(">I", data, start)[0]))
    traf = _children(data, moof[b"traf"])
    if set(traf) != {b"tfhd", b"tfdt", b"trun"}:
        raise OtherForm("fragments with other tables")
    at = traf[b"tfhd"][0] + BOX_HEADER
    flags = struct.unpack_from(">I", data, at)[0] & 0xFFFFFF
    known = TFHD_DURATION | TFHD_SIZE | TFHD_FLAGS | DEFAULT_BASE_IS_MOOF
    if flags & ~known or not flags & DEFAULT_BASE_IS_MOOF:
        raise OtherForm("fragments whose places do not count from their own start")
    duration, size, mode, at = *defaults, at + 8
    if flags & TFHD_DURATION:
        duration, at = struct.unpack_from(">I", data, at)[0], at + 4
    if flags & TFHD_SIZE:
        size, at = struct.unpack_from(">I", data, at)[0], at + 4
    if flags & TFHD_FLAGS:
        mode = struct.unpack_from(">I", data, at)[0]
    at = traf[b"tfdt"][0] + BOX_HEADER
    first = struct.unpack_from(">Q" if data[at] else ">I", data, at + 4)[0]
    return _run(data, traf[b"trun"], start, first=first, defaults=(duration, size, mode))


def _run(data: bytes, trun: Span, moof: int, *, first: int, defaults: tuple[int, int, int]) -> _Table:
    """The packets of a trun. `first`: the decoding time of its first packet."""
    at = trun[0] + BOX_HEADER
    flags, count = struct.unpack_from(">II", data, at)
    at, version, first_mode = at + 8, flags >> 24, None
    if not flags & TRUN_DATA_OFFSET:
        raise OtherForm("fragments that do not say where their packets lie")
    offset, at = struct.unpack_from(">i", data, at)[0], at + 4
    if flags & TRUN_FIRST_FLAGS:
        first_mode, at = struct.unpack_from(">I", data, at)[0], at + 4
    fields = [flag for flag in (TRUN_DURATION, TRUN_SIZE, TRUN_FLAGS, TRUN_COMPOSITION) if flags & flag]
    if not 0 < count <= len(data) or trun[1] - at != 4 * count * len(fields):
        raise TableError("the table trun of the mp4 has another length than it says")
    values = struct.unpack_from(f">{count * len(fields)}I", data, at)
    columns = {flag: list(values[place :: len(fields)]) for place, flag in enumerate(fields)}
    durations, sizes, modes = (
        columns.get(flag, [default] * count)
        for flag, default in zip((TRUN_DURATION, TRUN_SIZE, TRUN_FLAGS), defaults, strict=True)
    )
    if first_mode is not None:
        modes[0] = first_mode
    delta = durations[0]
    if not delta or durations != [delta] * count:
        raise OtherForm("a frame rate that varies")
    times = list(range(first, first + delta * count, delta))
    if TRUN_COMPOSITION in columns:
        shifts = columns[TRUN_COMPOSITION]  # with a sign in version 1
        times = list(map(add, times, [shift - (shift >> 31 << 32) for shift in shifts] if version else shifts))
    begin, shown = _numbered(times, delta)
    ends = list(accumulate(sizes, initial=moof + offset))
    keys = [not mode & NON_SYNC for mode in modes]
    return _Table([(ends[0], ends[-1])], ends[:-1], sizes, shown, keys, begin, delta)


def _numbered(times: list[int], delta: int) -> tuple[int, list[int]]:
    """The first time, and the number of each frame as they are shown. OtherForm unless their distances are equal."""
    first = min(times)
    ordered = list(range(first, first + delta * len(times), delta))
    if times != ordered and sorted(times) != ordered:
        raise OtherForm("frames at varying distances")
    return first, [(time - first) // delta for time in times]


def _joined(parts: Sequence[_Table]) -> _Table:
    if not parts:
        raise TableError("the mp4 holds no frames")
    if any(part.delta != parts[0].delta for part in parts):
        raise OtherForm("a frame rate that varies")
    if any(after.first <= part.first + part.delta * (len(part.numbers) - 1) for part, after in pairwise(parts)):
        raise TableError("its fragments are not in the order in which they are shown")
    names = ("spans", "starts", "sizes", "keys")
    spans, starts, sizes, keys = ([one for part in parts for one in getattr(part, name)] for name in names)
    numbers: list[int] = []
    for part in parts:
        numbers += [len(numbers) + number for number in part.numbers]
    return _Table(spans, starts, sizes, numbers, keys, parts[0].first, parts[0].delta)


def _check_places(table: _Table, media: Sequence[Span]) -> None:
    """Raise TableError unless the packets together are the media data, each byte once and in order."""
    spans: list[Span] = []
    for start, stop in table.spans:
        if spans and spans[-1][1] == start:
            start = spans.pop()[0]
        spans.append((start, stop))
    if spans != media or min(table.sizes) < 1:
        raise TableError("the packets in its header are not those in its media data")
