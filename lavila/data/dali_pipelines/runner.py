"""From plans to pictures with DALI: threads read ahead, pipelines decode and draw.

This is the counterpart of `host.runner.HostRunner`. It imports without DALI, which is only needed to run.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import numpy as np

from lavila.data.batches import Instead, LoadedBatch, PictureBatch, Place, fill, nothing_instead
from lavila.data.host.decode import decode_frames
from lavila.data.pictures import Execution, Payload, PictureSpec
from lavila.data.reading import Read
from lavila.records import ClipPlan

DecoderThreads = Callable[[], AbstractContextManager[int]]
"""The number of a pipeline's threads, held while it runs."""


class PipelineRunner:
    """Reads batches of plans, `ahead` batches before DALI asks for them. Pipelines turn them into pictures.

    `execution.threads` read. `decoder_threads` gives the number that decode, which is the number of NVDEC's sessions on
    a GPU; without it, as many decode as read. With the decoder host the reading threads also decode, and DALI only
    draws: `benchmarks/gpu` compares this with `host.runner.HostRunner`.
    """

    def __init__(
        self,
        spec: PictureSpec,
        read: Read,
        execution: Execution,
        *,
        ahead: int,
        decoder_threads: DecoderThreads | None = None,
    ) -> None:
        self._spec, self._read, self._execution, self._ahead = spec, read, execution, ahead
        self._decoder_threads = decoder_threads or (lambda: nullcontext(execution.threads))

    def run(self, batches: Iterable[list[ClipPlan]], instead: Instead = nothing_instead) -> Generator[PictureBatch]:
        """As `runners.Runner.run`; pictures are DALI tensors on the device of the execution."""
        from lavila.data.dali_pipelines.restarts import RestartingPipeline  # imported here, since the module needs DALI

        def next_after(bad: ClipPlan, reason: str) -> Place[Payload]:
            return fill(instead(bad), self._payload, instead, bad=((bad, reason),))

        with (
            self._decoder_threads() as threads,
            ThreadPoolExecutor(self._execution.threads, thread_name_prefix="clip-reader") as pool,
        ):
            execution = replace(self._execution, threads=threads)
            loaded = self._loaded(pool, iter(batches), instead)
            yield from RestartingPipeline(self._spec, execution, next_after).run(loaded)

    def _loaded(
        self, pool: ThreadPoolExecutor, batches: Iterator[list[ClipPlan]], instead: Instead = nothing_instead
    ) -> Iterator[LoadedBatch]:
        ahead: deque[list[Future[Place[Payload]]]] = deque()
        while True:
            while len(ahead) < self._ahead and (plans := next(batches, None)) is not None:
                ahead.append([pool.submit(fill, plan, self._payload, instead) for plan in plans])
            if not ahead:
                return
            yield LoadedBatch.of([place.result() for place in ahead.popleft()])

    def _payload(self, plan: ClipPlan) -> Payload:
        """The clip's bytes or decoded frames. DecodeError for a bad clip."""
        data, frames = self._read(plan)
        if self._execution.decoder != "host":
            return Payload(data=np.frombuffer(data, np.uint8), frames=frames)
        return Payload(data=decode_frames(data, frames), frames=frames)
