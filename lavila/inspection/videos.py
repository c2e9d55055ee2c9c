"""Checks that one stored video is what its row of the tables says. Every frame is decoded on the CPU."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from lavila.data.host.decode import video_problem
from lavila.records import Frames
from lavila.shards.format import piece_crc32
from lavila.shards.reader import stored_of_protocol, wrong_checksum

Row = dict[str, Any]

PIECE_FRAMES = 256  # number of a chunk's frames that are decoded at a time


@dataclass(frozen=True, kw_only=True, slots=True)
class RecordedShape:
    """The number and size of a video's frames, as the table records them."""

    frames: int
    height: int  # pixels
    width: int  # pixels


class VideoTest(Protocol):
    """Finds why an mp4 is not what the table records, in one line; None if it is. Worker processes get it by pickle."""

    def __call__(self, data: bytes, recorded: RecordedShape) -> str | None: ...


def decodes(data: bytes, recorded: RecordedShape) -> str | None:
    """A `VideoTest`: FFmpeg decodes every frame. It notices what other decoders make up, on a GPU above all."""
    return video_problem(data, frames=recorded.frames, height=recorded.height, width=recorded.width)


def readable_frames(row: Row, manifest: Mapping[str, Any]) -> Frames:
    """The stored frames of a clip's interval, 0-based and ascending. A set for one protocol does not store all."""
    if manifest.get("frames_for"):
        return stored_of_protocol(row, manifest)
    return np.arange(row["num_frames"], dtype=np.int32)


def stored_frames(row: Row, manifest: Mapping[str, Any]) -> int:
    """The number of frames in the mp4 of a row of clips.parquet, layout "clips"."""
    if manifest.get("frames_for"):
        return len(readable_frames(row, manifest))
    return int(row["first_frame"] + row["num_frames"] + row["frames_after"])


def bad_groups(data: bytes, row: Row, test: VideoTest) -> Iterator[tuple[str, int, int]]:
    """The parts of a chunk that cannot be decoded: reason, first frame, and the frame after the last.

    A chunk is read as training reads it: its header and some of its groups of pictures. A part with a wrong checksum is
    not decoded.
    """
    frames, gop, offsets = row["num_frames"], row["gop"], row["gop_offsets"]
    groups = -(-frames // gop)
    if len(offsets) != groups + 1 or not 0 < offsets[0] < offsets[-1] <= len(data) or min(np.diff(offsets)) <= 0:
        yield f"{frames} frames in groups of {gop}, but gop_offsets has {len(offsets) - 1} groups", 0, frames
        return
    checksums = piece_crc32(data, offsets)
    recorded = row.get("piece_crc32", checksums)
    if len(recorded) != len(checksums):
        yield f"{len(offsets)} pieces, but piece_crc32 has {len(recorded)} checksums", 0, frames
        return

    def checksum_problem(part: int) -> str | None:
        """The problem of the header (0) or of a group (from 1)."""
        if checksums[part] == recorded[part]:
            return None
        start = 0 if part == 0 else offsets[part - 1]
        return wrong_checksum(row["shard"], row["offset"] + start, offsets[part] - start)

    if (header_problem := checksum_problem(0)) is not None:
        yield header_problem, 0, frames
        return

    def problem(first: int, stop: int) -> str | None:
        damaged = next(filter(None, (checksum_problem(group + 1) for group in range(first, stop))), None)
        if damaged is not None:
            return damaged
        piece = data[: offsets[0]] + data[offsets[first] : offsets[stop]]
        wanted = min(stop * gop, frames) - first * gop
        return test(piece, RecordedShape(frames=wanted, height=row["height"], width=row["width"]))

    step = max(PIECE_FRAMES // gop, 1)
    for first in range(0, groups, step):
        stop = min(first + step, groups)
        reason = problem(first, stop)
        if reason is None:
            continue
        single = [(group, problem(group, group + 1)) for group in range(first, stop)]
        found = [(why, group, group + 1) for group, why in single if why is not None] or [(reason, first, stop)]
        for why, start, end in found:
            yield why, start * gop, min(end * gop, frames)
