"""Action recognition: one classifier head per kind of label, trained on the sum of their losses.

Published scores of EPIC-KITCHENS-100 (97 verbs, 300 nouns, 3,806 actions) are top-1 accuracies of each head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from lavila.losses.classification import batch_accuracy, classification_loss
from lavila.metrics.classification import (
    FusionRule,
    confused_pairs,
    confusion_matrix,
    fuse_views,
    mean_class_accuracy,
    topk_accuracy,
)
from lavila.records import VideoBatch
from lavila.tasks import Predictions, Scores, TaskError

LARGEST_MATRIX = 300  # classes; above, the report lists the pairs most often confused
PAIRS = 20


@dataclass(frozen=True, kw_only=True)
class ClassificationSettings:
    """How heads are trained and views are fused."""

    head_weights: tuple[float, ...]  # of each head's loss in the sum
    label_smoothing: float = 0.1
    fusion: FusionRule = "mean_logits"
    view_batch_size: int = 0  # views per forward pass; 0 = all views of a batch at once


class ClassificationTask:
    """A `VideoClassifier` with the names of its classes.

    model: logits of a head each, as a tensor or a tuple. classes: head -> class names, in the order of the model's
    heads. Raises TaskError where their numbers disagree.
    """

    def __init__(self, model: nn.Module, *, classes: Mapping[str, Sequence[str]], settings: ClassificationSettings):
        sizes = tuple(len(names) for names in classes.values())
        if tuple(getattr(model, "num_classes", sizes)) != sizes:
            raise TaskError(
                f"the model has heads of {list(getattr(model, 'num_classes', ()))} classes, the shard set has "
                f"{dict(zip(classes, sizes, strict=True))}; use the shard set the model was made for, or task.heads"
            )
        self.model, self.classes, self._settings = model, classes, settings

    def step(self, batch: VideoBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted sum of the heads' losses; logs `loss` and each head's top-1 accuracy on the batch."""
        assert batch.video.shape[1] == 1, "training has one view a clip"
        video, labels = batch.video[:, 0], batch.labels
        if not len(batch):  # every clip of the batch was bad: pass one black clip that counts for nothing
            video = torch.zeros((1, *video.shape[1:]), dtype=video.dtype, device=video.device)
            labels = {head: torch.full((1,), -1, device=video.device) for head in self.classes}
        logits = self._logits(video)
        smoothing, weights = self._settings.label_smoothing, self._settings.head_weights
        losses = [
            weight * classification_loss(logits[head], labels[head], label_smoothing=smoothing)
            for head, weight in zip(self.classes, weights, strict=True)
        ]
        loss = torch.stack(losses).sum()
        accuracies = {f"{head}_top1": batch_accuracy(logits[head].detach(), labels[head]) for head in self.classes}
        return loss, {"loss": loss.detach(), **accuracies}

    @torch.no_grad()
    def predict(self, batch: VideoBatch) -> Predictions:
        """Probabilities of each clip, fused over its views."""
        clips, views = batch.video.shape[:2]
        video = batch.video.flatten(0, 1)
        parts = [self._logits(part) for part in video.split(self._settings.view_batch_size or max(len(video), 1))]
        scores = {}
        for head in self.classes:
            logits = torch.cat([part[head] for part in parts]).float().cpu().numpy()
            fused = fuse_views(logits.reshape(clips, views, -1), rule=self._settings.fusion)
            scores[head] = fused.astype(np.float32)
        targets = {head: batch.labels[head].cpu().numpy() for head in self.classes}
        return Predictions(rows=batch.rows, scores=scores, targets=targets)

    def score(self, predictions: Predictions) -> Scores:
        """`<head>_top1`, `<head>_top5`, `<head>_mean_class` in percent over the clips that have the label."""
        metrics: dict[str, dict[str, float]] = {}
        heads = {}
        for head, names in self.classes.items():
            labelled = predictions.targets[head] >= 0
            if not labelled.any():
                continue
            scores, targets = predictions.scores[head][labelled], predictions.targets[head][labelled]
            confusion = confusion_matrix(scores.argmax(1), targets, num_classes=len(names))
            metrics[head] = {
                "top1": topk_accuracy(scores, targets, k=1),
                "top5": topk_accuracy(scores, targets, k=min(5, len(names))),
                "mean_class": mean_class_accuracy(confusion, absent_as_zero=False),
            }
            heads[head] = _head_report(list(names), confusion)
        ordered = {f"{head}_{kind}": metrics[head][kind] for kind in ("top1", "top5", "mean_class") for head in metrics}
        return Scores(metrics=ordered, heads=heads)

    def _logits(self, video: Tensor) -> dict[str, Tensor]:
        logits = self.model(video)
        return dict(zip(self.classes, logits if isinstance(logits, tuple) else (logits,), strict=True))


def _head_report(names: list[str], confusion: npt.NDArray[np.int64]) -> dict[str, Any]:
    support = confusion.sum(1)
    right = confusion.diagonal()
    accuracy = [float(r) / int(n) * 100 if n else None for r, n in zip(right, support, strict=True)]
    report: dict[str, Any] = {"classes": names, "per_class_accuracy": accuracy, "support": support.tolist()}
    if len(names) <= LARGEST_MATRIX:
        return report | {"confusion": confusion.tolist()}
    return report | {"confused_pairs": [list(pair) for pair in confused_pairs(confusion, most=PAIRS)]}
