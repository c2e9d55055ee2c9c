"""Checks of the names, paths, texts and times in an annotation file, shared by all readers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

import numpy as np

from lavila.annotations.base import AnnotationError
from lavila.errors import shown

MAX_SECONDS = 1e7  # 115 days; no video is longer, so a larger number cannot be a time
_CLIP_ID = re.compile(r"[^\s./\\\x00-\x1f\x7f]+")
_NOT_IN_CLIP_ID = re.compile(r"[\s./\\%\x00-\x1f\x7f]")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_DRIVE = re.compile(r"[A-Za-z]:")
_HALF_CHARACTER = re.compile("[\ud800-\udfff]")


def locate(path: Path, split: str, names: Mapping[str, str]) -> Path:
    """The file that holds a split: `path` itself, or the file in the folder `path` with the split's name in `names`.

    `names`: split -> file name. Raises AnnotationError for a split that is not in `names`, and for a file whose name
    belongs to another split.
    """
    if split not in names:
        raise AnnotationError(f"split {split!r} is not known: one of {', '.join(names)}")
    if path.is_dir():
        return path / names[split]
    for other, name in names.items():
        if path.name == name and other != split:
            raise AnnotationError(f"{path}: holds split {other!r} but {split!r} was asked for; give {names[split]}")
    return path


def clip_id_problem(clip_id: str) -> str:
    """Why a clip id cannot name a tar member, whose key ends at the first dot; empty when it can."""
    if _CLIP_ID.fullmatch(clip_id):
        return ""
    return f"{shown(clip_id)} must be a name without dots, slashes and spaces"


def video_path_problem(video_path: str) -> str:
    """Why a path does not lie below the video root; empty when it does.

    Backslashes and drive letters are refused too, so that the same annotations mean the same on every system.
    """
    if _CONTROL.search(video_path):
        return f"video path {shown(video_path)} holds control characters"
    path = PurePosixPath(video_path)
    if path.is_absolute() or ".." in path.parts or "\\" in video_path or _DRIVE.match(video_path):
        return f"video path {shown(video_path)} leaves the video root"
    return ""


def interval_problem(start_second: float, stop_second: float) -> str:
    """Why two times cannot bound a clip; empty when they can."""
    if start_second < 0:
        return f"start {start_second:g} s is before the video begins"
    if stop_second <= start_second:
        return f"stop {stop_second:g} s is not after start {start_second:g} s"
    return ""


def as_seconds(value: object) -> float | None:
    """A Python or numpy number as float64 seconds; None for anything else, for not-a-number and for absurd times."""
    if type(value) is not float:
        if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
            return None
        if isinstance(value, int) and abs(value) > MAX_SECONDS:  # float() raises for very large ones
            return None
        value = float(value)
    return value if -MAX_SECONDS < value < MAX_SECONDS else None


def as_text(value: object) -> str | None:
    """A Python or numpy string as str; None for anything else, and for half a character, which no file can hold."""
    if not isinstance(value, str) or not (value.isascii() or not _HALF_CHARACTER.search(value)):
        return None
    return str(value)


class ClipNames:
    """Makes ids for clips that are published without one.

    An id is "<video>_<start>_<stop>" with both times in whole milliseconds, 8 digits or more. The 2nd, 3rd ... clip of
    the same video and times gets "_2", "_3" ... in the order of the file, so the same file always gives the same ids.
    A character that a tar member's name may not hold becomes "%" and its UTF-8 bytes in hexadecimal.
    """

    def __init__(self) -> None:
        self._seen: dict[str, int] = {}

    def make(self, video: str, start_second: float, stop_second: float) -> str:
        """The id of the next clip of the file."""
        if _NOT_IN_CLIP_ID.search(video):
            video = _NOT_IN_CLIP_ID.sub(lambda bad: "".join(f"%{byte:02X}" for byte in bad[0].encode()), video)
        clip_id = f"{video}_{round(1000 * start_second):08d}_{round(1000 * stop_second):08d}"
        count = self._seen[clip_id] = self._seen.get(clip_id, 0) + 1
        return clip_id if count == 1 else f"{clip_id}_{count}"
