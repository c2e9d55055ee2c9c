"""HDR videos of known light, with formulas of BT.2100 that are written out here, not taken from the package."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt

PQ, HLG = 16, 18
Floats = npt.NDArray[np.float64]


def signal_of(light: Floats, transfer: int) -> Floats:
    """Grey light in cd/m2 -> signal: the inverse EOTF of PQ, or that of HLG on a screen of 1000 cd/m2."""
    if transfer == PQ:
        y = (light / 10_000) ** 0.1593017578125
        return ((0.8359375 + 18.8515625 * y) / (1 + 18.6875 * y)) ** 78.84375
    return hlg_signal((light / 1000) ** (1 / 1.2))


def hlg_signal(scene: Floats) -> Floats:
    """The OETF of HLG. `scene`: linear light of 0 to 1."""
    upper = 0.17883277 * np.log(np.maximum(12 * scene - 0.28466892, 1e-9)) + 0.55991073
    return np.where(scene <= 1 / 12, np.sqrt(3 * scene), upper)


def write_hdr(
    path: Path, signal: Floats, transfer: int, *, codec: str = "libx265", frames: int = 3, tagged: bool = True
) -> Path:
    """A video of `frames` equal pictures. signal: [H, W, 3] of 0 to 1, BT.2020; sides even."""
    height, width = signal.shape[:2]
    red, green, blue = np.moveaxis(signal, -1, 0)
    luma = 0.2627 * red + 0.6780 * green + 0.0593 * blue
    chroma = [(blue - luma) / 1.8814, (red - luma) / 1.4746]
    small = [one.reshape(height // 2, 2, width // 2, 2).mean((1, 3)) for one in chroma]
    planes = [4 * (219 * luma + 16), *(4 * (224 * one + 128) for one in small)]
    options = {"crf": "2", "preset": "ultrafast", "x265-params": "log-level=error:bframes=0"}
    with av.open(str(path), "w") as out:
        stream: Any = out.add_stream(codec, rate=25, options=options if codec == "libx265" else {"crf": "2"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p10le"
        if tagged:
            context = stream.codec_context
            context.color_primaries, context.color_trc, context.colorspace, context.color_range = 9, transfer, 9, 1
        for number in range(frames):
            frame: Any = av.VideoFrame(width, height, "yuv420p10le")
            for plane, values in zip(frame.planes, planes, strict=True):
                rows = np.zeros((plane.height, plane.line_size // 2), np.uint16)
                rows[:, : values.shape[1]] = np.rint(values)
                plane.update(rows.tobytes())
            frame.pts, frame.time_base = number, Fraction(1, 25)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def columns(signals: Floats, *, height: int = 96, wide: int = 32) -> Floats:
    """[N] or [N, 3] -> a picture [height, N * wide, 3] of upright stripes."""
    colours = np.broadcast_to(signals.reshape(len(signals), -1), (len(signals), 3))
    return np.repeat(np.repeat(colours, wide, 0)[None], height, 0)
