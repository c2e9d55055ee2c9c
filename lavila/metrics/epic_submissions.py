"""Submission files of the EPIC-KITCHENS-100 challenges: action recognition and multi-instance retrieval.

What is known, and from where: the archive's name within, the keys, versions and 0..5 of the levels come from the
challenges' own pages and published code (recognition: the repository of challenge C1 and the checks of its scoring
program; retrieval: the challenge's page). No file of ours has been sent to the servers. The pages say that similarities
lie between 0 and 1; whether a server refuses others is not known.
"""

from __future__ import annotations

import json
import pickle
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from lavila.errors import UserError
from lavila.files import whole_file
from lavila.metrics.epic_kitchens import top_actions

Floats = npt.NDArray[np.floating[Any]]

ACTIONS = 100  # the recognition challenge wants exactly so many for each segment
_SEGMENTS_AT_ONCE = 512


class SubmissionError(UserError):
    """Predictions that a challenge would not take."""


@dataclass(frozen=True, kw_only=True)
class SupervisionLevels:
    """The challenge's Supervision Levels Scale: what a model has seen, 0..5 each. SubmissionError for other numbers."""

    pretraining: int
    """sls_pt. 0 none, 1 public images, 2 public images and videos, 3 public data without labels, 4 that and
    EPIC-KITCHENS, 5 private data."""
    training_labels: int
    """sls_tl. 0 none, 1 a video's labels, 2 and narration times, 3 and starts and ends, 4 and places in pictures of a
    detector, 5 and other knowledge."""
    training_data: int
    """sls_td. 0 zero-shot, 1 up to 5 examples a class, 2 at most a quarter of training, 3 training, 4 training and
    validation, 5 those and further data."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 5:
                raise SubmissionError(
                    f"supervision level {name}={value!r}: the challenges take whole numbers from 0 to 5; see "
                    "https://github.com/epic-kitchens/SLS"
                )

    def as_keys(self) -> dict[str, int]:
        """Under the names of the files."""
        return {"sls_pt": self.pretraining, "sls_tl": self.training_labels, "sls_td": self.training_data}


def write_recognition_submission(
    path: Path,
    *,
    narration_ids: Sequence[str],
    verb_probabilities: Floats,
    noun_probabilities: Floats,
    levels: SupervisionLevels,
) -> None:
    """A zip file with test.json: for each segment all verbs and nouns, and the 100 best pairs by their product.

    verb_probabilities: [N,97], noun_probabilities: [N,300]; rows in the order of narration_ids. The server would make
    pairs for itself from scores before softmax, so ours are written out. Memory: a few MB beside the arrays.
    SubmissionError for ids that occur twice, and numbers that are not finite.
    """
    for name, scores in (("verb_probabilities", verb_probabilities), ("noun_probabilities", noun_probabilities)):
        _check(name, scores, rows=len(narration_ids))
    _check_ids("narration_ids", narration_ids)
    head = {"version": "0.2", "challenge": "action_recognition", **levels.as_keys()}
    with _member_of_zip(path, "test.json") as file:
        file.write((json.dumps(head)[:-1] + ', "results": {').encode())
        for start in range(0, len(narration_ids), _SEGMENTS_AT_ONCE):
            block = slice(start, start + _SEGMENTS_AT_ONCE)
            entries = _entries(verb_probabilities[block], noun_probabilities[block])
            for place, (name, entry) in enumerate(zip(narration_ids[block], entries, strict=True), start):
                file.write(f"{', ' if place else ''}{json.dumps(name)}: {json.dumps(entry)}".encode())
        file.write(b"}}")


def write_retrieval_submission(
    path: Path, *, similarity: Floats, video_ids: Sequence[str], text_ids: Sequence[str], levels: SupervisionLevels
) -> None:
    """A zip file with test.pkl: the similarity of every video and sentence.

    similarity: [videos, texts], cosines in -1..1, in the order of video_ids and text_ids (narration ids of clips and
    of sentences). They are written as (1 + cosine) / 2 in float32, 0..1. That can make two cosines equal that differ
    in the last bit, so the server's score can differ from ours in far decimals. Any version of numpy reads the file.
    Memory: three times the float32 matrix. SubmissionError for ids that occur twice, and numbers outside -1..1.
    """
    _check("similarity", similarity, rows=len(video_ids))
    if similarity.shape[1] != len(text_ids):
        raise SubmissionError(
            f"similarity has {similarity.shape[1]} columns, text_ids {len(text_ids)} names: give as many"
        )
    _check_ids("video_ids", video_ids)
    _check_ids("text_ids", text_ids)
    lowest, highest = float(similarity.min()), float(similarity.max())
    if lowest < -1 - 1e-3 or highest > 1 + 1e-3:
        raise SubmissionError(
            f"similarity holds numbers from {lowest:g} to {highest:g}: give cosines, -1 to 1, before any temperature"
        )
    scores = np.clip((1 + similarity.astype(np.float32)) / 2, 0, 1)
    content = {"version": "0.1", "challenge": "multi_instance_retrieval", **levels.as_keys()}
    content |= {"sim_mat": scores, "vis_ids": list(video_ids), "txt_ids": list(text_ids)}
    with _member_of_zip(path, "test.pkl") as file:
        _PortablePickler(file, protocol=4).dump(content)


@contextmanager
def _member_of_zip(path: Path, name: str) -> Iterator[IO[bytes]]:
    """The only file of a zip file, to write to; the zip file is whole or absent."""
    with (
        whole_file(path) as file,
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open(name, "w", force_zip64=True) as member,
    ):
        yield member


class _PortablePickler(pickle.Pickler):
    """Arrays by numpy's public constructor: numpy 2 else names modules that earlier versions do not have."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, np.ndarray):
            return np.ndarray, (value.shape, value.dtype.str, bytearray(value.tobytes()))
        return NotImplemented


def _entries(verb_probabilities: Floats, noun_probabilities: Floats) -> list[dict[str, dict[str, float]]]:
    """What test.json says of each segment."""
    best = zip(*top_actions(verb_probabilities, noun_probabilities, count=ACTIONS), strict=True)
    return [
        {
            "verb": {str(number): _rounded(score) for number, score in enumerate(verbs)},
            "noun": {str(number): _rounded(score) for number, score in enumerate(nouns)},
            "action": {f"{v},{n}": _rounded(score) for v, n, score in zip(*pairs, strict=True)},
        }
        for verbs, nouns, pairs in zip(verb_probabilities, noun_probabilities, best, strict=True)
    ]


def _rounded(score: float) -> float:
    """Nine digits, which distinguish all float32, instead of seventeen."""
    return float(f"{score:.9g}")


def _check(name: str, scores: Floats, *, rows: int) -> None:
    if scores.ndim != 2 or scores.size == 0 or len(scores) != rows:
        raise SubmissionError(f"{name} has shape {scores.shape}: needed are {rows} rows, one for each id, and columns")
    if not np.isfinite(scores).all():
        raise SubmissionError(f"{name} holds NaN or infinite numbers: evaluate again with a sound model")


def _check_ids(name: str, ids: Sequence[str]) -> None:
    twice = [one for one, count in Counter(ids).items() if count > 1]
    if twice:
        raise SubmissionError(
            f"{name}: {twice[0]!r} occurs more than once, as do {len(twice) - 1} others; give each once"
        )
