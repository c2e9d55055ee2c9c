"""torchrun --max-restarts after a worker was killed: the run resumes, and ends as an undisturbed one."""

from __future__ import annotations

from pathlib import Path

from lavila.report.files import read_metrics
from lavila.shards.reader import ShardSet
from tests import forks
from tests.conftest import EPOCHS
from tests.engine.test_runs import ENVIRONMENT, ROOT, config_file, same, weights


def test_a_killed_worker_is_started_again_and_changes_nothing(
    tmp_path: Path, vp9_shards: ShardSet, undisturbed: Path
) -> None:
    path = config_file(tmp_path, vp9_shards, optim={"epochs": EPOCHS}, checkpoint_every_steps=2, keep_checkpoints=1)
    script, environment = ROOT / "tests/engine/killed_once.py", ENVIRONMENT | {"PYTHONPATH": str(ROOT)}
    done = forks.run(script, path, environment=environment, timeout=240)
    assert done.returncode == 0 and path.with_suffix(".killed").exists(), done.stdout + done.stderr
    lines = [read_metrics(run / "metrics.jsonl") for run in (tmp_path / "run", undisturbed)]
    losses = [[(line["step"], line["loss"]) for line in found] for found in lines]
    assert losses[0] == losses[1] and [step for step, _ in losses[0]] == list(range(1, 3 * EPOCHS + 1))
    assert same(weights(tmp_path / "run"), weights(undisturbed))
