"""Layout "chunks": a video is stored once, in stretches of fixed length, and clips point into them.

Writing: which chunks a clip needs (`chunk_numbers`), and where it lies in them once they are stored (`ChunkIndex`).
Reading: which bytes of which chunks hold given frames (`ChunkTable.ranges`). Both are arithmetic on frame numbers; see
`format` for what a chunk is.
"""

from __future__ import annotations

import zlib
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lavila.errors import UserError
from lavila.plan.frames import frame_span
from lavila.records import Clip, SpanRule
from lavila.shards.mapped import Column

Ints = npt.NDArray[np.int64]
TO_THE_END = 1 << 62  # frames
SECONDS_AFTER = 2.0  # stored after every clip at least: a view of T frames may want more than a short clip has


class ChunkError(UserError):
    """A clip that cannot be had from the chunks that are stored."""


@dataclass(frozen=True, kw_only=True)
class ByteRange:
    """Bytes [start, stop) of a chunk's mp4."""

    chunk: int  # row of chunks.parquet
    start: int
    stop: int
    frames: int  # that it holds


class ChunkTable:
    """chunks.parquet by row. Chunks of a video are consecutive rows, in the order of the video."""

    def __init__(self, table: pa.Table) -> None:
        self.shard, self.offset, self.num_frames = (Column(table, name) for name in ("shard", "offset", "num_frames"))
        self.height, self.width = (Column(table, name) for name in ("height", "width"))
        self._gop = Column(table, "gop")
        self._gop_offsets: pa.ChunkedArray = table.column("gop_offsets")
        self._crc32 = table.column("piece_crc32") if "piece_crc32" in table.column_names else None

    def gop_offsets(self, chunk: int) -> Ints:
        """Bytes to each group of pictures of a chunk, and the last one's end."""
        return np.asarray(self._gop_offsets[chunk].values, np.int64)

    def damaged(self, piece: ByteRange, data: bytes) -> tuple[int, int] | None:
        """The first stretch of a chunk's bytes whose checksum is not the one on record. `data`: those of `piece`."""
        if self._crc32 is None:
            return None
        cuts = [0, *self.gop_offsets(piece.chunk).tolist()]
        recorded, view = self._crc32[piece.chunk].values.to_pylist(), memoryview(data)
        for part in range(bisect_left(cuts, piece.start), bisect_left(cuts, piece.stop)):
            start, stop = cuts[part], cuts[part + 1]
            if zlib.crc32(view[start - piece.start : stop - piece.start]) != recorded[part]:
                return start, stop
        return None

    def ranges(self, chunk: int, frames: Sequence[int] | npt.NDArray[np.int32]) -> tuple[list[ByteRange], Ints]:
        """The byte ranges that, one after another, are an mp4 with the given frames; and the frames' numbers in it.

        `frames` are ascending and counted from the first frame of `chunk`; they may reach into the chunks after it.
        """
        header = int(self.gop_offsets(chunk)[0])
        pieces = [ByteRange(chunk=chunk, start=0, stop=header, frames=0)]
        numbers: list[Ints] = []
        before = 0  # frames of the mp4 made so far
        for part, local in self._by_chunk(chunk, np.asarray(frames, np.int64)):
            gop, offsets = self._gop[part], self.gop_offsets(part)
            groups, place = np.unique(local // gop, return_inverse=True)
            sizes = np.minimum(gop, self.num_frames[part] - groups * gop)
            for group, frames_of_group in zip(groups.tolist(), sizes.tolist(), strict=True):
                piece = ByteRange(
                    chunk=part, start=int(offsets[group]), stop=int(offsets[group + 1]), frames=frames_of_group
                )
                if pieces[-1].chunk == part and pieces[-1].stop == piece.start:
                    last = pieces.pop()
                    piece = replace(piece, start=last.start, frames=last.frames + piece.frames)
                pieces.append(piece)
            starts = before + np.concatenate([[0], np.cumsum(sizes)])
            numbers.append(starts[place] + local % gop)
            before = int(starts[-1])
        return pieces, np.concatenate(numbers)

    def _by_chunk(self, chunk: int, frames: Ints) -> Iterator[tuple[int, Ints]]:
        """The frames of each chunk from `chunk` on, counted from that chunk's own first frame."""
        while len(frames):
            length = self.num_frames[chunk]
            inside = frames < length
            if inside.any():
                yield chunk, frames[inside]
            frames = frames[~inside] - length
            chunk += 1


def chunk_numbers(clip: Clip, *, seconds: float, margin: float, duration: float | None) -> range:
    """Numbers, from 0 at the start of its video, of the chunks of `seconds` seconds that a clip needs.

    `duration` of the video in seconds is needed for a clip that lasts to the end, and keeps others within the video.
    """
    stop = duration if clip.stop_second is None else clip.stop_second + max(margin, SECONDS_AFTER)
    assert stop is not None, "a clip to the end of its video needs the video's duration"
    stop = stop if duration is None else min(stop, duration)
    first = int(max(clip.start_second - margin, 0.0) // seconds)
    return range(first, max(int(np.ceil(stop / seconds)), first + 1))


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where a clip lies: columns of clips.parquet."""

    chunk: int
    first_frame: int  # counted from the first frame of the chunk
    num_frames: int
    frames_after: int


class ChunkIndex:
    """Finds clips in the chunks that have been stored."""

    def __init__(self, rows: Sequence[Mapping[str, Any]], failures: Mapping[str, str]) -> None:
        """`rows` of chunks.parquet in order, with `header_sha256`; `failures`: chunk_id -> why it is not there."""
        self._failures = failures
        self._place = {row["chunk_id"]: place for place, row in enumerate(rows)}
        self._fps = [float(row["fps"]) for row in rows]
        self._first = [int(row["first_frame"]) for row in rows]
        self._end = [int(row["first_frame"] + row["num_frames"]) for row in rows]
        self._run_end = list(self._end)  # one past the last frame that can be read from a chunk on without a gap
        self._changes = [False] * len(rows)  # whether the video goes on there, in another size
        for place in reversed(range(len(rows) - 1)):
            if not _goes_on(rows[place], rows[place + 1]):
                continue
            if rows[place]["header_sha256"] == rows[place + 1]["header_sha256"]:
                self._run_end[place], self._changes[place] = self._run_end[place + 1], self._changes[place + 1]
            else:
                self._changes[place] = True

    def locate(self, clip: Clip, *, chunk_ids: Sequence[str], rule: SpanRule) -> Place:
        """A clip's place. `chunk_ids`: of the chunks that it needs, in order.

        Raises ChunkError where one of them could not be stored or the clip begins after the video's end.
        """
        stored = [self._place[chunk_id] for chunk_id in chunk_ids if chunk_id in self._place]
        lost = [self._failures[chunk_id] for chunk_id in chunk_ids if chunk_id in self._failures]
        if not stored:
            raise ChunkError(lost[0] if lost else "begins after the last frame of the video")
        fps = self._fps[stored[0]]
        start, stop = _span(clip, fps, rule)
        place = next((place for place in stored if start < self._end[place]), None)
        if lost and (place is None or start < self._first[place] or stop > self._run_end[place]):
            raise ChunkError(lost[0])
        if place is None:
            last = (self._end[stored[-1]] - 1) / fps
            raise ChunkError(f"begins at {start / fps:.2f} s, after the last frame of the video at {last:.2f} s")
        end = self._run_end[place]
        if stop > end and self._changes[place]:
            raise ChunkError(f"the picture changes its size at {end / fps:.2f} s, within the clip")
        stop = max(min(stop, end), start + 1)
        return Place(
            chunk=place, first_frame=start - self._first[place], num_frames=stop - start, frames_after=end - stop
        )


def _span(clip: Clip, fps: float, rule: SpanRule) -> tuple[int, int]:
    if clip.stop_second is None:
        return frame_span(clip.start_second, clip.start_second, fps, rule)[0], TO_THE_END
    return frame_span(clip.start_second, clip.stop_second, fps, rule)


def _goes_on(row: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    """Whether the second chunk begins where the first ends."""
    same_video = row["video_id"] == after["video_id"]
    return bool(same_video and after["first_frame"] == row["first_frame"] + row["num_frames"])
