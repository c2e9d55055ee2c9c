"""A loss or gradient that is not finite: the update is skipped, clips named, the state kept; some in a row stop."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from lavila.checkpoints.store import load_model
from lavila.config.load import load_config
from lavila.config.schema import RunConfig
from lavila.engine import checkpoint
from lavila.engine.distributed import Process, ask_ranks, gather_to_all
from lavila.engine.precision import Arithmetic
from lavila.engine.saving import TrainingError
from lavila.engine.trainer import prepare, train
from lavila.report.files import read_metrics
from lavila.shards.reader import ShardSet
from tests.engine.spoilt import bad_gradients, bad_losses
from tests.engine.test_runs import config_file, same


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
    (bad,) = json.loads((kept / "passes.json").read_text())
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
    message = str(stopped.value)
    assert "step 3" in message and "\n" not in message and all(clip in message for clip in clips[1])
    assert not list((tmp_path / "two" / "checkpoints").glob("step-*"))


def test_one_bad_part_spoils_its_update(vp9_shards: ShardSet, tmp_path: Path) -> None:
    config = run_of(tmp_path, vp9_shards, "optim.accumulate=2", "optim.epochs=1")
    with bad_losses(2) as clips:
        train(config)
    kept = tmp_path / "run" / "nonfinite" / "checkpoints" / checkpoint.step_name(1)
    (bad,) = json.loads((kept / "passes.json").read_text())
    assert bad["part"] == 0 and bad["clip_ids"] == list(clips[0]) and len(clips[0]) == 2


def test_a_state_that_was_kept_is_kept_once(vp9_shards: ShardSet, tmp_path: Path) -> None:
    """A run that comes to the same place again, from an earlier checkpoint, meets the same loss again."""
    for folder in ("run", "run"):
        config = run_of(tmp_path, vp9_shards, "optim.max_nonfinite_losses=1", f"run_dir={tmp_path / folder}")
        with bad_losses(0), pytest.raises(TrainingError, match="step 1: "):
            train(config)
    kept = tmp_path / "run" / "nonfinite" / "checkpoints"
    assert [path.name for path in checkpoint.step_folders(kept)] == [checkpoint.step_name(0)]


def test_a_ruined_model_is_not_saved(vp9_shards: ShardSet, tmp_path: Path) -> None:
    """The loss is finite, and the step that it leads to is not."""
    settings = ("optim.optimizer=sgd", "optim.lr=1e4", "optim.lr_start=1e4", "checkpoint_every_steps=1")
    with bad_losses(0, value=1e37), pytest.raises(TrainingError, match="the model is not finite at step 1"):
        train(run_of(tmp_path, vp9_shards, *settings))
    assert not list((tmp_path / "run" / "checkpoints").glob("step-*"))


@pytest.mark.parametrize(
    ("optimizer", "clipping", "value"), [("sgd", "norm", "inf"), ("adamw", "value", "nan"), ("adamw", "none", "inf")]
)
def test_a_gradient_that_is_not_finite_leaves_the_weights(
    vp9_shards: ShardSet, tmp_path: Path, caplog: pytest.LogCaptureFixture, optimizer: str, clipping: str, value: str
) -> None:
    clipped = [] if clipping == "none" else [f"optim.clip_grad_{clipping}=1"]
    settings = ["checkpoint_every_steps=1", "keep_checkpoints=9", "optim.epochs=1", f"optim.optimizer={optimizer}"]
    config = run_of(tmp_path, vp9_shards, *settings, *clipped)
    with bad_gradients(1, value=float(value)) as clips:
        train(config)
    steps = [tmp_path / "run" / "checkpoints" / checkpoint.step_name(number) for number in range(1, 4)]
    weights = [load_model(step).state_dict() for step in steps]
    assert same(weights[0], weights[1]) and not same(weights[1], weights[2])
    kept = tmp_path / "run" / "nonfinite" / "checkpoints" / checkpoint.step_name(1)
    assert checkpoint.torn(kept) is None and same(load_model(kept).state_dict(), weights[0])
    (bad,) = json.loads((kept / "passes.json").read_text())
    assert bad["clip_ids"] == list(clips[0]) and float(bad["loss"]) > 0 and "visual.cls_token" in bad["gradient"]
    assert all(clip in caplog.text for clip in clips[0])
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [line.get("skipped_updates") for line in lines] == [None, 1, None]
    assert all(line["loss"] > 0 and "overflowed_updates" not in line for line in lines)


def test_bad_losses_and_gradients_in_a_row_count_together(vp9_shards: ShardSet, tmp_path: Path) -> None:
    config = run_of(tmp_path, vp9_shards, "optim.max_nonfinite_losses=2")
    with bad_losses(1), bad_gradients(2) as clips, pytest.raises(TrainingError, match="step 3") as stopped:
        train(config)
    assert all(clip in str(stopped.value) for clip in clips[0]) and "\n" not in str(stopped.value)
    assert not list((tmp_path / "run" / "checkpoints").glob("step-*"))


def test_the_part_of_an_update_with_a_bad_gradient_is_named(vp9_shards: ShardSet, tmp_path: Path) -> None:
    config = run_of(tmp_path, vp9_shards, "optim.accumulate=2", "optim.epochs=1")
    with bad_gradients(2) as clips:
        train(config)
    kept = tmp_path / "run" / "nonfinite" / "checkpoints" / checkpoint.step_name(1)
    (bad,) = json.loads((kept / "passes.json").read_text())
    assert bad["part"] == 0 and bad["clip_ids"] == list(clips[0]) and bad["gradient"]


def test_a_run_with_a_bad_gradient_resumes_bit_by_bit(vp9_shards: ShardSet, tmp_path: Path) -> None:
    """Passes that are made again leave no trace in what comes after."""
    settings = ("checkpoint_every_steps=1", "keep_checkpoints=9", "model.drop_path=0.2", "optim.epochs=1")
    with bad_gradients(1) as clips:
        train(run_of(tmp_path, vp9_shards, *settings))
    first = tmp_path / "run" / "checkpoints"
    middle = first / checkpoint.step_name(1)
    again = run_of(tmp_path, vp9_shards, *settings, f"resume={middle}", f"run_dir={tmp_path / 'again'}")
    with bad_gradients(0) as clips_again:
        train(again)
    assert clips == clips_again
    last = checkpoint.step_name(3)
    ends = [load_model(folder / last).state_dict() for folder in (first, tmp_path / "again" / "checkpoints")]
    assert same(*ends)


def test_a_gradient_whose_norm_overflows_is_finite(vp9_shards: ShardSet, tmp_path: Path) -> None:
    """Squares of 1e25 are infinite in float32; clipping by value brings such a gradient back to size."""
    settings = ("checkpoint_every_steps=1", "keep_checkpoints=9", "optim.epochs=1")
    config = run_of(tmp_path, vp9_shards, "optim.clip_grad_value=0.1", *settings)
    with bad_gradients(1, value=1e25):
        train(config)
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert not any("skipped_updates" in line for line in lines)
    models = [load_model(tmp_path / "run" / "checkpoints" / checkpoint.step_name(number)) for number in (1, 2)]
    assert not same(*(model.state_dict() for model in models))


@pytest.mark.parametrize(("scale", "overflows", "skipped"), [(2.0**16, 2, 0), (1.0, 0, 2)])
def test_a_loss_scale_that_is_too_large_is_no_fault(
    vp9_shards: ShardSet,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    *,
    scale: float,
    overflows: int,
    skipped: int,
) -> None:
    """fp16's scaler halves its scale and leaves the update out. Without a scale left, the gradient itself is bad."""
    config = run_of(tmp_path, vp9_shards, "log_every_steps=3", "optim.epochs=1")
    with bad_gradients(0, 1), pytest.MonkeyPatch.context() as patch:
        patch.setattr(Arithmetic, "scales_loss", True)
        trainer = prepare(config, Process(rank=0, world=1, local_world=1, device=torch.device("cpu")))
        trainer.state.scaler.load_state_dict(trainer.state.scaler.state_dict() | {"scale": scale})
        trainer.fit()
    assert trainer.state.scaler.get_scale() == scale / 4
    (line,) = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert (line.get("overflowed_updates", 0), line.get("skipped_updates", 0)) == (overflows, skipped)
    assert (tmp_path / "run" / "nonfinite").exists() == ("not finite" in caplog.text) == bool(skipped)


def test_one_process_asks_itself() -> None:
    assert ask_ranks(torch.tensor(True))() == [True] and ask_ranks(torch.tensor(False))() == [False]
    assert gather_to_all("here") == ["here"]
