"""The benchmark of indexing compares two ways to the same vectors."""

from __future__ import annotations

import json

import pytest

from benchmarks.demo import indexing


def test_both_ways_are_measured_on_a_short_video(capsys: pytest.CaptureFixture[str]) -> None:
    indexing.main(["--seconds", "6"])
    found = json.loads(capsys.readouterr().out)
    assert [row["key_frames"] for row in found["rows"]] == list(indexing.KEY_FRAMES)
    for row in found["rows"]:
        assert row["windows"] == 11 and row["times_as_fast"] > 0 and row["times_less_cpu"] > 1
    assert "**" in indexing.table(found)
