"""EPIC-KITCHENS-100 multi-instance retrieval (Damen et al., IJCV 2022): clips, sentences and their relevancy.

The relevancy of a sentence to a clip follows from their verb and noun classes, and is computed when it is needed.
Published pickles hold the same numbers, 8.6 GB of them for training. Only the pickle for evaluation is ever read: where
it differs from the computed numbers, it counts.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lavila.annotations.base import AnnotationError, AnnotationSet
from lavila.annotations.checks import locate
from lavila.annotations.epic_kitchens import LAYOUTS, NOUN_CLASSES, VERB_CLASSES, read_clips, read_keys
from lavila.annotations.epic_kitchens import USED_COLUMNS as CLASSIFICATION_COLUMNS
from lavila.annotations.tables import Row, read_csv, read_plain_pickle, whole_number
from lavila.errors import shown

log = logging.getLogger(__name__)

SPLITS = {"train": "EPIC_100_retrieval_train.csv", "val": "EPIC_100_retrieval_test.csv"}
SENTENCES = {"train": "EPIC_100_retrieval_train_sentence.csv", "val": "EPIC_100_retrieval_test_sentence.csv"}
OWN_FOLDER = "retrieval_annotations"  # in the authors' repository
RELEVANCY = "relevancy/caption_relevancy_EPIC_100_retrieval_test.pkl"
USED_COLUMNS = (*CLASSIFICATION_COLUMNS, "all_noun_classes")
_NUMBERS = re.compile(r"\[([0-9, ]*)\]")
_ROWS_AT_ONCE = 1024
_ROUNDING = 1e-6  # larger than float32's rounding error, smaller than the difference of any two relevancies

Meaning = tuple[int, Sequence[int]]
"""Verb class and noun classes of a clip or a sentence."""


def read_retrieval(path: Path, split: str) -> AnnotationSet:
    """The clips of one split, and the sentences of the search in both directions.

    `path` is the folder of the csv files, the authors' repository with their folder, or the csv of the split with the
    others beside it. The csv files of the classes may lie one folder above the others. A clip's `labels` are its
    noun classes, sorted. `tables["sentences"]`, in the order of their file: sentence_id str, narration str, verb int,
    nouns list of int. If split val has a relevancy pickle that differs from the csvs, `tables["relevancy"]` holds it:
    clip_id str, relevancy [sentences] float32. The pickle of training is never read; `relevancy` computes any part.
    Raises AnnotationError, which names file, line and column. `failures` gets each row whose times are malformed, whose
    stop is not after its start, or whose video lies outside the video root.
    """
    file = locate(path, split, SPLITS)
    if path.is_dir() and not file.exists() and (path / OWN_FOLDER / file.name).exists():
        file = path / OWN_FOLDER / file.name
    folder = file.parent
    # The authors' repository has the classes one folder above the csv files of retrieval.
    above = (
        folder.parent if not (folder / VERB_CLASSES).exists() and (folder.parent / VERB_CLASSES).exists() else folder
    )
    class_files = [above / VERB_CLASSES, above / NOUN_CLASSES]
    verb_keys, noun_keys = map(read_keys, class_files)
    rows = read_csv(file, USED_COLUMNS)
    meanings: dict[str, tuple[int, list[int]]] = {}

    def noun_labels(row: Row, verb: int, _noun: int) -> dict[str, Any]:
        nouns = _nouns(row, "all_noun_classes", len(noun_keys))
        meanings[row.cells["narration_id"]] = verb, nouns
        return {"labels": tuple(nouns)}

    clips, failures = read_clips(rows, verbs=len(verb_keys), nouns=len(noun_keys), used=USED_COLUMNS, more=noun_labels)
    sentences_file = folder / SENTENCES[split]
    sentences = [
        _sentence(row, meanings, verbs=len(verb_keys), nouns=len(noun_keys))
        for row in read_csv(sentences_file, ("narration_id", "narration"))
    ]
    tables = {"sentences": sentences}
    files = [file, sentences_file, *class_files]
    if file.name == SPLITS["val"] and (folder / RELEVANCY).exists():
        published = _where_published_differs(folder / RELEVANCY, meanings, sentences)
        tables |= {"relevancy": published} if published else {}
        files.append(folder / RELEVANCY)
    return AnnotationSet(
        clips=clips,
        classes={"verb": verb_keys, "noun": noun_keys},
        class_texts={"verb": [[key] for key in verb_keys], "noun": [[key] for key in noun_keys]},
        files=files,
        failures=failures,
        tables=tables,
        layouts=LAYOUTS,
    )


class RelevancyTo:
    """How relevant some sentences are to any clips. What is said of the sentences is put into arrays once."""

    def __init__(self, sentences: Sequence[Meaning]) -> None:
        self._verbs, nouns = _as_arrays(sentences)
        self._nouns, self._counts = np.ascontiguousarray(nouns.T), nouns.sum(1, dtype=np.float64)

    def __call__(self, clips: Sequence[Meaning]) -> npt.NDArray[np.float32]:
        """[clips, sentences] float32 in 0..1: the mean of "same verb" and the share of common nouns among all of both.

        Whoever has no noun shares none. Memory: the result and a few blocks of 1,024 clips.
        """
        result = np.empty((len(clips), len(self._verbs)), np.float32)
        for start in range(0, len(clips), _ROWS_AT_ONCE):
            verbs, nouns = _as_arrays(clips[start : start + _ROWS_AT_ONCE])
            shared = min(nouns.shape[1], len(self._nouns))  # a noun that only one side has is not common
            common = (nouns[:, :shared] @ self._nouns[:shared]).astype(np.float64)
            either = nouns.sum(1, dtype=np.float64)[:, None] + self._counts - common
            same_verb = verbs[:, None] == self._verbs
            result[start : start + len(verbs)] = (same_verb + common / np.maximum(either, 1)) / 2
        return result


def relevancy(clips: Sequence[Meaning], sentences: Sequence[Meaning]) -> npt.NDArray[np.float32]:
    """[clips, sentences] float32 in 0..1, see `RelevancyTo`."""
    return RelevancyTo(sentences)(clips)


def read_relevancy(path: Path) -> npt.NDArray[np.float32]:
    """A published relevancy pickle: [clips, sentences] float32 in 0..1.

    Memory: twice the file. Raises AnnotationError for anything but a matrix of such numbers.
    """
    found = read_plain_pickle(path)
    if not isinstance(found, np.ndarray) or found.ndim != 2 or found.dtype.kind not in "fiub":
        what = f"an array of shape {found.shape}, {found.dtype}" if isinstance(found, np.ndarray) else shown(found)
        raise AnnotationError(f"{path}: holds {what}; needed is a matrix of numbers, clips x sentences")
    if not (found.size and 0 <= found.min() <= found.max() <= 1):
        raise AnnotationError(f"{path}: relevancies must be numbers from 0 to 1; copy or download the file again")
    return found.astype(np.float32)


def _as_arrays(meanings: Sequence[Meaning]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Verbs [N] and nouns [N, highest noun + 1] as 0 or 1; counts of common nouns are exact in float32."""
    verbs = np.array([verb for verb, _ in meanings], np.int64)
    nouns = np.zeros((len(meanings), 1 + max((noun for _, all_nouns in meanings for noun in all_nouns), default=0)))
    for row, (_, all_nouns) in zip(nouns, meanings, strict=True):
        row[list(all_nouns)] = 1
    return verbs, nouns.astype(np.float32)


