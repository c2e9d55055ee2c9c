"""Training losses. Nothing here waits for the GPU: no value is looked at on the host."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import cross_entropy

NOT_LABELLED = -1


def classification_loss(logits: Tensor, targets: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy over the labelled clips of a batch, a scalar.

    logits: [B, K]. targets: [B] int64 class indices; -1 = not labelled, which counts for nothing. A batch without any
    label gives 0 with a gradient of 0, so that ranks stay in step.
    """
    total = cross_entropy(
        logits.float(), targets, ignore_index=NOT_LABELLED, label_smoothing=label_smoothing, reduction="sum"
    )
    return total / (targets != NOT_LABELLED).sum().clamp(min=1)


def batch_accuracy(logits: Tensor, targets: Tensor) -> Tensor:
    """Share of the labelled clips whose largest logit is right, in percent, a scalar; NaN without any label."""
    labelled = targets != NOT_LABELLED
    return 100 * ((logits.argmax(-1) == targets) & labelled).sum() / labelled.sum()
