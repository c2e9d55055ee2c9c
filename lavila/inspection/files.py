"""Checks that a shard set's files agree: checksums, tar members, indexes, tables. Nothing is decoded."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lavila.records import Ints
from lavila.shards.format import CHECKSUMS, CHUNKS, CLIPS, KEY, ShardFile, ShardSetError, shard_name, verify_shard
from lavila.shards.reader import ShardSet

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class BadFrames:
    """Frames [first, stop) of a stored video that cannot be used."""

    key: str  # clip_id or chunk_id
    first: int
    stop: int
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """The findings of one check, or of many."""

    problems: tuple[str, ...] = ()  # problems of files, one line each
    bad: tuple[BadFrames, ...] = ()

    def and_(self, other: Found) -> Found:
        """The findings of both."""
        return Found(problems=self.problems + other.problems, bad=self.bad + other.bad)


def video_rows(table: pa.Table) -> list[Row]:
    """Rows of clips.parquet or chunks.parquet, in the form of the .json members."""
    return [{**row, "extra": dict(row["extra"])} if "extra" in row else row for row in table.to_pylist()]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Member:
    name: str
    offset: int  # bytes from the start of the tar to the content
    size: int  # bytes
    plain: bool  # whether it is a regular file, not a folder or a link


@dataclass(frozen=True, kw_only=True, slots=True)
class _Pair:
    """An mp4 and the json after it."""

    key: str
    video: _Member
    text: _Member

    def index_line(self) -> str:
        """The line of DALI's index for both members."""
        return " ".join(f"{m.name.rpartition('.')[2]} {m.offset} {m.size} {m.name}" for m in (self.video, self.text))


def check_tar(folder: Path, file: ShardFile, rows: Sequence[Row], *, key: str) -> Found:
    """Compare a tar and its index with the manifest's checksums, and with `rows`, the table's rows of this tar.

    `key`: the column that names members, clip_id or chunk_id.
    """
    path = folder / file.name
    problems: list[str] = []
    try:
        verify_shard(folder, file, full=True)
    except ShardSetError as error:
        problems.append(str(error))
    try:
        members = list(_members(path))
    except (tarfile.TarError, OSError) as error:
        return Found(problems=(*problems, f"{path}: not readable as a tar ({error}); copy the file again"))
    pairs, strange = _pairs(members)
    problems += [f"{path}: {text}" for text in strange]
    problems += _index_problems(path, pairs)
    found = {pair.key: pair for pair in pairs}
    unknown = sorted(found.keys() - {row[key] for row in rows})
    if unknown:
        problems.append(f"{path}: {len(unknown)} members that the table does not have, the first: {unknown[0]!r}")
    bad = tuple(_misplaced(row, found.get(row[key]), key=key) for row in rows)
    problems += _text_problems(path, [(row, found[row[key]]) for row in rows if row[key] in found], key=key)
    return Found(problems=tuple(problems), bad=tuple(one for one in bad if one is not None))


def _members(path: Path) -> Iterator[_Member]:
    """The members by their headers; contents are skipped."""
    with tarfile.open(path, "r:") as tar:
        for info in tar:
            yield _Member(name=info.name, offset=info.offset_data, size=info.size, plain=info.isreg())


def _pairs(members: Sequence[_Member]) -> tuple[list[_Pair], list[str]]:
    """The pairs <key>.mp4, <key>.json, and a problem for each other member."""
    pairs: dict[str, _Pair] = {}
    strange: list[str] = []
    waiting: _Member | None = None
    for member in members:
        key, _, suffix = member.name.partition(".")
        if not member.plain or not KEY.fullmatch(key) or suffix not in ("mp4", "json"):
            strange.append(f"member {member.name!r} is not a file <id>.mp4 or <id>.json; make the set again")
        elif suffix == "mp4":
            if waiting is not None:
                strange.append(f"member {waiting.name!r} has no .json after it; make the set again")
            waiting = member
            continue
        elif waiting is None or waiting.name != f"{key}.mp4":
            strange.append(f"member {member.name!r} does not follow its .mp4; make the set again")
        elif key in pairs:
            strange.append(f"member {waiting.name!r} comes twice; make the set again")
        else:
            pairs[key] = _Pair(key=key, video=waiting, text=member)
        waiting = None
    if waiting is not None:
        strange.append(f"member {waiting.name!r} has no .json after it; make the set again")
    return list(pairs.values()), strange


