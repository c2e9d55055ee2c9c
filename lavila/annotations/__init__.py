"""Annotation files as their authors publish them -> `Clip` records. One module per dataset family."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path

from lavila.annotations import (
    charades_ego,
    ego4d,
    egomcq,
    egtea,
    epic_kitchens,
    epic_retrieval,
)
from lavila.annotations.base import AnnotationError, AnnotationSet


def read_annotations(dataset: str, path: Path, *, split: str) -> AnnotationSet:
    """Read one split of a known dataset.

    `path`: the folder of the dataset's annotation files, or the one file that holds the split. Raises AnnotationError
    for a dataset name that is not in `DATASETS`, a path that does not exist, and files that the reader refuses.
    """
    if dataset not in DATASETS:
        near = difflib.get_close_matches(dataset, DATASETS, n=1, cutoff=0.0)
        raise AnnotationError(f"dataset {dataset!r} is not known: one of {', '.join(DATASETS)}; nearest is {near[0]!r}")
    try:
        found = path.exists()
    except OSError as error:
        raise AnnotationError(f"{path}: cannot be opened ({error.strerror}); check its rights") from None
    if not found:
        raise AnnotationError(
            f"{path}: no such file or folder; give the folder that holds the annotation files of {dataset} under "
            "their published names, or the file of the split"
        )
    return DATASETS[dataset](path, split)


DATASETS: dict[str, Callable[[Path, str], AnnotationSet]] = {
    "ek100_cls": epic_kitchens.read_classification,
    "ek100_mir": epic_retrieval.read_retrieval,
    "ego4d": ego4d.read_clips,
    "egomcq": egomcq.read_questions,
    "egtea": egtea.read_clips,
    "charades_ego": charades_ego.read_clips,
}
