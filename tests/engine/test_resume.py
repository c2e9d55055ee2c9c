"""Going on with a run: what may change in the meantime, what is refused, and what a resume does not need."""

from __future__ import annotations

import itertools
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import nn
from torch.distributed.checkpoint.filesystem import FileSystemReader

from lavila.checkpoints.errors import CheckpointError
from lavila.checkpoints.store import load_model
from lavila.config.load import load_config
from lavila.config.schema import RunConfig
from lavila.engine import build, checkpoint, meter, saving, trainer, writing
from lavila.engine.optim import LearningRate
from lavila.engine.saving import Saver
from lavila.engine.trainer import train
from lavila.report.files import read_metrics
from lavila.shards.reader import ShardSet
from lavila.tasks import TaskError
from tests.engine.interrupted import clips_seen, train_until
from tests.engine.test_runs import config_file


def lines_of(config: RunConfig) -> list[dict[str, Any]]:
    return [line for line in read_metrics(Path(config.run_dir) / "metrics.jsonl") if "loss" in line]


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("before", "after"), [(1, 2), (4, 1)])
def test_another_number_of_passes_continues_with_the_very_clips_that_are_left(
    tmp_path: Path, vp9_shards: ShardSet, before: int, after: int
) -> None:
    path = config_file(tmp_path, vp9_shards, optim={"epochs": 2}, checkpoint_every_steps=1)
    with clips_seen() as seen:
        train_until(load_config(path, [f"optim.accumulate={before}"]), 2)
        first = list(itertools.chain(*seen))
        seen.clear()
        config = load_config(path, [f"optim.accumulate={after}"])
        train(config)
    rest = list(itertools.chain(*seen))
    assert len(first) == 8 and sorted(first + rest[:4]) == sorted(rest[4:]) == list(range(12))
    lines = lines_of(config)
    assert [line["step"] for line in lines] == list(range(1, 7))
    rates = LearningRate.of(config.optim, nn.Linear(1, 1), steps=3, in_backbone=lambda _: True).values
    assert [line["lr"] for line in lines] == pytest.approx(rates.tolist())


@pytest.mark.parametrize(
    ("override", "named"), [("data.batch_size=2", "data.batch_size.*2.*4"), ("seed=1", "seed.*1.*0")]
)
def test_another_order_of_clips_is_refused_in_mid_epoch(
    tmp_path: Path, vp9_shards: ShardSet, override: str, named: str
) -> None:
    path = config_file(tmp_path, vp9_shards, checkpoint_every_steps=1, keep_checkpoints=9)
    train_until(load_config(path), 4)
    run_dir = tmp_path / "run"
    before = files_of(run_dir)
    with pytest.raises(CheckpointError, match=named) as refused:
        train(load_config(path, [override]))
    assert f"resume={run_dir / 'checkpoints' / 'step-00000003'}" in str(refused.value)  # where an epoch ended
    assert "resume=aside" in str(refused.value) and files_of(run_dir) == before
    # The choice that the message names works.
    end = run_dir / "checkpoints" / "step-00000003"
    other = load_config(path, [override, f"resume={end}", f"run_dir={tmp_path / 'other'}", "optim.epochs=2"])
    assert train(other).parent == tmp_path / "other" / "checkpoints"


