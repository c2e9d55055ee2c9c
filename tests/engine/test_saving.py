"""Saving beside training: nothing that is being written changes, and a disk that refuses does not end a run."""

from __future__ import annotations

import itertools
import json
import os
import resource
import shutil
import subprocess
import threading
from collections import namedtuple
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from lavila.checkpoints.store import load_model
from lavila.config.load import load_config
from lavila.engine import checkpoint, saving, writing
from lavila.engine.checkpoint import step_folders, step_name
from lavila.engine.run_folder import RunFolderError
from lavila.engine.saving import TrainingError
from lavila.engine.trainer import train
from lavila.engine.writing import Beside, Staging, stage, write
from lavila.report.files import read_metrics
from lavila.shards.reader import ShardSet
from lavila.tasks.classification import ClassificationTask
from tests.engine.interrupted import train_until
from tests.engine.test_checkpoint import PROCESS, loaded, state_at
from tests.engine.test_runs import config_file, same, weights
from tests.engine.test_stalls import until
from tests.shared import files_stay_below

BESIDE = Beside(config_yaml="", extra={}, keep=9)
SMALL = 20_000  # bytes: smaller than any file of a checkpoint's tensors, larger than the lines of a short run


@contextmanager
def before_each_update(do: Any) -> Iterator[None]:
    """Call `do(n)` before update n of this process, from 1."""
    step, count = ClassificationTask.step, 0

    def noting(self: ClassificationTask, batch: Any) -> Any:
        nonlocal count
        count += 1
        do(count)
        return step(self, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ClassificationTask, "step", noting)
        yield


def names_of(run_dir: Path) -> list[str]:
    return [path.name for path in step_folders(run_dir / "checkpoints")]


def warned_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The checkpoints that warnings name as not written."""
    texts = [record.getMessage() for record in list(caplog.records) if record.levelname == "WARNING"]
    return [Path(text.split()[0]).name for text in texts if "could not be written" in text]


def test_what_was_staged_is_written_whatever_becomes_of_the_state(tmp_path: Path) -> None:
    """`loaded` looks at every weight and every momentum."""
    state, staging = state_at(1), Staging()
    for updates in (1, 2):
        state.progress.updates = updates
        for parameter in state.model.parameters():
            parameter.data.fill_(updates)
            state.optimizer.state[parameter]["momentum_buffer"].fill_(updates)
        staged = stage(state, process=PROCESS, beside=BESIDE, staging=staging)
        with torch.no_grad():
            for parameter in state.model.parameters():
                parameter.add_(7)
                state.optimizer.state[parameter]["momentum_buffer"].add_(7)
        state.progress.updates = 99
        assert loaded(write(tmp_path, staged, process=PROCESS)) == updates


def test_buffers_are_used_again() -> None:
    staging, tensor = Staging(), torch.ones(3)
    first = staging.copy({"a": tensor})["a"]
    assert first.data_ptr() not in (tensor.data_ptr(), 0)
    assert staging.copy({"a": tensor + 1})["a"].data_ptr() == first.data_ptr() and first.tolist() == [2, 2, 2]
    assert staging.copy({"a": torch.ones(4)})["a"].tolist() == [1, 1, 1, 1]  # another shape


def test_training_moves_while_a_checkpoint_is_written(
    tmp_path: Path, vp9_shards: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each write waits until the next update is done; its checkpoint is that of a run which waits for its saves."""
    path = config_file(tmp_path, vp9_shards, optim={"epochs": 1}, checkpoint_every_steps=1, keep_checkpoints=9)
    train(load_config(path, ["engine.save_in_background=false", f"run_dir={tmp_path / 'waits'}"]))
    updated = [threading.Event() for _ in range(4)]
    count, moved = itertools.count(1), []

    def late(run_dir: Path, staged: Any, **named: Any) -> Path:
        update = staged.facts["progress"]["updates"]
        moved.append(update == 3 or updated[update + 1].wait(30))
        return write(run_dir, staged, **named)

    monkeypatch.setattr(saving, "write", late)
    monkeypatch.setattr(ClassificationTask, "after_update", lambda self: updated[next(count)].set())
    train(load_config(path))
    assert moved == [True, True, True]
    for name in map(step_name, (1, 2, 3)):
        waits, run = (load_model(tmp_path / run / "checkpoints" / name).state_dict() for run in ("waits", "run"))
        assert same(waits, run)


def test_a_disk_that_refuses_costs_a_checkpoint_and_not_the_run(
    tmp_path: Path, trained: Path, vp9_shards: ShardSet, caplog: pytest.LogCaptureFixture
) -> None:
    """From the fourth update to the eighth no large file can be written; the checkpoint of the third stays."""
    config = load_config(config_file(tmp_path, vp9_shards, checkpoint_every_steps=1, keep_checkpoints=9))
    seen: dict[int, list[str]] = {}
    with files_stay_below(resource.RLIM_INFINITY):

        def limit(update: int) -> None:
            seen[update] = names_of(tmp_path / "run")
            if update in (4, 9):
                # The save before this update is done, one way or the other.
                until(lambda: step_name(update - 1) in [*names_of(tmp_path / "run"), *warned_of(caplog)])
                most = SMALL if update == 4 else resource.RLIM_INFINITY
                resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

        with before_each_update(limit):
            train(config)
    assert seen[8] == [step_name(updates) for updates in (1, 2, 3)]
    assert names_of(tmp_path / "run") == [step_name(updates) for updates in (1, 2, 3, 9)]
    assert same(weights(tmp_path / "run"), weights(trained / "run"))
    assert warned_of(caplog) == [step_name(updates) for updates in (4, 5, 6, 7, 8)]
    assert caplog.text.count("File too large") >= 5


