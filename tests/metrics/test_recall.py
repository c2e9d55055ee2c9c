"""Recall at k of paired features."""

from __future__ import annotations

import numpy as np
import pytest

from lavila.metrics import recall
from lavila.metrics.recall import recall_at


def test_known_ranks() -> None:
    """Own entries come second, first, third and fourth of four."""
    queries = np.float32([[3, 2, 1, 0], [0, 9, 1, 2], [5, 4, 3, 1], [4, 3, 2, 1]])
    gallery = np.eye(4, dtype=np.float32)
    queries = queries[:, [1, 0, 2, 3]]
    queries[1] = [0, 9, 1, 2]
    assert recall_at(queries, gallery, places=(1, 2, 3, 4)) == {1: 25.0, 2: 50.0, 3: 75.0, 4: 100.0}


def test_features_that_are_all_the_same_score_as_chance_does() -> None:
    same = np.ones((50, 4), np.float32)
    assert recall_at(same, same, places=(1, 5, 10)) == {1: 2.0, 5: 10.0, 10: 20.0}


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = (np.random.default_rng(seed).normal(size=(37, 3)).astype(np.float32) for seed in (1, 2))
    whole = recall_at(one, other, places=(1, 5, 10))
    by_sorting = np.array([list(np.argsort(-row, kind="stable")).index(i) for i, row in enumerate(one @ other.T)])
    assert whole == {k: pytest.approx(100 * (by_sorting < k).mean()) for k in (1, 5, 10)}
    monkeypatch.setattr(recall, "BLOCK", 4)
    assert recall_at(one, other, places=(1, 5, 10)) == whole


def test_no_query_is_no_number() -> None:
    assert np.isnan(recall_at(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.float32), places=(1,))[1])
