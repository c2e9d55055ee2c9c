"""The benchmark of checked gradients runs at a tiny size and gives all its figures."""

from __future__ import annotations

import json

import pytest

from benchmarks import gradients


def test_both_ways_are_measured(capsys: pytest.CaptureFixture[str]) -> None:
    gradients.main(["--model", "tiny", "--updates", "1", "--rounds", "1"])
    found = json.loads(capsys.readouterr().out)
    assert all(found[name] > 0 for name in ("checked", "unchecked", "norm", "parameters"))
    assert found["machine"]["torch"]
