"""A loss that is not finite: the update is skipped, the clips are named, the state is kept, and some in a row stop."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from lavila.checkpoints.store import load_model
from lavila.config.load import load_config
from lavila.config.schema import RunConfig
from lavila.engine import checkpoint
from lavila.engine.distributed import ask_ranks, gather_to_all
from lavila.engine.saving import TrainingError
from lavila.engine.trainer import train
from lavila.records import VideoBatch
from lavila.report.files import read_metrics
from lavila.shards.reader import ShardSet
from lavila.tasks.classification import ClassificationTask
from tests.engine.test_runs import config_file, same


@contextmanager
def bad_losses(*passes: int, value: float = float("nan")) -> Iterator[list[tuple[str, ...]]]:
    """Spoil the losses of these passes, the first being 0; gives the clips of each."""
    number, step = itertools.count(), ClassificationTask.step
    clips: list[tuple[str, ...]] = []

    def spoiling(self: ClassificationTask, batch: VideoBatch) -> Any:
        loss, logs = step(self, batch)
        if next(number) not in passes:
            return loss, logs
        clips.append(batch.clip_ids)
        return loss * value, logs | {"loss": logs["loss"] * value}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ClassificationTask, "step", spoiling)
        yield clips


def run_of(folder: Path, shards: ShardSet, *overrides: str) -> RunConfig:
    return load_config(config_file(folder, shards, optim={"epochs": 2}), overrides)


def test_a_skipped_update_leaves_the_weights_and_keeps_the_state(
    vp9_shards: ShardSet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = run_of(tmp_path, vp9_shards, "checkpoint_every_steps=1", "keep_checkpoints=9")
    with bad_losses(1, value=float("inf")) as clips:
        train(config)
    steps = [tmp_path / "run" / "checkpoints" / checkpoint.step_name(number) for number in range(1, 7)]
    weights = [load_model(step).state_dict() for step in steps]
    assert same(weights[0], weights[1]) and not same(weights[1], weights[2])
    kept = tmp_path / "run" / "nonfinite" / "checkpoints" / checkpoint.step_name(1)
    assert checkpoint.torn(kept) is None and same(load_model(kept).state_dict(), weights[0])
    (bad,) = json.loads((kept / "losses.json").read_text())
    assert bad["clip_ids"] == list(clips[0]) and bad["loss"] == "inf" and bad["rank"] == 0
    assert all(clip in caplog.text for clip in clips[0])
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [line.get("skipped_updates") for line in lines] == [None, 1, None, None, None, None]
    assert lines[1]["loss"] is None and all(line["loss"] > 0 for line in lines[2:])


def test_it_stops_after_as_many_in_a_row_as_are_allowed(vp9_shards: ShardSet, tmp_path: Path) -> None:
    config = run_of(tmp_path, vp9_shards, "optim.max_nonfinite_losses=2")
    with bad_losses(0, 2, 4):  # never two in a row
        train(config)
    again = run_of(tmp_path, vp9_shards, "optim.max_nonfinite_losses=2", f"run_dir={tmp_path / 'two'}")
    with bad_losses(1, 2) as clips, pytest.raises(TrainingError) as stopped:
        train(again)
    told = str(stopped.value)
    assert "step 3" in told and "\n" not in told and all(clip in told for clip in clips[1])
    assert not list((tmp_path / "two" / "checkpoints").glob("step-*"))


def test_one_bad_part_spoils_its_update(vp9_shards: ShardSet, tmp_path: Path) -> None:
    config = run_of(tmp_path, vp9_shards, "optim.accumulate=2", "optim.epochs=1")
    with bad_losses(2) as clips:
        train(config)
    kept = tmp_path / "run" / "nonfinite" / "checkpoints" / checkpoint.step_name(1)
    (bad,) = json.loads((kept / "losses.json").read_text())
    assert bad["part"] == 0 and bad["clip_ids"] == list(clips[0]) and len(clips[0]) == 2


def test_a_state_that_was_kept_is_kept_once(vp9_shards: ShardSet, tmp_path: Path) -> None:
    """A run that comes to the same place again, from an earlier checkpoint, meets the same loss again."""
    for folder in ("run", "run"):
        config = run_of(tmp_path, vp9_shards, "optim.max_nonfinite_losses=1", f"run_dir={tmp_path / folder}")
        with bad_losses(0), pytest.raises(TrainingError, match="not finite at step 1,"):
            train(config)
    kept = tmp_path / "run" / "nonfinite" / "checkpoints"
    assert [path.name for path in checkpoint.step_folders(kept)] == [checkpoint.step_name(0)]


def test_a_ruined_model_is_not_saved(vp9_shards: ShardSet, tmp_path: Path) -> None:
    """The loss is finite, and the step that it leads to is not."""
    settings = ("optim.optimizer=sgd", "optim.lr=1e4", "optim.lr_start=1e4", "checkpoint_every_steps=1")
    with bad_losses(0, value=1e37), pytest.raises(TrainingError, match="the model is not finite at step 1"):
        train(run_of(tmp_path, vp9_shards, *settings))
    assert not list((tmp_path / "run" / "checkpoints").glob("step-*"))


def test_one_process_asks_itself() -> None:
    assert ask_ranks(torch.tensor(True))() == [True] and ask_ranks(torch.tensor(False))() == [False]
    assert gather_to_all("here") == ["here"]
