"""What every reader of annotation files gives."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lavila.errors import UserError
from lavila.records import Clip, SpanRule


class AnnotationError(UserError):
    """Annotation files that cannot be read as what they should be."""


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
