"""The two ways from plans to pictures. Both have the interface `Runner`, and `build_runner` chooses one.

    plans --HostRunner: CPU threads read, decode and draw-------------------> pictures     no GPU, decoder host
    plans --PipelineRunner: threads read, DALI pipelines decode and draw----> pictures     every other case

Imports without DALI: `PipelineRunner` imports it when it runs.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from dataclasses import replace
from typing import Protocol

from lavila.data.batches import Instead, PictureBatch, nothing_instead
from lavila.data.dali_pipelines.runner import PipelineRunner
from lavila.data.host.runner import HELD, HostRunner
from lavila.data.memory import GIB, Work, batches_ahead
from lavila.data.pictures import Execution, PictureSpec
from lavila.data.reading import ClipReader
from lavila.records import ClipPlan


class Runner(Protocol):
    """Reads, decodes and draws the clips of plans, a few batches ahead of the caller."""

    def run(self, batches: Iterable[list[ClipPlan]], instead: Instead = nothing_instead) -> Generator[PictureBatch]:
        """Every batch, in order, without its bad clips. A caller that stops early must close it.

        `instead` names the clips that take the places of bad ones.

        Raises:
            DecoderFault: the decoder fails on sound videos.
            ShardSetError: the shard set does not hold the frames of a plan.
            RuntimeError: DALI fails for another reason than a video.
        """
        ...


def build_runner(reader: ClipReader, spec: PictureSpec, execution: Execution, *, host_memory_gib: float) -> Runner:
    """The runner for a decoder and a device.

    `host_memory_gib` limits the main memory, in GiB, for what CPU threads decode. One batch is always made, and a
    warning says if it takes more. Encoded clips are small, so `execution.prefetch` alone limits them.
    """
    if execution.decoder != "host":
        return PipelineRunner(spec, reader.read_needed, execution, ahead=execution.prefetch + 1)
    if execution.draws_on_host:
        work = _work(execution, HostRunner.clip_bytes(spec), held=HELD)
        ahead = batches_ahead(work, memory_gib=host_memory_gib)
        return HostRunner(spec, reader.read, threads=execution.threads, ahead=ahead)
    # DALI holds prefetch + 1 batches, each twice: the array that we hand over, and a copy. `prefetch` is chosen so that
    # these take at most half of the memory: 2 * (prefetch + 1) <= fit / 2.
    clip_bytes = reader.largest_frame() * spec.view_grid[0] * spec.frames
    fit = int(host_memory_gib * GIB) // max(clip_bytes * execution.batch_size, 1)
    execution = replace(execution, prefetch=max(1, min(execution.prefetch, fit // 4 - 1)))
    work = _work(execution, clip_bytes, held=2 * (execution.prefetch + 1))
    return PipelineRunner(spec, reader.read, execution, ahead=batches_ahead(work, memory_gib=host_memory_gib))


def _work(execution: Execution, clip_bytes: int, *, held: int) -> Work:
    return Work(
        batch_size=execution.batch_size,
        batch_bytes=execution.batch_size * clip_bytes,
        threads=execution.threads,
        prefetch=execution.prefetch,
        held=held,
    )
