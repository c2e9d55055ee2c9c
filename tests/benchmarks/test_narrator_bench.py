"""The narrator benchmark runs, and its limit is a bound: one pass over the weights takes less than a whole step."""

from __future__ import annotations

import json
from pathlib import Path

from tests import forks

ROOT = Path(__file__).resolve().parents[2]


def test_a_dry_run_times_all_sides_and_writes_nothing() -> None:
    docs = ROOT / "docs/PERFORMANCE.md"
    before = docs.read_bytes()
    done = forks.run("-m", "benchmarks.narrator", "--dry-run", "--threads", "1")
    assert done.returncode == 0, done.stderr
    row = json.loads(done.stdout.splitlines()[-1])
    assert 0 < row["limit_seconds"] < row["ours_seconds"]
    assert list(row["reference_seconds_at"]) == ["1", "2", "4", "5", "7", "8"]
    labelling = row["labelling"]
    assert labelling["texts"] == 30 and labelling["texts_equal"] > 25
    assert labelling["one_by_one_seconds"] > 0 and labelling["at_once_seconds"] > 0
    assert docs.read_bytes() == before
