"""PyAV on the CPU: encoded bytes and frame numbers -> RGB frames, for the codecs that DALI decodes on a GPU only.

The colours are bit-identical to DALI's CPU decoder: BT.601, limited range, centred bilinear chroma, rounded.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from itertools import pairwise

import av
import numpy as np
import numpy.typing as npt
from av.video.reformatter import ColorRange, Colorspace, Interpolation

_ROUNDED = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT


class DecodeError(ValueError):
    """A clip that cannot be decoded, with the reason in one line."""


def decode_frames(
    data: bytes | npt.NDArray[np.uint8], frames: Sequence[int] | npt.NDArray[np.int32]
) -> npt.NDArray[np.uint8]:
    """The frames with the given numbers.

    Args:
        data: a whole encoded clip (mp4, webm, ...) with one video stream.
        frames: ascending, distinct, 0-based numbers in display order, [U].

    Returns:
        uint8 RGB, [U, H, W, 3].

    Raises:
        DecodeError: nothing to decode, a damaged stream, or a frame beyond the end.
    """
    wanted = [int(frame) for frame in frames]
    assert wanted and all(a < b for a, b in pairwise(wanted)), wanted
    pictures: list[npt.NDArray[np.uint8]] = []
    number = -1
    for number, frame in enumerate(_decoded(data)):
        if number == wanted[len(pictures)]:
            pictures.append(_rgb(frame))
            if len(pictures) == len(wanted):
                return np.stack(pictures)
    raise DecodeError(f"frame {wanted[len(pictures)]} is wanted, but the clip has only {number + 1} frames")


def count_frames(data: bytes | npt.NDArray[np.uint8]) -> tuple[int, int, int]:
    """Number, height and width in pixels of the frames of an encoded clip. Raises as `decode_frames` does."""
    number, frame = 0, None
    for number, frame in enumerate(_decoded(data), start=1):  # noqa: B007
        pass
    if frame is None:
        raise DecodeError("no frame")
    return number, frame.height, frame.width


def _decoded(data: bytes | npt.NDArray[np.uint8]) -> Iterator[av.VideoFrame]:
    number = 0
    try:
        with av.open(io.BytesIO(bytes(data))) as container:
            if not container.streams.video:
                raise DecodeError("no video stream")
            # One thread a clip: the loader decodes several clips at once, and threads inside one gain nothing.
            container.streams.video[0].codec_context.thread_count = 1
            for frame in container.decode(video=0):
                yield frame
                number += 1
    except av.FFmpegError as error:
        raise DecodeError(f"{error.strerror} (after {number} frames)") from error


def _rgb(frame: av.VideoFrame) -> npt.NDArray[np.uint8]:
    picture: npt.NDArray[np.uint8] = frame.reformat(
        format="rgb24",
        interpolation=_ROUNDED,
        src_colorspace=Colorspace.ITU601,
        dst_color_range=ColorRange.JPEG,
    ).to_ndarray()
    return picture
