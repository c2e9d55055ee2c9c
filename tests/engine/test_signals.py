"""Signals that ask for a save: at which update it happens, how the run ends, and where it continues."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from lavila.config.load import load_config
from lavila.config.schema import ConfigError
from lavila.engine import checkpoint
from lavila.engine.signals import Asked, Stopped, Wish, listening
from lavila.engine.trainer import train
from lavila.report.files import read_metrics
from lavila.shards.reader import ShardSet
from lavila.tasks.classification import ClassificationTask
from tests.engine.interrupted import signalled
from tests.engine.test_runs import config_file, run_here, same, weights


def test_signals_are_noted_inside_the_block_alone() -> None:
    before = signal.getsignal(signal.SIGUSR2)
    with listening(stop=["SIGTERM", "SIGUSR2"], save=["SIGUSR1"]) as asked:
        assert asked == Asked(wish=Wish.NOTHING, by="")
        os.kill(os.getpid(), signal.SIGUSR1)
        assert asked == Asked(wish=Wish.SAVE, by="SIGUSR1")
        os.kill(os.getpid(), signal.SIGUSR2)
        assert asked.take_save() == Wish.SAVE | Wish.STOP and asked.by == "SIGUSR2"
        assert asked.take_save() == Wish.STOP  # a save is granted once
    assert signal.getsignal(signal.SIGUSR2) == before


def test_another_thread_than_the_main_one_cannot_listen(caplog: pytest.LogCaptureFixture) -> None:
    before, found = signal.getsignal(signal.SIGTERM), []

    def listen() -> None:
        with listening(stop=["SIGTERM"], save=[]) as asked:
            found.append(asked)

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert found == [Asked()] and "SIGTERM" in caplog.text and signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize("update", [2, 3])  # in the middle of an epoch, and its last
@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR2"])
def test_a_stop_signal_saves_at_once_and_the_same_command_continues(
    tmp_path: Path, trained: Path, vp9_shards: ShardSet, capsys: Any, caplog: Any, update: int, name: str
) -> None:
    path = config_file(tmp_path, vp9_shards, keep_checkpoints=9)
    with signalled(ClassificationTask, signal.Signals[name], updates=update):
        status, _, _ = run_here("train.py", ["--config", str(path)], capsys)
    kept = tmp_path / "run/checkpoints" / checkpoint.step_name(update)
    assert status == 75
    assert checkpoint.step_folders(kept.parent) == [kept] and checkpoint.torn(kept) is None
    assert name in caplog.text and str(kept) in caplog.text
    train(load_config(path))
    assert same(weights(tmp_path / "run"), weights(trained / "run"))
    assert [line["step"] for line in read_metrics(tmp_path / "run/metrics.jsonl")] == list(range(1, 10))


def test_a_save_signal_saves_and_training_continues(tmp_path: Path, trained: Path, vp9_shards: ShardSet) -> None:
    config = load_config(config_file(tmp_path, vp9_shards, keep_checkpoints=9))
    with signalled(ClassificationTask, signal.SIGUSR1, updates=4):
        train(config)
    names = [path.name for path in checkpoint.step_folders(tmp_path / "run/checkpoints")]
    assert names == [checkpoint.step_name(updates) for updates in (3, 4, 6, 9)]
    assert same(weights(tmp_path / "run"), weights(trained / "run"))


def test_the_signals_are_a_setting(tmp_path: Path, vp9_shards: ShardSet) -> None:
    path = config_file(tmp_path, vp9_shards)
    config = load_config(path, ["engine.stop_signals=[SIGUSR1]", "engine.save_signals=[]"])
    with signalled(ClassificationTask, signal.SIGUSR1, updates=1), pytest.raises(Stopped, match="SIGUSR1"):
        train(config)
    for both in ("engine.save_signals=[SIGTERM]", "engine.stop_signals=[SIGKILL]"):
        with pytest.raises(ConfigError, match=both.partition("=")[0]):
            load_config(path, [both])


def test_a_run_saves_when_minutes_have_passed(tmp_path: Path, vp9_shards: ShardSet) -> None:
    config = load_config(config_file(tmp_path, vp9_shards, keep_checkpoints=99, checkpoint_every_minutes=1e-9))
    train(config)
    folders = checkpoint.step_folders(tmp_path / "run/checkpoints")
    assert [path.name for path in folders] == [checkpoint.step_name(updates) for updates in range(1, 10)]
    hours = load_config(tmp_path / "tiny.yaml", ["checkpoint_every_minutes=60", f"run_dir={tmp_path / 'hours'}"])
    train(hours)
    assert len(checkpoint.step_folders(tmp_path / "hours/checkpoints")) == 3  # the ends of the epochs


def test_a_signal_that_is_ignored_at_the_start_stays_ignored() -> None:
    """As tools/submit.py starts a command, and so that what this starts ignores it, too."""
    before = signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    try:
        with listening(stop=["SIGUSR2"], save=[]) as asked:
            assert signal.getsignal(signal.SIGUSR2) is signal.SIG_IGN
            os.kill(os.getpid(), signal.SIGUSR2)
        assert asked.wish == Wish.NOTHING and signal.getsignal(signal.SIGUSR2) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGUSR2, before)


def test_a_stop_signal_in_an_evaluation_ends_it_and_a_resume_makes_up_for_it(
    tmp_path: Path, vp9_shards: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = config_file(tmp_path, vp9_shards, evals={"val": {"every_epochs": 1}}, optim={"epochs": 2})
    predict = ClassificationTask.predict

    def signalling(self: ClassificationTask, batch: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return predict(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(ClassificationTask, "predict", signalling)
        with pytest.raises(Stopped, match=checkpoint.step_name(3)):
            train(load_config(path))
    assert not list((tmp_path / "run").glob(".predictions*"))
    train(load_config(path))
    lines = read_metrics(tmp_path / "run/metrics.jsonl")
    assert [line["step"] for line in lines if "val/action_top1" in line] == [3, 6]
