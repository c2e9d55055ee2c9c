"""The two ways from plans to pictures. Both have the interface `Runner`, and `build_runner` chooses one.

    plans --HostRunner: CPU threads read, decode and draw-------------------> pictures     decoder host
    plans --PipelineRunner: threads read, DALI pipelines decode and draw----> pictures     decoders nvdec and dali_cpu

On a GPU machine `HostRunner` copies its batches to the GPU. Imports without DALI: `PipelineRunner` imports it when it
runs. Another decoder of a GPU would be one more runner here: it gets encoded bytes and frame numbers
(`ClipReader.read_needed` or `read_for_nvdec`), and gives pictures.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol

from lavila.data.batches import Instead, PictureBatch, nothing_instead
from lavila.data.dali_pipelines.runner import DecoderThreads, PipelineRunner
from lavila.data.host.gpu_copy import GpuCopy
from lavila.data.host.runner import HELD, HostRunner
from lavila.data.memory import Work, batches_ahead
from lavila.data.nvdec.chip import chip_of
from lavila.data.nvdec.sessions import sessions
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
        return PipelineRunner(
            spec,
            reader.read_for_nvdec if execution.decoder == "nvdec" else reader.read_needed,
            execution,
            ahead=execution.prefetch + 1,
            decoder_threads=_decoder_threads(reader, execution),
        )
    clip_bytes = HostRunner.clip_bytes(spec)
    work = Work(
        batch_size=execution.batch_size,
        batch_bytes=execution.batch_size * clip_bytes,
        threads=execution.threads,
        prefetch=execution.prefetch,
        held=HELD,
    )
    ahead = batches_ahead(work, memory_gib=host_memory_gib)
    copy = None if execution.device_id is None else GpuCopy(execution.device_id)
    return HostRunner(spec, reader.read, threads=execution.threads, ahead=ahead, copy=copy)


def _decoder_threads(reader: ClipReader, execution: Execution) -> DecoderThreads:
    """How many threads decode while a pipeline runs. Those of NVDEC come from its engines, not from the cores."""

    @contextmanager
    def threads() -> Iterator[int]:
        if execution.decoder != "nvdec" or execution.device_id is None:
            yield execution.threads
            return
        chip = chip_of(execution.device_id)
        with sessions(chip.uuid, chip.engines(reader.codec)) as taken:
            yield taken

    return threads
