"""Training losses."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

NOT_LABELLED = -1


def classification_loss(logits: Tensor, targets: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy over the labelled clips of a batch, a scalar.

    logits: [B, K]. targets: [B] int64 class indices; -1 = not labelled, which counts for nothing. A batch without any
    label gives 0 with a gradient of 0, so that ranks stay in step.
    """
    if not (targets != NOT_LABELLED).any():
        return logits.sum() * 0.0
    return cross_entropy(
        logits.float(), targets, ignore_index=NOT_LABELLED, label_smoothing=label_smoothing, reduction="mean"
    )


def batch_accuracy(logits: Tensor, targets: Tensor) -> Tensor:
    """Share of the labelled clips whose largest logit is right, in percent, a scalar; NaN without any label."""
    labelled = targets != NOT_LABELLED
    return (logits.argmax(-1) == targets)[labelled].float().mean() * 100 if labelled.any() else torch.tensor(torch.nan)
