"""Classification tasks with bad numbers in passes that a test chooses."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from lavila.records import VideoBatch
from lavila.tasks.classification import ClassificationTask


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


@contextmanager
def bad_gradients(*passes: int, value: float = float("inf")) -> Iterator[list[tuple[str, ...]]]:
    """Spoil the gradients of the batches of these passes, whose losses stay as they are; gives the clips of each."""
    number, step = itertools.count(), ClassificationTask.step
    clips: list[tuple[str, ...]] = []

    def spoiling(self: ClassificationTask, batch: VideoBatch) -> Any:
        loss, logs = step(self, batch)
        if batch.clip_ids not in clips:  # a pass that is made again is as bad
            if next(number) not in passes:
                return loss, logs
            clips.append(batch.clip_ids)
        return loss + spoiled(loss - loss.detach(), value), logs

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ClassificationTask, "step", spoiling)
        yield clips


def spoiled(nothing: torch.Tensor, value: float) -> torch.Tensor:
    """`nothing`, which is 0, with a gradient of `value`."""
    nothing.register_hook(lambda gradient: gradient * value)
    return nothing
