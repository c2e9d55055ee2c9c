"""What a user of DALI would write: DALI's webdataset reader, with sampling and cropping in the graph.

The reader reads the same tars with the indexes beside them. The graph's random numbers choose the frames: a random
start and a fixed stride, because the decoder decodes equal distances in one pass. For an evaluation the graph decodes
and resizes the frames of a clip once, and copies them to the temporal clips.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from nvidia.dali import fn, types
from nvidia.dali.pipeline import Pipeline
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from benchmarks.loader.peers.common import Epochs, Job, batches_ahead
from lavila.plan.frames import choose_frames

NAME = "DALI readers.webdataset"
CPU_CODECS = ("vp8", "vp9", "mjpeg")


def needs(job: Job) -> str | None:
    if job.shards.manifest.get("frames_for"):
        return "the set holds chosen frames only, which this graph would have to count otherwise"
    if job.shards.codec not in CPU_CODECS:
        return f"DALI decodes {job.shards.codec} on a GPU only"
    return None


def make(job: Job) -> Epochs:
    def epochs(number: int) -> Iterator[Tensor]:
        return (pictures.transpose(2, 3) for pictures in batches(build(job, device_id=None, seed=number), job))

    return epochs


def batches(pipeline: Pipeline, job: Job) -> Iterator[Tensor]:
    """The outputs of an epoch of a pipeline that is constructed, and ends with it, so that its memory is free again.

    Not one batch more is made than the epoch has: work left over would be done in another side's time.
    """
    steps = job.plan.steps
    ahead = min(batches_ahead(job), steps)
    pipeline.build()
    for _ in range(ahead):
        pipeline.schedule_run()
    for step in range(steps):
        (pictures,) = pipeline.share_outputs()
        yield from_dlpack(pictures.as_tensor())
        pipeline.release_outputs()
        if step + ahead < steps:
            pipeline.schedule_run()


def build(job: Job, *, device_id: int | None, seed: int = 0) -> Pipeline:
    """The pipeline, constructed but not built. Its output is [B, V, T, C, size, size]."""
    tars = [str(path) for path in job.tars]
    indexes = [str(path.with_suffix(".idx")) for path in job.tars]
    pipeline = Pipeline(
        batch_size=job.batch_size,
        num_threads=job.workers,
        device_id=device_id,
        prefetch_queue_depth=batches_ahead(job),
        seed=seed + 1,  # decides frames, windows and the reader's shuffling
    )
    with pipeline:
        videos = fn.readers.webdataset(
            paths=tars, index_paths=indexes, ext=["mp4"], random_shuffle=job.crop is not None, initial_fill=64
        )
        pipeline.set_outputs(views(decoded(videos, job, device="cpu" if device_id is None else "mixed"), job))
    return pipeline


def shortest(job: Job) -> int:
    """Frames of the shortest clip: in this benchmark the clips of a set are equally long, but for a frame."""
    return int(np.min(job.shards.clips.column("num_frames").to_numpy()))


def decoded(videos: Any, job: Job, *, device: str) -> Any:
    """[T, H, W, 3] uint8 of a training clip, or [U, H, W, 3], the distinct frames of an evaluation."""
    if job.crop is None:
        frames = np.unique(evaluation_frames(job)).tolist()
        return fn.decoders.video(videos, device=device, frames=frames)
    count, total = job.frames.frames, shortest(job)
    stride = max(total // count, 1)
    last_start = max(total - stride * (count - 1) - 1, 0)
    start = fn.random.uniform(range=[0.0, last_start + 0.999], dtype=types.FLOAT)
    start = fn.cast(start, dtype=types.INT32)
    return fn.decoders.video(videos, device=device, start_frame=start, stride=stride, sequence_length=count)


def evaluation_frames(job: Job) -> Any:
    """[K, T] frame numbers of a clip's views."""
    assert job.views is not None
    return choose_frames(shortest(job), job.frames, clips=job.views.clips)


def views(frames: Any, job: Job) -> Any:
    """[V, T, 3, size, size] normalised, of a clip's decoded frames."""
    normal = {"mean": list(job.pictures.mean), "std": list(job.pictures.std), "dtype": types.FLOAT}
    if job.crop is not None:
        size = job.crop.size
        cut = fn.random_resized_crop(
            frames,
            size=[size, size],
            random_area=list(job.crop.scale),
            random_aspect_ratio=list(job.crop.ratio),
            antialias=False,
        )
        return fn.stack(fn.crop_mirror_normalize(cut, output_layout="FCHW", **normal))
    assert job.views is not None
    size = job.views.size
    resized = fn.resize(frames, resize_shorter=size, antialias=False)
    chosen = evaluation_frames(job)
    distinct = np.unique(chosen)
    sides = (0.0, 0.5, 1.0) if job.views.crops == "three" else (0.5,)
    pictures = [
        fn.crop_mirror_normalize(
            fn.sequence_rearrange(resized, new_order=np.searchsorted(distinct, row).astype(np.int32).tolist()),
            crop=[size, size],
            crop_pos_x=side,
            crop_pos_y=0.5,
            output_layout="FCHW",
            **normal,
        )
        for row in chosen
        for side in sides
    ]
    return fn.stack(*pictures)
