"""How a player turns and mirrors a picture before it shows it: the display matrix of the file or the stream."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lavila.ingest.video_files import EncodeError
from lavila.libav import side_data

NEAR_DEGREES = 1.0  # players ignore smaller deviations from a multiple of 90 degrees
SIDE_DATA = "DISPLAYMATRIX"  # PyAV's name of FFmpeg's side data: nine 32-bit numbers, row by row

Direction = tuple[int, int]
Filters = tuple[tuple[str, dict[str, str]], ...]
"""Names and options of FFmpeg's filters."""


@dataclass(frozen=True, kw_only=True)
class Orientation:
    """Where the two edges that meet in the first coded pixel point on the screen. (1, 0) is right, (0, 1) is down."""

    right: Direction = (1, 0)  # of the coded picture's upper edge
    down: Direction = (0, 1)  # of its left edge

    @property
    def swaps_sides(self) -> bool:
        """Whether height and width are exchanged."""
        return self.right[0] == 0

    @property
    def filters(self) -> Filters:
        """The filters that make the picture upright."""
        return _FILTERS[self.right, self.down]


UPRIGHT = Orientation()
_FILTERS: dict[tuple[Direction, Direction], Filters] = {
    ((1, 0), (0, 1)): (),
    ((-1, 0), (0, 1)): (("hflip", {}),),
    ((1, 0), (0, -1)): (("vflip", {}),),
    ((-1, 0), (0, -1)): (("hflip", {}), ("vflip", {})),
    ((0, 1), (-1, 0)): (("transpose", {"dir": "clock"}),),
    ((0, -1), (1, 0)): (("transpose", {"dir": "cclock"}),),
    ((0, 1), (1, 0)): (("transpose", {"dir": "cclock_flip"}),),
    ((0, -1), (-1, 0)): (("transpose", {"dir": "clock_flip"}),),
}


def orientation_of(frame: Any) -> Orientation:
    """The orientation of a decoded frame. Raises EncodeError for one that is not a multiple of 90 degrees."""
    found = side_data(frame)
    if not len(found) or SIDE_DATA not in found:
        return UPRIGHT
    data = found[SIDE_DATA]
    return matrix_orientation(struct.unpack("9i", bytes(data)[:36]))


def matrix_orientation(matrix: Sequence[int]) -> Orientation:
    """The nearest of the eight orientations. `matrix`: a display matrix as in ISO/IEC 14496-12, 8.3.2.

    A point (x, y) is shown at (a x + c y, b x + d y). Scale and position have no part in the orientation.
    """
    a, b, _, c, d = matrix[:5]
    if (a, b) == (0, 0) or (c, d) == (0, 0):  # no picture would be left, so players ignore it
        return UPRIGHT
    right, down = _direction(a, b), _direction(c, d)
    if (right, down) not in _FILTERS:
        raise EncodeError("its pictures are sheared; only turned and mirrored ones are understood")
    return Orientation(right=right, down=down)


def _direction(x: int, y: int) -> Direction:
    degrees = math.degrees(math.atan2(y, x))
    quarters = round(degrees / 90)
    if abs(degrees - 90 * quarters) >= NEAR_DEGREES:
        raise EncodeError(f"rotation by {degrees % 360:.4g} degrees; only multiples of 90 are understood")
    return ((1, 0), (0, 1), (-1, 0), (0, -1))[quarters % 4]
