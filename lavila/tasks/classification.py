"""Action recognition: one classifier head per kind of label, trained on the sum of their losses.

Published scores of EPIC-KITCHENS-100 (97 verbs, 300 nouns, 3,806 actions) are top-1 accuracies of each head.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from lavila.losses.classification import batch_accuracy, classification_loss
from lavila.metrics.classification import (
    confused_pairs,
    confusion_matrix,
    fuse_views,
    mean_class_accuracy,
    topk_accuracy,
)
from lavila.metrics.units import Metric, Metrics, Unit
from lavila.models.classifier import VideoClassifier
from lavila.records import VideoBatch
from lavila.tasks import (
    Baseline,
    Headline,
    ModelParts,
    Predictions,
    Scores,
    Section,
    TaskError,
    TaskFacts,
    TaskOptions,
)

LARGEST_MATRIX = 300  # classes; above, the report lists the pairs most often confused
PAIRS = 20
SHOWN_CLASSES = 3  # in a message, where they differ
HEADS = "fc_cls"  # parameters of the classification heads have this in their name

TABLES_NOTE = (
    "Matrix: a row is the truth, a column the model's first guess, a number counts clips; green is right, red is "
    "wrong, stronger for a larger share of the row. Bars: share of each class that is right, and how many clips it has."
)


class Classification:
    """How classification is made: its facts are `classes`, head -> class names in the order of the model's heads."""

    def facts(self, options: TaskOptions, classes: Mapping[str, Sequence[str]], *, of: object) -> TaskFacts:
        """Class names of each head. TaskError where the shard set has no such labels."""
        missing = [head for head in options.heads if not classes.get(head)]
        if missing:
            known = [kind for kind, names in classes.items() if names]
            raise TaskError(f"task.heads: {of} has no {', '.join(missing)} labels; it has {', '.join(known)}")
        return {"classes": {head: list(classes[head]) for head in options.heads}}

    def check(self, found: TaskFacts, wanted: TaskFacts, *, of: object, wanted_by: object) -> None:
        """Raise TaskError unless the heads and the names of their classes are the same, in the same order."""
        ours, theirs = found["classes"], wanted.get("classes") or {}
        if theirs and list(ours) != list(theirs):
            heads = ",".join(theirs)
            raise TaskError(
                f"task.heads={list(ours)}, but {wanted_by} has the heads {list(theirs)}; set task.heads=[{heads}]"
            )
        for head in theirs:
            if difference := _difference(ours[head], theirs[head], wanted_by=wanted_by):
                raise TaskError(
                    f"head {head}: {of} has {difference}; make the set from annotation files that the model was "
                    "trained on, or take a model that was trained on this set's classes"
                )

    def describe(self, facts: TaskFacts) -> str:
        """The heads, and how many classes each has."""
        return "classes: " + ", ".join(f"{head} {len(names)}" for head, names in facts["classes"].items())

    def model(self, parts: ModelParts, facts: TaskFacts, options: TaskOptions) -> VideoClassifier:
        """Heads with random weights on the tower."""
        counts = tuple(len(names) for names in facts["classes"].values())
        return VideoClassifier(parts.tower, num_classes=counts, dropout=options.dropout)  # type: ignore[arg-type]

    def task(self, model: nn.Module, facts: TaskFacts, options: TaskOptions) -> ClassificationTask:
        """The task around a model."""
        return ClassificationTask(model, classes=facts["classes"], options=options)


def _difference(ours: Sequence[str], theirs: Sequence[str], *, wanted_by: object) -> str:
    """What differs between two lists of class names, "" where nothing does."""
    places = [i for i, pair in enumerate(zip_longest(ours, theirs)) if pair[0] != pair[1]]
    if not places:
        return ""
    if sorted(ours) == sorted(theirs):
        what = "the same classes in another order"
    elif len(ours) == len(theirs):
        what = f"{len(ours)} other classes"
    else:
        what = f"{len(ours)} instead of {len(theirs)} classes"
    at = [[repr(names[i]) if i < len(names) else "none" for names in (ours, theirs)] for i in places[:SHOWN_CLASSES]]
    shown = ", ".join(f"{i}: {here} here, {there} there" for i, (here, there) in zip(places, at, strict=False))
    more = f" and {len(places) - SHOWN_CLASSES} more" if len(places) > SHOWN_CLASSES else ""
    return f"{what}, compared with {wanted_by} ({shown}{more})"


