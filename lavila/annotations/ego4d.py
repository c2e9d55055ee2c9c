"""Ego4D (Grauman et al., CVPR 2022) clips with narrations, from pickles as LaViLa publishes and writes them.

A pickle is a list of (video_uid, start_second, end_second, narration or narrations[, scores]). A video is named
<video_uid>.mp4, which is a file or a folder of chunks. Where somebody's own videos are meant, the name may have another
ending of videos, such as day1/GX01.MOV.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lavila.annotations.base import AnnotationError, AnnotationSet, Failure
from lavila.annotations.checks import ClipNames, as_seconds, as_text, interval_problem, locate, video_path_problem
from lavila.annotations.tables import read_plain_pickle
from lavila.errors import shown
from lavila.records import VIDEO_SUFFIXES, Clip

SPLITS = {"train": "ego4d_train.pkl", "val": "ego4d_val.pkl"}
LAYOUTS = (  # of LaViLa's preparation, and of the dataset's downloader: the smaller pictures first
    "video_5min_chunks_288px/{name}",
    "video_288px/{name}",
    *(f"{version}{kind}/{{name}}" for kind in ("video_540ss", "full_scale") for version in ("", "v2_1/", "v2/", "v1/")),
)
_FORM = "(video, start second, end second, narration or list of narrations), or these and a list of as many scores"


class Narrated(NamedTuple):
    """One entry of a pickle, checked."""

    clip_id: str
    video: str  # the name, without .mp4
    video_path: str
    start_second: float  # float64
    stop_second: float  # float64
    narrations: tuple[str, ...]  # without blank ones
    scores: tuple[float, ...] | None  # one for each narration; None where the entry has none
    problem: str  # the reason why it cannot be a clip; empty when it can


def read_clips(path: Path, split: str) -> AnnotationSet:
    """The clips of one split. `path` is the pickle, or a folder where it has its usual name.

    Raises AnnotationError for a file that is not a list of such entries. It names the first bad entry, counted from 0.
    `failures` gets each entry whose times are no numbers, whose stop is not after its start, that starts before its
    video, or whose video lies outside the video root.
    """
    return replace(read_narrated(locate(path, split, SPLITS)), layouts=LAYOUTS)


def read_narrated(file: Path) -> AnnotationSet:
    """The clips of a pickle of entries, without classes."""
    clips: list[Clip] = []
    failures: list[Failure] = []
    for number, entry in enumerate(_entries(file)):
        if entry.problem:
            failures.append((entry.clip_id, entry.video_path, f"{file.name}, entry {number}: {entry.problem}"))
            continue
        clips.append(
            Clip(
                clip_id=entry.clip_id,
                video_id=entry.video,
                video_path=entry.video_path,
                start_second=entry.start_second,
                stop_second=entry.stop_second,
                narrations=entry.narrations,
            )
        )
    return AnnotationSet(clips=clips, classes={}, files=[file], failures=failures, span_rule="duration")


def read_narrations(path: Path) -> list[tuple[str, tuple[str, ...], tuple[float, ...] | None]]:
    """(clip_id, narrations, scores or None) of every entry that can be a clip, with the clip ids of `read_clips`.

    `path` is a pickle of 4-tuples (no scores) or of a narrator's 5-tuples. Errors as in `read_clips`.
    """
    return [(entry.clip_id, entry.narrations, entry.scores) for entry in _entries(path) if not entry.problem]


def _entries(file: Path) -> Iterator[Narrated]:
    found = read_plain_pickle(file)
    if not isinstance(found, list | tuple):
        raise AnnotationError(f"{file}: holds {shown(found)}; needed is a list of {_FORM}")
    names = ClipNames()
    videos: dict[str, tuple[str, str, str]] = {}
    for number, entry in enumerate(found):
        if not isinstance(entry, list | tuple) or len(entry) not in (4, 5):
            what = f"{len(entry)} values" if isinstance(entry, list | tuple) else shown(entry)
            raise AnnotationError(f"{file}, entry {number}: {what}; needed are {_FORM}")
        name, start, stop = as_text(entry[0]), as_seconds(entry[1]), as_seconds(entry[2])
        if name is None:
            raise AnnotationError(
                f"{file}, entry {number}: {shown(entry[0])} is not a video's name; needed are {_FORM}"
            )
        if name not in videos:  # checked once, so that all clips of a video share its strings
            video_path = name if name.lower().endswith(VIDEO_SUFFIXES) else f"{name}.mp4"
            problem = video_path_problem(video_path)
            videos[name] = name, video_path, f"{problem}; correct the video's name" if problem else ""
        video, video_path, problem = videos[name]
        if start is None or stop is None:
            place, kind = (1, "a start second") if start is None else (2, "an end second")
            problem = problem or f"{shown(entry[place])} is not {kind}; correct it"
            start, stop = start or 0.0, stop or 0.0
        elif not problem and (problem := interval_problem(start, stop)):
            problem = f"{problem}; correct the times"
        try:
            narrations, scores = _words(entry[3], entry[4] if len(entry) == 5 else None)
        except ValueError as error:
            raise AnnotationError(f"{file}, entry {number}: {error}; needed are {_FORM}") from None
        clip_id = names.make(video, start, stop)
        yield Narrated(clip_id, video, video_path, start, stop, narrations, scores, problem)


def _words(said: object, scored: object) -> tuple[tuple[str, ...], tuple[float, ...] | None]:
    """Narrations and their scores. Raises ValueError for anything else."""
    texts: list[str] = []
    for said_one in [said] if isinstance(said, str) else _items(said, "narrations"):
        text = as_text(said_one)
        if text is None:
            raise ValueError(f"{shown(said_one)} is not a narration")
        texts.append(text)
    if scored is None:
        return tuple(text for text in texts if text.strip()), None
    scores = [_score(score) for score in _items(scored, "scores")]
    if len(scores) != len(texts):
        raise ValueError(f"{len(texts)} narrations but {len(scores)} scores")
    kept = [(text, score) for text, score in zip(texts, scores, strict=True) if text.strip()]
    return tuple(text for text, _ in kept), tuple(score for _, score in kept)


def _score(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, float | int | np.floating | np.integer):
        raise ValueError(f"{shown(value)} is not a score")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{shown(value)} is not a score") from None


def _items(found: object, kind: str) -> list[object] | tuple[object, ...]:
    if isinstance(found, np.ndarray) and found.ndim == 1:
        return list(found)
    if not isinstance(found, list | tuple):
        raise ValueError(f"{shown(found)} is not a list of {kind}")
    return found