def _index_problems(path: Path, pairs: Sequence[_Pair]) -> list[str]:
    index = path.with_suffix(".idx")
    expected = [f"v1.2 {len(pairs)}", *(pair.index_line() for pair in pairs)]
    try:
        there = index.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        return [f"{index}: not readable ({error}); copy the file again"]
    for number, (line, should) in enumerate(zip(there, expected, strict=False), start=1):
        if line != should:
            return [f"{index}, line {number}: {line!r}, but the tar has {should!r}; copy both files again"]
    if len(there) != len(expected):
        return [f"{index}: {len(there)} lines, should be {len(expected)} for the tar; copy both files again"]
    return []


def _misplaced(row: Row, pair: _Pair | None, *, key: str) -> BadFrames | None:
    if pair is None:
        reason = "not among the tar's members"
    elif (pair.video.offset, pair.video.size) != (row["offset"], row["size"]):
        reason = (
            f"lies at byte {pair.video.offset} of the tar with {pair.video.size} bytes, "
            f"the table says byte {row['offset']} and {row['size']} bytes"
        )
    else:
        return None
    return BadFrames(key=row[key], first=0, stop=row["num_frames"], reason=reason)


def _text_problems(path: Path, pairs: Sequence[tuple[Row, _Pair]], *, key: str) -> list[str]:
    """One line about the .json members that differ from the table, if there are any."""
    wrong: list[str] = []
    with path.open("rb") as tar:
        for row, pair in pairs:
            tar.seek(pair.text.offset)
            try:
                stored = json.loads(tar.read(pair.text.size))
                # Checksums that were added later are only in the table.
                stored = {**{name: row[name] for name in CHECKSUMS if name in row}, **stored}
                names = [name for name, value in row.items() if stored[name] != value]
            except (ValueError, KeyError, TypeError, RecursionError):
                names = ["all of it"]
            if names:
                wrong.append(f"{row[key]!r} ({', '.join(names)})")
    if not wrong:
        return []
    return [
        f"{path}: {len(wrong)} .json members differ from the table, the first: {wrong[0]}; copy tar and table again"
    ]


def check_tables(shard_set: ShardSet) -> tuple[list[str], dict[int, str]]:
    """The problems of the tables, one line each, and the rows of clips.parquet that cannot be used -> the reason."""
    chunked = shard_set.chunks is not None
    stored = shard_set.chunks if shard_set.chunks is not None else shard_set.clips
    path = shard_set.path / (CHUNKS if chunked else CLIPS)
    problems = _tar_counts(shard_set, stored, path)
    for table, name in ((shard_set.clips, "clip_id"), (stored, "chunk_id" if chunked else "clip_id")):
        if pc.count_distinct(table.column(name)).as_py() != table.num_rows:
            problems.append(f"{shard_set.path}: {name} is not unique in its table; make the set again")
            break
    problems += _label_problems(shard_set)
    bad = _impossible(shard_set)
    if chunked:
        bad = {**_outside_chunks(shard_set), **bad}
    return problems, bad


def _tar_counts(shard_set: ShardSet, stored: pa.Table, path: Path) -> list[str]:
    listed = {shard.name: shard.clips for shard in shard_set.shards}
    numbers, counts = np.unique(integers(stored, "shard"), return_counts=True)
    found = {shard_name(number): count for number, count in zip(numbers.tolist(), counts.tolist(), strict=True)}
    return [
        f"{path}: {found.get(name, 0)} videos in {name}, the manifest lists {listed.get(name, 0)}; copy both again"
        for name in sorted(listed.keys() | found.keys())
        if found.get(name, 0) != listed.get(name, 0)
    ]


def _label_problems(shard_set: ShardSet) -> list[str]:
    problems = []
    for kind, names in shard_set.classes.items():
        column = shard_set.clips.column(kind)
        values = pc.list_flatten(column) if kind == "labels" else column
        ends = pc.min_max(values).as_py()
        if ends["min"] is not None and not 0 <= ends["min"] <= ends["max"] < len(names):
            problems.append(
                f"{shard_set.path / CLIPS}: {kind} from {ends['min']} to {ends['max']}, but the manifest names "
                f"{len(names)} classes; copy both again"
            )
    return problems


def _impossible(shard_set: ShardSet) -> dict[int, str]:
    clips = shard_set.clips
    wrong = integers(clips, "num_frames") < 1
    for name in ("first_frame", "frames_after"):
        wrong |= integers(clips, name) < 0
    return {
        row: "the table says {num_frames} frames from {first_frame}, and {frames_after} after them".format_map(
            clips.select(["num_frames", "first_frame", "frames_after"]).slice(row, 1).to_pylist()[0]
        )
        for row in np.flatnonzero(wrong).tolist()
    }


