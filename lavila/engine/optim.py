"""Frozen parts, optimisers, parameter groups and the learning-rate schedule; the last two as in the reference.

Golden: `scheduler.json`. What is particular there and kept: the warm-up includes the peak at its last step, and the
cosine starts at the peak again. The reference multiplies the rates of all groups, whatever the name of its option says;
that is `lr_multiplier_for=all`, and published recipes have it. Without a schedule it multiplies those of the backbone
alone; that is `lr_multiplier_for=backbone`. Here both work with either schedule. A task says what its backbone is.

`optim.shard_state` gives each rank the optimiser's state of its share of the parameters (ZeRO's first stage, as the
reference's `--use-zero`), and not FSDP2, for these reasons. Of what TimeSformer-L with its text tower keeps, AdamW's
state is half, and one rank holds the weights and gradients with ease; activations, which take most, are a matter of
gradient checkpointing. The parameters stay plain tensors: checkpoints, evaluations and losses need not know of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lavila.config.schema import ConfigError, OptimConfig

MOMENTS: dict[type[torch.optim.Optimizer], tuple[str, ...]] = {  # what is kept in the size of each parameter
    torch.optim.SGD: ("momentum_buffer",),
    torch.optim.AdamW: ("exp_avg", "exp_avg_sq"),
}

InBackbone = Callable[[str], bool]  # takes a parameter's name: `Task.in_backbone`


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
    for_all = config.lr_multiplier_for == "all"
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


def build_optimizer(
    model: nn.Module, config: OptimConfig, *, in_backbone: InBackbone, ranks: int = 1
) -> torch.optim.Optimizer:
    """SGD with momentum, or AdamW. With `shard_state` and several ranks, each keeps the state of its share.

    ranks: of the run, which torch.distributed knows already if they are several.
    """
    groups = parameter_groups(model, config, in_backbone=in_backbone)
    kind: type[torch.optim.Optimizer] = torch.optim.AdamW
    settings: dict[str, Any] = {"lr": config.lr, "betas": config.betas, "eps": config.eps}
    if all(parameter.device.type == "cpu" for parameter in model.parameters()):
        settings["fused"] = True  # one pass over memory: a fifth less CPU time in all for the quickstart's training
    if config.optimizer == "sgd":
        kind, settings = torch.optim.SGD, {"lr": config.lr, "momentum": config.momentum}
    if config.shard_state and ranks > 1:
        from torch.distributed.optim import ZeroRedundancyOptimizer  # imported here, since it takes a second

        return ZeroRedundancyOptimizer(groups, optimizer_class=kind, **settings)
    return kind(groups, **settings)


def own_part(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The optimiser with the state that this rank keeps: all of it, unless the state is sharded."""
    inner: torch.optim.Optimizer = getattr(optimizer, "optim", optimizer)  # ZeroRedundancyOptimizer has one
    return inner


def blank_state(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> dict[str, Tensor]:
    """What an optimiser of `build_optimizer` keeps for a parameter, with values to be filled in."""
    moments = MOMENTS[type(own_part(optimizer))]
    state = {name: torch.empty_like(parameter, requires_grad=False) for name in moments}
    return state if len(moments) == 1 else {"step": torch.tensor(0.0), **state}  # counted on the CPU


def freeze(model: nn.Module, names: Sequence[str]) -> None:
    """Have parts of a model keep their weights: no gradient, and so no state of the optimiser.

    names: parts that the model's `parts` names, or parameters' names with * for anything, such as `visual.blocks.0.*`.
    ConfigError for a name that fits nothing, and where nothing would be left to train.
    """
    parts: Mapping[str, Sequence[str]] = getattr(model, "parts", {})
    parameters = dict(model.named_parameters())
    for name in names:
        found = fitting(parameters, parts.get(name, (name,)))
        if not found:
            groups = sorted({known.split(".")[0] + (".*" if "." in known else "") for known in parameters})
            raise ConfigError(
                f"model.freeze={name}: no part and no parameter of this model; its parts are {', '.join(parts)}, its "
                f"parameters {', '.join(groups)} (* stands for anything)"
            )
        for known in found:
            parameters[known].requires_grad_(False)
    if not any(parameter.requires_grad for parameter in parameters.values()):
        raise ConfigError(f"model.freeze={list(names)}: that is the whole model, nothing is left to train; name less")


def fitting(names: Iterable[str], patterns: Sequence[str]) -> list[str]:
    """The names that fit a pattern, but for those that fit one with a ! before it; * stands for anything."""
    left_out = [pattern[1:] for pattern in patterns if pattern.startswith("!")]
    taken = [pattern for pattern in patterns if not pattern.startswith("!")]
    return [
        name
        for name in names
        if any(fnmatchcase(name, pattern) for pattern in taken)
        and not any(fnmatchcase(name, pattern) for pattern in left_out)
    ]


def train_mode(model: nn.Module) -> None:
    """`model.train()`, but modules whose parameters are all frozen stay as in evaluation: without dropout, say."""
    model.train()
    for module in model.modules():
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            module.eval()


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
        if config.schedule == "constant":
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
