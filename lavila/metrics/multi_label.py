"""Multi-label scores: a video shows any number of classes."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating[Any]]
Labels = npt.NDArray[np.bool_] | npt.NDArray[np.integer[Any]] | Floats


def mean_average_precision(
    scores: Floats, labels: Labels, *, without_positives: Literal["nan", "left_out"] = "nan"
) -> float:
    """Mean over classes of the average precision, 0..1; the score of Charades and Charades-Ego.

    scores: [videos, classes], any scale. labels: [videos, classes], 0 or 1. A video without any label is ranked last in
    every class, as in the reference. without_positives: a class that no video shows makes the mean "nan", as in the
    reference, or is "left_out". NaN where no class is left. ValueError for other shapes, labels, and NaN.

    Among equal scores the video that comes first in the array comes first, on every machine; the reference leaves them
    to numpy's sort, whose order depends on the processor. Scores are compared as float32.
    """
    if without_positives not in ("nan", "left_out"):
        raise ValueError(f"without_positives={without_positives!r}: expected one of ['nan', 'left_out']")
    found = average_precisions(scores, labels)
    kept = found if without_positives == "nan" else found[~np.isnan(found)]
    return float(kept.mean()) if len(kept) else float("nan")


def average_precisions(scores: Floats, labels: Labels) -> npt.NDArray[np.float64]:
    """[classes] float64, 0..1: the average precision of each class, NaN for one that no video shows.

    Arguments, order of equals and errors as in `mean_average_precision`.
    """
    if scores.ndim != 2 or scores.size == 0 or labels.shape != scores.shape:
        raise ValueError(
            f"scores has shape {scores.shape}, labels {labels.shape}: expected [videos, classes], none of them 0"
        )
    if np.isnan(scores).any():
        raise ValueError("scores hold NaN, which has no rank; look for the input that made it")
    shown = labels == 1
    if not (shown | (labels == 0)).all():
        raise ValueError("labels hold other numbers than 0 and 1")
    ranked_last = np.where(shown.any(axis=1, keepdims=True), scores, -np.inf).astype(np.float32)
    order = np.argsort(-ranked_last, axis=0, kind="stable")
    hits = np.take_along_axis(shown, order, axis=0)
    precision = np.cumsum(hits, axis=0) / np.arange(1, len(scores) + 1)[:, None]
    positives = hits.sum(axis=0)
    found = np.full(len(positives), np.nan)
    np.divide((precision * hits).sum(axis=0), positives, out=found, where=positives > 0)
    return found
