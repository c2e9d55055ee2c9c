"""Annotation files as their authors publish them -> `Clip` records. One module per dataset family."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lavila.records import Clip

SpanRule = Literal["edges", "duration", "fractional"]
"""How an interval in seconds becomes frames at a frame rate; see `frame_span`."""


class AnnotationError(ValueError):
    """Annotation files that cannot be read as what they should be, told in one line."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AnnotationSet:
    """One split of a dataset."""

    clips: list[Clip]  # in the order of the file
    classes: dict[str, list[str]]  # kind of label -> name of each class; the place in the list is the class index
    files: list[Path]  # everything that was read
    failures: list[tuple[str, str, str]]  # clip_id, video path, reason: rows that cannot be clips
    span_rule: SpanRule = "edges"  # how the dataset's authors turn seconds into frames
    class_texts: dict[str, list[list[str]]] = field(default_factory=dict)  # kind -> for each class its descriptions
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)  # what is not about one clip: name -> rows


def frame_span(start_second: float, stop_second: float, fps: float, rule: SpanRule = "edges") -> tuple[int, int]:
    """First frame and the one past the last of an interval at `fps` frames per second, by one of LaViLa's rules.

    The start rounds to the nearest frame (halves to even). An interval of any length has at least that frame: LaViLa's
    own arithmetic leaves some that are shorter than a frame without one, and cannot read them. The stop, by rule:

    * edges (EPIC-KITCHENS-100, EGTEA): rounds up.
    * duration (Ego4D, EgoMCQ, Charades-Ego trimmed): start + whole frames of the duration. Frames after it may be used
      by a model that wants more frames than that.
    * fractional (Charades-Ego untrimmed): start + the duration's frames rounded up; the choice of frames works with the
      fractional number, fps * duration.
    """
    start = round(fps * start_second)
    frames = fps * (stop_second - start_second)
    stop = {
        "edges": math.ceil(fps * stop_second),
        "duration": start + int(frames),
        "fractional": start + math.ceil(frames),
    }[rule]
    return start, max(stop, start + 1)


def read_annotations(dataset: str, path: Path, *, split: str) -> AnnotationSet:
    """Read one split of a known dataset.

    `path`: the folder of the dataset's annotation files, or the one file that holds the split. Raises AnnotationError
    for a dataset name that is not in `DATASETS`, a path that is not there, and what the dataset's reader refuses.
    """
    if dataset not in DATASETS:
        near = difflib.get_close_matches(dataset, DATASETS, n=1, cutoff=0.0)
        raise AnnotationError(f"dataset {dataset!r} is not known: one of {', '.join(DATASETS)}; nearest is {near[0]!r}")
    try:
        found = path.exists()
    except OSError as error:
        raise AnnotationError(f"{path}: cannot be looked at ({error.strerror}); check its rights") from None
    if not found:
        raise AnnotationError(
            f"{path}: no such file or folder; give the folder that holds the annotation files of {dataset} under "
            "their published names, or the file of the split"
        )
    return DATASETS[dataset](path, split)


# The readers need the names above, so they come in last.
from lavila.annotations import (  # noqa: E402
    charades_ego,
    ego4d,
    egomcq,
    egtea,
    epic_kitchens,
    epic_retrieval,
)

DATASETS: dict[str, Callable[[Path, str], AnnotationSet]] = {
    "ek100_cls": epic_kitchens.read_classification,
    "ek100_mir": epic_retrieval.read_retrieval,
    "ego4d": ego4d.read_clips,
    "egomcq": egomcq.read_questions,
    "egtea": egtea.read_clips,
    "charades_ego": charades_ego.read_clips,
}
