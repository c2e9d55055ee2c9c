"""The lengths and sizes of clips for a plan: looked up in a shard set when a step needs them, or given as arrays."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np

from lavila.plan.frames import Span, interval_span
from lavila.plan.order import Shuffle
from lavila.plan.plans import Sizes
from lavila.records import Floats, Ints
from lavila.shards.format import QUARANTINE
from lavila.shards.mapped import Column
from lavila.shards.reader import ShardSet

log = logging.getLogger(__name__)

STRETCH_BYTES = 4 << 20  # bytes of a stretch of neighbouring clips: enough for disks and networks to read fast
STRETCHES = 64  # the smallest number of stretches in a window, so that it mixes many places of the set


class StoredSizes:
    """`lavila.plan.plans.Sizes` of a shard set, without the clips in quarantine. It holds nothing for each clip."""

    def __init__(self, shard_set: ShardSet) -> None:
        left_out = shard_set.quarantined_rows()
        if len(left_out):
            log.warning("%s: %d clip(s) in %s are left out", shard_set.path, len(left_out), QUARANTINE)
        self._count = len(shard_set) - len(left_out)
        # Row r of the j-th clip that is left out comes after r - j usable clips. So the row of usable clip i is i, plus
        # the number of gaps at or below i.
        self._gaps = left_out - np.arange(len(left_out))
        names = ("num_frames", "frames_after", "fps", "start_second", "stop_second", "height", "width")
        self._columns = {name: Column(shard_set.clips, name) for name in names}
        self._rule = shard_set.manifest.get("span_rule", "edges")

    def __len__(self) -> int:
        return self._count

    def row(self, index: int) -> int:
        """The row of usable clip `index` in clips.parquet."""
        assert 0 <= index < self._count, (index, self._count)
        return index + int(np.searchsorted(self._gaps, index, side="right"))

    def span(self, index: int) -> Span:
        """The frames of usable clip `index` that views may use."""
        row, columns = self.row(index), self._columns
        return interval_span(
            self._rule,
            stored=columns["num_frames"][row],
            after=columns["frames_after"][row],
            fps=columns["fps"][row],
            seconds=columns["stop_second"][row] - columns["start_second"][row],
        )

    def picture(self, index: int) -> tuple[int, int]:
        """Height and width of usable clip `index` in pixels."""
        row = self.row(index)
        return self._columns["height"][row], self._columns["width"][row]


@dataclass(frozen=True, kw_only=True)
class ClipSizes:
    """`lavila.plan.plans.Sizes` in arrays, for clips that are not in a shard set."""

    num_frames: Ints | Floats  # [N] frames; fractional where the dataset counts in seconds
    height: Ints  # [N] pixels
    width: Ints  # [N] pixels
    frames_after: Ints | None = None  # [N] stored frames after the clip that a view may use; None = no frames
    rows: Ints | None = None  # [N] the clips' rows in clips.parquet; None = 0 .. N - 1

    def __len__(self) -> int:
        return len(self.num_frames)

    def span(self, index: int) -> Span:
        """The frames of clip `index` that views may use."""
        after = 0 if self.frames_after is None else int(self.frames_after[index])
        return Span(frames=float(self.num_frames[index]), after=after)

    def picture(self, index: int) -> tuple[int, int]:
        """Height and width of clip `index` in pixels."""
        return int(self.height[index]), int(self.width[index])

    def row(self, index: int) -> int:
        """The row of clip `index` in clips.parquet."""
        return index if self.rows is None else int(self.rows[index])


@dataclass(frozen=True, kw_only=True)
class ChosenSizes:
    """`lavila.plan.plans.Sizes` of clips chosen from another, in any order and any number of times."""

    of: Sizes
    indices: Ints  # [N] the chosen clips, as indices of `of`

    def __len__(self) -> int:
        return len(self.indices)

    def span(self, index: int) -> Span:
        """The frames of clip `index` that views may use."""
        return self.of.span(int(self.indices[index]))

    def picture(self, index: int) -> tuple[int, int]:
        """Height and width of clip `index` in pixels."""
        return self.of.picture(int(self.indices[index]))

    def row(self, index: int) -> int:
        """The row of clip `index` in clips.parquet."""
        return self.of.row(int(self.indices[index]))


def shuffle_of(shard_set: ShardSet, *, window: int, read_ahead: bool = False) -> Shuffle:
    """How an epoch mixes a set: stretches of STRETCH_BYTES, or shorter ones if a window would hold too few."""
    stretch = round(STRETCH_BYTES * len(shard_set) / max(shard_set.stored_bytes, 1))
    return Shuffle(window=window, stretch=max(1, min(stretch, window // STRETCHES)), read_ahead=read_ahead)
