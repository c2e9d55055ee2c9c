"""Classification metrics in numpy: arrays in, floats out. All accuracies are in per cent."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating[Any]]
Integers = npt.NDArray[np.integer[Any]]
FusionRule = Literal["mean_logits", "max_similarity", "max_cosine"]


def topk_accuracy(scores: Floats, targets: Integers, *, k: int) -> float:
    """Per cent of samples whose target is among the k highest scores. Arguments and errors as in `topk_hits`."""
    return float(np.mean(topk_hits(scores, targets, k=k)) * 100)


def topk_hits(scores: Floats, targets: Integers, *, k: int) -> npt.NDArray[np.bool_]:
    """[N]: whether a sample's target is among the k highest scores.

    scores: [N,K], any scale. targets: [N], class indices. Ties count against the target: fewer than k other classes may
    score as high or higher. So the outcome depends on no sort, and a model that gives all classes one score gets none
    right. ValueError for wrong shapes, no samples, NaN, k or targets outside K.
    """
    samples, classes = _shape("scores", scores, "N", "K")
    _check_classes("targets", targets, samples=samples, num_classes=classes)
    if not 1 <= k <= classes:
        raise ValueError(f"k={k}: there are {classes} classes; choose k from 1 to {classes}")
    if np.isnan(scores).any():
        raise ValueError("scores hold NaN, which has no rank; look for the loss or input that made it")
    own = np.take_along_axis(scores, targets[:, None], axis=1)
    as_high_or_higher = (scores >= own).sum(axis=1)  # the target itself included
    return np.asarray(as_high_or_higher <= k)


def confusion_matrix(predicted: Integers, targets: Integers, *, num_classes: int) -> npt.NDArray[np.int64]:
    """Counts [K,K]: row = true class, column = predicted class.

    predicted, targets: [N], class indices below num_classes. ValueError for wrong shapes, no samples, other indices.
    """
    _check_classes("targets", targets, samples=None, num_classes=num_classes)
    _check_classes("predicted", predicted, samples=len(targets), num_classes=num_classes)
    pairs = targets.astype(np.int64) * num_classes + predicted.astype(np.int64)
    counts = np.bincount(pairs, minlength=num_classes**2).astype(np.int64)
    return counts.reshape(num_classes, num_classes)


def confused_pairs(confusion: Integers, *, most: int) -> list[tuple[int, int, int]]:
    """(truth, predicted, clips) of the mistakes in a [K,K] confusion (rows = truth), most frequent first."""
    wrong = confusion.copy()
    np.fill_diagonal(wrong, 0)
    count = min(most, wrong.size)
    places = np.argpartition(wrong.ravel(), -count)[-count:] if count else np.zeros(0, np.int64)
    found = [(int(p // len(wrong)), int(p % len(wrong)), int(wrong.flat[p])) for p in places]
    return sorted((pair for pair in found if pair[2]), key=lambda pair: (-pair[2], pair[:2]))


def mean_class_accuracy(confusion: Integers, *, absent_as_zero: bool) -> float:
    """Mean over classes of the per cent of a class's samples that were predicted right.

    confusion: [K,K], rows = truth. A class without a sample has no accuracy. absent_as_zero=False leaves it out;
    absent_as_zero=True counts it as 0 where it was predicted, as the reference's EGTEA score does (a class neither
    predicted nor true is left out there too). ValueError for another shape and for a matrix without samples.
    """
    rows, columns = _shape("confusion", confusion, "K", "K")
    if rows != columns:
        raise ValueError(f"confusion has shape {confusion.shape}: expected [K, K] with as many rows as columns")
    per_class = confusion.sum(axis=1)
    if per_class.sum() == 0:
        raise ValueError("confusion holds no samples; evaluate at least one clip")
    accuracy = np.diag(confusion) / np.maximum(per_class, 1)
    counted = per_class > 0
    if absent_as_zero:
        counted |= confusion.sum(axis=0) > 0
    return float(accuracy[counted].mean() * 100)


def fuse_views(logits: Floats, *, rule: FusionRule) -> npt.NDArray[np.float64]:
    """Scores of V views of each clip -> one for each class.

    logits: [N,V,K], finite. rule: `mean_logits` (mean over views, then softmax; LaViLa's fine-tuned models),
    `max_similarity` (maximum over views, then softmax; its zero-shot classification by several views) or `max_cosine`
    (the maximum as it is; its zero-shot scores of a single view). A softmax keeps the order of a clip's classes and
    changes that of clips within a class, which mAP goes by.
    Returns [N,K] float64: probabilities, rows sum to 1, or with `max_cosine` what was given. ValueError for another
    rule or shape, and for infinite or NaN logits.
    """
    _shape("logits", logits, "N", "V", "K")
    if not np.isfinite(logits).all():
        raise ValueError("logits hold infinite values or NaN; look for the input or the overflow that made them")
    views = logits.astype(np.float64)
    if rule == "mean_logits":
        fused = views.mean(axis=1)
    elif rule in ("max_similarity", "max_cosine"):
        fused = views.max(axis=1)
    else:
        raise ValueError(f"rule={rule!r}: expected one of ['max_cosine', 'max_similarity', 'mean_logits']")
    if rule == "max_cosine":
        return np.asarray(fused)
    powers = np.exp(fused - fused.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def marginalize(
    action_probabilities: Floats, action_to_class: Integers, *, num_classes: int, unused_as_first_action: bool = False
) -> npt.NDArray[np.float64]:
    """Action probabilities -> verb (or noun) probabilities: the sum over the actions that have the verb (or noun).

    action_probabilities: [N,A]. action_to_class: [A], each action's verb (or noun), below num_classes.
    A class that no action has gets 0. unused_as_first_action=True gives it action 0's probability, as the reference
    does (rows then need not sum to 1); it is there to reproduce published figures.
    Returns [N,num_classes] float64. ValueError for wrong shapes and indices.
    """
    _, actions = _shape("action_probabilities", action_probabilities, "N", "A")
    _check_classes("action_to_class", action_to_class, samples=actions, num_classes=num_classes)
    belongs = np.zeros((actions, num_classes))
    belongs[np.arange(actions), action_to_class] = 1.0
    if unused_as_first_action:
        belongs[0, belongs.sum(axis=0) == 0] = 1.0
    return np.asarray(action_probabilities.astype(np.float64) @ belongs)


def _shape(name: str, array: npt.NDArray[Any], *axes: str) -> tuple[int, ...]:
    if array.ndim != len(axes) or array.size == 0:
        raise ValueError(f"{name} has shape {array.shape}: expected [{', '.join(axes)}], none of them 0")
    return array.shape


def _check_classes(name: str, classes: Integers, *, samples: int | None, num_classes: int) -> None:
    if not np.issubdtype(classes.dtype, np.integer):
        raise ValueError(f"{name} has type {classes.dtype}: expected integers (class indices)")
    _shape(name, classes, "N")
    if samples is not None and len(classes) != samples:
        raise ValueError(f"{name} has {len(classes)} entries: expected {samples}, one for each row")
    low, high = int(classes.min()), int(classes.max())
    if low < 0 or high >= num_classes:
        raise ValueError(
            f"{name} holds classes {low} to {high}: expected 0 to {num_classes - 1}; leave unlabelled samples (-1) out"
        )