class ClassificationTask:
    """A `VideoClassifier` with the names of its classes.

    model: logits of a head each, as a tensor or a tuple. classes: head -> class names, in the order of the model's
    heads. Raises TaskError where their numbers disagree.

    Columns of its predictions: `scores.<head>` [N,K] float32 probabilities, and `target.<head>` [N] class indices, -1
    for a clip without the label.
    """

    def __init__(self, model: nn.Module, *, classes: Mapping[str, Sequence[str]], options: TaskOptions):
        sizes = tuple(len(names) for names in classes.values())
        if tuple(getattr(model, "num_classes", sizes)) != sizes:
            raise TaskError(
                f"the model has heads of {list(getattr(model, 'num_classes', ()))} classes, the shard set has "
                f"{dict(zip(classes, sizes, strict=True))}; use the shard set the model was made for, or task.heads"
            )
        self.model, self.classes, self._options = model, classes, options
        self._weights = options.head_weights or (1.0,) * len(sizes)

    @property
    def logged(self) -> Mapping[str, Unit]:
        """Top-1 accuracy of each head."""
        return {f"{head}_top1": Unit.percent for head in self.classes}

    def in_backbone(self, parameter: str) -> bool:
        """Everything below the heads."""
        return HEADS not in parameter

    def step(self, batch: VideoBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted sum of the heads' losses; logs `loss` and each head's top-1 accuracy on the batch."""
        assert batch.video.shape[1] == 1, "training has one view a clip"
        video, labels = batch.video[:, 0], batch.labels
        if not len(batch):  # every clip of the batch was bad: pass one black clip that counts for nothing
            video = torch.zeros((1, *video.shape[1:]), dtype=video.dtype, device=video.device)
            labels = {head: torch.full((1,), -1, device=video.device) for head in self.classes}
        logits = self._logits(video)
        smoothing = self._options.label_smoothing
        losses = [
            weight * classification_loss(logits[head], labels[head], label_smoothing=smoothing)
            for head, weight in zip(self.classes, self._weights, strict=True)
        ]
        loss = torch.stack(losses).sum()
        accuracies = {f"{head}_top1": batch_accuracy(logits[head].detach(), labels[head]) for head in self.classes}
        return loss, {"loss": loss.detach(), **accuracies}

    @torch.no_grad()
    def predict(self, batch: VideoBatch) -> Predictions:
        """Probabilities of each clip, fused over its views."""
        clips, views = batch.video.shape[:2]
        video = batch.video.flatten(0, 1)
        parts = [self._logits(part) for part in video.split(self._options.view_batch_size or max(len(video), 1))]
        columns: dict[str, npt.NDArray[Any]] = {}
        for head in self.classes:
            logits = torch.cat([part[head] for part in parts]).float().cpu().numpy()
            fused = fuse_views(logits.reshape(clips, views, -1), rule=self._options.fusion)
            columns[f"scores.{head}"] = fused.astype(np.float32)
            columns[f"target.{head}"] = batch.labels[head].cpu().numpy()
        return Predictions(rows=batch.rows, columns=columns)

    def score(self, parts: Iterable[Predictions]) -> Scores:
        """`<head>_top1`, `<head>_top5`, `<head>_mean_class` in percent over the clips that have the label.

        Only counts are kept between parts, so memory does not grow with the number of clips.
        """
        counts = {head: _Counts(len(names)) for head, names in self.classes.items()}
        for part in parts:
            for head, counted in counts.items():
                counted.add(part.columns[f"scores.{head}"], part.columns[f"target.{head}"])
        seen = {head: counted for head, counted in counts.items() if counted.clips}
        by_head = {head: counted.metrics() for head, counted in seen.items()}
        controls: Metrics = {}
        for head, counted in seen.items():
            controls[f"chance_{head}_top1"] = Metric(100.0 / counted.classes, Unit.percent)
            largest = 100.0 * int(counted.confusion.sum(1).max()) / counted.clips
            controls[f"largest_class_{head}_top1"] = Metric(largest, Unit.percent)
        tables = {head: _table(list(self.classes[head]), counted.confusion) for head, counted in seen.items()}
        return Scores(
            metrics={f"{head}_{kind}": by_head[head][kind] for kind in ("top1", "top5", "mean_class") for head in seen},
            controls=controls,
            headlines=tuple(_headline(head) for head in seen),
            sections=(
                Section(
                    key="heads",
                    type="class_tables",
                    title="Where it is right, and what it mixes up",
                    note=TABLES_NOTE,
                    values=tables,
                ),
            ),
        )

    def wrongness(self, predictions: Predictions) -> npt.NDArray[np.floating[Any]]:
        """Confidence of a clip's first labelled head where that is wrong."""
        worth = np.full(len(predictions.rows), -np.inf)
        unjudged = np.ones(len(worth), np.bool_)
        for head in self.classes:
            scores, targets = predictions.columns[f"scores.{head}"], predictions.columns[f"target.{head}"]
            judged = unjudged & (targets >= 0)
            wrong = judged & (scores.argmax(1) != targets)
            worth[wrong] = scores.max(1)[wrong]
            unjudged &= ~judged
        return worth

    def case(self, predictions: Predictions, place: int) -> dict[str, Any]:
        """Truth and answer of each head that has a label, and the first one's confidence."""
        truth, predicted, confidences = {}, {}, []
        for head, names in self.classes.items():
            target, scores = (predictions.columns[f"{column}.{head}"][place] for column in ("target", "scores"))
            if target >= 0:
                truth[head], predicted[head] = names[int(target)], names[int(scores.argmax())]
                confidences.append(float(scores.max()))
        return {"truth": truth, "predicted": predicted, "confidence": confidences[0] if confidences else None}

    def _logits(self, video: Tensor) -> dict[str, Tensor]:
        logits = self.model(video)
        return dict(zip(self.classes, logits if isinstance(logits, tuple) else (logits,), strict=True))


class _Counts:
    """Counts of one head's answers over the clips that have its label."""

    def __init__(self, classes: int) -> None:
        self.classes, self.clips, self.top1, self.top5 = classes, 0, 0, 0
        self.confusion = np.zeros((classes, classes), np.int64)  # rows = truth

    def add(self, scores: npt.NDArray[Any], targets: npt.NDArray[Any]) -> None:
        """scores [N,K], targets [N]; -1 = not labelled."""
        scores, targets = scores[targets >= 0], targets[targets >= 0]
        if not (clips := len(targets)):
            return
        self.clips += clips
        self.top1 += round(topk_accuracy(scores, targets, k=1) * clips / 100)
        self.top5 += round(topk_accuracy(scores, targets, k=min(5, self.classes)) * clips / 100)
        self.confusion += confusion_matrix(scores.argmax(1), targets, num_classes=self.classes)

    def metrics(self) -> dict[str, Metric]:
        values = {
            "top1": 100 * self.top1 / self.clips,
            "top5": 100 * self.top5 / self.clips,
            "mean_class": mean_class_accuracy(self.confusion, absent_as_zero=False),
        }
        return {kind: Metric(value, Unit.percent) for kind, value in values.items()}


def _headline(head: str) -> Headline:
    return Headline(
        metric=f"{head}_top1",
        label=f"{head}, first guess right",
        sentence=f"the model's first guess at the {head} is right for",
        baselines=(
            Baseline(control=f"chance_{head}_top1", label="chance", sentence="chance is"),
            Baseline(
                control=f"largest_class_{head}_top1",
                label="largest class alone",
                sentence="always naming the largest class gets",
            ),
        ),
        others={f"{head}_top5": "top 5", f"{head}_mean_class": "mean of classes"},
    )


def _table(names: list[str], confusion: npt.NDArray[np.int64]) -> dict[str, Any]:
    support = confusion.sum(1)
    right = confusion.diagonal()
    accuracy = [float(r) / int(n) * 100 if n else None for r, n in zip(right, support, strict=True)]
    report: dict[str, Any] = {"classes": names, "per_class_accuracy": accuracy, "support": support.tolist()}
    report["chance"] = 100.0 / len(names)
    if len(names) <= LARGEST_MATRIX:
        return report | {"confusion": confusion.tolist()}
    return report | {"confused_pairs": [list(pair) for pair in confused_pairs(confusion, most=PAIRS)]}
