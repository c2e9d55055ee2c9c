"""One video of the sample dataset: what the camera sees of the footage, encoded into the files that show it.

Apart from `camera` and `render`, since it needs PyTorch, which takes two seconds to import.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import torch

from lavila.libav import ANY_TAGS
from lavila.sample.camera import WINDOW, Pose, SampleError, picture_width
from lavila.sample.files import Rendering

SMPTE170M = 6  # BT.601 with 525 lines: number of the matrix, the primaries and the transfer (ITU-T H.273)
LIMITED_RANGE = 1  # FFmpeg's AVCOL_RANGE_MPEG


@dataclass
class Footage:
    """Some frames of a video in memory, and a window moved over them."""

    planes: list[tuple[torch.Tensor, torch.Tensor]]  # per frame: luma uint8 [1,1,H,W], chroma uint8 [1,2,H/2,W/2]
    aspect: float  # width over height
    size: tuple[int, int]  # height, width of what is rendered, pixels, even
    _number: int = field(default=-1, init=False)  # of the frame that `_floats` holds
    _floats: tuple[torch.Tensor, ...] = field(default=(), init=False)  # luma and chroma, float32

    @classmethod
    def load(cls, path: Path, first: int, stop: int, *, height: int) -> Footage:
        """Frames `first` to `stop` - 1, in BT.601 limited range, no larger than a window of `height` pixels needs."""
        planes = []
        try:
            with av.open(str(path), **ANY_TAGS) as container:
                stream = container.streams.video[0]
                stream.thread_type = "AUTO"
                for number, frame in enumerate(container.decode(stream)):
                    if number >= stop:
                        break
                    if number >= first:
                        planes.append(_planes(frame, round(height / WINDOW * 1.05)))
                        aspect = frame.width / frame.height
        except av.error.FFmpegError as error:
            raise SampleError(
                f"{path}: damaged after frame {first + len(planes)} ({error.strerror}); repair it"
            ) from None
        if len(planes) != stop - first:
            raise SampleError(f"{path}: frames {first} to {stop - 1} were to be played, but it ends before; repair it")
        return cls(planes=planes, aspect=aspect, size=(height, picture_width(height, aspect)))

    def render(self, number: int, pose: Pose) -> npt.NDArray[np.uint8]:
        """The window at `pose` on frame `number`, as one yuv420p picture: uint8 [height * 3/2, width]."""
        luma, chroma = self._as_floats(number)
        height, width = self.size
        picture = np.empty(height * width * 3 // 2, np.uint8)
        for plane, (rows, columns), place in (
            (luma, (height, width), slice(0, height * width)),
            (chroma, (height // 2, width // 2), slice(height * width, None)),
        ):
            grid = sampling_grid(pose, rows, columns, self.aspect)
            seen = torch.nn.functional.grid_sample(plane, grid, "bilinear", "border", align_corners=False)
            picture[place] = seen.add_(0.5).numpy().astype(np.uint8).ravel()
        return picture.reshape(height * 3 // 2, width)

    def _as_floats(self, number: int) -> tuple[torch.Tensor, ...]:
        """The planes of a frame. All frames use the same memory: fresh memory for each took a third of the time."""
        if not self._floats:
            self._floats = tuple(torch.empty(plane.shape) for plane in self.planes[number])
        if self._number != number:
            for plane, values in zip(self.planes[number], self._floats, strict=True):
                values.copy_(plane)
            self._number = number
        return self._floats


def sampling_grid(pose: Pose, rows: int, columns: int, aspect: float) -> torch.Tensor:
    """float32 [1, rows, columns, 2]: x, y in the picture, -1 to 1, of each pixel of the window at `pose`."""
    x, y, zoom_out, roll = pose.tolist()
    window = WINDOW * math.exp(zoom_out)
    across, down = _steps(columns) * (window * aspect), _steps(rows)[:, None] * window
    cos, sin = math.cos(roll), math.sin(roll)
    grid = torch.empty(1, rows, columns, 2)
    # Short vectors in numpy, pictures in torch: each is several times quicker there.
    for axis, along, other in (
        (0, (across * cos + x) * (2 / aspect) - 1, down * (-sin * 2 / aspect)),
        (1, (across * sin + y) * 2 - 1, down * (cos * 2)),
    ):
        torch.add(torch.from_numpy(along), torch.from_numpy(other), out=grid[0, ..., axis])
    return grid


@functools.cache
def _steps(count: int) -> npt.NDArray[np.float32]:
    """Middles of `count` equal parts of -1/2 .. 1/2."""
    return ((np.arange(count) + 0.5) / count - 0.5).astype(np.float32)


def _planes(frame: av.VideoFrame, largest: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Luma and chroma of a frame at a height of at most `largest` pixels. Untagged colours are taken as BT.601."""
    height = min(frame.height, largest) // 2 * 2
    width = round(frame.width * height / frame.height / 2) * 2
    chosen = av.video.reformatter.Interpolation
    flags = chosen.BICUBIC | chosen.ACCURATE_RND | chosen.FULL_CHR_H_INT
    small = frame.reformat(
        width, height, "yuv420p", interpolation=flags, dst_colorspace="ITU601", dst_color_range="MPEG"
    )
    stacked = torch.from_numpy(small.to_ndarray())  # [H * 3/2, W]: luma, then both chroma planes
    luma = stacked[:height].reshape(1, 1, height, width)
    return luma, stacked[height:].reshape(1, 2, height // 2, width // 2)


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


def render(rendering: Rendering, out: Path, on_frames: Callable[[int], object]) -> None:
    """Render and encode the files of one video into the folder `out`, and call `on_frames` after each second."""
    video = rendering.video
    footage = _footage(video.source.path, video.first, video.stop, height=video.height)
    encoders: dict[str, Encoder] = {}
    step, done = int(video.fps), 0
    for number in range(max(file.stop for file in rendering.files)):
        showing = [file for file in rendering.files if file.first <= number < file.stop]
        if not showing:
            continue
        picture = footage.render(video.footage_frame(number), video.pose(float(number / video.fps)))
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
