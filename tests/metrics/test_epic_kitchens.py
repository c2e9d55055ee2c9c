"""Scores of EPIC-KITCHENS-100 recognition: sums over actions, and the challenge's groups and products."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from lavila.metrics.epic_kitchens import JointActions, Segments, challenge_accuracies, top_actions, verbs_and_nouns
from tests.golden_files import GOLDEN, golden_json

Floats = npt.NDArray[np.float64]
VERBS, NOUNS = 6, 7


def test_sums_over_actions_equal_the_reference() -> None:
    figures, tensors = golden_json("metrics")["cases"]["marginalize"], load_file(GOLDEN / "metrics.safetensors")
    verbs, nouns = (np.array(figures[f"action_{kind}"]) for kind in ("verb", "noun"))
    actions = JointActions(verbs=verbs, nouns=nouns, num_verbs=9, num_nouns=10)
    found = verbs_and_nouns(tensors["in.marg.probs"], actions, unused_as_first_action=True)
    for ours, kind in zip(found, ("verb", "noun"), strict=True):
        np.testing.assert_allclose(ours, tensors[f"out.marg.{kind}"], rtol=0, atol=1e-6)


def probabilities(random: np.random.Generator, rows: int) -> tuple[Floats, Floats]:
    return random.dirichlet(np.ones(VERBS), rows), random.dirichlet(np.ones(NOUNS), rows)


def segments_of(random: np.random.Generator, rows: int) -> Segments:
    return Segments(
        verbs=random.integers(0, VERBS, rows),
        nouns=random.integers(0, NOUNS, rows),
        participants=[f"P{number:02d}" for number in random.integers(1, 5, rows)],
        unseen_participants=("P03",),
        tail_verbs=(4, 5),
        tail_nouns=(6,),
    )


def in_a_loop(verbs: Floats, nouns: Floats, segments: Segments) -> dict[str, float]:
    """Each segment by itself: all pairs sorted, the truth among the first."""
    outcomes: dict[str, list[bool]] = {}
    truth = zip(segments.verbs.tolist(), segments.nouns.tolist(), segments.participants, strict=True)
    for row, (verb, noun, participant) in enumerate(truth):
        pairs = {(v, n): verbs[row, v] * nouns[row, n] for v in range(VERBS) for n in range(NOUNS)}
        guesses: dict[str, tuple[list[Any], Any]] = {
            "verb": (sorted(range(VERBS), key=lambda v, row=row: -verbs[row, v]), verb),  # type: ignore[misc]
            "noun": (sorted(range(NOUNS), key=lambda n, row=row: -nouns[row, n]), noun),  # type: ignore[misc]
            "action": (sorted(pairs, key=lambda pair, pairs=pairs: -pairs[pair]), (verb, noun)),  # type: ignore[misc]
        }
        tail = {"verb": verb in (4, 5), "noun": noun == 6, "action": verb in (4, 5) or noun == 6}
        for kind, (guess, right) in guesses.items():
            for k in (1, 5):
                outcomes.setdefault(f"{kind}_top{k}", []).append(right in guess[:k])
            for group, belongs in (("unseen", participant == "P03"), ("tail", tail[kind])):
                outcomes.setdefault(f"{group}_{kind}_top1", []).extend([guess[0] == right] if belongs else [])
    return {name: 100 * sum(right) / len(right) if right else math.nan for name, right in outcomes.items()}


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), rows=st.integers(1, 20))
def test_the_challenge_s_accuracies_equal_a_loop(seed: int, rows: int) -> None:
    random = np.random.default_rng(seed)
    (verbs, nouns), segments = probabilities(random, rows), segments_of(random, rows)
    assert challenge_accuracies(verbs, nouns, segments) == pytest.approx(in_a_loop(verbs, nouns, segments), nan_ok=True)


def test_blocks_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    (verbs, nouns), segments = probabilities(random, 25), segments_of(random, 25)
    whole = challenge_accuracies(verbs, nouns, segments)
    monkeypatch.setattr("lavila.metrics.epic_kitchens._NUMBERS_AT_ONCE", 100)
    assert challenge_accuracies(verbs, nouns, segments) == pytest.approx(whole)


def test_groups_without_a_segment_have_no_accuracy_and_equal_scores_are_not_right() -> None:
    truth = Segments(verbs=np.array([0, 1]), nouns=np.array([0, 0]), participants=["P01", "P02"])
    found = challenge_accuracies(np.full((2, 3), 1 / 3), np.full((2, 2), 0.5), truth)
    assert found["verb_top1"] == found["action_top1"] == found["action_top5"] == 0.0
    assert found["verb_top5"] == 100.0  # of three verbs, all are among the first
    assert all(math.isnan(found[f"{group}_{kind}_top1"]) for group in ("tail", "unseen") for kind in ("verb", "action"))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), count=st.integers(1, 50), equal=st.booleans())
def test_the_top_actions_are_those_of_all_products(seed: int, count: int, equal: bool) -> None:
    random = np.random.default_rng(seed)
    verbs, nouns = probabilities(random, 3)
    if equal:  # few values, and so many equal products
        verbs, nouns = (random.choice([0.0, 0.125, 0.25], part.shape) for part in (verbs, nouns))
    top_verbs, top_nouns, products = top_actions(verbs, nouns, count=count)
    assert products.shape == (3, min(count, VERBS * NOUNS))
    for row in range(3):
        wanted = np.sort(np.outer(verbs[row], nouns[row]).ravel())[::-1][:count]
        np.testing.assert_allclose(products[row], wanted)
        np.testing.assert_allclose(verbs[row, top_verbs[row]] * nouns[row, top_nouns[row]], products[row])
        assert len(set(zip(top_verbs[row].tolist(), top_nouns[row].tolist(), strict=True))) == products.shape[1]


def test_wrong_shapes_are_named() -> None:
    truth = segments_of(np.random.default_rng(0), 3)
    with pytest.raises(ValueError, match="2 rows"):
        challenge_accuracies(np.ones((2, VERBS)), np.ones((3, NOUNS)), truth)
    with pytest.raises(ValueError, match=f"0 to {VERBS - 3}"):
        challenge_accuracies(np.ones((3, VERBS - 2)), np.ones((3, NOUNS)), Segments(
            verbs=np.array([0, 1, VERBS - 1]), nouns=truth.nouns, participants=truth.participants
        ))  # fmt: skip
