"""Small videos made on the spot, whose frames show their number even after lossy coding."""

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

_reformatter: Any = av.video.reformatter.VideoReformatter()  # `frame.reformat` makes one each time, in up to 2 ms


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
    milliseconds: tuple[int, ...] = ()  # when each frame is shown; () = at regular distances
    sound: bool = False  # whether there is an audio track, too


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
                sound: Any = container.add_stream("aac", rate=8000) if coding.sound else None
            frame = _frame(picture, coding)
            frame.pts, frame.time_base = index, 1 / coding.fps
            if coding.milliseconds:
                frame.pts, frame.time_base = coding.milliseconds[index], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if sound is not None:
            noise: Any = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), format="fltp", layout="mono")
            noise.sample_rate = 8000
            container.mux([*sound.encode(noise), *sound.encode(None)])
    return path


def _frame(picture: Picture, coding: Coding) -> Any:
    height, width = picture.shape[:2]
    frame: Any = av.VideoFrame(width, height, coding.pix_fmt)
    for plane, content in zip(frame.planes, _planes(picture, coding), strict=True):
        rows = np.zeros((plane.height, plane.line_size), np.uint8)
        raw = content.view(np.uint8)
        rows[:, : raw.shape[1]] = raw
        plane.update(rows.tobytes())
    return frame


def _planes(picture: Picture, coding: Coding) -> list[npt.NDArray[Any]]:
    """RGB -> planes of the pixel format, in floating point: a reference that shares no code with swscale."""
    if coding.pix_fmt == "rgb24":
        return [np.ascontiguousarray(picture).reshape(len(picture), -1)]
    if coding.pix_fmt == "gbrp":
        return [np.ascontiguousarray(picture[..., channel]) for channel in (1, 2, 0)]
    red_weight, blue_weight = {1: (0.2126, 0.0722), 6: (0.299, 0.114)}[coding.matrix]
    red, green, blue = np.moveaxis(picture / 255.0, 2, 0)
    luma = red_weight * red + (1 - red_weight - blue_weight) * green + blue_weight * blue
    chroma = [(blue - luma) / (2 - 2 * blue_weight), (red - luma) / (2 - 2 * red_weight)]
    down = {"yuv420": (2, 2), "yuv422": (1, 2), "yuv444": (1, 1)}[coding.pix_fmt.replace("yuvj", "yuv")[:6]]
    height, width = luma.shape
    chroma = [p.reshape(height // down[0], down[0], width // down[1], down[1]).mean(axis=(1, 3)) for p in chroma]
    luma_gain, luma_zero, chroma_gain = (219, 16, 224) if coding.range == 1 else (255, 0, 255)
    bits = 2 if coding.pix_fmt.endswith("10le") else 0
    planes = [luma * luma_gain + luma_zero, *(plane * chroma_gain + 128 for plane in chroma)]
    kind = np.uint16 if bits else np.uint8
    return [np.rint(plane * 2**bits).clip(0, 2 ** (8 + bits) - 1).astype(kind) for plane in planes]


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
    if coding.milliseconds:
        context.time_base = Fraction(1, 1000)
    return stream


def write_numbered_video(
    path: Path, num_frames: int, coding: Coding | None = None, *, height: int = 120, width: int = 160
) -> Path:
    """A video whose frame n is `numbered_picture(n)`."""
    return write_video(path, (numbered_picture(n, height=height, width=width) for n in range(num_frames)), coding)


def repeat_video(source: Path, path: Path, times: int) -> Path:
    """The packets of a video, again and again with timestamps that continue: a long video without long encoding."""
    with av.open(str(source)) as container:
        stream = container.streams.video[0]
        packets = [packet for packet in container.demux(stream) if packet.size]
        stamps = [(packet.pts, packet.dts) for packet in packets]
        period = round(len(packets) / stream.average_rate / stream.time_base)
        with av.open(str(path), "w") as output:
            copy: Any = output.add_stream_from_template(stream)
            for turn in range(times):
                for packet, (pts, dts) in zip(packets, stamps, strict=True):
                    packet.pts, packet.dts, packet.stream = pts + turn * period, dts + turn * period, copy
                    packet.time_base = stream.time_base
                    output.mux(packet)
    return path


def with_latin_tags(source: Path, path: Path) -> Path:
    """A copy of a video whose title and whose stream's name are not UTF-8."""
    with av.open(str(source)) as container, av.open(str(path), "w") as output:
        output.metadata["title"] = "in the k_che"
        copy: Any = output.add_stream_from_template(container.streams.video[0])
        copy.metadata["handler_name"] = "our k_che"
        for packet in [packet for packet in container.demux(video=0) if packet.size]:
            packet.stream = copy
            output.mux(packet)
    tagged = path.read_bytes().replace(b"k_che", "küche".encode("latin-1"))
    assert tagged.count("küche".encode("latin-1")) == 2
    path.write_bytes(tagged)
    return path


def decode(video: bytes | Path) -> Picture:
    """[N, H, W, 3] uint8 RGB: all frames, converted with BT.601 as DALI converts them. Rotation is not applied."""
    source = io.BytesIO(video) if isinstance(video, bytes) else str(video)
    flags = av.video.reformatter.Interpolation
    with av.open(source) as container:
        return np.stack(
            [
                _reformatter.reformat(
                    frame,
                    format="rgb24",
                    interpolation=flags.BILINEAR | flags.ACCURATE_RND | flags.FULL_CHR_H_INT,
                    src_colorspace="ITU601",
                ).to_ndarray()
                for frame in container.decode(video=0)
            ]
        )


def rgb(frame: Any) -> Picture:
    """[H, W, 3] uint8: a decoded frame, converted as FFmpeg does by default."""
    return _reformatter.reformat(frame, format="rgb24").to_ndarray()


def read_numbers(video: bytes | Path) -> list[int]:
    """What each frame of a numbered video says."""
    return [read_number(picture) for picture in decode(video)]
