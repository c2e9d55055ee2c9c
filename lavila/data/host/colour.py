"""Planes of a decoded frame -> RGB: BT.601, limited range, centred bilinear chroma, rounded. On the CPU, compiled.

DALI converts in this way on the CPU, even where a stream states another position of its chroma. This module does the
same for every codec, bit for bit. DALI's result is that of FFmpeg with its flags for accuracy: factors have 13 bits
after the point, and chroma is interpolated exactly, with weights of 9, 3, 3 and 1 sixteenths.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

F32, I32 = np.float32, np.int32
Floats = npt.NDArray[np.float32]
Int32s = npt.NDArray[np.int32]
Bytes = npt.NDArray[np.uint8]

# The factors from levels of luma and chroma to levels of RGB, times 8192 (ITU-R BT.601 with 219 and 224 levels).
LIGHT, RED_OF_RED, GREEN_OF_BLUE, GREEN_OF_RED, BLUE_OF_BLUE = 9539, 13075, -3209, -6660, 16525

# Functions are compiled on first use and kept on disk. They release the GIL. The compiler may fuse multiply and add,
# and may assume that nothing is NaN. It may not reorder sums, so the result does not depend on the machine's vectors.
# Three habits let it use vector instructions. Slices and loops begin at 0, so that no index can be negative (a negative
# one would count from the end). An index that comes from data is unsigned. Inner loops see arrays of one axis.
compiled: Any = numba.njit(nogil=True, cache=True, fastmath={"contract", "nnan", "nsz"})


@dataclass(frozen=True, slots=True)
class Planes:
    """A frame in the decoder's memory, with chroma at half the size. Lines may be longer than the frame.

    The arrays are views of that memory, so they are valid only until the next frame is decoded.
    """

    luma: Bytes  # [H, >= W]
    blue: Bytes  # [H/2, >= W/2] chroma Cb, sizes rounded up, 128 = no colour
    red: Bytes  # [H/2, >= W/2] chroma Cr
    width: int  # W in pixels


def rgb_picture(planes: Planes, out: Bytes) -> None:
    """Write a frame as uint8 RGB to [H, W, 3]."""
    _rgb_picture(planes.luma, planes.blue, planes.red, out)


@compiled
def _rgb_picture(luma: Bytes, blue: Bytes, red: Bytes, out: Bytes) -> None:
    high, wide = out.shape[0], out.shape[1]
    rgb, scratch = np.empty((3, 1, wide), np.float32), chroma_scratch(wide)
    for y in range(high):
        rgb_line((luma, blue, red), y, (0, wide), rgb, 0, scratch)
        red_line, green_line, blue_line, line = rgb[0, 0], rgb[1, 0], rgb[2, 0], out[y]
        for x in range(wide):
            line[x, 0], line[x, 1] = np.uint8(red_line[x]), np.uint8(green_line[x])
            line[x, 2] = np.uint8(blue_line[x])


@compiled
def chroma_scratch(wide: int) -> tuple[Int32s, Int32s]:
    """Two buffers for a line's chroma in `rgb_line`: half the width with one more at either end, and the full width."""
    pairs = (wide + 1) // 2
    return np.empty((2, pairs + 2), np.int32), np.empty((2, 2 * pairs), np.int32)


@compiled
def rgb_line(
    planes: tuple[Bytes, Bytes, Bytes], y: int, pixels: tuple[int, int], rgb: Floats, slot: int, scratch: Any
) -> None:
    """Write pixels start .. stop - 1 of line y to the same places of rgb[:, slot], float32 [3, slots, W]."""
    luma, blue, red = planes
    half, full = scratch
    start, stop = pixels
    # Line c of chroma lies between lines 2c and 2c + 1 of luma. The second nearest is above an even line of luma, and
    # below an odd one.
    near = y // 2
    far = min(max(near - 1 if y % 2 == 0 else near + 1, 0), blue.shape[0] - 1)
    _chroma_line(blue[near], blue[far], half[0], full[0], start // 2, (stop + 1) // 2)
    _chroma_line(red[near], red[far], half[1], full[1], start // 2, (stop + 1) // 2)
    out = (rgb[0, slot, start:stop], rgb[1, slot, start:stop], rgb[2, slot, start:stop])
    _mix_line(luma[y, start:stop], full[0, start:stop], full[1, start:stop], out)


@compiled
def _chroma_line(near: Bytes, far: Bytes, half: Int32s, full: Int32s, start: int, stop: int) -> None:
    """Chroma of pixel pairs start ..

    stop - 1 of a line, less 128, in sixteenths, from the two lines of chroma around it.
    """
    pairs = half.shape[0] - 2
    low, high = max(start - 1, 0), min(stop + 1, pairs)
    near, far, between = near[low:high], far[low:high], half[low + 1 : high + 1]
    for x in range(between.shape[0]):  # down the picture, in quarters
        between[x] = 3 * I32(near[x]) + I32(far[x])
    half[0], half[pairs + 1] = half[1], half[pairs]  # beyond the edges the chroma stays the same
    around, out = half[start : stop + 2], full[2 * start : 2 * stop]
    for x in range(stop - start):  # along the line, in sixteenths
        middle = 3 * around[x + 1] - I32(16 * 128)
        out[2 * x] = middle + around[x]
        out[2 * x + 1] = middle + around[x + 2]


@compiled
def _mix_line(luma: Bytes, of_blue: Int32s, of_red: Int32s, out: tuple[Floats, Floats, Floats]) -> None:
    """RGB 0 .. 255 from luma, and chroma in sixteenths, of the same width.

    Sums are 8192 x 16 = 1 << 17 times a level. Adding 1 << 16, half a level, makes the shift round to the nearest.
    """
    red, green, blue = out
    for x in range(luma.shape[0]):
        light = (I32(luma[x]) - I32(16)) * I32(16 * LIGHT) + I32(1 << 16)
        r = light + I32(RED_OF_RED) * of_red[x]
        g = light + I32(GREEN_OF_BLUE) * of_blue[x] + I32(GREEN_OF_RED) * of_red[x]
        b = light + I32(BLUE_OF_BLUE) * of_blue[x]
        red[x] = F32(min(max(r >> I32(17), I32(0)), I32(255)))
        green[x] = F32(min(max(g >> I32(17), I32(0)), I32(255)))
        blue[x] = F32(min(max(b >> I32(17), I32(0)), I32(255)))
