"""What the tables of an mp4 say of its packets: where they lie, and when their frames are shown."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, pairwise, repeat
from operator import add

from lavila.data.streams.boxes import BOX_HEADER, OtherForm, Span, TableError, children

# The flags of tfhd and trun say which fields are there (8.8.7 and 8.8.8).
TFHD_DURATION, TFHD_SIZE, TFHD_FLAGS = 0x8, 0x10, 0x20
DEFAULT_BASE_IS_MOOF = 0x20000
TRUN_DATA_OFFSET, TRUN_FIRST_FLAGS = 0x1, 0x4
TRUN_DURATION, TRUN_SIZE, TRUN_FLAGS, TRUN_COMPOSITION = 0x100, 0x200, 0x400, 0x800
NON_SYNC = 0x10000  # sample_is_non_sync_sample


@dataclass(frozen=True, slots=True)
class Table:
    """Where the packets lie and when their frames are shown, by decoding order."""

    spans: list[Span]  # the stretches of bytes that hold packets without a gap
    starts: list[int]
    sizes: list[int]
    numbers: list[int]  # of the frames, as they are shown
    keys: list[bool]
    first: int  # the time at which the first frame is shown
    delta: int  # time from one packet to the next


def plain_table(data: bytes, stbl: dict[bytes, Span], edit: tuple[int, int] | None) -> Table:
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
    return Table(spans, starts, sizes, shown, keys, first, delta)


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


def fragment_table(data: bytes, start: int, defaults: tuple[int, int, int]) -> Table:
    """The packets of one fragment, whose moof begins at byte `start`."""
    moof = children(data, (start, start + struct.unpack_from(">I", data, start)[0]))
    traf = children(data, moof[b"traf"])
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


def _run(data: bytes, trun: Span, moof: int, *, first: int, defaults: tuple[int, int, int]) -> Table:
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
    columns = {flag: values[place :: len(fields)] for place, flag in enumerate(fields)}
    durations = columns.get(TRUN_DURATION) or defaults[:1] * count
    sizes = columns.get(TRUN_SIZE) or defaults[1:2] * count
    modes = columns.get(TRUN_FLAGS) or defaults[2:] * count
    keys = [not mode & NON_SYNC for mode in modes]
    if first_mode is not None:
        keys[0] = not first_mode & NON_SYNC
    delta = durations[0]
    if not delta or durations.count(delta) != count:
        raise OtherForm("a frame rate that varies")
    times = list(range(first, first + delta * count, delta))
    if TRUN_COMPOSITION in columns:
        shifts = columns[TRUN_COMPOSITION]  # with a sign in version 1
        times = list(map(add, times, [shift - (shift >> 31 << 32) for shift in shifts] if version else shifts))
    begin, shown = _numbered(times, delta)
    ends = list(accumulate(sizes, initial=moof + offset))
    return Table([(ends[0], ends[-1])], ends[:-1], list(sizes), shown, keys, begin, delta)


def _numbered(times: list[int], delta: int) -> tuple[int, list[int]]:
    """The first time, and the number of each frame as they are shown. OtherForm unless their distances are equal."""
    first = min(times)
    ordered = list(range(first, first + delta * len(times), delta))
    if times != ordered and sorted(times) != ordered:
        raise OtherForm("frames at varying distances")
    return first, [(time - first) // delta for time in times]


def joined(parts: Sequence[Table]) -> Table:
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
    return Table(spans, starts, sizes, numbers, keys, parts[0].first, parts[0].delta)


def check_places(table: Table, media: Sequence[Span]) -> None:
    """Raise TableError unless the packets together are the media data, each byte once and in order."""
    spans: list[Span] = []
    for start, stop in table.spans:
        if spans and spans[-1][1] == start:
            start = spans.pop()[0]
        spans.append((start, stop))
    if spans != media or min(table.sizes) < 1:
        raise TableError("the packets in its header are not those in its media data")
