"""Classification metrics against the reference's figures and against values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from lavila.metrics.classification import (
    FusionRule,
    confusion_matrix,
    fuse_views,
    marginalize,
    mean_class_accuracy,
    topk_accuracy,
)
from tests.golden_files import GOLDEN, golden_json

TENSORS = load_file(GOLDEN / "metrics.safetensors")
FIGURES = golden_json("metrics")["cases"]


@pytest.mark.parametrize("k", [1, 3, 5])
def test_topk_equals_the_reference(k: int) -> None:
    ours = topk_accuracy(TENSORS["in.cls.scores"], TENSORS["in.cls.target"], k=k)
    assert ours == pytest.approx(FIGURES["cls.accuracy"][f"top{k}"], rel=1e-6)


def test_topk_counts_ties_against_the_target() -> None:
    targets = np.arange(4)
    assert topk_accuracy(np.zeros((4, 4)), targets, k=3) == 0.0
    assert topk_accuracy(np.zeros((4, 4)), targets, k=4) == 100.0
    scores = np.array([[0.5, 0.5, 0.1], [0.5, 0.5, 0.1]])
    assert topk_accuracy(scores, np.array([0, 2]), k=1) == 0.0
    assert topk_accuracy(scores, np.array([0, 2]), k=2) == 50.0


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), classes=st.integers(1, 6), k=st.integers(1, 6))
def test_topk_equals_a_sort_with_the_target_last_among_equals(seed: int, classes: int, k: int) -> None:
    random = np.random.default_rng(seed)
    k = min(k, classes)
    scores = random.integers(0, 3, (7, classes)).astype(np.float32)  # few values: many ties
    targets = random.integers(0, classes, 7)
    hits = 0
    for row, target in zip(scores, targets, strict=True):
        ranking = sorted(range(classes), key=lambda c, row=row, target=target: (-row[c], c == target))  # type: ignore[misc]
        hits += target in ranking[:k]
    assert topk_accuracy(scores, targets, k=k) == pytest.approx(hits / 7 * 100)


def test_confusion_and_mean_class_accuracy_equal_the_reference() -> None:
    predicted = TENSORS["in.cls.scores"].argmax(1)
    ours = confusion_matrix(predicted, TENSORS["in.cls.target"], num_classes=9)
    assert ours.sum() == 37
    seen = np.flatnonzero(ours.sum(0) + ours.sum(1))
    assert seen.tolist() == FIGURES["cls.mean_accuracy"]["classes_in_matrix"]
    np.testing.assert_array_equal(ours[np.ix_(seen, seen)], TENSORS["out.cls.confusion"])
    expected = FIGURES["cls.mean_accuracy"]["mean_class_accuracy"]
    assert mean_class_accuracy(ours, absent_as_zero=True) == pytest.approx(expected, rel=1e-12)


def test_absent_classes_count_as_zero_or_not_at_all() -> None:
    confusion = np.array(FIGURES["cls.mean_accuracy_small"]["cm"])
    expected = FIGURES["cls.mean_accuracy_small"]["result"][0]
    assert mean_class_accuracy(confusion, absent_as_zero=True) == pytest.approx(expected, rel=1e-12)
    assert mean_class_accuracy(confusion, absent_as_zero=False) == pytest.approx((75 + 50) / 2)


def test_confusion_rows_are_the_truth() -> None:
    confusion = confusion_matrix(np.array([2, 2, 0]), np.array([1, 1, 0]), num_classes=3)
    assert confusion.tolist() == [[1, 0, 0], [0, 0, 2], [0, 0, 0]]


@pytest.mark.parametrize(
    ("rule", "expected"), [("mean_logits", "crop_mean_softmax"), ("max_similarity", "crop_max_softmax")]
)
def test_fusion_equals_the_reference(rule: FusionRule, expected: str) -> None:
    logits = TENSORS["in.cls.crops"].transpose(1, 0, 2)
    np.testing.assert_allclose(fuse_views(logits, rule=rule), TENSORS[f"out.cls.{expected}"], rtol=2e-6, atol=1e-8)


def test_fusion_without_a_softmax_keeps_cosines() -> None:
    cosines = np.array([[[0.3, -0.1], [0.2, 0.1]]], np.float32)
    np.testing.assert_array_equal(fuse_views(cosines, rule="max_cosine"), cosines.max(1).astype(np.float64))


@pytest.mark.parametrize("rule", ["mean_logits", "max_similarity"])
def test_fusion_survives_huge_float16_logits(rule: FusionRule) -> None:
    fused = fuse_views(np.full((2, 3, 4), 60000, np.float16), rule=rule)
    np.testing.assert_allclose(fused, 0.25)


@pytest.mark.parametrize(("column", "classes"), [("verb", 9), ("noun", 10)])
def test_marginalize_equals_the_reference(column: str, classes: int) -> None:
    actions = np.array(FIGURES["marginalize"][f"action_{column}"])
    probabilities = TENSORS["in.marg.probs"]
    reference = TENSORS[f"out.marg.{column}"]
    faithful = marginalize(probabilities, actions, num_classes=classes, unused_as_first_action=True)
    np.testing.assert_allclose(faithful, reference, rtol=1e-5, atol=1e-7)
    ours = marginalize(probabilities, actions, num_classes=classes)
    unused = np.setdiff1d(np.arange(classes), actions)
    assert len(unused) > 0
    assert (ours[:, unused] == 0).all()
    used = np.unique(actions)
    np.testing.assert_allclose(ours[:, used], reference[:, used], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(ours.sum(1), probabilities.sum(1), rtol=1e-6)


SCORES = np.zeros((2, 3))
TARGETS = np.array([0, 1])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: topk_accuracy(SCORES[0], TARGETS, k=1), r"\(3,\).*\[N, K\]"),
        (lambda: topk_accuracy(SCORES[:0], TARGETS[:0], k=1), r"\(0, 3\)"),
        (lambda: topk_accuracy(SCORES, np.array([0]), k=1), "targets.*1.*2"),
        (lambda: topk_accuracy(SCORES, np.array([0, 3]), k=1), "0 to 3.*0 to 2"),
        (lambda: topk_accuracy(SCORES, np.array([-1, 0]), k=1), r"\(-1\)"),
        (lambda: topk_accuracy(SCORES, np.array([0.0, 1.0]), k=1), "float64"),
        (lambda: topk_accuracy(SCORES, TARGETS, k=4), "k=4.*3"),
        (lambda: topk_accuracy(SCORES * np.nan, TARGETS, k=1), "NaN"),
        (lambda: confusion_matrix(np.array([0]), TARGETS, num_classes=2), "predicted.*1.*2"),
        (lambda: confusion_matrix(TARGETS, TARGETS, num_classes=1), "targets.*0 to 1"),
        (lambda: mean_class_accuracy(np.zeros((2, 3), int), absent_as_zero=True), r"\(2, 3\)"),
        (lambda: mean_class_accuracy(np.zeros((2, 2), int), absent_as_zero=True), "samples"),
        (lambda: fuse_views(SCORES, rule="mean_logits"), r"\[N, V, K\]"),
        (lambda: fuse_views(SCORES[None] + np.inf, rule="mean_logits"), "NaN"),
        (lambda: fuse_views(SCORES[None], rule="median"), r"rule='median'"),  # type: ignore[arg-type]
        (lambda: marginalize(SCORES, TARGETS, num_classes=2), "action_to_class.*2.*3"),
    ],
)
def test_wrong_input_is_refused(call, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        call()
