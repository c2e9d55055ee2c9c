"""Runs that stop where a test wants them to, and what they saw."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lavila.config.schema import RunConfig
from lavila.engine import checkpoint
from lavila.engine.saving import Saver
from lavila.engine.trainer import train
from lavila.tasks.classification import ClassificationTask


def train_until(config: RunConfig, updates: int) -> Path:
    """Train and stop, as a kill does, right after the checkpoint of so many updates. Returns that checkpoint."""
    save, saved = Saver.save, []

    def save_then_die(self: Saver, **named: Any) -> None:
        save(self, **named)
        self.finish()
        if self.newest is not None and self.newest.name == checkpoint.step_name(updates):
            saved.append(self.newest)
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Saver, "save", save_then_die)
        train(config)
    return saved[0]


@contextmanager
def signalled(kind: type[Any], number: signal.Signals, *, updates: int | None) -> Iterator[None]:
    """This process signals itself in the step of a task that makes update `updates` of a process; None = never."""
    step, calls = kind.step, itertools.count(1)

    def signalling(self: Any, batch: Any) -> Any:
        if next(calls) == updates:
            os.kill(os.getpid(), number)
        return step(self, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind, "step", signalling)
        yield


@contextmanager
def clips_seen() -> Iterator[list[list[int]]]:
    """The rows of each batch that a task is trained on meanwhile."""
    rows: list[list[int]] = []
    step = ClassificationTask.step

    def noting(self: ClassificationTask, batch: Any) -> Any:
        rows.append(batch.rows.tolist())
        return step(self, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ClassificationTask, "step", noting)
        yield rows
