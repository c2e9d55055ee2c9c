"""TensorBoard and Weights & Biases get the numbers of metrics.jsonl, and cannot end a run."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest

from lavila.config.load import load_config
from lavila.config.schema import ConfigError
from lavila.engine import trackers
from lavila.engine.trainer import train
from lavila.report.files import read_metrics
from lavila.shards.reader import ShardSet
from tests.engine.interrupted import train_until
from tests.engine.test_runs import config_file


class FakeWandb(types.ModuleType):
    """What is used of the package; notes what it is given."""

    def __init__(self, *, fails: str = "") -> None:
        super().__init__("wandb")
        self.__spec__ = types.SimpleNamespace()  # type: ignore[assignment]
        self.fails, self.started, self.numbers, self.finished = fails, [], [], 0  # type: ignore[var-annotated]

    def init(self, **settings: Any) -> FakeWandb:
        self._fail("init")
        self.started.append(settings)
        return self

    def log(self, values: dict[str, float], *, step: int) -> None:
        self._fail("log")
        self.numbers.append((step, values))

    def finish(self) -> None:
        self._fail("finish")
        self.finished += 1

    def _fail(self, at: str) -> None:
        if self.fails == at:
            raise ConnectionError("no\nnetwork")


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    """Of all event files in a folder, as TensorBoard shows them."""
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = event_accumulator.EventAccumulator(str(folder)).Reload()
    return {tag: {event.step: event.value for event in found.Scalars(tag)} for tag in found.Tags()["scalars"]}


def test_tensorboard_shows_what_metrics_has_also_after_a_resume(vp9_shards: ShardSet, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    path = config_file(tmp_path, vp9_shards, optim={"epochs": 2}, checkpoint_every_steps=2, evals={"val": {}})
    config = load_config(path, ["log.tensorboard=true"])
    train_until(config, 4)
    train(config)
    shown, lines = scalars(tmp_path / "run" / "tensorboard"), read_metrics(tmp_path / "run" / "metrics.jsonl")
    for name in ("loss", "lr", "verb_top1", "val/verb_top1"):
        wanted = {line["step"]: pytest.approx(line[name], rel=1e-5) for line in lines if name in line}
        assert shown[name] == wanted, name
    assert set(shown["val/verb_top1"]) == {3, 6} and "step" not in shown


def test_wandb_continues_its_run(vp9_shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", wandb := FakeWandb())
    path = config_file(tmp_path, vp9_shards, log={"wandb": True, "wandb_project": "clips"})
    for epochs in (1, 2):
        train(load_config(path, [f"optim.epochs={epochs}"]))
    one, two = wandb.started
    assert one["id"] == two["id"] and one["resume"] == "allow" and one["project"] == "clips" and one["name"] == "tiny"
    assert one["config"]["optim"]["epochs"] == 1 and one["dir"] == str(tmp_path / "run")
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [(step, values["loss"]) for step, values in wandb.numbers] == [
        (line["step"], line["loss"]) for line in lines
    ]
    assert wandb.finished == 2


@pytest.mark.parametrize("fails", ["init", "log", "finish"])
def test_a_tracker_that_fails_is_named_and_left_out(
    vp9_shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fails: str
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", wandb := FakeWandb(fails=fails))
    config = load_config(config_file(tmp_path, vp9_shards, optim={"epochs": 1}), ["log.wandb=true"])
    train(config)
    assert len(read_metrics(tmp_path / "run" / "metrics.jsonl")) == 3
    warnings = [message for message in caplog.messages if "log.wandb" in message]
    assert len(warnings) == 1 and "no network" in warnings[0]
    assert len(wandb.numbers) == (3 if fails == "finish" else 0)


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_what_is_not_installed_is_named_with_the_command(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda _: None)
    config = load_config("model/tiny", [f"log.{name}=true"])
    with pytest.raises(ConfigError, match=rf"log\.{name}=true.*pip install 'lavila\[{name}\]'"):
        trackers.check_trackers(config.log)
    trackers.check_trackers(load_config("model/tiny").log)
