"""The benchmark of saving measures what it says, at a small size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import common, saving


def test_it_measures_both_ways_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving, "REST_SECONDS", 0.0)
    saving.main(["--model", "tiny", "--rounds", "1", "--folder", str(tmp_path)])
    found = json.loads(capsys.readouterr().out)
    assert 0 < found["wait"] < found["beside"] and found["blocking"] > 0 and found["first_wait"] > 0
    assert found["share"] == found["wait"] / found["blocking"]
    assert found["bytes"] > 3 * 4 * found["parameters"]  # weights and two moments, float32
    assert not list(tmp_path.iterdir())


def test_the_table_is_that_of_the_kept_figures() -> None:
    found = json.loads((common.RESULTS / "saving.json").read_text())
    assert saving.table(found) in saving.DOCS.read_text()
    assert found["model"] == "base" and found["share"] < 0.1
