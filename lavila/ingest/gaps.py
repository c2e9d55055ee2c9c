"""How many frames are missing between two that follow each other on the screen.

A distance in time alone does not say it: cameras and screen recorders leave out frames, and then a player shows the
frame before for longer, as the recording means it. Frames that were lost on their way leave other traces, too.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from fractions import Fraction

from lavila.ingest.decoded import Decoded

LOSSY = ("mpegts", "mpeg", "flv")  # FFmpeg's names of the containers that are broadcast, and that recorders may lose of
GAP_FRAMES = Fraction(3, 2)  # from this distance on, in frames, there was place for one more


def gap_ticks(rate: Fraction) -> int:
    """The distance in ticks from which on there was time for one more frame. `rate`: frames in a tick."""
    return math.ceil(GAP_FRAMES / rate)


class Gaps:
    """Compares the frames of one file, in the order in which they are shown."""

    def __init__(self, *, lossy: bool, regular: bool, indexed: Sequence[int], rate: Fraction) -> None:
        """
        lossy: whether the container is one of LOSSY.
        regular: whether nearly all frames of the file have the same distance.
        indexed: ascending times of frames that an index lists apart from the frames.
        rate: frames in a tick of the file's clock.
        """
        self._lossy, self._regular, self._indexed, self._rate = lossy, regular, indexed, rate
        self._least = gap_ticks(rate)
        self._step: int | None = None  # by so much the order of pictures rises from frame to frame

    def missing(self, before: Decoded, after: Decoded) -> int:
        """The number of frames that were lost between two."""
        ticks, rise, losses = after.pts - before.pts, 0, 0
        one, other = before.place, after.place
        known = one is not None and other is not None and one.group == other.group
        if one is not None and other is not None and known:
            losses = other.losses - one.losses
            rise = 0 if one.order is None or other.order is None else other.order - one.order
            self._step = min(other.step if self._step is None else self._step, rise if rise > 0 else other.step)
        if ticks < self._least:
            return 0
        # The numbers begin anew between the two, or there are none.
        unnumbered = self._lossy and (self._regular or after.lossy)
        lost = losses != 0 or rise > (self._step or 0) if known else unnumbered
        place = bisect_right(self._indexed, before.pts)
        lost |= place < len(self._indexed) and self._indexed[place] < after.pts
        return max(round(ticks * self._rate) - 1, 1) if lost else 0
