"""Annotation files as their authors publish them -> `Clip` records. One module per dataset family."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lavila.records import Clip


class AnnotationError(ValueError):
    """Annotation files that cannot be read as what they should be, told in one line."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AnnotationSet:
    """One split of a dataset."""

    clips: list[Clip]  # in the order of the file
    classes: dict[str, list[str]]  # kind of label -> name of each class; the place in the list is the class index
    files: list[Path]  # everything that was read
    failures: list[tuple[str, str, str]]  # clip_id, video path, reason: rows that cannot be clips


def frame_span(start_second: float, stop_second: float, fps: float) -> tuple[int, int]:
    """First frame and the one past the last of an interval, as LaViLa's EPIC-KITCHENS reader computes them.

    `fps` is the average frame rate of the video file. The start rounds to the nearest frame (halves to even), the stop
    rounds up.
    """
    return round(fps * start_second), math.ceil(fps * stop_second)


def read_annotations(dataset: str, path: Path, *, split: str) -> AnnotationSet:
    """Read one split of a known dataset.

    Raises AnnotationError for a dataset name that is not in `DATASETS`, and for what the dataset's reader refuses.
    """
    if dataset not in DATASETS:
        near = difflib.get_close_matches(dataset, DATASETS, n=1, cutoff=0.0)
        raise AnnotationError(f"dataset {dataset!r} is not known: one of {', '.join(DATASETS)}; nearest is {near[0]!r}")
    return DATASETS[dataset](path, split)


# The readers need the names above, so they come in last.
from lavila.annotations import epic_kitchens  # noqa: E402

DATASETS: dict[str, Callable[[Path, str], AnnotationSet]] = {
    "ek100_cls": epic_kitchens.read_classification,
}
