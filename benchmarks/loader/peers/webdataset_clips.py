"""webdataset and a DataLoader over the same tars: each worker reads its tars from end to end, decodes and transforms.

The workers choose frames and crops at random, as such code does. torchcodec decodes, or PyAV where that is faster.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from benchmarks.loader.peers.common import Epochs, Job, batches_ahead, missing, one_thread, views_of, worker_context
from benchmarks.loader.peers.pyav_clips import decode_rgb
from benchmarks.loader.peers.torchcodec_clips import decode_rgb as torchcodec_rgb
from benchmarks.loader.peers.torchcodec_clips import needs as torchcodec_needs
from lavila.plan.crops import crop_offsets, draw_window, resized_size
from lavila.plan.frames import choose_frames, draw_frames
from lavila.records import ClipPlan

NAME = "webdataset + DataLoader"
Decoder = Literal["torchcodec", "PyAV"]
VARIANTS: tuple[Decoder, ...] = ("torchcodec", "PyAV")


def needs(job: Job) -> str | None:
    if job.shards.manifest.get("frames_for"):
        return "the set holds chosen frames only, which a reader of plain tars would have to count otherwise"
    return missing("webdataset")


def make(job: Job, decoder: Decoder = "PyAV") -> Epochs:
    import webdataset

    if decoder == "torchcodec" and torchcodec_needs(job):
        raise ValueError(torchcodec_needs(job))
    training = job.crop is not None
    dataset = webdataset.WebDataset(
        [str(path) for path in job.tars], shardshuffle=len(job.tars) if training else False, empty_check=False
    )
    if training:
        dataset = dataset.shuffle(64)
    dataset = dataset.to_tuple("mp4", "json").map(partial(views, job=job, decoder=decoder))
    loader = webdataset.WebLoader(
        dataset.batched(job.batch_size, collation_fn=torch.stack),
        batch_size=None,
        num_workers=job.workers,
        multiprocessing_context=worker_context(),
        persistent_workers=True,
        prefetch_factor=batches_ahead(job),
        worker_init_fn=one_thread,
    )

    def epochs(number: int) -> Iterator[Tensor]:
        del number  # drawn in the workers
        return (batch.transpose(2, 3) for batch in loader)

    return epochs


def views(sample: tuple[bytes, bytes], *, job: Job, decoder: Decoder) -> Tensor:
    """mp4 and json of a clip -> [V, T, C, size, size]."""
    data, row = sample[0], json.loads(sample[1])
    plan = drawn(row, job, np.random.default_rng())
    numbers = plan.distinct_frames()
    if decoder == "PyAV":
        pictures = torch.from_numpy(decode_rgb(data, numbers)).permute(0, 3, 1, 2)
    else:
        pictures = torchcodec_rgb(data, numbers, seek="approximate")
    return views_of(pictures, plan, job)


def drawn(row: dict[str, Any], job: Job, random: np.random.Generator) -> ClipPlan:
    """Frames and window of a training clip by chance, of an evaluation by its protocol."""
    height, width, count = int(row["height"]), int(row["width"]), int(row["num_frames"])
    if job.crop is not None:
        frames, window = draw_frames(count, job.frames, random), draw_window(height, width, job.crop, random)
        resized, crops = (job.crop.size, job.crop.size), np.zeros((1, 2), np.int32)
    else:
        assert job.views is not None
        frames, window = choose_frames(count, job.frames, clips=job.views.clips), (0, 0, height, width)
        resized = resized_size(height, width, job.views.size)
        crops = crop_offsets(*resized, job.views.size, job.views.crops)
    return ClipPlan(
        position=0, row=0, frames=frames, window=window, resized=resized, crops=crops, flip=False, caption=0.0
    )
