"""The inputs of the graph: a batch of planned clips, as the lists of arrays that DALI's external source takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from nvidia.dali import fn, types

from lavila.data.pictures import Payload, PictureSpec
from lavila.records import ClipPlan


@dataclass(frozen=True, kw_only=True)
class ClipArguments:
    """Nodes of the graph with one value a clip.

    They stay on the CPU, where DALI reads arguments of GPU operators, too.
    """

    distinct: Any  # [U] int32, ascending frames to decode; they come from the payloads, all others from the plans
    order: Any  # [K*T] int32, places in `distinct`; one past its end is the black frame
    resized: Any  # [2] float, height and width after the resize
    window_start: Any  # [2] int32, top and left in stored pixels
    window_shape: Any  # [2] int32, height and width in stored pixels
    padded_frames: Any  # [1] int32, U + 1
    crop_y: Any  # [S] float, offset / spare height
    crop_x: Any  # [S] float, offset / spare width
    flip: Any  # int32, 1 = mirrored


@dataclass(frozen=True)
class _Input:
    name: str
    dtype: Any
    ndim: int
    value: Callable[[ClipPlan, PictureSpec], Any]


def _spare(plan: ClipPlan, spec: PictureSpec, axis: int) -> npt.NDArray[np.float32]:
    # DALI places a crop at round(position * spare); a spare of 0 takes any position.
    return (plan.crops[:, axis] / max(plan.resized[axis] - spec.size, 1)).astype(np.float32)


_INPUTS = (
    _Input("order", types.INT32, 1, lambda plan, spec: plan.gather().ravel()),
    _Input("resized", types.FLOAT, 1, lambda plan, spec: np.array(plan.resized, np.float32)),
    _Input("window_start", types.INT32, 1, lambda plan, spec: np.array(plan.window[:2], np.int32)),
    _Input("window_shape", types.INT32, 1, lambda plan, spec: np.array(plan.window[2:], np.int32)),
    _Input("padded_frames", types.INT32, 1, lambda plan, spec: np.array([len(plan.distinct_frames()) + 1], np.int32)),
    _Input("crop_y", types.FLOAT, 1, lambda plan, spec: _spare(plan, spec, 0)),
    _Input("crop_x", types.FLOAT, 1, lambda plan, spec: _spare(plan, spec, 1)),
    _Input("flip", types.INT32, 0, lambda plan, spec: np.array(plan.flip, np.int32)),
)


def _used(spec: PictureSpec) -> list[_Input]:
    unused = set() if spec.cuts_window else {"window_start", "window_shape"}
    unused |= set() if spec.pads_black else {"padded_frames"}
    return [item for item in _INPUTS if item.name not in unused]


def external_inputs(
    source: Callable[[], tuple[Sequence[ClipPlan], Sequence[Payload]]], spec: PictureSpec, *, decoded: bool
) -> tuple[Any, ClipArguments]:
    """The payload node and the argument nodes of a graph.

    `source` is called once a batch and returns its plans and payloads. It raises StopIteration after the last one.
    """
    used = _used(spec)
    numbers = 0 if decoded else 1  # decoded frames need no numbers, and DALI refuses an input that nothing reads

    def feed() -> tuple[list[Any], ...]:
        plans, payloads = source()
        frames = [[payload.frames for payload in payloads]] * numbers
        arguments = [[item.value(plan, spec) for plan in plans] for item in used]
        return [payload.data for payload in payloads], *frames, *arguments

    payload, *nodes = fn.external_source(
        source=feed,
        num_outputs=1 + numbers + len(used),
        dtype=[types.UINT8, *[types.INT32] * numbers, *(item.dtype for item in used)],
        ndim=[4 if decoded else 1, *[1] * numbers, *(item.ndim for item in used)],
        layout=["FHWC" if decoded else "", *[""] * (numbers + len(used))],
        batch=True,
    )
    names = [*["distinct"] * numbers, *(item.name for item in used)]
    named = dict.fromkeys(("distinct", *(item.name for item in _INPUTS))) | dict(zip(names, nodes, strict=True))
    return payload, ClipArguments(**named)
