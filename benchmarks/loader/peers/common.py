"""What the peers share: the row to be loaded, torch transforms, and a DataLoader that follows a plan."""

from __future__ import annotations

import importlib.util
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2 import functional  # type: ignore[import-untyped]

from lavila.data.loader import Pictures
from lavila.plan.crops import CropChoice, ViewChoice
from lavila.plan.frames import FrameChoice
from lavila.plan.plans import Plan
from lavila.records import ClipPlan
from lavila.shards.reader import ShardSet

Epochs = Callable[[int], Iterator[Tensor]]
"""Epoch number -> its batches, float32 [B, V, C, T, H, W], normalised."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One row of the benchmark, as every side gets it."""

    shards: ShardSet
    plan: Plan
    frames: FrameChoice  # the rule behind the plan, for peers that choose frames themselves
    crop: CropChoice | None  # for training
    views: ViewChoice | None  # for evaluation
    batch_size: int
    workers: int  # processes or threads
    pictures: Pictures
    chunks: Path  # <participant>/<video>.MP4 of the reference way
    tars: tuple[Path, ...]  # the tars that hold the plan's clips, and no others

    @property
    def clips(self) -> int:
        """Clips of an epoch."""
        return sum(len(self.plan.batch(0, step)) for step in range(self.plan.steps))


def missing(*packages: str) -> str | None:
    """Why a peer cannot run here, if a package that it needs is missing."""
    lacking = [name for name in packages if importlib.util.find_spec(name) is None]
    return f"not installed: {', '.join(lacking)}; pip install lavila[bench]" if lacking else None


def views_of(pictures: Tensor, plan: ClipPlan, job: Job) -> Tensor:
    """Decoded distinct frames of a planned clip -> its views, each frame resized once.

    Args:
        pictures: uint8 [U, C, H, W], those of `plan.distinct_frames()`.

    Returns:
        float32 [V, T, C, size, size], normalised.
    """
    if job.crop is not None:
        top, left, high, wide = plan.window
        size = [job.crop.size, job.crop.size]
        cut = pictures[plan.gather()[0]][..., top : top + high, left : left + wide].float()
        return normalise(functional.resize(cut, size, antialias=False), job.pictures)[None]
    resized = functional.resize(pictures.float(), list(plan.resized), antialias=False)
    return crops_of(resized, plan.gather(), plan.crops, job)


def crops_of(resized: Tensor, places: npt.NDArray[np.int32], crops: npt.NDArray[np.int32], job: Job) -> Tensor:
    """[V, T, C, size, size] of resized float frames [U, C, H, W]; places: [K, T], crops: [S, 2]."""
    assert job.views is not None
    size = job.views.size
    if places.max() >= len(resized):  # the black frame of a padded clip
        resized = torch.cat([resized, torch.zeros_like(resized[:1])])
    normalised = normalise(resized, job.pictures)
    views = torch.empty(len(places), len(crops), places.shape[1], resized.shape[1], size, size)
    for place, row in zip(views, places, strict=True):
        for view, (top, left) in zip(place, crops.tolist(), strict=True):
            cut = normalised[..., top : top + size, left : left + size]
            torch.index_select(cut, 0, torch.from_numpy(row).long(), out=view)
    return views.flatten(0, 1)


def normalise(pictures: Tensor, how: Pictures) -> Tensor:
    """In place: float [..., C, H, W] on 0..255 -> normalised."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (how.mean, how.std))
    return pictures.sub_(mean).div_(std)


class PlannedClips(Dataset[Tensor]):
    """`dataset[clip_plan]` -> [V, T, C, size, size]: the sampler hands out the plans themselves."""

    def __init__(self, job: Job, load: Callable[[Job, ClipPlan], Tensor]):
        self.job, self.load = job, load

    def __getitem__(self, plan: ClipPlan) -> Tensor:
        return self.load(self.job, plan)


class PlannedBatches:
    """A batch sampler over the plan of an epoch."""

    def __init__(self, plan: Plan):
        self.plan, self.epoch = plan, 0

    def __len__(self) -> int:
        return self.plan.steps

    def __iter__(self) -> Iterator[Sequence[ClipPlan]]:
        for step in range(self.plan.steps):
            yield self.plan.batch(self.epoch, step)


def planned_loader(job: Job, load: Callable[[Job, ClipPlan], Tensor]) -> Epochs:
    """A DataLoader of `job.workers` processes that lasts over epochs; they decode, transform and collate."""
    sampler = PlannedBatches(job.plan)
    loader: Any = DataLoader(
        PlannedClips(job, load),
        batch_sampler=sampler,  # type: ignore[arg-type]
        num_workers=job.workers,
        multiprocessing_context=worker_context(),
        persistent_workers=True,
        prefetch_factor=batches_ahead(job),
        worker_init_fn=one_thread,
    )

    def epochs(number: int) -> Iterator[Tensor]:
        sampler.epoch = number
        return (batch.transpose(2, 3) for batch in loader)

    return epochs


def batches_ahead(job: Job) -> int:
    """Batches that a loader or worker holds ready: two clips of ten times three views are 580 MB, so few of those."""
    return 2 if job.crop is not None or job.plan.view_grid == (1, 1) else 1


def worker_context() -> Any:
    """Workers start from a process without threads: those of DALI and of decoders do not survive a fork.

    That process imports everything once, the script itself included, so that a worker is there at once.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", "torch", "torchvision", "benchmarks.loader.peers.common"])
    return context


def one_thread(worker: int) -> None:
    """In a worker process: one core each."""
    del worker
    torch.set_num_threads(1)
