"""Layout "chunks": a video is stored once, in stretches of fixed length, and clips point into them.

For writing, `chunk_numbers` gives the chunks that a clip needs, and `ChunkIndex` its place in the stored chunks. For
reading, `ChunkTable.ranges` gives the bytes that hold given frames. All of it is arithmetic on frame numbers; `format`
describes a chunk.
"""

from __future__ import annotations

import zlib
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from lavila.errors import UserError
from lavila.plan.frames import frame_span
from lavila.records import Clip, Frames, Ints, SpanRule
from lavila.shards.mapped import Column

TO_THE_END = 1 << 62  # a number of frames larger than any video has
SECONDS_AFTER = 2.0  # seconds stored after every clip, since a view of T frames may use frames after a short clip


class ChunkError(UserError):
    """A clip that the stored chunks do not hold."""


@dataclass(frozen=True, kw_only=True)
class ByteRange:
    """Bytes [start, stop) of a chunk's mp4."""

    chunk: int  # row of the chunk in chunks.parquet
    start: int
    stop: int
    frames: int  # number of frames in these bytes


class ChunkTable:
    """chunks.parquet by row. Chunks of a video are consecutive rows, in the order of the video."""

    def __init__(self, table: pa.Table) -> None:
        self.shard, self.offset, self.num_frames = (Column(table, name) for name in ("shard", "offset", "num_frames"))
        self.height, self.width = (Column(table, name) for name in ("height", "width"))
        self._gop = Column(table, "gop")
        self._gop_offsets: pa.ChunkedArray = table.column("gop_offsets")
        self._crc32 = table.column("piece_crc32") if "piece_crc32" in table.column_names else None

    def gop_offsets(self, chunk: int) -> Ints:
        """The bytes before each group of pictures of a chunk, and before the chunk's end."""
        return np.asarray(self._gop_offsets[chunk].values, np.int64)

    def damaged(self, piece: ByteRange, data: bytes) -> tuple[int, int] | None:
        """First and last + 1 byte of the first part of a chunk with a wrong checksum. `data`: the bytes of `piece`."""
        if self._crc32 is None:
            return None
        cuts = [0, *self.gop_offsets(piece.chunk).tolist()]
        recorded, view = self._crc32[piece.chunk].values.to_pylist(), memoryview(data)
        for part in range(bisect_left(cuts, piece.start), bisect_left(cuts, piece.stop)):
            start, stop = cuts[part], cuts[part + 1]
            if zlib.crc32(view[start - piece.start : stop - piece.start]) != recorded[part]:
                return start, stop
        return None

    def ranges(self, chunk: int, frames: Sequence[int] | Frames) -> tuple[list[ByteRange], Ints]:
        """The byte ranges that together are an mp4 with the given frames, and the frames' numbers in that mp4.

        `frames` are ascending and counted from the first frame of `chunk`. They may lie in the chunks after it.
        """
        # The header of the first chunk serves all: chunks of one video have the same header.
        header = int(self.gop_offsets(chunk)[0])
        pieces = [ByteRange(chunk=chunk, start=0, stop=header, frames=0)]
        numbers: list[Ints] = []
        before = 0  # number of frames in the groups so far
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
            # The number of a frame in the new mp4: the frames of the groups before its own, and its place in its group.
            starts = before + np.concatenate([[0], np.cumsum(sizes)])
            numbers.append(starts[place] + local % gop)
            before = int(starts[-1])
        return pieces, np.concatenate(numbers)

    def _by_chunk(self, chunk: int, frames: Ints) -> Iterator[tuple[int, Ints]]:
        """The frames in each chunk from `chunk` on, counted from the first frame of that chunk."""
        while len(frames):
            length = self.num_frames[chunk]
            inside = frames < length
            if inside.any():
                yield chunk, frames[inside]
            frames = frames[~inside] - length
            chunk += 1


def chunk_numbers(clip: Clip, *, seconds: float, margin: float, duration: float | None) -> range:
    """The numbers of the chunks of `seconds` seconds that a clip needs. Number 0 begins at the start of the video.

    `duration`: of the video, in seconds. A clip that lasts to the end needs it; the others are cut at it.
    """
    stop = duration if clip.stop_second is None else clip.stop_second + max(margin, SECONDS_AFTER)
    assert stop is not None, "a clip to the end of its video needs the video's duration"
    stop = stop if duration is None else min(stop, duration)
    first = int(max(clip.start_second - margin, 0.0) // seconds)
    return range(first, max(int(np.ceil(stop / seconds)), first + 1))


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """The place of a clip, as columns of clips.parquet."""

    chunk: int
    first_frame: int  # counted from the first frame of the chunk
    num_frames: int
    frames_after: int


class ChunkIndex:
    """Finds clips in the stored chunks."""

    def __init__(self, rows: Sequence[Mapping[str, Any]], failures: Mapping[str, str]) -> None:
        """`rows`: of chunks.parquet in order, with `header_sha256`.

        `failures`: chunk_id -> why it could not be stored.
        """
        self._failures = failures
        self._place = {row["chunk_id"]: place for place, row in enumerate(rows)}
        self._fps = [float(row["fps"]) for row in rows]
        self._first = [int(row["first_frame"]) for row in rows]
        self._end = [int(row["first_frame"] + row["num_frames"]) for row in rows]
        self._run_end = list(self._end)  # the end of the frames that can be read from each chunk on without a gap
        self._changes = [False] * len(rows)  # whether the video continues at that end, with another size
        for place in reversed(range(len(rows) - 1)):
            if not _follows(rows[place], rows[place + 1]):
                continue
            if rows[place]["header_sha256"] == rows[place + 1]["header_sha256"]:
                self._run_end[place], self._changes[place] = self._run_end[place + 1], self._changes[place + 1]
            else:
                self._changes[place] = True

    def locate(self, clip: Clip, *, chunk_ids: Sequence[str], rule: SpanRule) -> Place:
        """The place of a clip. `chunk_ids`: the ids of the chunks that it needs, in order.

        Raises ChunkError if one of them could not be stored, or if the clip begins after the end of the video.
        """
        stored = [self._place[chunk_id] for chunk_id in chunk_ids if chunk_id in self._place]
        lost = [self._failures[chunk_id] for chunk_id in chunk_ids if chunk_id in self._failures]
        if not stored:
            raise ChunkError(lost[0] if lost else "begins after the last frame of the video")
        fps = self._fps[stored[0]]
        start, stop = _span(clip, fps, rule)
        end = self._end[stored[-1]]
        if not lost and start == end and clip.start_second * fps < end:
            start = end - 1  # in the last half frame of the video, which was rounded up past the last frame
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


def _follows(row: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    """Whether the second chunk begins where the first ends."""
    same_video = row["video_id"] == after["video_id"]
    return bool(same_video and after["first_frame"] == row["first_frame"] + row["num_frames"])
