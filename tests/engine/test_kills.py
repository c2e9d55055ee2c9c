"""A training of two ranks that is killed ten times ends as one that nobody disturbed, bit by bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lavila.report.files import read_metrics
from lavila.shards.reader import ShardSet
from tests import forks
from tests.conftest import EPOCHS
from tests.engine.test_runs import ENVIRONMENT, ROOT, config_file, same, weights

KILLS = 10


def trained(folder: Path, shards: ShardSet, *arguments: str) -> list[dict[str, Any]]:
    """Train in a folder with two ranks. Returns what the script says of each kill."""
    folder.mkdir()
    path = config_file(
        folder, shards, optim={"epochs": EPOCHS}, checkpoint_every_steps=2, log_every_steps=1, keep_checkpoints=3
    )
    script, environment = ROOT / "tests/engine/killed_ranks.py", ENVIRONMENT | {"PYTHONPATH": str(ROOT)}
    done = forks.run(script, path, *arguments, environment=environment, timeout=400)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def losses(run_dir: Path) -> list[tuple[int, int, float]]:
    return [(line["step"], line["epoch"], line["loss"]) for line in read_metrics(run_dir / "metrics.jsonl")]


# A minute for both: eleven starts each.
@pytest.mark.parametrize("moment", ["any", "saving"])
def test_ten_kills_change_no_bit(tmp_path: Path, undisturbed: Path, vp9_shards: ShardSet, moment: str) -> None:
    kills = trained(tmp_path / moment, vp9_shards, f"--kills={KILLS}", f"--moment={moment}", "--seed=7")
    run_dir = tmp_path / moment / "run"
    assert len(kills) == KILLS and {kill["killed"] for kill in kills} == {1, 2}
    assert losses(run_dir) == losses(undisturbed)
    assert [step for step, _, _ in losses(run_dir)] == list(range(1, 3 * EPOCHS + 1))
    assert same(weights(run_dir), weights(undisturbed))
    if moment == "saving":
        assert sum(bool(kill["saving"]) for kill in kills) >= KILLS // 2
