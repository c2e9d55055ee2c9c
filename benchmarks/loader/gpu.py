"""The rows of a GPU machine: clips decoded and augmented a second, GPU memory, and the data-wait of a training step.

The rows load training clips, 16 frames of 336 pixels. The sides are our loader with NVDEC; our loader with decoding on
the CPU and the rest on the GPU; DALI's webdataset reader on the GPU; and decord with a DataLoader worker for every
core. Each runs twice. Alone it gives clips/s and its GPU memory. As the feed of a training step of TimeSformer-B
(bfloat16 autocast, AdamW) it gives the share of the loop that waits for data. The limit is NVDEC alone: DALI's decoder
over the same frames with nothing behind it.

This has not run on a GPU yet. Without a GPU, `--dry-run` constructs the graphs and a small model, and builds no
pipeline.
"""

from __future__ import annotations

import gc
import os
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from nvidia.dali import fn
from nvidia.dali.pipeline import Pipeline
from torch import Tensor

from benchmarks.gpu.step import TrainingStep, data_wait
from benchmarks.loader.footage import Material, SetSpec
from benchmarks.loader.peers import dali_webdataset, decord_chunks
from benchmarks.loader.peers.common import Epochs, Job
from benchmarks.loader.rows import PICTURES
from benchmarks.loader.sides import grade, ours
from lavila.data.loader import clip_sizes
from lavila.data.pictures import DALI_CPU_CODECS
from lavila.data.sizes import ChosenSizes
from lavila.models.timesformer import TimeSformerConfig
from lavila.plan.crops import CropChoice
from lavila.plan.frames import FrameChoice
from lavila.plan.plans import Ranks, TrainingPlan
from lavila.shards.format import shard_name
from lavila.shards.reader import ShardSet

BATCH, TURNS = 16, 8  # clips of a batch; how many times an epoch goes through the set
GOAL = (0.05, 0.01)  # largest share of a training step that may wait for data: required, hoped for


@dataclass(frozen=True, kw_only=True)
class GpuRow:
    """One thing to load onto the GPU."""

    codec: str
    size: int = 336
    frames: int = 16
    seconds: int = 3

    @property
    def name(self) -> str:
        return f"gpu train {self.codec} {self.size}px {self.frames}f {self.seconds}s"


def gpu_rows() -> list[GpuRow]:
    return [GpuRow(codec=codec) for codec in ("vp9", "h264")]


def gpu_job(row: GpuRow, material: Material) -> Job:
    """Long epochs: the clips of the set again and again, with other frames and windows each time."""
    shards = material.shard_set(SetSpec(seconds=row.seconds, codec=row.codec))
    once = clip_sizes(shards)
    sizes = ChosenSizes(of=once, indices=np.tile(np.arange(len(once)), TURNS))
    frames, crop = FrameChoice(frames=row.frames), CropChoice(size=row.size, flip=0.0)
    batch = min(BATCH, len(sizes) // 2)
    return Job(
        shards=shards,
        plan=TrainingPlan(sizes, frames=frames, crop=crop, batch_size=batch, seed=0, ranks=Ranks()),
        frames=frames,
        crop=crop,
        views=None,
        batch_size=batch,
        workers=len(os.sched_getaffinity(0)),
        pictures=PICTURES,
        chunks=material.chunks,
        tars=_tars(shards),
    )


def _tars(shards: ShardSet) -> tuple[Any, ...]:
    return tuple(shards.path / shard_name(number) for number in range(len(shards.shards)))


def nvdec_alone(job: Job, device_id: int) -> Pipeline:
    """DALI's decoder and nothing behind it, constructed but not built."""
    pipeline = Pipeline(
        batch_size=job.batch_size, num_threads=job.workers, device_id=device_id, prefetch_queue_depth=2, seed=1
    )
    with pipeline:
        videos = fn.readers.webdataset(
            paths=[str(path) for path in job.tars],
            index_paths=[str(path.with_suffix(".idx")) for path in job.tars],
            ext=["mp4"],
        )
        pipeline.set_outputs(dali_webdataset.decoded(videos, job, device="mixed"))
    return pipeline


def dali_epochs(job: Job, device_id: int) -> Epochs:
    """Epochs of DALI's own reader: [B, V, C, T, size, size] on the GPU."""

    def epochs(number: int) -> Iterator[Tensor]:
        pipeline = dali_webdataset.build(job, device_id=device_id, seed=number)
        return (pictures.transpose(2, 3) for pictures in dali_webdataset.batches(pipeline, job))

    return epochs


def sides_of(job: Job) -> dict[str, Any]:
    """Side -> what makes its epochs."""

    def decord() -> Epochs:
        epochs = decord_chunks.make(job)
        return lambda number: (batch.pin_memory().cuda(non_blocking=True) for batch in epochs(number))

    decoders = ["nvdec", "host", *(["dali_cpu"] if job.shards.codec in DALI_CPU_CODECS else [])]
    sides: dict[str, Any] = {
        f"ours ({name})": lambda name=name: ours(job, decoder=name, device="cuda:0")[0] for name in decoders
    }
    sides["dali"] = lambda: dali_epochs(job, 0)
    sides["nvdec alone"] = lambda: lambda number: dali_webdataset.batches(nvdec_alone(job, 0), job)
    if decord_chunks.needs(job) is None:
        sides["decord"] = decord
    return sides


def _model(size: int, frames: int) -> TimeSformerConfig:
    return TimeSformerConfig(image_size=size, num_frames=frames, zero_time_attention=False)


def seconds_alone(epochs: Epochs, number: int) -> float:
    """Seconds of an epoch of loading alone."""
    began = time.perf_counter()
    for _ in epochs(number):
        pass
    torch.cuda.synchronize()
    return time.perf_counter() - began


def measure_gpu(row: GpuRow, job: Job, *, rounds: int) -> list[dict[str, Any]]:
    """The row's results, one entry a side. One side at a time is on the GPU, since each takes its memory."""
    step = TrainingStep(_model(row.size, row.frames), device="cuda:0")
    entries = []
    for name, make in sides_of(job).items():
        gc.collect()
        torch.cuda.empty_cache()
        free = torch.cuda.mem_get_info()[0]
        epochs = make()
        seconds_alone(epochs, 0)
        memory = free - torch.cuda.mem_get_info()[0]
        rates = [job.clips / seconds_alone(epochs, number + 1) for number in range(rounds)]
        entry: dict[str, Any] = {
            "row": row.name,
            "side": name,
            "rounds": rounds,
            "clips_per_second": {"median": statistics.median(rates), "lowest": min(rates), "highest": max(rates)},
            "gpu_bytes": memory,
        }
        if name != "nvdec alone":
            data_wait(epochs, step, 0)
            entry["data_wait"] = statistics.median(data_wait(epochs, step, number + 1) for number in range(rounds))
            least = (-GOAL[0], -GOAL[1])
            entry |= {"must": GOAL[0], "aim": GOAL[1], "reached": grade(-entry["data_wait"], least)}
        entries.append(entry)
        del epochs
    return entries


def dry_run(row: GpuRow, job: Job) -> None:
    """Make the parts of a row that need no GPU: its graphs, for device 0, and a small step on the CPU."""
    for pipeline in (dali_webdataset.build(job, device_id=0), nvdec_alone(job, 0)):
        assert pipeline.device_id == 0
    small = TrainingStep(replace(_model(32, 2), width=64, heads=2, depth=2), device="cpu")
    small(torch.zeros(1, 1, 3, 2, 32, 32))
    assert replace(job, workers=1).plan.steps > 1, row
