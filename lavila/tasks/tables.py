"""What a task may read of a shard set beside the clips of a batch: words, labels and what is said of them.

The engine fills a `Tables` from a shard set. What may be large is a function and is read at its first call; each keeps
what it has read. A function for which a shard set has nothing raises an error that a user can cause.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Sentences:
    """What clips are searched with, and searched for, in multi-instance retrieval."""

    ids: list[str]  # S, as published; a submission names them
    texts: list[str]  # S

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True, kw_only=True)
class Questions:
    """Questions with several choices: a text, and clips of which one shows it."""

    ids: list[str]  # Q, as published
    texts: list[str]  # Q
    kinds: Ints  # [Q] number of each question's kind in the published file
    kind_names: Mapping[int, str]  # 1 inter: choices from many videos (easy); 2 intra: all from one video (hard)
    choices: Ints  # [Q, C] rows in clips.parquet; -1 = the set does not hold the clip
    choice_ids: list[list[str]]  # Q x C clip ids
    answers: Ints  # [Q] place of the right choice

    def __len__(self) -> int:
        return len(self.texts)


def _nothing(*_: Any) -> NoReturn:
    raise LookupError("these tables were made without it")


@dataclass(frozen=True, kw_only=True)
class Tables:
    """The tables of one shard set. The default of a function raises LookupError: tests give what they need."""

    of: object  # the shard set's path, for messages
    clips: int = 0  # rows of clips.parquet
    dataset: str = ""  # as the shard set's manifest names it
    split: str = ""  # likewise
    classes: Mapping[str, Sequence[str]] = field(default_factory=dict)  # kind of label -> names, by class index
    class_texts: Mapping[str, Sequence[Sequence[str]]] = field(default_factory=dict)  # -> texts of each class
    clip_ids: Callable[[], list[str]] = _nothing  # by row
    labels: Callable[[str], Ints] = _nothing  # "verb", "noun", "action" -> [clips] class indices; -1 = not labelled
    label_sets: Callable[[], list[list[int]]] = _nothing  # clips x (any number) of class indices "labels"
    extra: Callable[[str], list[str]] = _nothing  # another column of the annotations, such as participant_id, by row
    groups: Callable[[str], list[str]] = _nothing  # name of a list that the annotations give -> its entries; often none
    sentences: Callable[[], Sentences] = _nothing
    relevancy: Callable[[Ints], Floats] = _nothing  # rows [B] -> [B, S] of 0..1, S as in `sentences`
    questions: Callable[[], Questions] = _nothing
