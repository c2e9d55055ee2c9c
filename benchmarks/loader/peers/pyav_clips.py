"""PyAV and torch transforms on the same shards' bytes, in the worker processes of a DataLoader.

Each distinct frame of a clip is decoded, converted and resized once.
"""

from __future__ import annotations

import io

import av
import numpy as np
import numpy.typing as npt
import torch
from av.video.reformatter import ColorRange, Colorspace, Interpolation
from torch import Tensor

from benchmarks.loader.peers.common import Epochs, Job, planned_loader, views_of
from lavila.records import ClipPlan

NAME = "PyAV + torch"
ROUNDED = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT


def needs(job: Job) -> str | None:
    del job
    return None


def make(job: Job) -> Epochs:
    return planned_loader(job, load)


def load(job: Job, plan: ClipPlan) -> Tensor:
    """[V, T, C, size, size]."""
    data, numbers = job.shards.read_frames(plan.row, plan.distinct_frames())
    pictures = torch.from_numpy(decode_rgb(data, numbers)).permute(0, 3, 1, 2)
    return views_of(pictures, plan, job)


def decode_rgb(data: bytes, numbers: npt.NDArray[np.int32]) -> npt.NDArray[np.uint8]:
    """[U, H, W, 3] RGB of ascending, distinct frame numbers."""
    wanted = set(numbers.tolist())
    pictures = []
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        for number, frame in enumerate(container.decode(stream)):
            if number in wanted:
                pictures.append(to_rgb(frame))
                if len(pictures) == len(wanted):
                    break
    assert len(pictures) == len(wanted), (len(pictures), numbers)
    return np.stack(pictures)


def to_rgb(frame: av.VideoFrame) -> npt.NDArray[np.uint8]:
    """[H, W, 3], by BT.601 and rounded, as the shards are coded."""
    picture: npt.NDArray[np.uint8] = frame.reformat(
        format="rgb24", interpolation=ROUNDED, src_colorspace=Colorspace.ITU601, dst_color_range=ColorRange.JPEG
    ).to_ndarray()
    return picture
