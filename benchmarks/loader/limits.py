"""The limits of a loader: parts of the work without any loader, and a loader without any work.

* decode: libavcodec alone decodes each clip's bytes as far as its last wanted frame, and skips groups of pictures
  without a wanted frame. There is one process per worker; frames stay in the decoder's form.
* work: only what our loader has to do for a clip on the CPU. It decodes the needed frames and draws them, from bytes
  in memory into memory that exists. There is one thread per worker. The memory is as large as the batches that a
  loader has in work, because writing into a cache would be faster than any loader can be.
* ideal: the loop over a batch that exists already.

The overhead of our loader is the share of its time that is not work: 1 - seconds of work / seconds of the loader, for
the same clips in the same round.
"""

from __future__ import annotations

import io
import itertools
import queue
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import av
import numpy as np
import numpy.typing as npt

from benchmarks.loader.peers.common import Job, batches_ahead, worker_context
from lavila.data.host.decode import decode_planes
from lavila.data.host.render import ClipRenderer
from lavila.data.pictures import PictureSpec
from lavila.records import ClipPlan
from lavila.shards.reader import ShardSet

Count = Callable[[int], int]
"""Epoch number -> number of its clips."""

_shards: ShardSet | None = None  # the shard set of a worker process


def _open(shards: ShardSet) -> None:
    global _shards
    _shards = shards


def decode_needed(data: bytes, numbers: npt.NDArray[np.int32]) -> int:
    """Decode ascending frame indices of a clip, and no group of pictures that holds none; gives the frames decoded."""
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
                for _ in context.decode(packet):
                    number += 1
                if number >= last:
                    break
            assert number >= last, (number, last)
            decoded += number + 1
            context.flush_buffers()
    return decoded


def _decode(plan: ClipPlan) -> int:
    assert _shards is not None
    return decode_needed(*_shards.read_frames(plan.row, plan.distinct_frames()))


def decoding(job: Job) -> tuple[Count, Callable[[], None]]:
    """Epochs of decoding alone, and what ends its processes."""
    pool = ProcessPoolExecutor(job.workers, worker_context(), initializer=_open, initargs=(job.shards,))

    def epoch(number: int) -> int:
        plans = [plan for step in range(job.plan.steps) for plan in job.plan.batch(number, step)]
        return len(list(pool.map(_decode, plans)))

    return epoch, pool.shutdown


def working(job: Job, spec: PictureSpec) -> tuple[Count, Callable[[], None]]:
    """Epochs of decoding and drawing alone, and what ends its threads."""
    pool, renderer = ThreadPoolExecutor(job.workers), ClipRenderer(spec)
    plans = [plan for step in range(job.plan.steps) for plan in job.plan.batch(0, step)]
    clips = [(plan, job.shards.read_frames(plan.row, plan.distinct_frames())) for plan in plans]
    memory: queue.SimpleQueue[npt.NDArray[np.float32]] = queue.SimpleQueue()
    for _ in range(job.batch_size * (batches_ahead(job) + 2)):
        memory.put(np.zeros((*spec.view_grid, spec.frames, 3, spec.size, spec.size), np.float32))

    def work(clip: tuple[ClipPlan, tuple[bytes, npt.NDArray[np.int32]]]) -> None:
        plan, (data, numbers) = clip
        out = memory.get()
        renderer.render(plan, decode_planes(data, numbers), out)
        memory.put(out)

    return lambda number: len(list(pool.map(work, clips))), pool.shutdown
