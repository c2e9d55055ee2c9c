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

from lavila.data.batches import LoadedBatch, PictureBatch
from lavila.data.host.decode import DecodeError, decode_frames
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

    def run(self, batches: Iterable[list[ClipPlan]]) -> Generator[PictureBatch]:
        """As `runners.Runner.run`; pictures are DALI tensors on the device of the execution."""
        from lavila.data.dali_pipelines.restarts import RestartingPipeline  # imported here, since the module needs DALI

        with (
            self._decoder_threads() as threads,
            ThreadPoolExecutor(self._execution.threads, thread_name_prefix="clip-reader") as pool,
        ):
            execution = replace(self._execution, threads=threads)
            yield from RestartingPipeline(self._spec, execution).run(self._loaded(pool, iter(batches)))

    def _loaded(self, pool: ThreadPoolExecutor, batches: Iterator[list[ClipPlan]]) -> Iterator[LoadedBatch]:
        ahead: deque[tuple[list[ClipPlan], list[Future[Payload | str]]]] = deque()
        while True:
            while len(ahead) < self._ahead and (plans := next(batches, None)) is not None:
                ahead.append((plans, [pool.submit(self._payload, plan) for plan in plans]))
            if not ahead:
                return
            plans, futures = ahead.popleft()
            yield LoadedBatch.of(plans, [future.result() for future in futures])

    def _payload(self, plan: ClipPlan) -> Payload | str:
        """The clip's bytes or decoded frames, or the reason why it is bad."""
        try:
            data, frames = self._read(plan)
            if self._execution.decoder != "host":
                return Payload(data=np.frombuffer(data, np.uint8), frames=frames)
            return Payload(data=decode_frames(data, frames), frames=frames)
        except DecodeError as error:
            return str(error)
