"""The benchmark of scores: its sides agree, and it writes what it should."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import common
from benchmarks.evaluation import metrics
from lavila.metrics.retrieval import query_scores
from tests import forks


@pytest.mark.parametrize("name", list(metrics.LOOPS))
def test_both_loops_score_as_ours(name: str) -> None:
    similarity, relevancy = metrics.matrices(50, 40)
    videos, texts = metrics.loop_scores(name, similarity, relevancy, 1)
    for found, ours in (
        (videos, query_scores(similarity, relevancy)),
        (texts, query_scores(similarity.T, relevancy.T)),
    ):
        np.testing.assert_allclose(found[:, 0], ours.average_precision, atol=1e-7)
        np.testing.assert_allclose(found[:, 1], ours.ndcg, atol=1e-7)


def test_the_matrix_is_like_the_dataset_s() -> None:
    _, relevancy = metrics.matrices(500, 200)
    assert (relevancy == 1).any(axis=0).all()  # each sentence is some clip's
    assert 0.05 < np.count_nonzero(relevancy) / relevancy.size < 0.4


def test_a_dry_run_measures_and_writes_nothing() -> None:
    before = (common.RESULTS / "evaluation_metrics.json").read_bytes()
    result = forks.run("-m", "benchmarks.evaluation", "metrics", "--dry-run")
    assert result.returncode == 0, result.stderr
    row = json.loads(result.stdout)
    assert row["clips"] == 60 and row["seconds"]["loop"]["cpu"] > 0 and row["peak_bytes"] > row["input_bytes"]
    assert (common.RESULTS / "evaluation_metrics.json").read_bytes() == before


def test_an_unknown_part_is_refused() -> None:
    result = forks.run("-m", "benchmarks.evaluation", "speed")
    assert result.returncode != 0 and "metrics" in result.stderr


def test_results_and_table_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    monkeypatch.setattr(metrics, "CLIPS", 30)
    monkeypatch.setattr(metrics, "SENTENCES", 20)
    docs = tmp_path / "docs.md"
    docs.write_text("<!-- evaluation-metrics: begin -->\n<!-- evaluation-metrics: end -->\n")
    monkeypatch.setattr(metrics, "fill_docs", lambda section, text: common.fill_docs(section, text, docs))
    assert metrics.main(["--rounds", "1", "--sample", "2"]) == 0
    row = json.loads((tmp_path / "evaluation_metrics.json").read_text())
    assert row["loop_queries_timed"] == 25 and row["machine"]["numpy"]
    assert "| loop |" in docs.read_text()
