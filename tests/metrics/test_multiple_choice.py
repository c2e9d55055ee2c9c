"""Multiple choice against the reference's figures and a plain loop."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from lavila.metrics.multiple_choice import accuracy_by_kind, lost_a_choice
from tests.golden_files import GOLDEN, golden_json

TENSORS = load_file(GOLDEN / "metrics.safetensors")
FIGURES: dict[str, Any] = golden_json("metrics")["cases"]
SCORES, ANSWERS, KINDS = (TENSORS[f"in.mcq.{name}"] for name in ("preds", "labels", "types"))


def test_it_equals_the_reference_whose_names_go_by_ascending_number() -> None:
    figures = FIGURES["mcq.both_types"]
    found = accuracy_by_kind(SCORES, ANSWERS, KINDS)
    assert list(found) == [1, 2]
    assert found == pytest.approx({1: figures["Intra-video"], 2: figures["Inter-video"]}, abs=1e-6)
    of_one_kind = accuracy_by_kind(SCORES, ANSWERS, np.full_like(KINDS, 2))
    assert of_one_kind == pytest.approx({2: FIGURES["mcq.only_type_2"]["Intra-video"]}, abs=1e-6)


def test_the_first_of_equal_scores_is_chosen() -> None:
    scores = SCORES.copy()
    scores[0] = scores[0, 0]
    figures = FIGURES["mcq.tie_row0"]
    found = accuracy_by_kind(scores, ANSWERS, KINDS)
    assert found == pytest.approx({1: figures["Intra-video"], 2: figures["Inter-video"]}, abs=1e-6)
    assert accuracy_by_kind(np.zeros((2, 5)), np.array([0, 1]), np.array([1, 1])) == {1: 50.0}


def test_a_question_that_lost_a_choice_is_named_and_counts_for_nothing() -> None:
    scores = SCORES.copy()
    scores[3, ANSWERS[3]] = np.nan
    scores[7, (ANSWERS[7] + 1) % 5] = np.nan
    assert np.flatnonzero(lost_a_choice(scores)).tolist() == [3, 7]
    others = np.setdiff1d(np.arange(len(scores)), [3, 7])
    assert accuracy_by_kind(scores, ANSWERS, KINDS) == accuracy_by_kind(SCORES[others], ANSWERS[others], KINDS[others])


def test_a_kind_that_lost_all_questions_has_no_accuracy() -> None:
    found = accuracy_by_kind(np.array([[1.0, np.nan], [0.0, 1.0]]), np.array([0, 1]), np.array([1, 2]))
    assert math.isnan(found[1]) and found[2] == 100.0


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), questions=st.integers(1, 12))
def test_it_equals_a_loop(seed: int, questions: int) -> None:
    random = np.random.default_rng(seed)
    scores = random.choice([0.0, 0.5, 1.0, np.nan], (questions, 3), p=[0.3, 0.3, 0.35, 0.05])
    answers, kinds = random.integers(0, 3, questions), random.integers(1, 4, questions)
    outcomes: dict[int, list[bool]] = {kind: [] for kind in sorted({int(kind) for kind in kinds})}
    for row, answer, kind in zip(scores.tolist(), answers, kinds, strict=True):
        if not any(math.isnan(score) for score in row):
            outcomes[int(kind)].append(row.index(max(row)) == answer)
    wanted = {kind: 100 * sum(right) / len(right) if right else math.nan for kind, right in outcomes.items()}
    assert accuracy_by_kind(scores, answers, kinds) == pytest.approx(wanted, nan_ok=True)


@pytest.mark.parametrize(
    ("scores", "answers", "kinds", "message"),
    [
        (np.zeros(3), np.array([0]), np.array([1]), r"\(3,\)"),
        (np.zeros((2, 5)), np.array([0]), np.array([1, 2]), r"answers.*\(1,\)"),
        (np.zeros((2, 5)), np.array([0, 5]), np.array([1, 2]), "0 to 5"),
        (np.zeros((2, 5)), np.array([0, 1]), np.array([1.0, 2.0]), "kinds is float64"),
    ],
)
def test_wrong_input_is_named(scores: Any, answers: Any, kinds: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        accuracy_by_kind(scores, answers, kinds)
