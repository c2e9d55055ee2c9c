"""Action recognition: one classifier head per kind of label, trained on the sum of their losses.

Published scores of EPIC-KITCHENS-100 (97 verbs, 300 nouns, 3,806 actions) are top-1 accuracies of each head.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from lavila.losses.classification import batch_accuracy, classification_loss
from lavila.metrics.classification import fuse_views
from lavila.metrics.epic_submissions import SupervisionLevels
from lavila.metrics.units import Unit
from lavila.models.classifier import VideoClassifier
from lavila.models.dual_encoder import DualEncoder
from lavila.models.narrator import Narrator
from lavila.records import VideoBatch
from lavila.tasks import (
    ModelParts,
    Predictions,
    Scores,
    TaskError,
    TaskFacts,
    TaskOptions,
    TextFeatures,
)
from lavila.tasks.class_scores import ClassScores, check_probabilities
from lavila.tasks.tables import Tables
from lavila.tasks.views import over_views

SHOWN_CLASSES = 3  # in a message, where they differ
HEADS = "fc_cls"  # parameters of the classification heads have this in their name


class Classification:
    """How classification is made: its facts are `classes`, head -> class names in the order of the model's heads."""

    def facts(self, options: TaskOptions, tables: Tables) -> TaskFacts:
        """Class names of each head. TaskError for heads or weights that make no sense, and where labels are missing."""
        _check_heads(options)
        check_probabilities(options)
        classes = tables.classes
        missing = [head for head in options.heads if not classes.get(head)]
        if missing:
            known = [kind for kind, names in classes.items() if names] or ["none"]
            raise TaskError(f"task.heads: {tables.of} has no {', '.join(missing)} labels; it has {', '.join(known)}")
        return {"classes": {head: list(classes[head]) for head in options.heads}}

    def needs_words(self, tables: Tables) -> bool:
        """No: it trains on labels."""
        return False

    def check(self, found: TaskFacts, wanted: TaskFacts, *, of: object, wanted_by: object) -> None:
        """Raise TaskError unless the heads and the names of their classes are the same, in the same order."""
        ours, theirs = found["classes"], wanted.get("classes") or {}
        if not isinstance(theirs, dict) or not all(isinstance(names, list) for names in theirs.values()):
            raise TaskError(f"{wanted_by}: says what its classes are in another form than ours; train the model again")
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

    def task(self, model: nn.Module, facts: TaskFacts, options: TaskOptions, tables: Tables) -> ClassificationTask:
        """The task around a model."""
        return ClassificationTask(model, classes=facts["classes"], options=options, tables=tables)


def _check_heads(options: TaskOptions) -> None:
    heads, weights = options.heads, options.head_weights
    if not heads:
        raise TaskError("task.heads is empty: name at least one of verb, noun, action")
    if weights and len(weights) != len(heads):
        raise TaskError(
            f"task.head_weights={list(weights)} are {len(weights)} weights for the {len(heads)} heads "
            f"{', '.join(heads)}; give one each, or none"
        )
    if weights and not any(weights):
        raise TaskError(f"task.head_weights={list(weights)}: nothing would be trained; one must be above 0")


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
    heads. Raises TaskError where their numbers disagree, and for a model of another kind.

    tables: of the shard set whose batches come; None = nothing is known of it but the classes.

    Columns of its predictions: `scores.<head>` [N,K] float32 probabilities, and `target.<head>` [N] class indices, -1
    for a clip without the label.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        classes: Mapping[str, Sequence[str]],
        options: TaskOptions,
        tables: Tables | None = None,
    ):
        inner = getattr(model, "module", model)
        if isinstance(inner, DualEncoder | Narrator):
            raise TaskError(
                f"this task needs a classifier, but the model is a {type(inner).__name__}; name a checkpoint of a "
                "classifier, such as ek100_cls_tsf_b, or set task.name=zero_shot for a dual encoder"
            )
        sizes = tuple(len(names) for names in classes.values())
        if tuple(getattr(model, "num_classes", sizes)) != sizes:
            raise TaskError(
                f"the model has heads of {list(getattr(model, 'num_classes', ()))} classes, the shard set has "
                f"{dict(zip(classes, sizes, strict=True))}; use the shard set the model was made for, or task.heads"
            )
        self.model, self.classes, self._options = model, classes, options
        self._scores = ClassScores(classes, tables or Tables(of="the shard set", classes=classes))
        self._weights = options.head_weights or (1.0,) * len(sizes)

    @property
    def logged(self) -> Mapping[str, Unit]:
        """Top-1 accuracy of each head."""
        return {f"{head}_top1": Unit.percent for head in self.classes}

    @property
    def metric_names(self) -> Collection[str]:
        """Those of `ClassScores`."""
        return self._scores.metric_names

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

    def after_update(self) -> None:
        """Nothing has a range."""

    def know_texts(self, known: TextFeatures | None) -> TextFeatures:
        """There are none."""
        return {}

    @torch.no_grad()
    def predict(self, batch: VideoBatch) -> Predictions:
        """Probabilities of each clip, fused over its views."""
        logits_BVK = over_views(self._joined_logits, batch.video, at_once=self._options.view_batch_size)
        of_heads = logits_BVK.split([len(names) for names in self.classes.values()], dim=2)
        columns: dict[str, npt.NDArray[Any]] = {}
        for head, logits in zip(self.classes, of_heads, strict=True):
            fused = fuse_views(logits.cpu().numpy(), rule=self._options.fusion)
            columns[f"scores.{head}"] = fused.astype(np.float32)
            columns[f"target.{head}"] = batch.labels[head].cpu().numpy()
        return Predictions(rows=batch.rows, columns=columns)

    def score(self, parts: Iterable[Predictions]) -> Scores:
        """As `ClassScores` has it."""
        return self._scores.score(parts)

    def wrongness(self, predictions: Predictions) -> npt.NDArray[np.floating[Any]]:
        """Confidence of a clip's first labelled head where that is wrong."""
        return self._scores.wrongness(predictions)

    def case(self, predictions: Predictions, place: int) -> dict[str, Any]:
        """Truth and answer of each head that has a label, and the first one's confidence."""
        return self._scores.case(predictions, place)

    def submit(self, parts: Iterable[Predictions], folder: Path, levels: SupervisionLevels) -> Path:
        """The file that EPIC-KITCHENS-100's challenge of action recognition takes."""
        return self._scores.submit(parts, folder, levels)

    def _joined_logits(self, video: Tensor) -> Tensor:
        """[B, classes of all heads], one head after the other."""
        return torch.cat(list(self._logits(video).values()), dim=1)

    def _logits(self, video: Tensor) -> dict[str, Tensor]:
        logits = self.model(video)
        return dict(zip(self.classes, logits if isinstance(logits, tuple) else (logits,), strict=True))
