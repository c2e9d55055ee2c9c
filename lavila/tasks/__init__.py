"""A task owns a model, its loss and its metrics. There is one trainer and one evaluator for all of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from lavila.errors import UserError
from lavila.records import VideoBatch


class TaskError(UserError):
    """A model and a data set that do not fit together."""


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """What a model says of some clips. Plain arrays, so that ranks can exchange them."""

    rows: npt.NDArray[np.int64]  # [N] rows in clips.parquet
    scores: dict[str, npt.NDArray[np.float32]]  # head -> [N, K] probabilities, fused over views
    targets: dict[str, npt.NDArray[np.int64]]  # head -> [N] class indices; -1 = not labelled


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What predictions are worth."""

    metrics: dict[str, float]  # percent, the most telling first
    heads: dict[str, dict[str, Any]] = field(default_factory=dict)  # for the report: classes, confusion, accuracies


class Task(Protocol):
    """What trainer and evaluator ask of a task."""

    model: nn.Module  # the trainer may wrap it, for instance in DistributedDataParallel

    def step(self, batch: VideoBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of a training batch (scalar, with gradient) and scalars to log."""
        ...

    def predict(self, batch: VideoBatch) -> Predictions:
        """Fused predictions for an evaluation batch."""
        ...

    def score(self, predictions: Predictions) -> Scores:
        """Metrics over all clips."""
        ...


def concatenate(parts: list[Predictions]) -> Predictions:
    """All clips in row order; a clip that comes twice is an error of ours."""
    rows = np.concatenate([part.rows for part in parts])
    order = np.argsort(rows, kind="stable")
    assert len(np.unique(rows)) == len(rows), "a clip was predicted twice"
    return Predictions(
        rows=rows[order],
        scores={head: np.concatenate([part.scores[head] for part in parts])[order] for head in parts[0].scores},
        targets={head: np.concatenate([part.targets[head] for part in parts])[order] for head in parts[0].targets},
    )
