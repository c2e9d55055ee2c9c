"""torchcodec and torch transforms on the same shards' bytes, in the worker processes of a DataLoader.

The benchmark tries both ways of seeking that torchcodec offers, and keeps the faster one for each row.
"""

from __future__ import annotations

import importlib
from functools import partial
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from torch import Tensor

from benchmarks.loader.peers.common import Epochs, Job, missing, planned_loader, views_of
from lavila.records import ClipPlan

NAME = "torchcodec + torch"
Seek = Literal["exact", "approximate"]
VARIANTS: tuple[Seek, ...] = ("approximate", "exact")


def needs(job: Job) -> str | None:
    lacking = missing("torchcodec")
    if lacking:
        return lacking
    try:  # since 0.17 it imports without FFmpeg's libraries and looks for them at the first use
        decode_rgb(job.shards.read_video(0), np.zeros(1, np.int32), seek="approximate")
    except (ImportError, OSError, RuntimeError) as error:
        return f"torchcodec finds no FFmpeg libraries ({str(error).splitlines()[0]}); install ffmpeg 4 to 8"
    return None


def make(job: Job, seek: Seek = "approximate") -> Epochs:
    return planned_loader(job, partial(load, seek=seek))


def load(job: Job, plan: ClipPlan, *, seek: Seek) -> Tensor:
    """[V, T, C, size, size]."""
    data, numbers = job.shards.read_frames(plan.row, plan.distinct_frames())
    return views_of(decode_rgb(data, numbers, seek=seek), plan, job)


def decode_rgb(data: bytes, numbers: npt.NDArray[np.int32], *, seek: Seek) -> Tensor:
    """uint8 [U, C, H, W] of ascending, distinct frame numbers."""
    decoders: Any = importlib.import_module("torchcodec.decoders")
    decoder = decoders.VideoDecoder(data, seek_mode=seek, num_ffmpeg_threads=1)
    pictures: Tensor = decoder.get_frames_at(indices=numbers.tolist()).data
    return pictures
