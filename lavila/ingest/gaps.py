"""How many frames are missing between two that follow each other on the screen.

A distance in time alone does not say it: cameras and screen recorders leave out frames, and then a player shows the
frame before for longer, as the recording means it. Frames that were lost on their way leave other traces, too.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from lavila.ingest.decoded import Decoded

LOSSY = ("mpegts", "mpeg", "flv")  # FFmpeg's names of the containers that are broadcast, and that recorders may lose of
GAP_FRAMES = Fraction(3, 2)  # from this distance on, in frames, there was place for one more
FRAME_STEP = 2  # by so much the order count of H.264 rises from frame to frame, or by 1


@dataclass(kw_only=True)
class Gaps:
    """Compares the frames of one file, in the order in which they are shown."""

    lossy: bool  # whether the container is one of LOSSY
    regular: bool  # whether nearly all frames of the file have the same distance
    indexed: Sequence[int] = ()  # ascending times of frames that an index lists apart from the frames
    _step: int = FRAME_STEP

    def missing(self, before: Decoded, after: Decoded, distance: Fraction) -> int:
        """The number of frames that were lost between two. `distance`: their distance in time, in frames."""
        one, other = before.place, after.place
        if one is not None and other is not None and one.group == other.group:
            lost = one.losses != other.losses
            if one.order is not None and other.order is not None:
                rise = other.order - one.order
                if 0 < rise < self._step:
                    self._step = rise
                lost |= self.lossy and rise > self._step
        else:  # the numbers begin anew between the two, or there are none
            lost = self.lossy and (self.regular or after.lossy)
        place = bisect_right(self.indexed, before.pts)
        lost |= place < len(self.indexed) and self.indexed[place] < after.pts
        return max(round(distance) - 1, 1) if lost and distance >= GAP_FRAMES else 0
