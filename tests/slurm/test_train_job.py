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


def submit(folder: Path, config: Path, *options: str) -> Submitted:
    """Put the training of a config into SLURM's queue, as a user does."""
    command = ["tools/submit.py", *options, "--logs", str(folder / "logs"), "train.py", "--config", str(config)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    number = re.search(r"^job (\d+): train\.py", done.stdout, re.MULTILINE)
    assert number, done.stdout
    ranks = int(options[options.index("--nodes") + 1])
    logs = tuple(folder / "logs" / f"{number[1]}_{rank}_log.out" for rank in range(ranks))
    assert all(str(log) in done.stdout for log in logs)
    return Submitted(id=number[1], logs=logs)


@pytest.mark.usefixtures("slurm")
def test_a_preempted_training_ends_with_the_loss_of_an_undisturbed_one(
    tmp_path: Path, vp9_shards: ShardSet, undisturbed: Path
) -> None:
    """It takes half a minute, since four processes import PyTorch."""
    path = config_file(tmp_path, vp9_shards, optim={"epochs": EPOCHS}, keep_checkpoints=1)
    job = submit(tmp_path, path, "--nodes", "2", "--minutes", "60")
    metrics = tmp_path / "run" / "metrics.jsonl"
    until(lambda: len(read_metrics(metrics)) >= 4, what=lambda: shown(job))
    urgent = ["sbatch", "--wait", "--partition=urgent", "--nodes=2", "--exclusive", "--wrap=true"]
    subprocess.run([*urgent, f"--output={tmp_path}/urgent.log"], check=True, timeout=120)
    done = len(read_metrics(metrics))
    at_once(job)
    assert ended(job) == "COMPLETED", shown(job)
    assert 4 <= done < 3 * EPOCHS, "it was not preempted in the middle"
    assert "put into the queue again" in job.logs[0].read_text()
    lines = [read_metrics(run / "metrics.jsonl") for run in (tmp_path / "run", undisturbed)]
    losses = [[(line["step"], line["loss"]) for line in found] for found in lines]
    assert losses[0] == losses[1] and [step for step, _ in losses[0]] == list(range(1, 3 * EPOCHS + 1))
    assert same(weights(tmp_path / "run"), weights(undisturbed))


@pytest.mark.usefixtures("slurm")
def test_a_training_that_meets_its_time_limit_continues_in_another_life(tmp_path: Path, vp9_shards: ShardSet) -> None:
    """SLURM sends the signal before the limit by its own clock. 40 s: it counts limits in minutes."""
    path = config_file(tmp_path, vp9_shards, optim={"epochs": 100_000}, keep_checkpoints=1)
    job = submit(tmp_path, path, "--nodes", "1", "--minutes", "1", "--signal-seconds", "20")
    metrics = tmp_path / "run" / "metrics.jsonl"
    try:
        requeued = "put into the queue again"
        until(
            lambda: job.logs[0].exists() and requeued in job.logs[0].read_text(), what=lambda: shown(job), seconds=240
        )
        done = len(read_metrics(metrics))
        assert done >= 4
        at_once(job)
        until(lambda: len(read_metrics(metrics)) > done, what=lambda: shown(job))
    finally:
        subprocess.run(["scancel", job.id], check=True)
    ended(job)
    steps = [line["step"] for line in read_metrics(metrics)]
    assert steps == list(range(1, len(steps) + 1))
