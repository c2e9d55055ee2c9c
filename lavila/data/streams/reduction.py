"""Which packets a decoder needs for some frames, and the mp4 with these alone. The same for every decoder.

Needed are the groups of pictures with a wanted frame, each up to its last wanted one in decoding order, without the
frames to which nothing needed refers. The wanted frames come out bit for bit as if everything were decoded.

The packets are read from the mp4's own tables and the pictures' headers on every read, and not from tables kept beside
the shards. `benchmarks/streams.py` shows what that takes.
"""

from __future__ import annotations

import logging
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress, count
from threading import Lock

import numpy as np

from lavila.data.streams.boxes import OtherForm, TableError
from lavila.data.streams.headers import reader_of
from lavila.data.streams.mp4 import Packets, read_mp4
from lavila.data.streams.writing import write_mp4
from lavila.records import Frames

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Stream:
    """A video for a decoder."""

    data: bytes  # an mp4, or the video as it was given
    frames: Frames  # [U] the wanted frames, as ascending numbers in `data`
    whole: str = ""  # why the video is as it was given, where its form is not that of our encoder


class WholeVideos:
    """Counts the videos that are passed on whole, by reason. Safe to use from many threads."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._counts: Counter[str] = Counter()

    def count(self, reason: str) -> None:
        """Count one. The first with a reason is logged."""
        with self._lock:
            self._counts[reason] += 1
            first = self._counts[reason] == 1
        if first:
            log.warning("a clip is not as our encoder writes it (%s), so a decoder is given all of it", reason)

    @property
    def counts(self) -> dict[str, int]:
        """Reason -> number of videos so far."""
        with self._lock:
            return dict(self._counts)


WHOLE = WholeVideos()
"""The count of this process, for all decoders."""


def reduced(data: bytes, frames: Sequence[int] | Frames) -> Stream:
    """The video with only what its wanted frames need.

    Args:
        data: a whole encoded clip.
        frames: ascending, distinct, 0-based numbers in display order, [U].

    Raises:
        TableError: the clip's tables do not fit its bytes, or a wanted frame is beyond its end.
    """
    wanted = [int(frame) for frame in frames]
    try:
        source = read_mp4(data)
    except OtherForm as other:
        WHOLE.count(str(other))
        return Stream(data, np.array(wanted, np.int32), whole=str(other))
    numbers = source.packets.numbers
    kept = needed(source.packets, wanted)
    if len(kept) == len(numbers):
        return Stream(data, np.array(wanted, np.int32))
    shown = sorted([numbers[place] for place in kept])
    return Stream(write_mp4(source, kept), np.array([bisect_left(shown, frame) for frame in wanted], np.int32))


def needed(packets: Packets, frames: Sequence[int]) -> list[int]:
    """The places of the packets that a decoder needs for some frames, ascending.

    `frames`: ascending, distinct numbers in display order. Raises TableError if the last is beyond the end.
    """
    if frames[-1] >= len(packets.numbers):
        raise TableError(f"frame {frames[-1]} is wanted, but the clip has only {len(packets.numbers)} frames")
    shown = set(frames)
    wanted = [place for place, number in enumerate(packets.numbers) if number in shown]
    reader = reader_of(packets)
    keys = list(compress(count(), packets.keys))
    groups: dict[int, list[int]] = {}  # where decoding begins -> the wanted places of this group of pictures
    start = looked_at = done = 0
    while done < len(wanted):
        before = bisect_right(keys, wanted[done])
        nearest = reversed(keys[looked_at:before])
        start = next((key for key in nearest if reader.begins(packets.view(key))), start)
        looked_at = before
        upto = bisect_left(wanted, keys[before], done) if before < len(keys) else len(wanted)
        groups[start] = groups.get(start, []) + wanted[done:upto]
        done = upto
    return reader.needed(packets, groups)