@dataclass(frozen=True, kw_only=True)
class FrameAxis:
    """All stored frames of layout "chunks" on one axis, chunk after chunk in the order of chunks.parquet."""

    start: Ints  # [chunks + 1] the first frame of each chunk, then the end of the last
    run_end: Ints  # [chunks] the end of the frames that can be read from each chunk on without a gap


def frame_axis(chunks: pa.Table) -> FrameAxis:
    """The axis of a set's chunks."""
    frames, first = integers(chunks, "num_frames"), integers(chunks, "first_frame")
    start = np.concatenate([[0], np.cumsum(frames)])
    video = chunks.column("video_id").combine_chunks().dictionary_encode().indices.to_numpy()
    breaks = (video[1:] != video[:-1]) | (first[1:] != first[:-1] + frames[:-1])
    for name in ("height", "width"):
        breaks |= integers(chunks, name)[1:] != integers(chunks, name)[:-1]
    ends = np.concatenate([np.flatnonzero(breaks), [len(frames) - 1]])  # the last chunk of each run
    return FrameAxis(start=start, run_end=start[ends[np.searchsorted(ends, np.arange(len(frames)))] + 1])


def _outside_chunks(shard_set: ShardSet) -> dict[int, str]:
    """The clips whose place is not inside the stored frames -> the reason."""
    clips, chunks = shard_set.clips, shard_set.chunks
    assert chunks is not None
    chunk = integers(clips, "chunk", null=-1)
    known = (chunk >= 0) & (chunk < chunks.num_rows)
    at = np.where(known, chunk, 0)
    axis = frame_axis(chunks)
    first, count, after = (integers(clips, name) for name in ("first_frame", "num_frames", "frames_after"))
    end = axis.start[at] + first + count + after
    reasons = {row: f"chunk {chunk[row]} is not in {CHUNKS}" for row in np.flatnonzero(~known).tolist()}
    beyond = known & ((first >= integers(chunks, "num_frames")[at]) | (end > axis.run_end[at]))
    for row in np.flatnonzero(beyond).tolist():
        last = int(axis.run_end[at[row]] - axis.start[at[row]])
        span = f"frames {first[row]} to {first[row] + count[row] + after[row]}"
        reasons[row] = f"{span} of chunk {chunk[row]}, which can be read up to {last}"
    elsewhere = known & ~beyond
    for name in ("shard", "offset", "size"):
        elsewhere &= integers(clips, name) == integers(chunks, name)[at]
    for row in np.flatnonzero(known & ~beyond & ~elsewhere).tolist():
        reasons[row] = f"shard, offset and size are not those of chunk {chunk[row]}"
    return reasons


def integers(table: pa.Table, name: str, *, null: int = 0) -> Ints:
    """A column as int64, with `null` in place of nulls."""
    values: Ints = table.column(name).combine_chunks().fill_null(null).to_numpy(zero_copy_only=False).astype(np.int64)
    return values


def used_frames(shard_set: ShardSet, axis: FrameAxis, rows: Ints, *, after: float) -> tuple[Ints, Ints]:
    """First frame on the axis of the clips in `rows`, and the frame after the last that training may use, [N] each.

    A view of a short clip may use `after` seconds past its end.
    """
    clips = shard_set.clips.take(rows)
    begin = axis.start[integers(clips, "chunk")] + integers(clips, "first_frame")
    fps = np.asarray(clips.column("fps").to_numpy())
    spare = np.minimum(integers(clips, "frames_after"), np.ceil(after * fps).astype(np.int64))
    return begin, begin + integers(clips, "num_frames") + spare


def overlapping(begin: Ints, end: Ints, bad: Sequence[tuple[int, int, str]]) -> Mapping[int, str]:
    """Place of each span [begin, end) that overlaps a bad one [start, stop) -> its reason. Bad ones are disjoint."""
    ordered = sorted(bad)
    starts, stops = (np.array([one[i] for one in ordered], np.int64) for i in range(2))
    nearest = np.searchsorted(stops, begin, side="right")  # the first bad span that ends after this span begins
    hit = nearest < len(ordered)
    hit[hit] &= starts[nearest[hit]] < end[hit]
    return {place: ordered[nearest[place]][2] for place in np.flatnonzero(hit).tolist()}
