"""Decoded planes -> the pictures a model sees, on the CPU, in one pass: colour, crop, resize, normalisation, layout.

The arithmetic is that of the DALI graph (`dali_pipelines.graph.augment`). First comes RGB by BT.601 limited with
centred bilinear chroma, rounded to 0..255; then a linear resize of the window in floating point; then normalisation.
But here only the lines that a window needs are converted, and every value is written once, into the batch.

Colours equal DALI's bit for bit. The resize differs by less than a hundredth of a level of 255.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lavila.data.host.colour import F32, Bytes, Floats, Planes, chroma_scratch, compiled, rgb_line
from lavila.data.host.decode import DecodeError
from lavila.data.pictures import PictureSpec
from lavila.records import BLACK_FRAME, ClipPlan


@dataclass(frozen=True, kw_only=True)
class Taps:
    """A resize along one axis: output i is the sum over k of weights[k, i] * input[first[i] + k]."""

    first: npt.NDArray[np.int32]  # [S] the first input of each output; ascending, or descending if mirrored
    weights: Floats  # [K, S] the weights of K inputs that follow each other

    def part(self, start: int, size: int, *, mirrored: bool = False) -> Taps:
        """The taps of `size` outputs from `start` on; `mirrored` reverses them."""
        first, weights = self.first[start : start + size], self.weights[:, start : start + size]
        if mirrored:
            first, weights = first[::-1], weights[:, ::-1]
        return Taps(first=np.ascontiguousarray(first), weights=np.ascontiguousarray(weights))


def linear_taps(start: int, length: int, size: int, *, antialias: bool) -> Taps:
    """The taps that resize `length` inputs from `start` on to `size` outputs. They read no input outside these.

    Output i lies at input (i + 0.5) * length / size - 0.5, as in torchvision and DALI. With `antialias`, an output of a
    shrinking resize is the mean of its neighbours under a triangle as wide as two outputs.
    """
    step = length / size
    reach = max(step, 1.0) if antialias else 1.0
    centre = (np.arange(size) + 0.5) * step - 0.5
    if reach == 1.0:
        centre = np.minimum(np.maximum(centre, 0), length - 1)  # np.clip takes several times as long
    count = min(math.ceil(reach) * 2, length)
    first = np.minimum(np.maximum(np.floor(centre - reach).astype(np.int32) + 1, 0), length - count)
    weights = np.maximum(1.0 - np.abs(first + np.arange(count)[:, None] - centre) / reach, 0.0)
    weights /= weights.sum(0)
    return Taps(first=(first + start).astype(np.int32), weights=weights.astype(F32))


class ClipRenderer:
    """Draws a clip into its place in a batch. Safe to use from many threads."""

    def __init__(self, spec: PictureSpec) -> None:
        self._spec = spec
        mean, std = np.array(spec.mean), np.array(spec.std)
        self._scale = np.stack([1 / std, -mean / std]).astype(F32)  # the factor and the summand of each channel

    def render(self, plan: ClipPlan, frames: Iterable[Planes], out: npt.NDArray[Any]) -> None:
        """Write every view of a clip.

        Args:
            plan: the plan of the clip.
            frames: the frames `plan.distinct_frames()`, in their order.
            out: [K, S, T, 3, size, size] float32 or float16.

        Raises:
            DecodeError: the pictures are smaller than the plan's window. Errors of `frames` pass through.
        """
        top, left, height, width = plan.window
        rows = linear_taps(top, height, plan.resized[0], antialias=self._spec.antialias)
        columns = linear_taps(left, width, plan.resized[1], antialias=self._spec.antialias)
        crops = plan.crops
        if len(crops) == 1:  # draw this crop alone; several crops are cut from one larger picture
            rows = rows.part(int(crops[0, 0]), self._spec.size)
            columns = columns.part(int(crops[0, 1]), self._spec.size, mirrored=plan.flip)
            crops = np.zeros_like(crops)
        assert len(crops) == 1 or not plan.flip, plan
        # One buffer serves all frames. Fresh memory costs page faults, and in those threads wait for each other.
        picture = np.empty((3, len(rows.first), len(columns.first)), F32)
        slots_of: dict[int, list[tuple[int, int]]] = {}  # frame -> where it is seen: temporal clip, and place in it
        for k, chosen in enumerate(plan.frames.tolist()):
            for t, frame in enumerate(chosen):
                slots_of.setdefault(frame, []).append((k, t))
        black = slots_of.pop(BLACK_FRAME, [])
        for planes, frame in zip(frames, plan.distinct_frames().tolist(), strict=True):
            _check_size(planes, plan)
            slots = slots_of.get(frame, [])  # none for a clip of black frames only
            straight = len(slots) == len(crops) == 1 and out.dtype == F32  # one place, so no copy is needed
            target = out[slots[0][0], 0, slots[0][1]] if straight else picture
            _draw(
                (planes.luma, planes.blue, planes.red),
                planes.width,
                (rows.first, rows.weights),
                (columns.first, columns.weights),
                self._scale,
                target,
            )
            if not straight:
                _copy_crops(picture, slots, crops, out)
        for k, t in black:
            out[k, :, t] = self._scale[1][:, None, None]


def _copy_crops(
    picture: Floats, slots: list[tuple[int, int]], crops: npt.NDArray[np.int32], out: npt.NDArray[Any]
) -> None:
    size = out.shape[-1]
    for k, t in slots:
        for s, (y, x) in enumerate(crops):
            out[k, s, t] = picture[:, y : y + size, x : x + size]


def _check_size(planes: Planes, plan: ClipPlan) -> None:
    top, left, height, width = plan.window
    if top + height > len(planes.luma) or left + width > planes.width:
        raise DecodeError(
            f"pictures of {planes.width}x{len(planes.luma)} pixels, where the table says that there are "
            f"{left + width}x{top + height} at least"
        )


@compiled
def _draw(
    planes: tuple[Bytes, Bytes, Bytes],
    wide: int,
    rows: tuple[Any, Floats],
    columns: tuple[Any, Floats],
    scale: Any,
    out: Any,
) -> None:
    """Draw one frame, [3, rows, columns]: RGB, resized along y, then along x, times scale[0], plus scale[1].

    It works line by line, so that its data stays in the processor's nearest cache. `lines` is a ring: it holds only the
    lines that one output line is made of, and line y is always at y % taps. Output lines ascend, so each input line is
    converted once.
    """
    first, weights = rows
    taps = weights.shape[0]
    left, right = columns[0].min(), columns[0].max() + columns[1].shape[0]
    places = (columns[0] - left).astype(np.uint32)
    lines = np.empty((3, taps, wide), np.float32)  # [channel, y % taps, x]
    blended, scratch = np.empty(right - left, np.float32), chroma_scratch(wide)
    following = first[0]  # the next line to convert
    for i in range(out.shape[1]):
        for y in range(max(following, first[i]), first[i] + taps):
            rgb_line(planes, y, (left, right), lines, y % taps, scratch)
            following = y + 1
        for channel in range(3):
            _blend(lines[channel], left, first[i] % taps, weights[:, i], blended)
            _resize_line(blended, places, columns[1], scale[0, channel], scale[1, channel], out[channel, i])


@compiled
def _blend(lines: Floats, left: int, first: int, weights: Any, out: Floats) -> None:
    """The weighted sum of the lines of a ring, from pixel `left` on. Weight 0 belongs to the line at place `first`."""
    taps, right = weights.shape[0], left + out.shape[0]
    if taps == 2:  # every resize but an antialiased one that shrinks; a sum of known length is several times as fast
        below, above, low, high = lines[first, left:right], lines[1 - first, left:right], weights[0], weights[1]
        for x in range(out.shape[0]):
            out[x] = low * below[x] + high * above[x]
        return
    out[:] = 0
    for k in range(taps):
        line, weight = lines[(first + k) % taps, left:right], weights[k]
        for x in range(out.shape[0]):
            out[x] += weight * line[x]


@compiled
def _resize_line(values: Floats, first: Any, weights: Floats, scale: float, shift: float, out: Floats) -> None:
    if weights.shape[0] == 2:
        low, high = weights[0], weights[1]
        for i in range(out.shape[0]):
            out[i] = (low[i] * values[first[i]] + high[i] * values[first[i] + np.uint32(1)]) * scale + shift
        return
    for i in range(out.shape[0]):
        total = F32(0)
        for k in range(weights.shape[0]):
            total += weights[k, i] * values[first[i] + np.uint32(k)]
        out[i] = total * scale + shift
