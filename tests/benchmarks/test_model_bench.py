"""The model benchmark runs, both of its sides compute the same, and its table says what was measured."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks import model as bench
from tests import forks

ROOT = Path(__file__).resolve().parents[2]


def test_a_dry_run_measures_equal_sides_and_writes_nothing() -> None:
    results = ROOT / "benchmarks/results/model.json"
    before = results.read_bytes()
    done = forks.run("-m", "benchmarks.model", "--dry-run")
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout.splitlines()[-1])
    assert row["difference"] < 1e-4
    assert row["time_ratio"] > 0 and row["peak_ratio"] > 0
    # The reference works on every token of the last block, which we do not.
    assert row["ours"]["operations"] < row["reference"]["operations"]
    assert results.read_bytes() == before


def test_the_table_says_which_part_of_a_model_was_timed() -> None:
    row = {"model": "L", "batch": 1, "frames": 16, "depth": 4, "step": "forward", "precision": "fp32", "threads": 1}
    row |= {"checkpointing": False, "compiled": True, "machine": {}}
    row |= dict.fromkeys(("time_ratio", "limit_ratio", "peak_ratio", "peak_ratio_with_weights"), 0.5)
    line = bench.table([row]).splitlines()[-1]
    assert line.startswith("| L, 4 of 24 blocks, 1 x 16 frames | forward | fp32 | no | yes | CPU, 1 thread | 0.50 |")
    assert "blocks" not in bench.table([{**row, "depth": 24}])
