"""What no loader can be faster than: the stages of the work apart from any loader, and a loader that has no work.

* decode: libavcodec alone decodes each clip's bytes as far as its last wanted frame, groups of pictures without a
  wanted frame left out; one process per worker, frames stay in the decoder's form.
* rgb: the same, and the wanted frames (each once) become RGB.
* augment: cutting, resizing, normalising and cropping of frames that lie in memory, by DALI with as many threads.
* ideal: the loop over a batch that is there already.

The overhead of a loader is the share of its time that is neither decoding to RGB nor augmenting:
1 - (seconds of rgb + seconds of augment) / (seconds of the loader), all for the same clips in the same round. It is
below zero where a loader does less than those stages, such as converting only the cut window, or converts more
cheaply than PyAV does. "overhead_strict" has decode in place of rgb, and so counts the conversion to RGB as overhead.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from nvidia.dali import fn, types
from nvidia.dali.pipeline import Pipeline
from peers.common import Job, batches_ahead, worker_context
from peers.dali_webdataset import batches, views
from peers.pyav_clips import decode_rgb, to_rgb

from lavila.data.shards import ShardSet
from lavila.records import ClipPlan

Count = Callable[[int], int]
"""Epoch number -> clips that were gone through."""

_shards: ShardSet | None = None  # in a worker process


def _open(shards: ShardSet) -> None:
    global _shards
    _shards = shards


def decode_needed(data: bytes, numbers: npt.NDArray[np.int32], *, convert: bool) -> int:
    """Decode ascending frame numbers of a clip with nothing that can be left out; how many frames were decoded."""
    decoded = 0
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.video[0]
        context = stream.codec_context
        context.thread_count = 1
        packets = [packet for packet in container.demux(stream) if packet.size]
        starts = [place for place, packet in enumerate(packets) if packet.is_keyframe]
        for first, stop in itertools.pairwise([*starts, len(packets)]):
            inside = set((numbers[(numbers >= first) & (numbers < stop)] - first).tolist())
            if not inside:
                continue
            last, number = max(inside), -1
            for packet in [*packets[first:stop], None]:
                for frame in context.decode(packet):
                    number += 1
                    if convert and number in inside:
                        to_rgb(frame)
                if number >= last:
                    break
            assert number >= last, (number, last)
            decoded += number + 1
            context.flush_buffers()
    return decoded


def _decode(plan: ClipPlan, convert: bool) -> int:
    assert _shards is not None
    return decode_needed(*_shards.read_frames(plan.row, plan.distinct_frames()), convert=convert)


def decoding(job: Job, *, convert: bool) -> tuple[Count, Callable[[], None]]:
    """Epochs of decoding alone, and what ends its processes."""
    pool = ProcessPoolExecutor(job.workers, worker_context(), initializer=_open, initargs=(job.shards,))

    def epoch(number: int) -> int:
        plans = [plan for step in range(job.plan.steps) for plan in job.plan.batch(number, step)]
        return len(list(pool.map(_decode, plans, itertools.repeat(convert))))

    return epoch, pool.shutdown


def augmenting(job: Job) -> Count:
    """Epochs of cutting, resizing and normalising the first batch's frames again and again."""
    plans = job.plan.batch(0, 0)
    frames = [decode_rgb(*job.shards.read_frames(plan.row, plan.distinct_frames())) for plan in plans]
    if job.crop is not None:  # a training clip may have drawn a frame twice; equally many frames make a tensor
        frames = [pictures[plan.gather()[0]] for pictures, plan in zip(frames, plans, strict=True)]

    def pipeline() -> Pipeline:
        ahead = batches_ahead(job)
        made = Pipeline(job.batch_size, job.workers, device_id=None, prefetch_queue_depth=ahead, seed=1)
        with made:
            source: Any = fn.external_source(
                source=lambda: frames, dtype=types.UINT8, ndim=4, layout="FHWC", batch=True, no_copy=True
            )
            made.set_outputs(views(source, job))
        return made

    return lambda number: sum(len(pictures) for pictures in batches(pipeline(), job))