def test_a_run_whose_end_cannot_be_saved_says_so_and_can_be_repeated(
    tmp_path: Path, trained: Path, vp9_shards: ShardSet
) -> None:
    path = config_file(tmp_path, vp9_shards, checkpoint_every_steps=1)
    train_until(load_config(path), 7)
    with files_stay_below(SMALL), pytest.raises(TrainingError, match=step_name(7)):
        train(load_config(path))
    assert names_of(tmp_path / "run") == [step_name(6), step_name(7)]
    assert not list((tmp_path / "run/checkpoints").glob(".step-*"))  # what was half written takes no room
    train(load_config(path))
    assert same(weights(tmp_path / "run"), weights(trained / "run"))
    assert [line["step"] for line in read_metrics(tmp_path / "run/metrics.jsonl")] == list(range(1, 10))


def test_free_space_is_looked_at_before_anything_is_written(
    tmp_path: Path, vp9_shards: ShardSet, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    usage, disk_usage, written = namedtuple("usage", "total used free"), shutil.disk_usage, []
    monkeypatch.setattr(
        shutil, "disk_usage", lambda path: usage(*disk_usage(path)[:2], 10**6 if not written else 10**12)
    )
    monkeypatch.setattr(writing, "_make_room", lambda *paths: pytest.fail("it began to write"))
    path = config_file(tmp_path, vp9_shards, optim={"epochs": 1})
    with pytest.raises(TrainingError, match=step_name(3)[-1]):
        train(load_config(path))
    assert "1 MB are free" in caplog.text and not names_of(tmp_path / "run")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of two megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    command = [mount or "mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if mount is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a small file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk(
    tmp_path: Path,
    small_disk: Path,
    vp9_shards: ShardSet,
    trained: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Full to the last byte from the fourth update to the eighth."""
    monkeypatch.setattr(saving, "SPARE_BYTES", -(10**9))  # so that the disk itself refuses
    path = config_file(tmp_path, vp9_shards, checkpoint_every_steps=3, run_dir=str(small_disk / "run"))

    def fill(update: int) -> None:
        if update == 4:
            until(lambda: step_name(3) in names_of(small_disk / "run"))
            with pytest.raises(OSError, match="No space"), (small_disk / "filler").open("wb", buffering=0) as file:
                while True:
                    file.write(b"x" * 512)
        if update == 9:
            until(lambda: step_name(6) in warned_of(caplog))
            (small_disk / "filler").unlink()

    with before_each_update(fill):
        train(load_config(path))
    assert names_of(small_disk / "run") == [step_name(3), step_name(9)]
    assert same(weights(small_disk / "run"), weights(trained / "run"))
    assert [line["step"] for line in read_metrics(small_disk / "run/metrics.jsonl")] == list(range(1, 10))
    assert "No space left" in caplog.text


@pytest.mark.parametrize("every", [2, 4])
def test_a_line_of_the_log_over_several_updates_is_the_same_after_a_resume(
    tmp_path: Path, vp9_shards: ShardSet, every: int
) -> None:
    """The run stops between two lines; what was summed up so far comes with the checkpoint."""
    path = config_file(tmp_path, vp9_shards, optim={"epochs": 2, "accumulate": 2}, log_every_steps=every)
    lines = []
    for name, stop_at in (("whole", 0), ("halves", 1)):
        config = load_config(path, ["checkpoint_every_steps=1", f"run_dir={tmp_path / name}"])
        if stop_at:
            train_until(config, stop_at)
        train(config)
        lines.append(read_metrics(tmp_path / name / "metrics.jsonl"))
    exact = {"step", "epoch", "loss", "lr", "verb_top1", "noun_top1", "action_top1"}
    whole, halves = ([{key: line[key] for key in exact} for line in one] for one in lines)
    assert whole == halves and len(whole) > 1
    assert json.loads((tmp_path / "whole/checkpoints/step-00000006/checkpoint.json").read_text())["meters"] == [{}]


def test_a_background_save_leaves_no_thread(tmp_path: Path, vp9_shards: ShardSet) -> None:
    train(load_config(config_file(tmp_path, vp9_shards, optim={"epochs": 1})))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("checkpoint")]
    assert load_model(tmp_path / "run/checkpoints") and checkpoint.newest(tmp_path / "run/checkpoints")


def test_a_run_folder_that_cannot_be_written_to_is_named_before_training(tmp_path: Path, vp9_shards: ShardSet) -> None:
    path = config_file(tmp_path, vp9_shards)
    (tmp_path / "file").write_text("")
    (tmp_path / "taken/metrics.jsonl").mkdir(parents=True)
    for run_dir in (tmp_path / "file/run", tmp_path / "taken"):
        with pytest.raises(RunFolderError, match=str(run_dir)) as refused:
            train(load_config(path, [f"run_dir={run_dir}"]))
        assert "\n" not in str(refused.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_run_folder_without_permission_is_named_before_training(tmp_path: Path, vp9_shards: ShardSet) -> None:
    config = load_config(config_file(tmp_path, vp9_shards))
    (tmp_path / "run").mkdir(mode=0o500)
    with pytest.raises(RunFolderError, match=config.run_dir):
        train(config)
