"""Retrieval scores against the reference's figures, a plain loop, and values worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from benchmarks.evaluation.metrics import average_precision_of, ndcg_of
from lavila.metrics.retrieval import RetrievalScores, both_scores, mean_average_precision, ndcg, query_scores
from tests.golden_files import GOLDEN, golden_json

TENSORS = load_file(GOLDEN / "metrics.safetensors")
FIGURES: dict[str, Any] = golden_json("metrics")["cases"]
CASES = [name for name in FIGURES if name.startswith("mir.")]
CLOSE = {"abs": 1e-6, "nan_ok": True}


def inputs(name: str) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    return TENSORS[f"in.{name}.sim"], TENSORS[f"in.{name}.rel"]


@pytest.mark.parametrize("name", CASES)
def test_it_equals_the_reference(name: str) -> None:
    # With ties the reference's own figure holds for one processor; it also names the figures of our order.
    figures = FIGURES[name].get("ties_lower_index_first") or FIGURES[name]
    similarity, relevancy = inputs(name)
    for metric, ours in (("mAP", mean_average_precision), ("nDCG", ndcg)):
        found = ours(similarity, relevancy, undefined="nan")
        assert found.video_to_text == pytest.approx(float(figures[f"{metric}_v2t"]), **CLOSE)
        assert found.text_to_video == pytest.approx(float(figures[f"{metric}_t2v"]), **CLOSE)
        if name != "mir.ties":
            assert found.mean == pytest.approx(float(figures[f"get_{metric}"][2]), **CLOSE)


@pytest.mark.parametrize("name", [name for name in CASES if name != "mir.ties"])
def test_single_queries_equal_the_reference(name: str) -> None:
    similarity, relevancy = inputs(name)
    for side, found in (("v", query_scores(similarity, relevancy)), ("t", query_scores(similarity.T, relevancy.T))):
        wanted = TENSORS[f"out.{name}.AP_per_{side}"]
        np.testing.assert_allclose(found.average_precision, wanted, rtol=0, atol=1e-6, equal_nan=True)
        np.testing.assert_allclose(found.ndcg, TENSORS[f"out.{name}.nDCG_per_{side}"], rtol=0, atol=1e-6)


def test_queries_without_a_relevant_item_are_left_out_and_counted() -> None:
    similarity, relevancy = inputs("mir.zero_rows_and_columns")
    some_video, some_text = (relevancy != 0).any(1), (relevancy != 0).any(0)
    found = ndcg(similarity, relevancy)
    assert found.videos_left_out == (~some_video).sum() > 0
    assert found.texts_left_out == (~some_text).sum() > 0
    videos = query_scores(similarity, relevancy).ndcg
    assert found.video_to_text == pytest.approx(videos[some_video].mean()) and not math.isnan(found.mean)
    precise = mean_average_precision(similarity, relevancy)
    assert precise.videos_left_out == (~(relevancy == 1).any(1)).sum()
    assert math.isnan(mean_average_precision(similarity, relevancy, undefined="nan").mean)
    nothing = mean_average_precision(*inputs("mir.no_item_with_relevancy_one"))
    assert math.isnan(nothing.video_to_text) and nothing.videos_left_out == len(similarity)


def test_by_hand() -> None:
    similarity = np.array([[0.9, 0.8, 0.7]])
    relevancy = np.array([[0.5, 1.0, 1.0]])
    found = query_scores(similarity, relevancy)
    assert found.average_precision[0] == pytest.approx((1.5 / 2 + 2.5 / 3) / 2)
    gained = 0.5 + 1 / math.log2(3) + 1 / 2
    assert found.ndcg[0] == pytest.approx(gained / (1 + 1 / math.log2(3) + 0.5 / 2))


def matrices(seed: int, rows: int, columns: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Few different similarities, so that many are equal, and both zeros among them."""
    random = np.random.default_rng(seed)
    similarity = random.choice([-1.5, -0.25, -0.0, 0.0, 1e-30, 0.75, 2.0], (rows, columns)).astype(np.float32)
    return similarity, random.choice([0, 0, 0, 1 / 6, 0.5, 1], (rows, columns)).astype(np.float32)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**31), rows=st.integers(1, 9), columns=st.integers(1, 9))
def test_it_equals_a_loop_over_queries(seed: int, rows: int, columns: int) -> None:
    similarity, relevancy = matrices(seed, rows, columns)
    found = query_scores(similarity, relevancy)
    for query in range(rows):
        arguments = similarity[query].tolist(), relevancy[query].tolist()
        assert found.average_precision[query] == pytest.approx(average_precision_of(*arguments), abs=1e-9, nan_ok=True)
        assert found.ndcg[query] == pytest.approx(ndcg_of(*arguments), abs=1e-9, nan_ok=True)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), scale=st.floats(0.1, 10), shift=st.floats(-5, 5))
def test_only_the_order_matters(seed: int, scale: float, shift: float) -> None:
    """Other orders of clips and sentences, and another scale of similarities, change nothing where all differ."""
    random = np.random.default_rng(seed)
    similarity = random.permutation(7 * 5).reshape(7, 5) / 35
    relevancy = random.choice([0, 0.5, 1], (7, 5))
    rows, columns = random.permutation(7), random.permutation(5)
    found = both_scores((scale * similarity + shift)[rows][:, columns], relevancy[rows][:, columns])
    for ours, wanted in zip(found, both_scores(similarity, relevancy), strict=True):
        assert ours.video_to_text == pytest.approx(wanted.video_to_text, nan_ok=True)
        assert ours.text_to_video == pytest.approx(wanted.text_to_video, nan_ok=True)
        assert (ours.videos_left_out, ours.texts_left_out) == (wanted.videos_left_out, wanted.texts_left_out)


def test_blocks_of_queries_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    similarity, relevancy = matrices(3, 40, 30)
    whole = both_scores(similarity, relevancy)
    monkeypatch.setattr("lavila.metrics.retrieval._NUMBERS_AT_ONCE", 100)
    assert both_scores(similarity, relevancy) == whole


def test_half_precision_and_infinite_similarities_have_ranks() -> None:
    similarity = np.array([[np.inf, -np.inf, 1.0, -1.0]])
    relevancy = np.array([[0, 1, 0, 0.0]])
    assert query_scores(similarity, relevancy).average_precision[0] == pytest.approx(1 / 4)
    assert query_scores(similarity.astype(np.float16), relevancy).average_precision[0] == pytest.approx(1 / 4)


@pytest.mark.parametrize(
    ("similarity", "relevancy", "message"),
    [
        (np.zeros((2, 3)), np.zeros((3, 2)), r"\(2, 3\).*\(3, 2\)"),
        (np.zeros((0, 3)), np.zeros((0, 3)), "none of them 0"),
        (np.full((2, 3), np.nan), np.zeros((2, 3)), "similarity holds NaN"),
        (np.zeros((2, 3)), np.full((2, 3), 1.5), "1.5"),
        (np.zeros((2, 3)), np.full((2, 3), np.nan), "relevancy"),
    ],
)
def test_wrong_input_is_named(similarity: Any, relevancy: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mean_average_precision(similarity, relevancy)


def test_an_unknown_rule_is_named() -> None:
    with pytest.raises(ValueError, match="left_out"):
        ndcg(np.zeros((1, 1)), np.ones((1, 1)), undefined="zero")  # type: ignore[arg-type]


def test_the_mean_is_of_both_directions() -> None:
    scores = RetrievalScores(video_to_text=0.25, text_to_video=0.75, videos_left_out=0, texts_left_out=0)
    assert scores.mean == 0.5
