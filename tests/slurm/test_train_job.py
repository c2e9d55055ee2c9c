"""A training on two nodes that makes way for another job: it is requeued, and ends as if nothing had happened."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lavila.cluster.submission import Submitted
from lavila.report.files import read_metrics
from lavila.shards.reader import ShardSet
from tests.conftest import EPOCHS
from tests.engine.test_runs import ROOT, config_file, same, weights
from tests.slurm.test_submit import at_once, ended, shown, until


@pytest.mark.usefixtures("slurm")
def test_a_preempted_training_ends_with_the_loss_of_an_undisturbed_one(
    tmp_path: Path, vp9_shards: ShardSet, undisturbed: Path
) -> None:
    """It takes half a minute, since four processes import PyTorch."""
    path = config_file(tmp_path, vp9_shards, optim={"epochs": EPOCHS}, keep_checkpoints=1)
    submitted = subprocess.run(
        [sys.executable, "tools/submit.py", "--nodes", "2", "--minutes", "60", "--logs", str(tmp_path / "logs"),
         "train.py", "--config", str(path)],
        cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert submitted.returncode == 0, submitted.stderr
    number = re.search(r"^job (\d+): train\.py", submitted.stdout, re.MULTILINE)
    assert number, submitted.stdout
    logs = tuple(tmp_path / "logs" / f"{number[1]}_{rank}_log.out" for rank in (0, 1))
    assert str(logs[0]) in submitted.stdout and str(logs[1]) in submitted.stdout
    job = Submitted(id=number[1], logs=logs)
    metrics = tmp_path / "run" / "metrics.jsonl"
    until(lambda: len(read_metrics(metrics)) >= 4, what=lambda: shown(job))
    urgent = ["sbatch", "--wait", "--partition=urgent", "--nodes=2", "--exclusive", "--wrap=true"]
    subprocess.run([*urgent, f"--output={tmp_path}/urgent.log"], check=True, timeout=120)
    done = len(read_metrics(metrics))
    at_once(job)
    assert ended(job) == "COMPLETED", shown(job)
    assert 4 <= done < 3 * EPOCHS, "it was not preempted in the middle"
    assert "put into the queue again" in logs[0].read_text()
    lines = [read_metrics(run / "metrics.jsonl") for run in (tmp_path / "run", undisturbed)]
    losses = [[(line["step"], line["loss"]) for line in found] for found in lines]
    assert losses[0] == losses[1] and [step for step, _ in losses[0]] == list(range(1, 3 * EPOCHS + 1))
    assert same(weights(tmp_path / "run"), weights(undisturbed))
