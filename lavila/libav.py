"""What FFmpeg's libraries raise through PyAV, and what its releases are asked in different ways."""

from __future__ import annotations

from typing import Any

import av

# What reading damaged packets raises. IndexError is PyAV 18's for a stream that appears in the middle of a file;
# OverflowError, for timestamps beyond 64 bits.
DAMAGE = (av.FFmpegError, IndexError, OverflowError)
# For av.open, so that a tag that is not UTF-8 does not keep a file from being opened. PyAV 19 takes any tag by itself.
ANY_TAGS: dict[str, Any] = {"metadata_errors": "ignore"} if int(av.__version__.split(".")[0]) < 19 else {}


def reason(error: BaseException) -> str:
    """What FFmpeg says of damage."""
    return getattr(error, "strerror", None) or str(error)
