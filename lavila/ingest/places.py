"""Finds the videos of a dataset: where the annotations say, or as an official download lays them out.

It also says why a video is not found, as far as the folder shows it.
"""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from lavila.annotations.base import AnnotationSet
from lavila.errors import listed
from lavila.ingest.downloads import UNFINISHED
from lavila.records import Clip

MISSING = "no such video"


@dataclass(frozen=True, kw_only=True)
class FoundVideos:
    """The videos of a set of clips."""

    elsewhere: dict[str, str]  # path in the annotations -> the path at which an official layout has it
    missing: dict[str, str]  # path in the annotations -> the reason why it is not found
    layouts: dict[str, list[str]]  # layout -> the paths that were found in it

    def place(self, clips: Sequence[Clip]) -> list[Clip]:
        """The clips with the paths at which their videos lie."""
        places = self.elsewhere
        return [
            replace(clip, video_path=places[clip.video_path]) if clip.video_path in places else clip for clip in clips
        ]


def find_videos(annotations: AnnotationSet, clips: Sequence[Clip], root: Path) -> FoundVideos:
    """Find the video (a file, or a folder of files) of each clip below `root`.

    A video lies where the annotations say, or else in the first of `annotations.layouts` that has it. The ending of its
    name may be in capitals or not.
    """
    elsewhere: dict[str, str] = {}
    missing: dict[str, str] = {}
    layouts: dict[str, list[str]] = {}
    for published in dict.fromkeys(clip.video_path for clip in clips):
        for layout, path in candidates(published, annotations.layouts):
            if (root / path).exists():
                if path != published:
                    elsewhere[published] = path
                    layouts.setdefault(layout, []).append(path)
                break
        else:
            whole = [layout for layout in annotations.whole if (root / _fill(layout, published)).exists()]
            missing[published] = (
                f"{MISSING}; {_fill(whole[0], published)} is the whole recording, and the trimmed clips are needed"
                if whole
                else why_missing(root / published)
            )
    return FoundVideos(elsewhere=elsewhere, missing=missing, layouts=layouts)


def candidates(published: str, layouts: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(layout, path below the root) of each place where a video may lie, the published place first."""
    for layout in ("{folder}/{name}", *layouts):
        path = _fill(layout, published)
        yield layout, path
        stem, dot, ending = path.rpartition(".")
        yield layout, f"{stem}{dot}{ending.swapcase()}"


def _fill(layout: str, published: str) -> str:
    path = PurePosixPath(published)
    folder = "" if path.parent == PurePosixPath() else str(path.parent)
    return layout.format(folder=folder, name=path.name).lstrip("/")


def why_missing(path: Path) -> str:
    """The reason why there is no video at a path, with what lies there instead."""
    for there in (path, *path.parents):
        if there.is_symlink() and not there.exists():
            target = there.readlink()
            where = target if target.is_absolute() else f"{target} as seen from {there.parent}"
            return f"{MISSING}: {there.name} is a link to {where}, and nothing is there; make the link anew"
        if there.exists():
            break
    for name in (path.parent.name, path.stem):
        if name != name.strip():
            return f"{MISSING}: the name {name!r} begins or ends with a space; correct the id in the annotations"
    beside = _listing(path.parent)
    if rest := [name for name in beside.get(_alike(path.stem), []) if name.endswith(UNFINISHED)]:
        return f"{MISSING}: its download is not finished, {rest[0]} is there; let it finish"
    if alike := beside.get(_alike(path.stem), []):
        return f"{MISSING}: {listed(alike, most=3)} is there, and not {path.name}; names must be the same to the letter"
    return MISSING


@functools.lru_cache(maxsize=64)  # many clips of a missing video ask for the same folder
def _listing(folder: Path) -> dict[str, list[str]]:
    """The names in a folder, by what `_alike` makes of them without their endings."""
    found: dict[str, list[str]] = {}
    try:
        names = sorted(path.name for path in folder.iterdir())
    except OSError:
        return found
    for name in names:
        stem = name
        while stem.endswith(UNFINISHED):
            stem = stem.rpartition(".")[0]
        found.setdefault(_alike(PurePosixPath(stem).stem), []).append(name)
    return found


def _alike(stem: str) -> str:
    """What names have in common that look alike: without capitals, spaces, and one form of accents."""
    return "".join(unicodedata.normalize("NFKC", stem).casefold().split())
