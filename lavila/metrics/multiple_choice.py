"""Multiple choice: which of a few clips does a text describe."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating[Any]]
Integers = npt.NDArray[np.integer[Any]]


def accuracy_by_kind(scores: Floats, answers: Integers, kinds: Integers) -> dict[int, float]:
    """Percent of the questions of each kind whose highest score is the answer's, keyed by the kind's number, ascending.

    scores: [questions, choices], any scale; NaN marks a choice that is missing, because its clip could not be read.
    answers: [questions], the right choice. kinds: [questions], any whole numbers: EgoMCQ (Lin et al., NeurIPS 2022)
    has 1 for clips of different videos and 2 for clips of one. The first of equal scores is the model's choice.

    A question that lost a choice counts for nothing, whichever choice it was: without a wrong one it is easier, without
    the answer it has none. `lost_a_choice` says which these are. A kind all of whose questions are such is NaN.
    ValueError for other shapes and answers.
    """
    _check(scores, answers, kinds)
    whole = ~lost_a_choice(scores)
    right = np.zeros(len(scores), np.bool_)
    right[whole] = scores[whole].argmax(axis=1) == answers[whole]
    counts = {int(kind): kinds == kind for kind in np.unique(kinds)}
    return {
        kind: float(100 * right[asked].sum() / (asked & whole).sum()) if (asked & whole).any() else float("nan")
        for kind, asked in counts.items()
    }


def lost_a_choice(scores: Floats) -> npt.NDArray[np.bool_]:
    """[questions]: whether a score is NaN, the mark of a choice that is missing. scores: [questions, choices]."""
    return np.asarray(np.isnan(scores).any(axis=1))


def _check(scores: Floats, answers: Integers, kinds: Integers) -> None:
    if scores.ndim != 2 or scores.size == 0:
        raise ValueError(f"scores has shape {scores.shape}: expected [questions, choices], none of them 0")
    for name, values in (("answers", answers), ("kinds", kinds)):
        if values.shape != scores.shape[:1] or not np.issubdtype(values.dtype, np.integer):
            raise ValueError(f"{name} is {values.dtype} of shape {values.shape}: expected integers of [{len(scores)}]")
    lowest, highest = int(answers.min()), int(answers.max())
    if lowest < 0 or highest >= scores.shape[1]:
        raise ValueError(f"answers are {lowest} to {highest}: expected 0 to {scores.shape[1] - 1}")
