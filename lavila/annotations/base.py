"""The result of every reader of annotation files, and the error of all of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lavila.errors import UserError
from lavila.records import Clip, SpanRule


class AnnotationError(UserError):
    """Annotation files that are missing, damaged or of another form."""


Failure = tuple[str, str, str]
"""A row that cannot be a clip: its clip_id, its video path, and the reason."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AnnotationSet:
    """One split of a dataset."""

    clips: list[Clip]  # in the order of the file
    classes: dict[str, list[str]]  # kind of label -> names of its classes; the place in the list is the class index
    files: list[Path]  # every file that was read
    failures: list[Failure]  # the rows that cannot be clips
    span_rule: SpanRule = "edges"  # how the dataset's authors turn seconds into frames
    class_texts: dict[str, list[list[str]]] = field(default_factory=dict)  # kind -> descriptions of each class
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)  # name -> rows that are not about one clip
    # Where else the dataset's downloads have a video of path "folder/name": "{folder}/videos/{name}". First one first.
    layouts: tuple[str, ...] = ()
    whole: tuple[str, ...] = ()  # likewise the whole recordings, where the clips' videos are trimmed pieces of them
