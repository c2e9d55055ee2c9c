"""Plans an index of videos: what it shall hold, and which of their windows are left to embed."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lavila.demo.encoders import OpenEncoder
from lavila.demo.footage import NO_LIMIT, FootageError, find_videos, uncovered, windows_of
from lavila.demo.index import (
    MOMENTS,
    VECTORS,
    WORK,
    IndexedVideo,
    IndexFolderError,
    IndexSettings,
    open_index,
    read_about,
)
from lavila.errors import shown
from lavila.ingest.source_video import probe_video
from lavila.ingest.video_files import EncodeError, find_parts

LEAST_SECONDS = 0.01  # of a window, and from one to the next; at less, an hour would have more windows than memory
KEY_LENGTH = 16
LONGEST_STEM = 100  # characters of a video's name in that of its matrix
PART_NAME = re.compile(r"([0-9a-f]+)-(\d+)-(\d+)\.safetensors")


@dataclass(frozen=True, kw_only=True)
class IndexOptions:
    """How videos become windows. FootageError for numbers that cannot be."""

    window: float = 2.0  # seconds of a window
    every: float = 1.0  # seconds from the start of one window to the next
    batch_size: int = 16  # windows of a forward pass

    def __post_init__(self) -> None:
        for name, least in (("window", LEAST_SECONDS), ("every", LEAST_SECONDS), ("batch_size", 1)):
            if not least <= getattr(self, name) < math.inf:
                flag = f"--{name.replace('_', '-')}"
                raise FootageError(f"{flag} {getattr(self, name):g}: must be at least {least}, and finite")


@dataclass(frozen=True, kw_only=True)
class PlannedVideo:
    """A video that an index shall hold."""

    video: IndexedVideo  # without its moments; `file` is the name that its matrix will have
    key: str
    windows: int  # how many it has; 0 where it cannot be read


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """Windows of a video that are left to embed: first, first + 1 ... stop - 1."""

    place: int  # of the video in the plan
    first: int
    stop: int


@dataclass(frozen=True, kw_only=True)
class IndexPlan:
    """What an index shall hold, and what is left to do."""

    folder: Path
    settings: IndexSettings
    videos: list[PlannedVideo]  # by name
    left: list[Stretch]
    added: list[str] = field(default_factory=list)  # names of videos that the index did not hold
    changed: list[str] = field(default_factory=list)  # names of videos that it held with another content
    removed: list[str] = field(default_factory=list)  # names of videos that it held and shall not hold

    @property
    def windows_left(self) -> int:
        """The number of windows to embed."""
        return sum(stretch.stop - stretch.first for stretch in self.left)


def plan_index(folder: Path, paths: Sequence[Path], encoder: OpenEncoder, options: IndexOptions) -> IndexPlan:
    """What an index of some videos needs. Raises as `update_index`."""
    settings = IndexSettings(window=options.window, every=options.every, model=encoder.name, facts=encoder.facts)
    # The index itself may lie below a path, with the copies that the demo makes of videos.
    files = sorted({_absolute(file) for path in paths for file in find_videos(path, without=folder)})
    before = _index_before(folder, settings)
    parts = parts_of(folder)
    videos = [_planned(folder, file, name, settings) for name, file in sorted(_names(files, paths).items())]
    left: list[Stretch] = []
    seen: set[str] = set()
    for place, planned in enumerate(videos):
        if planned.key in seen or (folder / VECTORS / planned.video.file).is_file():
            continue
        seen.add(planned.key)  # a copy of the video, with the same times, needs no second work
        missing = uncovered([part[:2] for part in parts.get(planned.key, [])], start=0, stop=planned.windows)
        left += [Stretch(place=place, first=int(first), stop=int(stop)) for first, stop in missing]
    old = {video.name: video.file for video in before}
    new = {planned.video.name: planned.video.file for planned in videos}
    return IndexPlan(
        folder=folder,
        settings=settings,
        videos=videos,
        left=left,
        added=[name for name in new if name not in old],
        changed=[name for name in new if name in old and new[name] != old[name]],
        removed=[name for name in old if name not in new],
    )


def _index_before(folder: Path, settings: IndexSettings) -> list[IndexedVideo]:
    """The videos of the index that is there. IndexFolderError where it has other settings."""
    if not (folder / MOMENTS).is_file():
        return []
    index = open_index(folder)
    found, wanted = ({"window": s.window, "every": s.every, **s.facts} for s in (index.settings, settings))
    names = [name for name in {**found, **wanted} if found.get(name) != wanted.get(name)]
    if names:
        # People know a model by its name, and two checkpoints of one name by their checksums.
        by_name = {"sha256": (index.settings.model, settings.model)} if index.settings.model != settings.model else {}
        pairs = [
            ("model" if name in by_name else name, by_name.get(name, (found.get(name), wanted.get(name))))
            for name in names
        ]
        changes = [f"{name} was {shown(was)}, is {shown(now)}" for name, (was, now) in pairs]
        raise IndexFolderError(
            f"{folder}: holds an index by {index.settings.model} with other settings ({'; '.join(changes)}); give "
            "those, or another folder, or remove this one"
        )
    return index.videos


def _absolute(path: Path) -> Path:
    """Without following links: a folder of links to videos has the videos' names."""
    return Path(os.path.normpath(path.absolute()))


