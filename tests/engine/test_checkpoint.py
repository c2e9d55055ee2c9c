"""Checkpoints are whole or absent, whatever moment a run is killed at, and are found by what they hold."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo  # the next two now: an import that a kill cuts short cannot be repeated
import torch.distributed.checkpoint

from lavila.checkpoints.errors import CheckpointError
from lavila.checkpoints.store import load_model
from lavila.engine import checkpoint, writing
from lavila.engine.checkpoint import FACTS, Best, Progress, TrainState, best_of, note_if_best
from lavila.engine.distributed import Process
from lavila.engine.run_folder import start_from, subject_of
from lavila.engine.writing import Beside
from lavila.models.classifier import VideoClassifier
from lavila.models.timesformer import TimeSformer, TimeSformerConfig

PROCESS = Process(rank=0, world=1, local_world=1, device=torch.device("cpu"))


def state_at(updates: int) -> TrainState:
    """A state whose every weight and every momentum is the number of its updates."""
    tower = TimeSformerConfig(image_size=16, patch_size=8, width=8, depth=1, heads=1, num_frames=2)
    model = VideoClassifier(TimeSformer(tower), num_classes=(2,), dropout=0.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)
    for parameter in model.parameters():
        parameter.data.fill_(updates)
        optimizer.state[parameter]["momentum_buffer"] = torch.full_like(parameter, updates)
    return TrainState(
        model=model,
        optimizer=optimizer,
        scaler=torch.amp.GradScaler("cpu", enabled=False),
        progress=Progress(updates=updates, epoch=updates),
        order={"seed": 0},
    )


def save(run_dir: Path, updates: int, *, keep: int = 1, spared: str = "") -> Path:
    beside = Beside(config_yaml="seed: 0\n", extra={"classes": "{}"}, keep=keep, spared=spared)
    return writing.save(run_dir, state_at(updates), process=PROCESS, beside=beside)


def loaded(path: Path) -> int:
    """The updates of a checkpoint, after a look at every tensor in it."""
    state = state_at(0)
    facts = checkpoint.load(path, state, process=PROCESS)
    for parameter in state.model.parameters():
        assert bool((parameter == facts.progress.updates).all())
        assert bool((state.optimizer.state[parameter]["momentum_buffer"] == facts.progress.updates).all())
    return facts.progress.updates


class Killed(BaseException):
    """What a process does after it was killed: nothing."""


class Killer:
    """Ends everything at the n-th step that a process asks of the operating system, and at all that follow.

    A step is whatever Python reports to its audit hooks of files (open for writing, mkdir, rename, remove, rmdir, ...),
    and each fsync; one that is killed leaves half of the file that it should have put on the disk.
    """

    CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "os.chmod", "shutil.rmtree")

    def __init__(self) -> None:
        self.left: int | None = None  # steps before the kill; None = nobody is killed
        self.steps: list[str] = []
        sys.addaudithook(self._audit)  # for good: hooks cannot be taken away

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.left is None:
            return
        if event in self.CHANGES or (event == "open" and arguments[2] and arguments[2] & (os.O_WRONLY | os.O_RDWR)):
            self._step(event)

    def _step(self, event: str, *, before: Callable[[], None] = lambda: None) -> None:
        assert self.left is not None
        self.steps.append(event)
        self.left -= 1
        if self.left < 0:
            if self.left == -1:
                self.left, rest = None, self.left
                before()
                self.left = rest
            raise Killed(event)

    @contextmanager
    def after(self, steps: int, patch: pytest.MonkeyPatch) -> Iterator[None]:
        def torn(descriptor: int) -> None:
            path = Path(f"/proc/self/fd/{descriptor}").readlink()
            if path.is_file():
                os.truncate(path, path.stat().st_size // 2)

        def step(descriptor: int) -> None:
            self._step("fsync", before=lambda: torn(descriptor))

        with patch.context() as patched:
            patched.setattr(os, "fsync", step)
            self.left, self.steps = steps, []
            try:
                yield
            finally:
                self.left = None


@pytest.fixture(scope="module")
def killer() -> Killer:
    return Killer()


@pytest.mark.parametrize("situation", ["first", "second", "what a kill left"])
def test_a_run_that_is_killed_while_it_saves_finds_a_whole_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killer: Killer, situation: str
) -> None:
    start = tmp_path / "start"
    if situation != "first":
        save(start, 1)
    if situation == "what a kill left":  # a torn one of the name that will be saved, and temporary folders and files
        for name in ("step-00000002", ".step-00000002.tmp", ".step-00000000.old.tmp"):
            (start / "checkpoints" / name).mkdir()
            (start / "checkpoints" / name / "model.safetensors").write_bytes(b"half")
        (start / "checkpoints/latest.elsewhere.77.tmp").write_text("step-000")
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # nobody pulls the plug on this machine meanwhile
    found = []
    for steps in itertools.count():
        run_dir = tmp_path / "run"
        shutil.copytree(start, run_dir) if start.exists() else run_dir.mkdir()
        try:
            with killer.after(steps, monkeypatch):
                save(run_dir, 2)
        except BaseException as error:  # PyTorch wraps what it meets while it writes
            assert "Killed" in repr(error), error
            done = False
        else:
            done = True
        newest = start_from(run_dir, "auto")
        found.append(0 if newest is None else loaded(newest))
        if newest is not None:
            assert subject_of(run_dir, "").model == str(newest)
            latest = run_dir / "checkpoints/latest"  # names a whole one too, for load_model
            assert not latest.exists() or load_model(run_dir / "checkpoints")
        # A run that continues from there saves as if nothing had happened, and clears what was left.
        final = save(run_dir, max(found[-1], 1) + 1)
        assert loaded(final) == max(found[-1], 1) + 1
        assert sorted(path.name for path in (run_dir / "checkpoints").iterdir()) == ["latest", final.name]
        assert (run_dir / "checkpoints/latest").read_text() == f"{final.name}\n"
        shutil.rmtree(run_dir)
        if done:
            break
    assert found == sorted(found) and set(found) == ({0, 2} if situation == "first" else {1, 2})
    assert len(found) > 20 and {"open", "fsync", "os.mkdir", "os.rename"} <= set(killer.steps)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("model.safetensors", truncate),
        ("model.safetensors", flip),
        ("model.safetensors", Path.unlink),
        ("train_state/.metadata", Path.unlink),
        ("train_state/.metadata", truncate),
        ("train_state/__0_0.distcp", flip),
        ("checkpoint.json", Path.unlink),
        ("checkpoint.json", truncate),
    ],
)
def test_what_is_not_whole_is_passed_over_or_refused(tmp_path: Path, name: str, damage: Callable[[Path], None]) -> None:
    for updates in (1, 2):
        save(tmp_path, updates, keep=2)
    folders = [tmp_path / "checkpoints" / checkpoint.step_name(updates) for updates in (1, 2)]
    damage(folders[1] / name)
    assert checkpoint.torn(folders[1]) is not None
    assert start_from(tmp_path, "auto") == folders[0] and start_from(tmp_path, str(tmp_path)) == folders[0]
    with pytest.raises(CheckpointError, match="step-00000002"):
        start_from(tmp_path / "other", str(folders[1]))
    damage(folders[0] / name)
    with pytest.raises(CheckpointError, match=r"step-00000002.*step-00000001"):
        start_from(tmp_path, "auto")


@pytest.mark.parametrize("latest", [None, "", "step-00000099\n", "step-0000", "../elsewhere"])
def test_the_newest_is_found_whatever_latest_says(tmp_path: Path, latest: str | None) -> None:
    save(tmp_path, 1)
    newest = save(tmp_path, 2)
    file = tmp_path / "checkpoints/latest"
    file.unlink() if latest is None else file.write_text(latest)
    assert start_from(tmp_path, "auto") == newest
    assert subject_of(tmp_path, "").model == subject_of(tmp_path, str(newest.parent)).model == str(newest)


def test_a_whole_checkpoint_is_never_written_over(tmp_path: Path) -> None:
    path = save(tmp_path, 2)
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    with pytest.raises(CheckpointError, match="step-00000002"):
        save(tmp_path, 2)
    assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} == before


def test_people_may_edit_the_config_of_a_checkpoint(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    (path / "config.yaml").write_text("seed: 7\n")
    assert checkpoint.torn(path) is None
    values = json.loads((path / "checkpoint.json").read_text())
    assert set(values["files"]) == {"model.safetensors", "train_state/.metadata", "train_state/__0_0.distcp"}


def test_the_loss_scale_is_kept_where_the_precision_is(tmp_path: Path) -> None:
    def scaling(*, enabled: bool, scale: float = 65536.0) -> TrainState:
        return replace(state_at(1), scaler=torch.amp.GradScaler("cpu", init_scale=scale, enabled=enabled))

    for name, enabled in (("fp16", True), ("bf16", False)):
        beside = Beside(config_yaml="", extra={}, keep=1)
        writing.save(tmp_path / name, scaling(enabled=enabled, scale=8.0), process=PROCESS, beside=beside)
    loads = {}
    for name, enabled in (("fp16", True), ("fp16", False), ("bf16", True)):
        state = scaling(enabled=enabled)
        checkpoint.load(tmp_path / name / "checkpoints" / "step-00000001", state, process=PROCESS)
        loads[name, enabled] = state.scaler.get_scale()
    assert loads == {("fp16", True): 8.0, ("fp16", False): 1.0, ("bf16", True): 65536.0}


@pytest.mark.parametrize(
    ("lower", "values", "kept"),
    [(False, [1.0, 3.0, 2.0, float("nan")], 3.0), (True, [3.0, 1.0, float("nan"), 2.0], 1.0)],
)
def test_the_best_by_a_metric_of_which_less_may_be_better(
    lower: bool, values: list[float], kept: float, tmp_path: Path
) -> None:
    for number, value in enumerate(values):
        (folder := tmp_path / f"step-{number}").mkdir()
        (folder / FACTS).touch()
        note_if_best(tmp_path, Best(checkpoint=folder.name, metric="val/x", value=value, lower_is_better=lower))
    best = best_of(tmp_path)
    assert best is not None and best.value == kept


def test_a_first_value_that_is_no_number_is_not_the_best(tmp_path: Path) -> None:
    note_if_best(tmp_path, Best(checkpoint="step-0", metric="val/x", value=float("nan")))
    assert best_of(tmp_path) is None
