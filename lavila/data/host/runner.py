"""The CPU's own way from plans to pictures: threads that read, decode and draw one clip each, into the batch itself.

The counterpart of `dali_pipelines.runner.PipelineRunner`, with the same outcome. A clip that cannot be decoded is known
at once and costs nothing but its place in the batch.

Memory is that of the batches: those in the making or ready, whose number the caller sets, and HELD more. A clip's bytes
and the one frame of it that a thread works on are small beside its pictures.
"""

from __future__ import annotations

import math
import weakref
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lavila.data.batches import PictureBatch
from lavila.data.host.decode import DecodeError, decode_planes
from lavila.data.host.render import ClipRenderer
from lavila.data.pictures import PictureSpec
from lavila.data.reading import Read
from lavila.records import ClipPlan

HELD = 2  # batches beside those ahead: the one handed out, and the one before, until whoever asked lets go of it


@dataclass(frozen=True, kw_only=True)
class _Drawing:
    """A batch that is being made."""

    plans: list[ClipPlan]
    pictures: npt.NDArray[Any]  # [B, K, S, T, 3, size, size]
    reasons: list[Future[str | None]]  # why a clip cannot be decoded, once its place in `pictures` is done


class _Buffers:
    """Memory for batches, used again once nobody holds a batch any more: fresh memory costs page faults."""

    def __init__(self, clip_shape: tuple[int, ...], *, half: bool, most: int) -> None:
        """`most`: batches whose memory is kept for use again."""
        self._clip_shape, self._dtype, self._most = clip_shape, np.float16 if half else np.float32, most
        self._free: list[npt.NDArray[Any]] = []

    def take(self, clips: int) -> npt.NDArray[Any]:
        """[clips, *clip_shape], taken back when the returned array and every tensor made of it are gone."""
        whole = self._free.pop() if self._free else np.empty((clips, *self._clip_shape), self._dtype)
        if len(whole) < clips:
            whole = np.empty((clips, *self._clip_shape), self._dtype)
        pictures = whole[:clips]
        weakref.finalize(pictures, self._take_back, whole).atexit = False
        return pictures

    def _take_back(self, whole: npt.NDArray[Any]) -> None:
        if len(self._free) < self._most:
            self._free.append(whole)


class HostRunner:
    """Turns batches of plans into batches of pictures on `threads` CPU threads, `ahead` batches at a time."""

    def __init__(self, spec: PictureSpec, read: Read, *, threads: int, ahead: int) -> None:
        self._read, self._threads, self._ahead = read, threads, ahead
        self._renderer = ClipRenderer(spec)
        self._buffers = _Buffers(_clip_shape(spec), half=spec.half, most=ahead + HELD)

    @staticmethod
    def clip_bytes(spec: PictureSpec) -> int:
        """Of the pictures of a clip."""
        return math.prod(_clip_shape(spec)) * (2 if spec.half else 4)

    def run(self, batches: Iterable[list[ClipPlan]]) -> Generator[PictureBatch]:
        """`runners.Runner.run`, with arrays of numpy."""
        coming, ahead = iter(batches), deque[_Drawing]()
        with ThreadPoolExecutor(self._threads, thread_name_prefix="clip") as pool:
            try:
                self._fill(pool, coming, ahead)
                while ahead:
                    made = _finished(ahead.popleft())
                    self._fill(pool, coming, ahead)  # before the caller uses this one: the threads work meanwhile
                    yield made
                    del made  # its memory is free before the next batch is waited for
            finally:  # whoever stops in mid-epoch does not wait for what was begun
                for drawing in ahead:
                    for reason in drawing.reasons:
                        reason.cancel()

    def _fill(self, pool: ThreadPoolExecutor, coming: Iterator[list[ClipPlan]], ahead: deque[_Drawing]) -> None:
        while len(ahead) < self._ahead and (plans := next(coming, None)) is not None:
            ahead.append(self._begin(pool, plans))

    def _begin(self, pool: ThreadPoolExecutor, plans: list[ClipPlan]) -> _Drawing:
        pictures = self._buffers.take(len(plans))
        reasons = [pool.submit(self._draw, plan, pictures[place]) for place, plan in enumerate(plans)]
        return _Drawing(plans=plans, pictures=pictures, reasons=reasons)

    def _draw(self, plan: ClipPlan, out: npt.NDArray[Any]) -> str | None:
        try:
            data, frames = self._read(plan)
            self._renderer.render(plan, decode_planes(data, frames), out)
        except DecodeError as error:
            return str(error)
        return None


def _clip_shape(spec: PictureSpec) -> tuple[int, ...]:
    return (*spec.view_grid, spec.frames, 3, spec.size, spec.size)


def _finished(drawing: _Drawing) -> PictureBatch:
    """Waits for the batch. From then on the batch alone holds its memory: `drawing` ends with the call."""
    return PictureBatch.of(drawing.plans, drawing.pictures, [reason.result() for reason in drawing.reasons])
