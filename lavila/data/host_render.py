"""Decoded planes -> the pictures a model sees, on the CPU, in one pass: colour, crop, resize, normalisation, layout.

The arithmetic is that of the DALI graph (`dali_pipelines.graph.augment`): RGB by BT.601 limited with centred bilinear
chroma, rounded to 0..255; then a linear resize of the window in floating point; then normalisation. But only the lines
that a window needs are converted, and every value is written once, into the batch itself.

Colours are DALI's bit for bit; the resize differs by less than a hundredth of a level of 255.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lavila.data.dali_pipelines.graph import PictureSpec
from lavila.data.host_colour import F32, Bytes, Floats, Planes, chroma_scratch, compiled, rgb_line
from lavila.data.host_decode import DecodeError
from lavila.records import BLACK_FRAME, ClipPlan


@dataclass(frozen=True, kw_only=True)
class Taps:
    """A resize along one axis: output i is the sum over k of weights[k, i] * input[first[i] + k]."""

    first: npt.NDArray[np.int64]  # [S]
    weights: Floats  # [K, S]

    def part(self, start: int, size: int, *, mirrored: bool = False) -> Taps:
        """Some consecutive outputs, mirrored if asked for."""
        first, weights = self.first[start : start + size], self.weights[:, start : start + size]
        if mirrored:
            first, weights = first[::-1], weights[:, ::-1]
        return Taps(first=np.ascontiguousarray(first), weights=np.ascontiguousarray(weights))

    @property
    def span(self) -> tuple[int, int]:
        """The first input that is needed, and the one after the last."""
        return int(self.first.min()), int(self.first.max()) + len(self.weights)


def linear_taps(start: int, length: int, size: int, *, antialias: bool) -> Taps:
    """Resize `length` inputs from `start` on to `size` outputs, reading none beside them.

    Output i lies at input (i + 0.5) * length / size - 0.5, as in torchvision and DALI. antialias: where that shrinks,
    an output is the mean of its surroundings under a triangle as wide as two outputs.
    """
    step = length / size
    reach = max(step, 1.0) if antialias else 1.0
    centre = (np.arange(size) + 0.5) * step - 0.5
    if reach == 1.0:
        centre = np.clip(centre, 0, length - 1)
    count = min(math.ceil(reach) * 2, length)
    first = np.clip(np.floor(centre - reach).astype(np.int64) + 1, 0, length - count)
    weights = np.maximum(1.0 - np.abs(first + np.arange(count)[:, None] - centre) / reach, 0.0)
    weights /= weights.sum(0)
    return Taps(first=first + start, weights=weights.astype(F32))


class ClipRenderer:
    """Fills a clip's place in a batch. Safe to use from many threads."""

    def __init__(self, spec: PictureSpec) -> None:
        self._spec = spec
        self._scale = (1.0 / np.array(spec.std)).astype(F32)
        self._bias = (-np.array(spec.mean) / np.array(spec.std)).astype(F32)

    def render(self, plan: ClipPlan, frames: Iterable[Planes], out: npt.NDArray[Any]) -> None:
        """Write every view of a clip.

        Args:
            plan: of the clip.
            frames: those of `plan.distinct_frames()`, in their order.
            out: [K, S, T, 3, size, size] float32 or float16.

        Raises:
            DecodeError: pictures smaller than the plan's window; whatever `frames` raises.
        """
        top, left, height, width = plan.window
        rows = linear_taps(top, height, plan.resized[0], antialias=self._spec.antialias)
        columns = linear_taps(left, width, plan.resized[1], antialias=self._spec.antialias)
        crops = plan.crops
        if len(crops) == 1:  # nothing but this crop is made
            rows = rows.part(int(crops[0, 0]), self._spec.size)
            columns = columns.part(int(crops[0, 1]), self._spec.size, mirrored=plan.flip)
            crops = np.zeros_like(crops)
        assert len(crops) == 1 or not plan.flip, plan
        picture = np.empty((3, len(rows.first), len(columns.first)), F32)
        places = plan.gather()
        for place, planes in enumerate(frames):
            _check_size(planes, plan)
            slots = np.argwhere(places == place)
            straight = len(slots) == len(crops) == 1 and out.dtype == F32
            self._draw(planes, rows, columns, out[slots[0, 0], 0, slots[0, 1]] if straight else picture)
            if not straight:
                _hand_out(picture, slots, crops, out)
        for k, t in np.argwhere(plan.frames == BLACK_FRAME):
            out[k, :, t] = self._bias[:, None, None]

    def _draw(self, planes: Planes, rows: Taps, columns: Taps, out: Floats) -> None:
        """One frame, [3, rows, columns]."""
        start, stop = rows.span
        lines = np.empty((stop - start, 3, len(columns.first)), F32)
        _resize_lines(planes.luma, planes.blue, planes.red, planes.width, start, columns.first, columns.weights, lines)
        _blend_lines(lines, rows.first - start, rows.weights, self._scale, self._bias, out)


def _hand_out(picture: Floats, slots: npt.NDArray[Any], crops: npt.NDArray[np.int32], out: npt.NDArray[Any]) -> None:
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
def _resize_lines(
    luma: Bytes, blue: Bytes, red: Bytes, wide: int, start: int, first: Any, weights: Floats, lines: Floats
) -> None:
    """Lines start, start + 1, ... of a frame as RGB, resized along x: lines [rows, 3, S]."""
    left, right = first.min(), first.max() + weights.shape[0]
    rgb, scratch = np.empty((3, wide), np.float32), chroma_scratch(wide)
    for row in range(lines.shape[0]):
        rgb_line(luma, blue, red, start + row, left, right, rgb, scratch)
        for channel in range(3):
            _resize_line(rgb[channel], first, weights, lines[row, channel])


@compiled
def _resize_line(values: Floats, first: Any, weights: Floats, out: Floats) -> None:
    if weights.shape[0] == 2:  # all but shrinking with antialiasing; a loop of known length is three times as fast
        for i in range(out.shape[0]):
            out[i] = weights[0, i] * values[first[i]] + weights[1, i] * values[first[i] + 1]
        return
    for i in range(out.shape[0]):
        total = F32(0)
        for k in range(weights.shape[0]):
            total += weights[k, i] * values[first[i] + k]
        out[i] = total


@compiled
def _blend_lines(lines: Floats, first: Any, weights: Floats, scale: Floats, bias: Floats, out: Floats) -> None:
    """The resize along y, and the normalisation: [rows, 3, S] -> [3, S', S]."""
    for channel in range(3):
        for i in range(out.shape[1]):
            target = out[channel, i]
            if weights.shape[0] == 2:
                low, high = weights[0, i] * scale[channel], weights[1, i] * scale[channel]
                below, above = lines[first[i], channel], lines[first[i] + 1, channel]
                for x in range(target.shape[0]):
                    target[x] = low * below[x] + high * above[x] + bias[channel]
                continue
            target[:] = bias[channel]
            for k in range(weights.shape[0]):
                weight, line = weights[k, i] * scale[channel], lines[first[i] + k, channel]
                for x in range(target.shape[0]):
                    target[x] += weight * line[x]