def _sentence(row: Row, meanings: dict[str, tuple[int, list[int]]], *, verbs: int, nouns: int) -> dict[str, Any]:
    """A sentence with its classes: from its own row if they are there, else from the clip with the same narration."""
    sentence_id = row.cells["narration_id"]
    if "verb_class" in row.cells and "noun_classes" in row.cells:
        verb, all_nouns = row.class_index("verb_class", verbs), _nouns(row, "noun_classes", nouns)
    elif sentence_id in meanings:
        verb, all_nouns = meanings[sentence_id]
    else:
        raise row.error(
            "narration_id",
            f"{shown(sentence_id)} is no clip's, so the sentence has no classes; use both csvs of one release",
        )
    return {"sentence_id": sentence_id, "narration": row.cells["narration"], "verb": verb, "nouns": list(all_nouns)}


def _nouns(row: Row, column: str, count: int) -> list[int]:
    """The distinct classes in a cell such as "[49, 36]", ascending."""
    match = _NUMBERS.fullmatch(row.cells[column].strip())
    numbers = [whole_number(text) for text in match[1].split(",")] if match else []
    found = sorted({number for number in numbers if number is not None and number < count})
    if not numbers or len(found) != len(set(numbers)):
        text = shown(row.cells[column])
        raise row.error(column, f"{text} is not a list of noun classes from 0 to {count - 1}; write it like [49, 36]")
    return found


def _where_published_differs(
    file: Path, meanings: dict[str, tuple[int, list[int]]], sentences: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The rows of the table "relevancy" if the published matrix differs from the computed one; else none.

    The authors' script is partly random, so a published matrix counts where it differs. AnnotationError for a matrix
    of other clips or sentences.
    """
    published = read_relevancy(file)
    if published.shape != (len(meanings), len(sentences)):
        raise AnnotationError(
            f"{file}: {published.shape[0]} x {published.shape[1]} relevancies, but the csvs hold {len(meanings)} clips "
            f"and {len(sentences)} sentences; use csvs and pickle of one release, or remove the pickle: without it "
            "relevancies follow from the csvs"
        )
    rebuilt = relevancy(list(meanings.values()), [(sentence["verb"], sentence["nouns"]) for sentence in sentences])
    wrong = np.abs(published - rebuilt) > _ROUNDING
    if not wrong.any():
        return []
    row, column = (int(place) for place in np.unravel_index(int(wrong.argmax()), wrong.shape))
    log.warning(
        "%s: %d of %d relevancies are not those of the csvs and are kept as published; the first: clip %s and sentence "
        "%s have %g, by the csvs %g",
        file,
        int(wrong.sum()),
        wrong.size,
        list(meanings)[row],
        sentences[column]["sentence_id"],
        published[row, column],
        rebuilt[row, column],
    )
    return [{"clip_id": name, "relevancy": values} for name, values in zip(meanings, published, strict=True)]
