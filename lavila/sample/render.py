"""From planned videos to video files: each moment is rendered once, for any number of files that show it."""

from __future__ import annotations

import functools
import multiprocessing
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from lavila.sample.camera import Footage, Video, pose_at

SMPTE170M = 6  # BT.601 with 525 lines: number of the matrix, the primaries and the transfer (ITU-T H.273)
LIMITED_RANGE = 1  # FFmpeg's AVCOL_RANGE_MPEG


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The source of every form of the data set."""

    videos: list[Video]
    seed: int
    chunk_seconds: int  # length of a file in ego4d's chunk folders


@dataclass(frozen=True, kw_only=True)
class VideoFile:
    """A file that shows frames `first` to `stop` - 1 of a video."""

    path: str  # path in the folder of the data set
    first: int
    stop: int


@dataclass(frozen=True, kw_only=True)
class Rendering:
    """One video at one frame rate, and the files that show parts of it. One process makes it."""

    video: Video
    files: list[VideoFile]

    @property
    def frames(self) -> int:
        """The number of frames that some file shows."""
        return len({number for file in self.files for number in range(file.first, file.stop)})


def gather(shown: Iterable[tuple[Video, VideoFile]]) -> list[Rendering]:
    """One rendering for all files that show the same video at the same frame rate."""
    found: dict[tuple[str, Fraction], Rendering] = {}
    for video, file in shown:
        found.setdefault((video.video_id, video.fps), Rendering(video=video, files=[])).files.append(file)
    return list(found.values())


class Encoder:
    """H.264, yuv420p, BT.601 limited range. One thread, so that the bytes do not depend on the machine's cores."""

    def __init__(self, target: Path, *, fps: Fraction, size: tuple[int, int]) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        self._container = av.open(str(target), "w", format="mp4")
        # The quickest preset, but with the B frames that real footage has, and a key frame each second.
        options = {"preset": "ultrafast", "crf": "21", "bf": "2", "g": str(int(fps)), "threads": "1"}
        self._stream = self._container.add_stream("libx264", rate=fps, options=options)
        self._stream.height, self._stream.width = size
        self._stream.pix_fmt = "yuv420p"
        context = self._stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = SMPTE170M
        context.color_range = LIMITED_RANGE
        self._time_base, self._frames = 1 / fps, 0

    def add(self, picture: npt.NDArray[np.uint8]) -> None:
        """Add the next frame, a yuv420p picture: uint8 [height * 3/2, width]."""
        frame = av.VideoFrame.from_ndarray(picture, format="yuv420p")
        frame.pts, frame.time_base = self._frames, self._time_base
        self._container.mux(self._stream.encode(frame))
        self._frames += 1

    def finish(self) -> None:
        self._container.mux(self._stream.encode(None))
        self._container.close()


# The videos of a split play the same frames. Decoding and shrinking them takes as long as rendering 600 small ones.
_footage = functools.lru_cache(maxsize=2)(Footage.load)


def render(rendering: Rendering, out: Path, on_frames: Callable[[int], None]) -> None:
    """Render and encode the files of one video into the folder `out`, and call `on_frames` after each second."""
    video = rendering.video
    footage = _footage(video.source.path, video.first, video.stop, height=video.height)
    encoders: dict[str, Encoder] = {}
    step, done = int(video.fps), 0
    for number in range(max(file.stop for file in rendering.files)):
        showing = [file for file in rendering.files if file.first <= number < file.stop]
        if not showing:
            continue
        picture = footage.render(video.footage_frame(number), pose_at(video.moves, float(number / video.fps)))
        for file in showing:
            if number == file.first:
                encoders[file.path] = Encoder(out / file.path, fps=video.fps, size=footage.size)
            encoders[file.path].add(picture)
            if number == file.stop - 1:
                encoders.pop(file.path).finish()
        done += 1
        if done % step == 0:
            on_frames(step)
    on_frames(done % step)


_frames_done: Any = None  # the counter that a worker process shares with the parent


def _start_worker(counter: Any) -> None:
    global _frames_done
    _frames_done = counter
    torch.set_num_threads(1)


def _count_frames(frames: int) -> None:
    with _frames_done.get_lock():
        _frames_done.value += frames


def _work(rendering: Rendering, out: Path) -> None:
    render(rendering, out, _count_frames)


def render_all(renderings: list[Rendering], out: Path, *, workers: int) -> None:
    """Make all files, `workers` videos at a time, the longest first."""
    spawn = multiprocessing.get_context("spawn")
    counter = spawn.Value("q", 0)
    with (
        tqdm(total=sum(each.frames for each in renderings), unit=" frames", desc="rendering", mininterval=1) as bar,
        ProcessPoolExecutor(workers, mp_context=spawn, initializer=_start_worker, initargs=(counter,)) as pool,
    ):
        queue = sorted(renderings, key=lambda each: -each.frames)
        pending: set[Future[None]] = {pool.submit(_work, each, out) for each in queue}
        try:
            while pending:
                done, pending = wait(pending, timeout=0.5)
                bar.update(counter.value - bar.n)
                for future in done:
                    future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