def test_another_number_of_clips_is_refused_in_mid_epoch(
    tmp_path: Path, vp9_shards: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = config_file(tmp_path, vp9_shards, checkpoint_every_steps=1)
    train_until(load_config(path), 1)
    fewer = tmp_path / "fewer"
    shutil.copytree(vp9_shards.path, fewer)
    (fewer / "quarantine.jsonl").write_text('{"clip_id": "clip_3", "reason": "no frame"}\n')
    with pytest.raises(CheckpointError, match=r"clips.*11.*12"):
        train(load_config(path, [f"data.train={fewer}"]))


def test_another_batch_size_between_epochs_continues_at_the_same_share_of_the_schedule(
    tmp_path: Path, vp9_shards: ShardSet
) -> None:
    path = config_file(tmp_path, vp9_shards)
    train_until(load_config(path), 3)
    config = load_config(path, ["data.batch_size=6"])
    with clips_seen() as seen:
        train(config)
    assert [len(rows) for rows in seen] == [6] * 4 and sorted(seen[0] + seen[1]) == list(range(12))
    lines = lines_of(config)
    assert [line["step"] for line in lines] == list(range(1, 8))
    rates = LearningRate.of(config.optim, nn.Linear(1, 1), steps=2, in_backbone=lambda _: True).values
    assert [line["lr"] for line in lines[3:]] == pytest.approx(rates[2:].tolist())


def test_settings_of_the_optimiser_that_changed_take_effect(tmp_path: Path, vp9_shards: ShardSet) -> None:
    path = config_file(tmp_path, vp9_shards, optim={"schedule": "constant", "epochs": 2})
    train_until(load_config(path), 3)
    config = load_config(path, ["optim.lr=5e-4"])
    train(config)
    assert [line["lr"] for line in lines_of(config)] == [1e-3] * 3 + [5e-4] * 3


def test_a_resume_needs_neither_the_first_weights_nor_a_config_it_knows(
    tmp_path: Path, vp9_shards: ShardSet, caplog: pytest.LogCaptureFixture
) -> None:
    path = config_file(tmp_path, vp9_shards, optim={"epochs": 1})
    first = train(load_config(path, [f"run_dir={tmp_path / 'first'}"]))
    newest = train(load_config(path, [f"model.init={first}"]))
    shutil.rmtree(tmp_path / "first")
    values = yaml.safe_load((newest / "config.yaml").read_text())
    values["zebra"], values["data"]["stripes"] = 1, [2]
    del values["views"]["fusion"]
    (newest / "config.yaml").write_text(yaml.safe_dump(values))
    newest = train(load_config(path, [f"model.init={first}", "optim.epochs=2"]))
    logged = next(message for message in caplog.messages if "other settings" in message)
    assert all(name in logged for name in ("zebra", "data.stripes", "views.fusion", "optim.epochs=2 (was 1)"))
    (newest / "config.yaml").unlink()
    assert train(load_config(path, [f"model.init={first}", "optim.epochs=3"])).name == "step-00000009"


@pytest.mark.parametrize("override", ["model.width=64", "model.depth=3", "optim.optimizer=sgd", "task.heads=[verb]"])
def test_another_model_or_optimiser_is_refused_in_one_line(tmp_path: Path, vp9_shards: ShardSet, override: str) -> None:
    path = config_file(tmp_path, vp9_shards, optim={"epochs": 1})
    train(load_config(path))
    before = files_of(tmp_path / "run")
    heads = "heads" in override  # compared before the model is built
    with pytest.raises(TaskError if heads else CheckpointError, match=r"task\.heads=|model\.init=") as refused:
        train(load_config(path, [override, "optim.epochs=2"]))
    assert "\n" not in str(refused.value) and files_of(tmp_path / "run") == before
    assert "width" not in override or re.search(r"\[1, 1, 32\], should be \[1, 1, 64\]", str(refused.value))


def test_parts_may_be_frozen_and_thawed(tmp_path: Path, vp9_shards: ShardSet, caplog: pytest.LogCaptureFixture) -> None:
    path = config_file(tmp_path, vp9_shards, optim={"epochs": 1})
    frozen = load_config(path, ["model.freeze=[video]"])
    facts = build.task_facts(frozen, vp9_shards)
    before = build.fresh_model(frozen, facts).state_dict()
    first = train(frozen)
    after = load_model(first).state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if name.startswith("fc_cls.")}
    keys = FileSystemReader(first / "train_state").read_metadata().state_dict_metadata
    assert keys and all(".fc_cls." in key for key in keys)
    with caplog.at_level("INFO", logger="lavila"):
        second = load_model(train(load_config(path, ["optim.epochs=2"]))).state_dict()
    assert not torch.equal(after["visual.cls_token"], second["visual.cls_token"])
    logged = next(message for message in caplog.messages if "were not trained before" in message)
    assert "visual.cls_token" in logged and "fc_cls" not in logged
    third = load_model(train(load_config(path, ["optim.epochs=3", "model.freeze=[heads]"]))).state_dict()
    assert {name for name in second if torch.equal(second[name], third[name])} == moved


def order_of(config: RunConfig) -> list[int]:
    """The rows of the first epoch in their order."""
    with clips_seen() as seen:
        train(config)
    return list(itertools.chain(*seen))[:12]


def test_the_time_of_saving_is_in_no_rate(
    tmp_path: Path, vp9_shards: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each save takes a thousand seconds, on a clock that moves in nothing else than reads of it."""

    class Clock:
        now = 0.0

        def perf_counter(self) -> float:
            self.now += 0.001
            return self.now

    clock, save = Clock(), Saver.save

    def slow(self: Saver, **named: Any) -> None:
        clock.now += 1000
        save(self, **named)

    monkeypatch.setattr(trainer, "time", clock)
    monkeypatch.setattr(meter, "time", clock)
    monkeypatch.setattr(Saver, "save", slow)
    config = load_config(config_file(tmp_path, vp9_shards, checkpoint_every_steps=1))
    train(config)
    lines = lines_of(config)
    assert len(lines) == 9 and min(line["clips_per_second"] for line in lines) > 100
    assert np.ptp([line["clips_per_second"] for line in lines]) < 4000


def test_each_state_is_saved_once(tmp_path: Path, vp9_shards: ShardSet, monkeypatch: pytest.MonkeyPatch) -> None:
    saved, write = [], writing.write

    def noting(*arguments: Any, **named: Any) -> Path:
        saved.append(write(*arguments, **named).name)
        return tmp_path / "run" / "checkpoints" / saved[-1]

    monkeypatch.setattr(saving, "write", noting)
    train(load_config(config_file(tmp_path, vp9_shards, checkpoint_every_steps=3)))
    assert saved == [checkpoint.step_name(updates) for updates in (3, 6, 9)]
