"""From plans to pictures on the CPU: each thread reads, decodes and draws one clip at a time, straight into the batch.

This is the counterpart of `dali_pipelines.runner.PipelineRunner`, with the same results. The thread that finds a clip
to be bad draws its substitute into the same place.

The memory is that of `ahead` batches, which the caller sets, and of HELD more. The bytes of a clip and the one frame
that a thread works on are small in comparison. For a GPU, threads draw into page-locked memory, and each finished batch
is copied to the GPU when the caller takes it.
"""

from __future__ import annotations

import math
import weakref
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from lavila.data.batches import Instead, PictureBatch, Place, fill, nothing_instead
from lavila.data.host.decode import decode_planes
from lavila.data.host.gpu_copy import BatchCopy
from lavila.data.host.render import ClipRenderer
from lavila.data.pictures import PictureSpec
from lavila.data.reading import Read
from lavila.records import ClipPlan

HELD = 2  # batches beyond those ahead: the one handed out, and the one before it, which the caller may still hold


@dataclass(frozen=True, kw_only=True)
class _Drawing:
    """A batch that threads are drawing."""

    pictures: npt.NDArray[Any]  # [B, K, S, T, 3, size, size]
    memory: torch.Tensor | None  # the same memory, if it will be copied to a GPU
    places: list[Future[Place[bool]]]  # set when the place in `pictures` is done, or empty for good


class _Buffers:
    """Memory for batches. It is used again when nobody holds a batch any more, since fresh memory costs page faults."""

    def __init__(self, clip_shape: tuple[int, ...], *, half: bool, most: int) -> None:
        """`most`: the number of batches whose memory is kept."""
        self._clip_shape, self._dtype, self._most = clip_shape, np.float16 if half else np.float32, most
        self._free: list[npt.NDArray[Any]] = []

    def take(self, clips: int) -> npt.NDArray[Any]:
        """An array [clips, *clip_shape].

        Its memory comes back when the array and every tensor made from it are gone.
        """
        whole = self._free.pop() if self._free else np.empty((clips, *self._clip_shape), self._dtype)
        if len(whole) < clips:
            whole = np.empty((clips, *self._clip_shape), self._dtype)
        pictures = whole[:clips]
        # `pictures` is a view, and everything made from it keeps it alive. So its end means that nobody reads `whole`.
        weakref.finalize(pictures, self._take_back, whole).atexit = False
        return pictures

    def _take_back(self, whole: npt.NDArray[Any]) -> None:
        if len(self._free) < self._most:
            self._free.append(whole)


class HostRunner:
    """Turns batches of plans into batches of pictures on `threads` CPU threads, `ahead` batches at a time."""

    def __init__(
        self, spec: PictureSpec, read: Read, *, threads: int, ahead: int, copy: BatchCopy | None = None
    ) -> None:
        """`copy`: how batches come to the device of the caller; None = they stay where they are drawn."""
        self._spec, self._read, self._threads, self._ahead, self._copy = spec, read, threads, ahead, copy
        self._renderer = ClipRenderer(spec)
        self._buffers = _Buffers(_clip_shape(spec), half=spec.half, most=ahead + HELD)

    @staticmethod
    def clip_bytes(spec: PictureSpec) -> int:
        """The bytes of the pictures of one clip."""
        return math.prod(_clip_shape(spec)) * (2 if spec.half else 4)

    def run(self, batches: Iterable[list[ClipPlan]], instead: Instead = nothing_instead) -> Generator[PictureBatch]:
        """As `runners.Runner.run`; pictures are numpy arrays, or tensors on the device that they were copied to."""

        def fill_up() -> None:
            while len(ahead) < self._ahead and (plans := next(coming, None)) is not None:
                ahead.append(self._begin(pool, plans, instead))

        coming, ahead = iter(batches), deque[_Drawing]()
        with ThreadPoolExecutor(self._threads, thread_name_prefix="clip") as pool:
            try:
                fill_up()
                while ahead:
                    made = [_finished(ahead.popleft(), self._copy)]
                    fill_up()  # so that threads work while the caller uses this batch
                    yield made.pop()  # its memory is the caller's alone
            finally:  # a caller that stops in mid-epoch does not wait for clips that no thread has begun
                for drawing in ahead:
                    for place in drawing.places:
                        place.cancel()

    def _begin(self, pool: ThreadPoolExecutor, plans: list[ClipPlan], instead: Instead) -> _Drawing:
        memory = None
        if self._copy is None:
            pictures = self._buffers.take(len(plans))
        else:
            dtype = torch.float16 if self._spec.half else torch.float32
            memory = self._copy.memory((len(plans), *_clip_shape(self._spec)), dtype)
            pictures = memory.numpy()
        places = [pool.submit(self._draw, plan, pictures[number], instead) for number, plan in enumerate(plans)]
        return _Drawing(pictures=pictures, memory=memory, places=places)

    def _draw(self, plan: ClipPlan, out: npt.NDArray[Any], instead: Instead) -> Place[bool]:
        def make(one: ClipPlan) -> bool:
            data, frames = self._read(one)
            self._renderer.render(one, decode_planes(data, frames), out)
            return True

        return fill(plan, make, instead)


def _clip_shape(spec: PictureSpec) -> tuple[int, ...]:
    return (*spec.view_grid, spec.frames, 3, spec.size, spec.size)


def _finished(drawing: _Drawing, copy: BatchCopy | None) -> PictureBatch:
    """Wait for a batch. Only the result holds its memory afterwards, since `drawing` ends with this call."""
    places = [place.result() for place in drawing.places]
    if copy is None or drawing.memory is None:
        return PictureBatch.of(places, drawing.pictures)
    pictures: Any = copy.copied(drawing.memory)  # a tensor; it is indexed like an array
    return PictureBatch.of(places, pictures)
