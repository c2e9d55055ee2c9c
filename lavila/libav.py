"""Errors of FFmpeg's libraries as PyAV raises them, and options that differ between PyAV's releases."""

from __future__ import annotations

from typing import Any

import av
from av.sidedata.sidedata import SideDataContainer

# The errors of reading damaged packets. PyAV 18 raises IndexError for a stream that appears in the middle of a file,
# and OverflowError for timestamps beyond 64 bits.
DAMAGE = (av.FFmpegError, IndexError, OverflowError)
# Options of av.open for files with a tag that is not UTF-8. PyAV 19 opens them without an option.
ANY_TAGS: dict[str, Any] = {"metadata_errors": "ignore"} if int(av.__version__.split(".")[0]) < 19 else {}
# FFmpeg's decoders of VP8 and VP9, and those of libvpx.
VPX = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
VPX_DECODERS = frozenset(VPX.values())


def strictness(codec: str) -> dict[str, str]:
    """Options of a decoder so that it reports damage. Most flag the frame; FFmpeg's HEVC decoder only raises, if asked.

    Otherwise it skips what it cannot decode, and returns the picture without a flag. The H.264 decoder flags a picture
    that ends before its bits do (CAVLC) only if asked, too.
    """
    return {"err_detect": {"hevc": "explode", "h264": "aggressive"}[codec]} if codec in ("hevc", "h264") else {}


def careful_decoder(context: Any) -> Any:
    """The decoder of a stream that notices most damage: its own one, or libvpx for VP8 and VP9.

    FFmpeg's own decoders of these make noise of a damaged packet and report nothing. libvpx sees that a packet ends
    before its content. It takes 4 to 6 % longer for pictures of 1280x720.
    """
    name = VPX.get(context.name)
    if name not in av.codecs_available:
        return context
    decoder: Any = av.CodecContext.create(name, "r")
    decoder.thread_count, decoder.options = context.thread_count, context.options
    return decoder


def side_data(frame: Any) -> Any:
    """The side data of a frame: its items by name.

    `frame.side_data` keeps what it returns, which refers to the frame. So the picture would stay in memory until Python
    looks for cycles (`findings/pyav_side_data_cycle.sh`).
    """
    make: Any = SideDataContainer
    return make(frame)


def reason(error: BaseException) -> str:
    """FFmpeg's own description of an error."""
    return getattr(error, "strerror", None) or str(error)
