"""How an update ends: the weights move by the gradients of its passes, or they stay."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_value_, clip_grads_with_norm_, get_total_norm

from lavila.config.schema import OptimConfig
from lavila.engine.checkpoint import TrainState
from lavila.engine.optim import LearningRate

LEAST_SCALE = 1.0  # of fp16's loss scaler: a gradient that overflows at this scale does so without a scale as well


class Outcome(enum.Enum):
    """What became of an update."""

    MOVED = "the weights have moved"
    SKIPPED = "a loss or a gradient is not finite, and the weights stay"
    OVERFLOW = "fp16: the scaled gradient was too large, the scale is halved, and the weights stay"


@dataclass(frozen=True, kw_only=True)
class Mover:
    """Moves the weights of a run by the gradients that they have."""

    state: TrainState
    rate: LearningRate
    optim: OptimConfig

    def move(self, place: int) -> Outcome:
        """End an update. `place`: its number in the whole run, from 0.

        All ranks have the same gradients, the mean over the ranks, and an infinite or NaN value of one rank is not
        finite in that mean. So all ranks come to the same outcome, and none needs to ask the others. fp16's loss scaler
        begins with a scale that is too large and halves it until gradients fit: that is OVERFLOW, and no fault.
        """
        optimizer, scaler = self.state.optimizer, self.state.scaler
        self.rate.set(optimizer.param_groups, place)
        scaler.unscale_(optimizer)
        parameters = [parameter for parameter in self.state.model.parameters() if parameter.grad is not None]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        norm = get_total_norm(gradients)
        # On a GPU, this is where the host waits for the backward pass.
        if not _all_finite(gradients, norm):
            overflow = scaler.is_enabled() and scaler.get_scale() > LEAST_SCALE
            scaler.update()
            return Outcome.OVERFLOW if overflow else Outcome.SKIPPED
        if self.optim.clip_grad_norm:
            clip_grads_with_norm_(parameters, self.optim.clip_grad_norm, norm)
        if self.optim.clip_grad_value:
            clip_grad_value_(parameters, self.optim.clip_grad_value)
        scaler.step(optimizer)
        scaler.update()
        return Outcome.MOVED


def bad_gradients(model: nn.Module) -> list[str]:
    """The parameters whose gradient has a value that is not finite."""
    return [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and not bool(parameter.grad.isfinite().all())
    ]


def _all_finite(gradients: Sequence[Tensor], norm: Tensor) -> bool:
    """Whether all values are finite. The norm is finite only then; squares that overflow make it infinite as well."""
    return bool(norm.isfinite()) or bool(torch.stack([one.isfinite().all() for one in gradients]).all())
