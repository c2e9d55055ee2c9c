"""Optimisers, parameter groups and the learning-rate schedule, as in the reference.

Golden: `scheduler.json`. What is particular there and kept: the warm-up includes the peak at its last step, the cosine
starts at the peak again, and while the schedule is on, `backbone_lr_multiplier` applies to every group, the head's too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from lavila.config.schema import OptimConfig, Optimizer, Schedule

HEAD = "fc_cls"  # parameters of the classification heads have this in their name


def parameter_groups(model: nn.Module, config: OptimConfig) -> list[dict[str, object]]:
    """Backbone and head, each split into decayed and not decayed; empty groups are left out.

    No decay for vectors and scalars and for names with "bias", "ln" or "bn"; embeddings and the class token decay.
    """
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for in_head in (False, True):
        for decays in (True, False):
            groups[in_head, decays] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            exempt = parameter.ndim < 2 or any(part in name for part in ("bias", "ln", "bn"))
            groups[HEAD in name, not exempt].append(parameter)
    return [
        {
            "params": parameters,
            "weight_decay": config.weight_decay if decays else 0.0,
            "lr": config.lr * (1.0 if in_head else config.backbone_lr_multiplier),
        }
        for (in_head, decays), parameters in groups.items()
        if parameters
    ]


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """SGD with momentum betas[0], or AdamW."""
    groups = parameter_groups(model, config)
    if config.optimizer is Optimizer.sgd:
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.betas[0])
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps)


def cosine_schedule(
    *, peak: float, end: float, start: float, epochs: int, warmup_epochs: float, steps: int
) -> np.ndarray:
    """The learning rate of every step of a run, [epochs * steps] float64. `steps`: optimiser steps of an epoch."""
    warmup = int(warmup_epochs * steps)
    total = epochs * steps
    up = np.linspace(start, peak, warmup) if warmup else np.zeros(0)
    rest = total - warmup
    down = end + 0.5 * (peak - end) * (1 + np.cos(math.pi * np.arange(rest) / max(rest, 1)))
    return np.concatenate([up, down])


@dataclass(frozen=True)
class LearningRate:
    """Sets the rates of all groups before a step."""

    values: np.ndarray | None  # per step; None = constant at what the groups started with

    @classmethod
    def of(cls, config: OptimConfig, *, steps: int) -> LearningRate:
        """The schedule of a run with `steps` optimiser steps an epoch."""
        if config.schedule is Schedule.constant:
            return cls(None)
        values = cosine_schedule(
            peak=config.lr,
            end=config.lr_end,
            start=config.lr_start,
            epochs=config.epochs,
            warmup_epochs=config.warmup_epochs,
            steps=steps,
        )
        return cls(values * config.backbone_lr_multiplier)

    def set(self, groups: Iterable[dict[str, object]], step: int) -> None:
        """The rates of a step, counted over the whole run."""
        if self.values is not None:
            for group in groups:
                group["lr"] = float(self.values[step])
