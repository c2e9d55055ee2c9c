"""Small videos made on the spot, whose frames tell their own number even after lossy coding."""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt

Picture = npt.NDArray[np.uint8]  # [H, W, 3] RGB

ROWS, COLUMNS = 3, 4  # blocks of a numbered frame: 12 bits, the lowest at the top left
DARK, BRIGHT = 50, 200
NTSC_60 = Fraction(60000, 1001)


@dataclass(frozen=True, kw_only=True)
class Coding:
    """How a test video is written. Colour numbers are FFmpeg's (matrix 1 = BT.709, 6 = BT.601; range 2 = full)."""

    codec: str = "libx264"
    fps: Fraction = Fraction(25)
    gop: int = 12
    b_frames: int = 2
    crf: int = 12
    pix_fmt: str = "yuv420p"
    matrix: int = 6
    range: int = 1
    rotation: int = 0  # degrees counter-clockwise that a player shall turn it by
    aspect: Fraction | None = None  # width / height of a pixel


def numbered_picture(number: int, *, height: int = 120, width: int = 160) -> Picture:
    """Grey blocks that spell `number` (0 to 4095) in binary."""
    bits = (number >> np.arange(ROWS * COLUMNS).reshape(ROWS, COLUMNS)) & 1
    rows = np.arange(height) * ROWS // height
    columns = np.arange(width) * COLUMNS // width
    grey = np.where(bits[rows][:, columns], BRIGHT, DARK).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


def read_number(picture: Picture) -> int:
    """The number of a `numbered_picture` after any coding, resizing or small crop."""
    height, width = picture.shape[:2]
    number = 0
    for bit in range(ROWS * COLUMNS):
        row, column = divmod(bit, COLUMNS)
        top, left = int((row + 0.3) * height / ROWS), int((column + 0.3) * width / COLUMNS)
        block = picture[top : top + max(height // (3 * ROWS), 1), left : left + max(width // (3 * COLUMNS), 1)]
        number |= int(block.mean() > (DARK + BRIGHT) / 2) << bit
    return number


def write_video(path: Path, pictures: Iterable[Picture], coding: Coding | None = None) -> Path:
    """Write RGB pictures as a video; the container follows from the name."""
    coding = coding or Coding()
    path.parent.mkdir(parents=True, exist_ok=True)
    stream: Any = None
    with av.open(str(path), "w") as container:
        for index, picture in enumerate(pictures):
            if stream is None:
                stream = _open_stream(container, picture, coding)
            frame: Any = av.VideoFrame.from_ndarray(_yuv(picture, coding), format=coding.pix_fmt)
            frame.pts, frame.time_base = index, 1 / coding.fps
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def _yuv(picture: Picture, coding: Coding) -> npt.NDArray[Any]:
    """RGB -> planes as PyAV takes them, in floating point: a reference that shares no code with swscale."""
    red_weight, blue_weight = {1: (0.2126, 0.0722), 6: (0.299, 0.114)}[coding.matrix]
    red, green, blue = np.moveaxis(picture / 255.0, 2, 0)
    luma = red_weight * red + (1 - red_weight - blue_weight) * green + blue_weight * blue
    chroma = [(blue - luma) / (2 - 2 * blue_weight), (red - luma) / (2 - 2 * red_weight)]
    if coding.pix_fmt.startswith("yuv420p"):
        height, width = luma.shape
        chroma = [plane.reshape(height // 2, 2, width // 2, 2).mean(axis=(1, 3)) for plane in chroma]
    luma_gain, luma_zero, chroma_gain = (219, 16, 224) if coding.range == 1 else (255, 0, 255)
    bits = 2 if coding.pix_fmt.endswith("10le") else 0
    planes = [luma * luma_gain + luma_zero, *(plane * chroma_gain + 128 for plane in chroma)]
    whole = [np.rint(plane * 2**bits).clip(0, 2 ** (8 + bits) - 1) for plane in planes]
    if coding.pix_fmt == "yuv444p":
        return np.stack(whole).astype(np.uint8)
    packed = np.concatenate([plane.reshape(-1, luma.shape[1]) for plane in whole])
    return packed.astype(np.uint16 if bits else np.uint8)


def _open_stream(container: Any, picture: Picture, coding: Coding) -> Any:
    options = {"crf": str(coding.crf), "preset": "ultrafast"} if coding.codec in {"libx264", "libx265"} else {}
    if coding.codec == "libx264":
        options["x264-params"] = f"keyint={coding.gop}:bframes={coding.b_frames}:scenecut=0"
    if coding.codec == "libvpx-vp9":
        options |= {"crf": str(coding.crf), "b": "0", "deadline": "realtime", "cpu-used": "8"}
    stream = container.add_stream(coding.codec, rate=coding.fps, options=options)
    stream.height, stream.width, stream.pix_fmt = *picture.shape[:2], coding.pix_fmt
    context = stream.codec_context
    context.gop_size = coding.gop
    context.colorspace = context.color_primaries = context.color_trc = coding.matrix
    context.color_range = coding.range
    if coding.aspect:
        context.sample_aspect_ratio = coding.aspect
    if coding.rotation:
        stream.set_display_rotation(coding.rotation)
    return stream


def write_numbered_video(
    path: Path, num_frames: int, coding: Coding | None = None, *, height: int = 120, width: int = 160
) -> Path:
    """A video whose frame n is `numbered_picture(n)`."""
    return write_video(path, (numbered_picture(n, height=height, width=width) for n in range(num_frames)), coding)


def decode(video: bytes | Path) -> Picture:
    """[N, H, W, 3] uint8 RGB: all frames, converted with BT.601 as DALI converts them. Rotation is not applied."""
    source = io.BytesIO(video) if isinstance(video, bytes) else str(video)
    flags = av.video.reformatter.Interpolation
    with av.open(source) as container:
        return np.stack(
            [
                frame.reformat(
                    format="rgb24",
                    interpolation=flags.BILINEAR | flags.ACCURATE_RND | flags.FULL_CHR_H_INT,
                    src_colorspace="ITU601",
                ).to_ndarray()
                for frame in container.decode(video=0)
            ]
        )


def read_numbers(video: bytes | Path) -> list[int]:
    """What each frame of a numbered video says."""
    return [read_number(picture) for picture in decode(video)]
