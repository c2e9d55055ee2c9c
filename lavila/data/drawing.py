"""The part of a runner after decoding, alone and again and again, for tools that measure it.

    HostDrawing: planes -> pictures on CPU threads, as `host.runner.HostRunner`
    DaliDrawing: RGB frames -> pictures in a DALI graph, as `dali_pipelines.runner.PipelineRunner`

Imports without DALI: `DaliDrawing` imports it when it draws.
"""

from __future__ import annotations

import itertools
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from lavila.data.host.colour import Planes
from lavila.data.host.decode import decode_frames, decode_planes
from lavila.data.host.render import ClipRenderer
from lavila.data.pictures import Execution, Payload, PictureSpec
from lavila.records import ClipPlan

Decoded = tuple[Sequence[ClipPlan], Sequence[Any]]
"""The plans of a batch, and each clip as `Drawing.decode` returns it."""


class Drawing(Protocol):
    """Draws decoded clips as a runner does."""

    def decode(self, payload: Payload) -> Any:
        """The distinct frames of a clip, in the form that drawing takes. DecodeError as `decode_frames` raises it."""
        ...

    def draw(self, batches: Sequence[Decoded]) -> Generator[int]:
        """Draw the batches again and again, without end. Yields the number of clips that were drawn."""
        ...


def build_drawing(spec: PictureSpec, execution: Execution) -> Drawing:
    """The drawing part of the runner that `runners.build_runner` chooses."""
    return HostDrawing(spec, execution) if execution.draws_on_host else DaliDrawing(spec, execution)


class HostDrawing:
    """Draws planes with the compiled code of the host path."""

    def __init__(self, spec: PictureSpec, execution: Execution) -> None:
        self._spec, self._execution = spec, execution

    def decode(self, payload: Payload) -> list[Planes]:
        frames = decode_planes(payload.data, payload.frames)
        return [Planes(one.luma.copy(), one.blue.copy(), one.red.copy(), one.width) for one in frames]

    def draw(self, batches: Sequence[Decoded]) -> Generator[int]:
        spec = self._spec
        renderer = ClipRenderer(spec)
        plans, planes = (list(itertools.chain(*part)) for part in zip(*batches, strict=True))
        shape = (len(plans), *spec.view_grid, spec.frames, 3, spec.size, spec.size)
        pictures = np.empty(shape, np.float16 if spec.half else np.float32)
        with ThreadPoolExecutor(self._execution.threads) as pool:
            while True:
                yield len(list(pool.map(renderer.render, plans, planes, pictures)))


class DaliDrawing:
    """Draws RGB frames with the augment graph of the DALI path. With a GPU, the frames are copied to it first."""

    def __init__(self, spec: PictureSpec, execution: Execution) -> None:
        self._spec, self._execution = spec, replace(execution, decoder="host")  # the frames are decoded already

    def decode(self, payload: Payload) -> Any:
        return decode_frames(payload.data, payload.frames)

    def draw(self, batches: Sequence[Decoded]) -> Generator[int]:
        from lavila.data.dali_pipelines.probe import augmented  # imported here, since the module needs DALI

        yield from augmented(batches, self._spec, self._execution)
