"""The reference way: random access with decord in chunks of 300 s at 288 px coded with x264 defaults, torch transforms.

It does as LaViLa does. It reads a clip's frames by index from the chunk that holds the clip, converts every frame of
every view to float, resizes it, and cuts crops from the resized frames. Two losses of LaViLa's code that have nothing
to do with the approach are not repeated here: a list of one tensor a frame, and a copy in the normalisation.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional  # type: ignore[import-untyped]

from benchmarks.loader.peers.common import Epochs, Job, crops_of, missing, normalise, planned_loader
from lavila.records import BLACK_FRAME, ClipPlan

NAME = "decord, 300 s chunks"


def needs(job: Job) -> str | None:
    del job
    return missing("decord")


def make(job: Job) -> Epochs:
    return planned_loader(job, load)


def load(job: Job, plan: ClipPlan) -> Tensor:
    """[V, T, C, size, size]."""
    decord: Any = importlib.import_module("decord")
    clip = job.shards.clips.slice(plan.row, 1).to_pylist()[0]
    video = clip["video_id"]
    reader = decord.VideoReader(str(job.chunks / video.partition("_")[0] / f"{video}.MP4"), num_threads=1)
    first = round(clip["start_second"] * reader.get_avg_fps())
    views = [_view(reader, first, frames, plan, job) for frames in plan.frames]
    return torch.cat(views)


def _view(reader: Any, first: int, frames: np.ndarray, plan: ClipPlan, job: Job) -> Tensor:
    """The spatial crops of one temporal clip, [S, T, C, size, size]."""
    black = frames == BLACK_FRAME
    numbers = (first + np.where(black, 0, frames)).tolist()
    pictures = torch.from_numpy(reader.get_batch(numbers).asnumpy()).float().permute(0, 3, 1, 2)
    pictures[torch.from_numpy(black)] = 0
    if job.crop is not None:
        top, left, high, wide = plan.window
        size = [job.crop.size, job.crop.size]
        return normalise(functional.resized_crop(pictures, top, left, high, wide, size, antialias=False), job.pictures)[
            None
        ]
    resized = functional.resize(pictures, list(plan.resized), antialias=False)
    return crops_of(resized, np.arange(len(frames), dtype=np.int32)[None], plan.crops, job)
