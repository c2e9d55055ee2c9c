"""The score of Charades against the reference's figures and a plain loop."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from lavila.metrics.multi_label import average_precisions, mean_average_precision
from tests.golden_files import GOLDEN, golden_json

TENSORS = load_file(GOLDEN / "metrics.safetensors")
FIGURES: dict[str, Any] = golden_json("metrics")["cases"]
CASES = [name for name in FIGURES if name.startswith("charades.")]


@pytest.mark.parametrize("name", CASES)
def test_it_equals_the_reference(name: str) -> None:
    scores, labels = TENSORS[f"in.{name}.pred"], TENSORS[f"in.{name}.gt"]
    found = average_precisions(scores, labels)
    np.testing.assert_allclose(found, TENSORS[f"out.{name}.ap"], rtol=0, atol=1e-6, equal_nan=True)
    figures = FIGURES[name]
    wanted = float(figures["mAP"])
    assert mean_average_precision(scores, labels) == pytest.approx(wanted, abs=1e-6, nan_ok=True)
    left_out = mean_average_precision(scores, labels.astype(bool), without_positives="left_out")
    assert left_out == pytest.approx(figures["mAP_ignoring_classes_without_positives"], abs=1e-6)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**31), videos=st.integers(1, 8))
def test_it_equals_a_loop_in_which_the_first_of_equals_comes_first(seed: int, videos: int) -> None:
    random = np.random.default_rng(seed)
    scores = random.integers(-1, 2, (videos, 3)).astype(np.float32)  # few values: many ties
    labels = random.integers(0, 2, (videos, 3))
    found = average_precisions(scores, labels)
    for one in range(3):
        order = sorted(range(videos), key=lambda v, one=one: (not labels[v].any(), -scores[v, one]))  # type: ignore[misc]
        ranks = [rank for rank, video in enumerate(order, 1) if labels[video, one]]
        precisions = [sum(r <= rank for r in ranks) / rank for rank in ranks]
        wanted = sum(precisions) / len(precisions) if precisions else math.nan
        assert found[one] == pytest.approx(wanted, nan_ok=True)


def test_no_class_is_left() -> None:
    assert math.isnan(mean_average_precision(np.ones((2, 2)), np.zeros((2, 2), int), without_positives="left_out"))


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        (np.ones((2, 3)), np.ones((3, 2)), r"\(2, 3\).*\(3, 2\)"),
        (np.ones((0, 3)), np.ones((0, 3)), "none of them 0"),
        (np.full((1, 1), np.nan), np.ones((1, 1)), "NaN"),
        (np.ones((1, 1)), np.full((1, 1), 2), "labels"),
    ],
)
def test_wrong_input_is_named(scores: Any, labels: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mean_average_precision(scores, labels)
    with pytest.raises(ValueError, match="without_positives='zero'"):
        mean_average_precision(np.ones((1, 1)), np.ones((1, 1)), without_positives="zero")  # type: ignore[arg-type]
