"""`--dry-run` meets what a run would meet before its first step, and leaves nothing behind."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import evaluate as evaluate_command
import train as train_command
from lavila.config.load import load_config
from lavila.config.schema import ConfigError
from lavila.engine import dry_run, evaluator, trainer
from lavila.engine.dry_run import DryRunError, check_evaluation, check_training
from lavila.engine.run_folder import RunFolderError
from lavila.errors import UserError
from lavila.shards.format import ShardSetError
from lavila.shards.reader import ShardSet
from lavila.tasks import TaskError
from tests.data.test_loader import damaged
from tests.engine.test_against_checkpoint import with_classes
from tests.engine.test_runs import config_file, run_here


def files_in(folder: Path) -> dict[str, int]:
    """Every file and folder, with the time of its last change."""
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*")}


def logged(work: Callable[..., Any], path: Path, overrides: list[str], caplog: pytest.LogCaptureFixture) -> str:
    caplog.clear()
    with caplog.at_level("INFO", logger="lavila"):
        work(load_config(path, overrides))
    return caplog.text


def test_a_dry_run_writes_nothing_and_reports_shapes_and_memory(
    vp9_shards: ShardSet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = config_file(tmp_path, vp9_shards, optim={"epochs": 1}, evals={"val": {"every_epochs": 3}})
    before = files_in(tmp_path)
    text = logged(check_training, path, ["log.tensorboard=false"], caplog)
    assert files_in(tmp_path) == before
    assert "video [4, 1, 3, 4, 32, 32] float32" in text and "verb [4]" in text and "narrations 4" in text
    assert "evals.val, every 3 epoch(s): 12 clips, a batch: video [4, 6, 3, 4, 32, 32]" in text
    assert "starts from model.init=random" in text and "GiB on each rank, an estimate" in text
    trainer.train(load_config(path))
    before = files_in(tmp_path)
    text = logged(check_training, path, ["optim.epochs=2"], caplog)
    assert "step-00000003" in text
    text = logged(check_evaluation, path, [], caplog)
    assert files_in(tmp_path) == before
    assert "video [4, 6, 3, 4, 32, 32] float32" in text and "12 clips, classes: verb 3" in text and "estimate" in text


def test_the_commands_have_it_and_end_with_the_errors_status(
    vp9_shards: ShardSet, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(config_file(tmp_path, vp9_shards))
    monkeypatch.setattr(trainer, "train", lambda _: pytest.fail("trained"))
    monkeypatch.setattr(evaluator, "evaluate", lambda _: pytest.fail("evaluated"))
    checked: list[str] = []
    monkeypatch.setattr(dry_run, "check_training", lambda config: checked.append(config.run_dir))
    monkeypatch.setattr(dry_run, "check_evaluation", lambda config: checked.append(config.run_dir))
    for command in (train_command, evaluate_command):
        monkeypatch.setattr(sys, "argv", ["x", "--config", path, "--dry-run"])
        command.main()  # returns: status 0
    assert checked == [str(tmp_path / "run")] * 2
    monkeypatch.undo()
    for script in ("train.py", "evaluate.py"):
        status, _, err = run_here(script, ["--config", path, "--dry-run", "data.val=", "data.train="], capsys)
        assert status == 2 and len(err.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_what_a_run_would_stop_at_is_reported(vp9_shards: ShardSet, tmp_path: Path) -> None:
    path = config_file(tmp_path, vp9_shards)
    missing = tmp_path / "gone"
    shutil.copytree(vp9_shards.path, missing)
    next(missing.glob("*.tar")).unlink()
    (tmp_path / "file").write_text("")
    cases: list[tuple[str, type[UserError], str]] = [
        (f"data.train={missing}", ShardSetError, r"shard-\d+\.tar: missing"),
        ("task.heads=[tool]", TaskError, "has no tool labels"),
        ("data.captions=[nowhere.parquet]", UserError, r"nowhere\.parquet"),
        ("model.init=nowhere", UserError, "no model at 'nowhere'"),
        ("model.freeze=[legs]", ConfigError, r"model\.freeze=legs"),
        ("data.batch_size=64", UserError, r"data\.batch_size=64 is more than the 12"),
        (
            f"data.train={damaged(vp9_shards, tmp_path, *range(12)).path}",
            DryRunError,
            "not one clip of the first batch",
        ),
        (f"run_dir={tmp_path / 'file' / 'run'}", RunFolderError, "run_dir="),
        ("data.dataset=ek100_mir", ConfigError, r"is a shard set of synthetic, .* for ek100_mir"),
        ("resume=nowhere", UserError, "resume=nowhere"),
    ]
    for override, kind, message in cases:
        with pytest.raises(kind, match=message) as stopped:
            check_training(load_config(path, [override]))
        assert "\n" not in str(stopped.value), override


def test_an_evaluation_is_checked_against_its_checkpoint(vp9_shards: ShardSet, tmp_path: Path) -> None:
    path = config_file(tmp_path, vp9_shards, optim={"epochs": 1})
    last = trainer.train(load_config(path))
    other = with_classes(vp9_shards, tmp_path / "other", verb=["left", "right", "wave"])
    with pytest.raises(TaskError, match="'wave' here, 'hold' there") as stopped:
        check_evaluation(load_config(path, [f"data.val={other.path}"]))
    assert str(other.path) in str(stopped.value) and str(last) in str(stopped.value)
    with pytest.raises(TaskError, match=r"task\.heads="):
        check_evaluation(load_config(path, ["task.heads=[verb]"]))
    with pytest.raises(ConfigError, match=r"data\.mean=.* was trained with"):
        check_evaluation(load_config(path, ["data.mean=[1,2,3]"]))
    with pytest.raises(ConfigError, match=r"data\.val=.* is a shard set of synthetic, .* for egtea"):
        check_evaluation(load_config(path, ["data.dataset=egtea"]))
    with pytest.raises(UserError, match="checkpoint=best"):
        check_evaluation(load_config(path, ["checkpoint=best"]))


def test_saved_predictions_are_checked_too(
    vp9_shards: ShardSet, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = config_file(tmp_path, vp9_shards, optim={"epochs": 1})
    trainer.train(load_config(path))
    evaluator.evaluate(load_config(path))
    saved = tmp_path / "run" / "predictions"
    before = files_in(tmp_path)
    assert "12 clips" in logged(check_evaluation, path, [f"predictions={saved}"], caplog)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "argv", ["evaluate.py", "--from", str(saved), "--dry-run"])
        evaluate_command.main()
    assert files_in(tmp_path) == before
    next(file for file in saved.iterdir() if file.suffix == ".json").write_text("{")
    with pytest.raises(UserError, match=str(saved)):
        check_evaluation(load_config(path, [f"predictions={saved}"]))
