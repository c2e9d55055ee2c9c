"""What the plan must know of a shard set's clips, looked up when a step asks for it."""

from __future__ import annotations

import logging

import numpy as np

from lavila.data.mapped import Column
from lavila.data.order import Shuffle
from lavila.data.plan import Span, interval_span
from lavila.data.shard_format import QUARANTINE
from lavila.data.shards import ShardSet

log = logging.getLogger(__name__)

STRETCH_BYTES = 4 << 20  # of neighbouring clips that an epoch keeps in one window: long enough for disks and networks
STRETCHES = 64  # in a window at least, so that it mixes many places of the set


class StoredSizes:
    """`lavila.data.plan.Sizes` of a shard set, clips in quarantine left out. Holds nothing for each clip."""

    def __init__(self, shard_set: ShardSet) -> None:
        left_out = shard_set.quarantined_rows()
        if len(left_out):
            log.warning("%s: %d clip(s) in %s are left out", shard_set.path, len(left_out), QUARANTINE)
        self._count = len(shard_set) - len(left_out)
        self._gaps = left_out - np.arange(len(left_out))  # number of the first usable clip after each
        names = ("num_frames", "frames_after", "fps", "start_second", "stop_second", "height", "width")
        self._columns = {name: Column(shard_set.clips, name) for name in names}
        self._rule = shard_set.manifest.get("span_rule", "edges")

    def __len__(self) -> int:
        return self._count

    def row(self, index: int) -> int:
        """Row of clips.parquet of usable clip `index`."""
        assert 0 <= index < self._count, (index, self._count)
        return index + int(np.searchsorted(self._gaps, index, side="right"))

    def span(self, index: int) -> Span:
        """How long usable clip `index` is."""
        row, columns = self.row(index), self._columns
        return interval_span(
            self._rule,
            stored=columns["num_frames"][row],
            after=columns["frames_after"][row],
            fps=columns["fps"][row],
            seconds=columns["stop_second"][row] - columns["start_second"][row],
        )

    def picture(self, index: int) -> tuple[int, int]:
        """Height and width of usable clip `index`, pixels."""
        row = self.row(index)
        return self._columns["height"][row], self._columns["width"][row]


def shuffle_of(shard_set: ShardSet, *, window: int) -> Shuffle:
    """How an epoch mixes a set: stretches of STRETCH_BYTES, or shorter ones where a window would hold few of them."""
    stretch = round(STRETCH_BYTES * len(shard_set) / max(shard_set.stored_bytes, 1))
    return Shuffle(window=window, stretch=max(1, min(stretch, window // STRETCHES)))
