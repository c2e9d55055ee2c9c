"""EgoMCQ (Lin et al., NeurIPS 2022): questions on Ego4D, each a narration and five clips of which one shows it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lavila.annotations.base import AnnotationError, AnnotationSet, Failure
from lavila.annotations.checks import (
    MAX_SECONDS,
    ClipNames,
    as_seconds,
    as_text,
    interval_problem,
    locate,
    video_path_problem,
)
from lavila.annotations.ego4d import LAYOUTS
from lavila.annotations.tables import decimal_seconds, read_text, whole_number
from lavila.errors import listed, shown
from lavila.records import Clip

SPLITS = {"val": "egomcq.json"}
KINDS = {1: "inter", 2: "intra"}  # the authors' names: choices from many videos (easy) or from one (hard)
CHOICES = 5
NO_TIME = -2 * MAX_SECONDS  # stands for a time that is no number; no file can hold it

Interval = tuple[str, float, float]
"""Video, start second, stop second."""


@dataclass(kw_only=True, slots=True)
class _Clips:
    """The clips of all questions so far, each once, in the order of first use."""

    said: dict[Interval, list[str]] = field(default_factory=dict)
    ids: dict[Interval, str] = field(default_factory=dict)
    names: ClipNames = field(default_factory=ClipNames)

    def add(self, interval: Interval, text: str) -> str:
        """Remember a text that was said of an interval. Returns the id of its clip."""
        if interval not in self.ids:
            self.ids[interval] = self.names.make(*interval)
            self.said[interval] = []
        if text.strip() and text not in self.said[interval]:
            self.said[interval].append(text)
        return self.ids[interval]


def read_questions(path: Path, split: str) -> AnnotationSet:
    """The questions and the distinct clips among their choices. `path` is egomcq.json or its folder.

    `tables["questions"]`, in numerical order: question_id str, kind "inter" (choices from different videos) or "intra"
    (from one), text, choices (5 clip ids), answer (place of the right one). Raises AnnotationError for a split other
    than val and for a file of another form; it names the question. A question with a choice that cannot be a clip is
    left out, and `failures` gets that choice.
    """
    if split not in SPLITS:
        raise AnnotationError(f"EgoMCQ has no split {split!r}: it is an evaluation set, ask for split 'val'")
    file = locate(path, split, SPLITS)
    clips = _Clips()
    questions: list[dict[str, Any]] = []
    failures: list[Failure] = []
    for key, question in _questions(file):
        where = f"{file}, question {key}"
        text = _member(_member(question, "query", dict, where), "clip_text", str, where)
        answer, kind = _member(question, "answer", int, where), _member(question, "types", int, where)
        if answer not in range(CHOICES) or kind not in KINDS:
            raise AnnotationError(
                f"{where}: answer {shown(answer)}, types {shown(kind)}; allowed are answers 0 to {CHOICES - 1} and "
                "types 1 (inter-video), 2 (intra-video); correct the question"
            )
        choices = _choices(_member(question, "choices", dict, where), where)
        unusable = [
            (place, interval, reason)
            for place, (interval, _) in enumerate(choices)
            if (reason := video_path_problem(f"{interval[0]}.mp4") or _time_problem(interval))
        ]
        if unusable:
            for place, interval, reason in unusable:
                failure = f"{file.name}, question {key}, choice {place}: {reason}; the question is left out, correct it"
                video, start, stop = interval
                failures.append((ClipNames().make(video, max(start, 0.0), max(stop, 0.0)), f"{video}.mp4", failure))
            continue
        ids = [clips.add(interval, said) for interval, said in choices]
        questions.append(
            {"question_id": key, "kind": KINDS[kind], "text": text, "choices": ids, "answer": answer},
        )
    return AnnotationSet(
        clips=[
            Clip(
                clip_id=clips.ids[interval],
                video_id=interval[0],
                video_path=f"{interval[0]}.mp4",
                start_second=interval[1],
                stop_second=interval[2],
                narrations=tuple(said),
            )
            for interval, said in clips.said.items()
        ],
        classes={},
        files=[file],
        failures=failures,
        span_rule="duration",
        tables={"questions": questions},
        layouts=LAYOUTS,
    )


def _questions(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Key and content of each question, in numerical order."""
    try:
        found = json.loads(read_text(file), object_pairs_hook=_without_doubles)
    except (ValueError, RecursionError) as error:
        if isinstance(error, AnnotationError):
            raise
        raise AnnotationError(f"{file}: not valid JSON ({error}); copy or download it again") from None
    if not isinstance(found, dict):
        raise AnnotationError(f'{file}: holds {shown(found)}; needed is {{"0": {{question}}, "1": ...}}')
    for key, question in found.items():
        if whole_number(key) is None:
            raise AnnotationError(f"{file}: key {shown(key)} is not a question's number; allowed are 0, 1, 2 ...")
        if not isinstance(question, dict):
            raise AnnotationError(f"{file}, question {key}: {shown(question)}; needed is an object with its parts")
    yield from sorted(found.items(), key=lambda item: int(item[0]))


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A dict of unique keys. json's own dict silently keeps only the last of several."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key comes twice in one object")
    return found


def _choices(found: dict[str, Any], where: str) -> list[tuple[Interval, str]]:
    """Interval and text of the five choices, in their order."""
    if set(found) != {str(place) for place in range(CHOICES)}:
        keys = listed([shown(key) for key in found]) or "none"
        raise AnnotationError(f"{where}: choices {keys}; needed are '0' to '{CHOICES - 1}'")
    choices = []
    for place in range(CHOICES):
        choice, there = found[str(place)], f"{where}, choice {place}"
        if not isinstance(choice, dict):
            raise AnnotationError(f"{there}: {shown(choice)}; needed is an object with video_uid, clip_start, clip_end")
        video = _member(choice, "video_uid", str, there)
        start, stop = (_seconds(choice, name) for name in ("clip_start", "clip_end"))
        text = _member(choice, "clip_text", str, there) if "clip_text" in choice else ""
        choices.append(((video, start, stop), text))
    return choices


def _member(found: dict[str, Any], name: str, kind: type, where: str) -> Any:
    """A member of an object, checked for its type."""
    value = as_text(found.get(name)) if kind is str else found.get(name)
    if type(value) is not kind:
        what = {str: "text", int: "a whole number", dict: "an object"}[kind]
        raise AnnotationError(f"{where}: {name} is {shown(found.get(name))}; needed is {what}")
    return value


def _seconds(choice: dict[str, Any], name: str) -> float:
    """Seconds, written as a number or as text; NO_TIME for anything else."""
    value = choice.get(name)
    seconds = decimal_seconds(value) if isinstance(value, str) else as_seconds(value)
    return NO_TIME if seconds is None else seconds


def _time_problem(interval: Interval) -> str:
    """Why the times of a choice cannot bound a clip; empty when they can."""
    if NO_TIME in interval[1:]:
        return f"{'clip_start' if interval[1] == NO_TIME else 'clip_end'} is not a number of seconds"
    return interval_problem(*interval[1:])
