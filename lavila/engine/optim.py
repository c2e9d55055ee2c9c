"""Optimisers, parameter groups and the learning-rate schedule, as in the reference.

Golden: `scheduler.json`. What is particular there and kept: the warm-up includes the peak at its last step, and the
cosine starts at the peak again. The reference multiplies the rates of all groups, whatever the name of its option says;
that is `lr_multiplier_for=all`, and published recipes have it. Without a schedule it multiplies those of the backbone
alone; that is `lr_multiplier_for=backbone`. Here both work with either schedule. A task says what its backbone is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from lavila.config.schema import MultiplierScope, OptimConfig, Optimizer, Schedule

InBackbone = Callable[[str], bool]  # of a parameter's name: `Task.in_backbone`


@dataclass(frozen=True, kw_only=True)
class Group:
    """Parameters that are treated alike."""

    parameters: list[nn.Parameter]
    decays: bool
    multiplier: float  # the learning rate is this times the schedule


def split_parameters(model: nn.Module, config: OptimConfig, *, in_backbone: InBackbone) -> list[Group]:
    """Backbone and rest, each split into decayed and not decayed, in this order; empty groups are left out.

    No decay for vectors and scalars and for names with "bias", "ln" or "bn"; embeddings and the class token decay.
    """
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for backbone in (True, False):
        for decays in (True, False):
            groups[backbone, decays] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            exempt = parameter.ndim < 2 or any(part in name for part in ("bias", "ln", "bn"))
            groups[in_backbone(name), not exempt].append(parameter)
    for_all = config.lr_multiplier_for is MultiplierScope.all
    return [
        Group(parameters=parameters, decays=decays, multiplier=config.lr_multiplier if for_all or backbone else 1.0)
        for (backbone, decays), parameters in groups.items()
        if parameters
    ]


def parameter_groups(model: nn.Module, config: OptimConfig, *, in_backbone: InBackbone) -> list[dict[str, object]]:
    """The groups of `split_parameters` as an optimiser takes them, each at its peak rate."""
    return [
        {
            "params": group.parameters,
            "weight_decay": config.weight_decay if group.decays else 0.0,
            "lr": config.lr * group.multiplier,
        }
        for group in split_parameters(model, config, in_backbone=in_backbone)
    ]


def build_optimizer(model: nn.Module, config: OptimConfig, *, in_backbone: InBackbone) -> torch.optim.Optimizer:
    """SGD with momentum, or AdamW."""
    groups = parameter_groups(model, config, in_backbone=in_backbone)
    if config.optimizer is Optimizer.sgd:
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum)
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

    values: np.ndarray  # [steps of the run] where the multiplier is 1
    multipliers: tuple[float, ...]  # one a parameter group

    @classmethod
    def of(cls, config: OptimConfig, model: nn.Module, *, steps: int, in_backbone: InBackbone) -> LearningRate:
        """The schedule of a run with `steps` optimiser steps an epoch, for the groups of `build_optimizer`."""
        groups = split_parameters(model, config, in_backbone=in_backbone)
        multipliers = tuple(group.multiplier for group in groups)
        if config.schedule is Schedule.constant:
            return cls(np.full(config.epochs * steps, config.lr), multipliers)
        values = cosine_schedule(
            peak=config.lr,
            end=config.lr_end,
            start=config.lr_start,
            epochs=config.epochs,
            warmup_epochs=config.warmup_epochs,
            steps=steps,
        )
        return cls(values, multipliers)

    def set(self, groups: Iterable[dict[str, object]], step: int) -> None:
        """The rates of a step, counted over the whole run."""
        for group, multiplier in zip(groups, self.multipliers, strict=True):
            group["lr"] = float(self.values[step]) * multiplier
