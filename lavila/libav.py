"""Errors of FFmpeg's libraries as PyAV raises them, and options that differ between PyAV's releases."""

from __future__ import annotations

from typing import Any

import av

# The errors of reading damaged packets. PyAV 18 raises IndexError for a stream that appears in the middle of a file,
# and OverflowError for timestamps beyond 64 bits.
DAMAGE = (av.FFmpegError, IndexError, OverflowError)
# Options of av.open for files with a tag that is not UTF-8. PyAV 19 opens them without an option.
ANY_TAGS: dict[str, Any] = {"metadata_errors": "ignore"} if int(av.__version__.split(".")[0]) < 19 else {}


def strictness(codec: str) -> dict[str, str]:
    """Options of a decoder so that it reports damage. Most flag the frame; FFmpeg's HEVC decoder only raises, if asked.

    Otherwise it skips what it cannot decode, and returns the picture without a flag.
    """
    return {"err_detect": "explode"} if codec == "hevc" else {}


def reason(error: BaseException) -> str:
    """FFmpeg's own description of an error."""
    return getattr(error, "strerror", None) or str(error)