def _names(files: Sequence[Path], paths: Sequence[Path]) -> dict[str, Path]:
    """The name of each video: its path from the folder that all the given paths have in common."""
    given = [_absolute(path) for path in paths]
    root = Path(os.path.commonpath([path.parent if path in files else path for path in given]))
    return {file.relative_to(root).as_posix(): file for file in files}


def _planned(folder: Path, file: Path, name: str, settings: IndexSettings) -> PlannedVideo:
    """A video with its facts: those of its matrix where it has one, else those of its header."""
    video = IndexedVideo(name=name, path=str(file), duration=0, fps=0, width=0, height=0, size=0, mtime_ns=0, moments=0)
    try:
        size, mtime_ns, content = _signature(file)
        video = replace(video, size=size, mtime_ns=mtime_ns)
        key = _key(file, content, settings)
        matrix = _matrix_name(file, key)
        if (folder / VECTORS / matrix).is_file():
            known = json.loads(read_about(folder / VECTORS / matrix)["video"])
            kept = {name: known[name] for name in ("duration", "fps", "width", "height")}
        else:
            facts = probe_video(file, NO_LIMIT)
            kept = {"duration": facts.seconds, "fps": float(facts.fps), "width": facts.width, "height": facts.height}
    except (EncodeError, OSError) as error:
        return PlannedVideo(video=replace(video, reason=str(error)), key="", windows=0)
    video = replace(video, **kept)
    windows = len(windows_of(0, video.duration, every=settings.every, length=settings.window))
    if not windows:
        return PlannedVideo(video=replace(video, reason=f"{file}: holds no frames"), key="", windows=0)
    return PlannedVideo(video=replace(video, file=matrix), key=key, windows=windows)


def _signature(file: Path) -> tuple[int, int, list[Any]]:
    """Bytes, time of the last change, and what differs in a changed video. EncodeError without files."""
    files = [part.path for part in find_parts(file)]
    content: list[Any] = [[one.name, one.stat().st_size, one.stat().st_mtime_ns] for one in files]
    return sum(size for _, size, _ in content), max(mtime for _, _, mtime in content), content


def _key(file: Path, content: list[Any], settings: IndexSettings) -> str:
    text = json.dumps([file.name, content, settings.window, settings.every, settings.facts], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:KEY_LENGTH]


def _matrix_name(file: Path, key: str) -> str:
    """A name that any file system takes."""
    plain = re.sub(r"[^\w.-]", "_", file.name, flags=re.ASCII)[:LONGEST_STEM]
    return f"{plain}-{key}.safetensors"


def parts_of(folder: Path) -> dict[str, list[tuple[int, int, Path]]]:
    """Key -> first window, window after the last one, and file of each part."""
    found: dict[str, list[tuple[int, int, Path]]] = {}
    for file in sorted((folder / WORK).glob("*.safetensors")):
        if matched := PART_NAME.fullmatch(file.name):
            found.setdefault(matched[1], []).append((int(matched[2]), int(matched[3]), file))
    return found


def may_come_back(file: Path, settings: IndexSettings) -> bool:
    try:
        video = Path(json.loads(read_about(file)["video"])["path"])
        return file.name == _matrix_name(video, _key(video, _signature(video)[2], settings))
    except PermissionError:
        return True
    except (IndexFolderError, KeyError, ValueError, OSError):  # ValueError: EncodeError, too
        return False
