"""Renders all video files of the sample dataset, in as many processes as are asked for."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lavila.interrupts import left_to_parent
from lavila.sample.files import Rendering

STOP = -(2**62)  # in place of a number of frames: the workers shall end
_frames_done: Any = None  # the counter that a worker process shares with the parent


def _start_worker(counter: Any) -> None:
    global _frames_done
    import torch

    _frames_done = counter
    torch.set_num_threads(1)


def _count_frames(frames: int) -> None:
    with _frames_done.get_lock():
        _frames_done.value += frames
        if _frames_done.value < 0:
            raise KeyboardInterrupt


def _work(rendering: Rendering, out: Path) -> None:
    from lavila.sample.drawing import render

    render(rendering, out, _count_frames)


def render_all(renderings: list[Rendering], out: Path, *, workers: int) -> None:
    """Make all files, `workers` videos at a time, the longest first. One worker is this process."""
    queue = sorted(renderings, key=lambda each: -each.frames)
    total = sum(each.frames for each in renderings)
    with tqdm(total=total, unit=" frames", desc="rendering", mininterval=1) as bar:
        if workers > 1:
            _render_in_processes(queue, out, workers, bar)
            return
        from lavila.sample.drawing import render  # it takes two seconds to import

        for each in queue:
            render(each, out, bar.update)


def _render_in_processes(queue: list[Rendering], out: Path, workers: int, bar: Any) -> None:
    # The workers are copies of one process, which imports PyTorch once for all of them.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["lavila.sample.drawing", __name__])
    counter = context.Value("q", 0)
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(counter,)) as pool:
        with left_to_parent():  # the first call of `submit` starts the process that is copied
            pending: set[Future[None]] = {pool.submit(_work, each, out) for each in queue}
        try:
            while pending:
                done, pending = wait(pending, timeout=0.5)
                bar.update(counter.value - bar.n)
                for future in done:
                    future.result()
        except BaseException:
            counter.value = STOP
            pool.shutdown(cancel_futures=True)
            raise
