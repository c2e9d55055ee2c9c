"""Turns pictures of any size, orientation and colour into stored ones: upright, sides multiples of 16, BT.601.

HDR is brought into the range of ordinary video after the resizing, by a table (`hdr`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import av.filter
import numpy as np
import numpy.typing as npt

from lavila.ingest.hdr import HDR_TRANSFERS, table
from lavila.ingest.orientation import Orientation, orientation_of
from lavila.ingest.picture_kinds import PictureHeader, kind_of
from lavila.ingest.video_files import EncodeError

SIDE_MULTIPLE = 16  # pixels
MAX_DISTORTION = 0.01  # the share by which the long side may be stretched to reach a multiple of 16
MAX_SIDE = 8192  # pixels of a stored picture; every encoder takes this size

# MatrixCoefficients of ITU-T H.273, which FFmpeg uses as AVCOL_SPC -> names in FFmpeg's scale filter.
UNSPECIFIED_MATRIX = 2
COLOR_MATRICES = {
    1: "bt709",
    UNSPECIFIED_MATRIX: "bt601",  # as FFmpeg reads it, and the decoders with which published models were trained
    4: "fcc",
    5: "bt601",  # 625 lines
    6: "bt601",  # 525 lines
    7: "smpte240m",
    9: "bt2020",
}
UNSPECIFIED_RANGE, FULL_RANGE = 0, 2  # FFmpeg's AVCOL_RANGE
UNSPECIFIED = 2  # primaries or transfer characteristics of H.273
# swscale truncates by default. With these flags the mean differs from the exact one by at most 0.03 levels, or 0.9 for
# full-range BT.601, whose chroma swscale rounds up.
SCALE_FLAGS = "bicubic+accurate_rnd+full_chroma_int+full_chroma_inp"
TO_BT601 = {"out_range": "tv", "out_color_matrix": "bt601"}

Size = tuple[int, int]
"""Height and width in pixels."""
Shape = tuple[int, int, Orientation]
"""Width and height in pixels as coded, and how the picture is turned."""


@dataclass(frozen=True, kw_only=True)
class PictureSizes:
    """The sizes of a picture before, during and after conversion. The picture is upright, its pixels square."""

    source: Size
    scaled: Size
    stored: Size  # the centre of `scaled`, or `scaled` with black edges


def stored_size(height: int, width: int, *, short_side: int, fit: str = "crop") -> tuple[Size, Size]:
    """The size to scale an upright picture to, and the size to crop or pad the result to: (height, width) in pixels.

    The short side becomes `short_side`, or keeps its size if it is smaller. The long side is scaled alike. If a
    multiple of 16 is within 1 %, the long side is stretched to it; else it is rounded to whole pixels. A side that is
    then no multiple of 16 is cropped down or padded up to one (`fit`). Raises EncodeError for a picture that is too
    small or too large.
    """
    short, long = sorted((height, width))
    if short < SIDE_MULTIPLE:
        raise EncodeError(f"picture of {width}x{height} is smaller than {SIDE_MULTIPLE} pixels")
    if short <= short_side:
        scaled_short, exact = short, Fraction(long)
    else:
        scaled_short, exact = short_side, Fraction(long * short_side, short)
    near = round(exact / SIDE_MULTIPLE) * SIDE_MULTIPLE
    scaled_long = near if abs(near - exact) <= MAX_DISTORTION * exact and exact != long else round(exact)
    if scaled_long > MAX_SIDE:
        raise EncodeError(f"picture of {width}x{height} would be stored {scaled_long} pixels long; allowed: {MAX_SIDE}")
    to_whole = math.ceil if fit == "pad" else math.floor
    stored = [to_whole(side / SIDE_MULTIPLE) * SIDE_MULTIPLE for side in (scaled_short, scaled_long)]
    if height <= width:
        return (scaled_short, scaled_long), (stored[0], stored[1])
    return (scaled_long, scaled_short), (stored[1], stored[0])


def _upright_size(frame: Any, pixel_aspect: Fraction | None) -> Size:
    """Height and width in square pixels, after the rotation that the file states."""
    width = round(frame.width * pixel_aspect) if pixel_aspect else frame.width
    return (width, frame.height) if orientation_of(frame).swaps_sides else (frame.height, width)


class Converter:
    """Turns a decoded frame into an upright, resized, 8-bit yuv420p frame in BT.601 limited range.

    The first frame decides the size, and a video that changes it is refused. The form of the colours may change.
    `kind`: what is unusual in its pictures. Raises EncodeError for pictures that cannot be converted.
    """

    def __init__(self, first: Any, header: PictureHeader, *, short_side: int, fit: str) -> None:
        source = _upright_size(first, header.pixel_aspect)
        scaled, stored = stored_size(*source, short_side=short_side, fit=fit)
        self.sizes = PictureSizes(source=source, scaled=scaled, stored=stored)
        self._header = header
        self.kind = kind_of(first, transfer=self._transfer(first), codec_tag=header.codec_tag)
        self._shape = _shape(first)
        self._colours: tuple[Any, ...] | None = None
        self._graph: Any = None

    def __call__(self, frame: Any) -> Any:
        if _shape(frame) != self._shape:
            raise EncodeError(
                f"the picture changes from {_shape_text(self._shape)} to {_shape_text(_shape(frame))} within the clip"
            )
        try:
            colours = (
                *(frame.format.name, frame.colorspace, frame.color_range),
                *(self._transfer(frame), frame.color_primaries),
            )
            if colours != self._colours:
                self._graph, self._colours = self._build(frame), colours
            self._graph[1].push(frame)
            return self._graph[2].pull()
        except (av.FFmpegError, AttributeError) as error:  # a frame without a format has no attributes
            raise EncodeError(f"pictures of this kind cannot be converted ({error})") from error

    def _build(self, frame: Any) -> tuple[Any, Any, Any]:
        """The filter graph, its source and its sink."""
        orientation = orientation_of(frame)
        height, width = reversed(self.sizes.scaled) if orientation.swaps_sides else self.sizes.scaled
        # If the frame does not specify its colours, the container may.
        matrix = self._header.colorspace if frame.colorspace == UNSPECIFIED_MATRIX else frame.colorspace
        color_range = self._header.color_range if frame.color_range == UNSPECIFIED_RANGE else frame.color_range
        full_range = color_range == FULL_RANGE or frame.format.name.startswith("yuvj")
        scale = {
            "w": str(width),
            "h": str(height),
            "flags": SCALE_FLAGS,
            "in_range": "pc" if full_range else "tv",
        }
        hdr = self._transfer(frame) in HDR_TRANSFERS
        if matrix in COLOR_MATRICES:  # RGB has no matrix
            scale["in_color_matrix"] = "bt2020" if hdr and matrix == UNSPECIFIED_MATRIX else COLOR_MATRICES[matrix]
        graph: Any = av.filter.Graph()
        graph.threads = 1
        source = graph.add_buffer(
            width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base
        )
        last, begin = source, None
        if hdr:
            last, begin = _tone_mapping(graph, source, scale, self._table(frame))
            scale = {"flags": SCALE_FLAGS}
        steps = [("scale", {**scale, **TO_BT601}), ("format", {"pix_fmts": "yuv420p"}), *orientation.filters]
        steps += [*self._fit(), ("setsar", {"sar": "1"})]
        nodes = [last, *(graph.add(name, **options) for name, options in steps), graph.add("buffersink")]
        graph.link_nodes(*nodes).configure()
        if begin is not None:
            begin()
        return graph, source, nodes[-1]

    def _transfer(self, frame: Any) -> int:
        return int(self._header.transfer if frame.color_trc == UNSPECIFIED else frame.color_trc)

    def _table(self, frame: Any) -> npt.NDArray[np.uint16]:
        primaries = self._header.primaries if frame.color_primaries == UNSPECIFIED else frame.color_primaries
        return table(self._transfer(frame), int(primaries))

    def _fit(self) -> list[tuple[str, dict[str, str]]]:
        """Crop or pad, or neither."""
        (height, width), stored = self.sizes.scaled, self.sizes.stored
        if (height, width) == stored:
            return []
        sides = {"w": str(stored[1]), "h": str(stored[0])}
        if stored[0] >= height and stored[1] >= width:
            return [("pad", {**sides, "x": "(ow-iw)/2", "y": "(oh-ih)/2", "color": "black"})]
        return [("crop", sides)]


def _tone_mapping(
    graph: Any, source: Any, scale: dict[str, str], colours: npt.NDArray[np.uint16]
) -> tuple[Any, Callable[[], None]]:
    """Add the filters that resize a picture and look its colours up in a table.

    They work on interleaved RGB, since haldclut of FFmpeg 8.1 exchanges the channels of planes.

    Returns:
        the last filter, and what has to be called when the graph is configured.
    """
    picture: Any = av.VideoFrame.from_ndarray(colours, format="rgb48le")
    picture.pts, picture.time_base = 0, Fraction(1)
    feed = graph.add_buffer(
        width=picture.width, height=picture.height, format=picture.format, time_base=picture.time_base
    )
    resized = graph.add("scale", **scale, out_range="pc")
    rgb, look_up = graph.add("format", pix_fmts="rgb48le"), graph.add("haldclut")
    source.link_to(resized)
    resized.link_to(rgb)
    rgb.link_to(look_up, 0, 0)
    feed.link_to(look_up, 0, 1)

    def begin() -> None:
        feed.push(picture)
        feed.push(None)  # so that the one picture serves all frames

    return look_up, begin


def _shape(frame: Any) -> Shape:
    return frame.width, frame.height, orientation_of(frame)


def _shape_text(shape: Shape) -> str:
    width, height, orientation = shape
    steps = ["-".join([name, *options.values()]) for name, options in orientation.filters]
    return f"{width}x{height}" + (f" (shown after {' and '.join(steps)})" if steps else "")
