"""Zero-shot classification: the class whose texts are nearest to a clip, as LaViLa does it (Zhao et al., CVPR 2023).

A class has any number of texts, each put into each template. Its feature is the mean of theirs, each of unit length,
brought to unit length again. Views are fused, and a softmax over the classes follows unless `views.fusion=max_cosine`
says otherwise; no temperature comes in.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from lavila.metrics.classification import fuse_views
from lavila.metrics.epic_submissions import SupervisionLevels
from lavila.metrics.multi_label import average_precisions
from lavila.metrics.units import Metric, Unit
from lavila.records import VideoBatch
from lavila.tasks import (
    Baseline,
    Headline,
    Predictions,
    Scores,
    Section,
    TaskError,
    TaskFacts,
    TaskOptions,
    TextFeatures,
    concatenate,
)
from lavila.tasks.class_scores import ClassScores, check_probabilities
from lavila.tasks.dual_encoders import DualEncoderKind, DualEncoderTask
from lavila.tasks.tables import Tables
from lavila.tasks.training_steps import LABELS, ContrastiveStep

MULTI_LABEL = ("map", "classes_without_clip")  # metrics where a clip has several labels
SHOWN_VIDEOS, SHOWN_LABELS, SHOWN_CLASSES = 6, 5, 20

Floats = npt.NDArray[np.float32]


class ZeroShot(DualEncoderKind):
    """How zero-shot classification is made. Training is contrastive on the clips' words, or on class texts."""

    def facts(self, options: TaskOptions, tables: Tables) -> TaskFacts:
        """How words become tokens. TaskError where the shard set has no classes with texts."""
        kinds = kinds_of(options, tables)
        if not kinds and tables.split != "train":
            known = ", ".join(kind for kind, texts in tables.class_texts.items() if texts) or "none"
            raise TaskError(
                f"task.heads: {tables.of} has no texts of {', '.join(options.heads)} classes; it has {known}"
            )
        if kinds != [LABELS] and tables.split != "train":
            check_probabilities(options)
        return super().facts(options, tables)

    def task(self, model: nn.Module, facts: TaskFacts, options: TaskOptions, tables: Tables) -> ZeroShotTask:
        """The task around a dual encoder."""
        training = ContrastiveStep(options, tables)
        return ZeroShotTask(model, facts=facts, options=options, tables=tables, training=training)


def kinds_of(options: TaskOptions, tables: Tables) -> list[str]:
    """Kinds of labels whose classes the model distinguishes: that of several labels a clip, or those of the heads."""
    if tables.class_texts.get(LABELS):
        return [LABELS]
    return [head for head in options.heads if tables.class_texts.get(head)]


class ZeroShotTask(DualEncoderTask):
    """A dual encoder and the texts of classes.

    Its texts: a feature [K,D] for the classes of each kind of label. Columns of its predictions: `scores.<kind>` [N,K]
    probabilities, or cosines with `views.fusion=max_cosine`. And `target.<kind>`: [N] a class, -1 = not labelled, or
    [N,K] bool where a clip has several labels.
    """

    def know_texts(self, known: TextFeatures | None) -> TextFeatures:
        """A feature for each class."""
        if known is None:
            texts = self.tables.class_texts
            known = {kind: self._class_features(texts[kind]) for kind in kinds_of(self.options, self.tables)}
        self._classes: dict[str, Floats] = known
        return known

    def predict(self, batch: VideoBatch) -> Predictions:
        """Probabilities of each clip, fused over its views."""
        views_BVD = self.encoders.views(batch.video).cpu()
        columns: dict[str, npt.NDArray[Any]] = {}
        for kind, texts_KD in self._classes.items():
            with torch.autocast("cpu", enabled=False):  # cosines of half precision tie
                similarity_BVK = views_BVD @ torch.from_numpy(texts_KD).T
            fused = fuse_views(similarity_BVK.numpy(), rule=self.options.fusion)
            columns[f"scores.{kind}"] = fused.astype(np.float32)
            columns[f"target.{kind}"] = self._targets(batch, kind)
        return Predictions(rows=batch.rows, columns=columns)

    @property
    def metric_names(self) -> Collection[str]:
        """Those of `ClassScores`; with several labels a clip, of their mean average precision."""
        kinds = kinds_of(self.options, self.tables)
        return MULTI_LABEL if LABELS in kinds else self._scores_of(kinds).metric_names

    def score(self, parts: Iterable[Predictions]) -> Scores:
        """As `ClassScores` has it; with several labels a clip `map`, the mean average precision in percent."""
        return self._multi_label(parts) if LABELS in self._classes else self._single.score(parts)

    def wrongness(self, predictions: Predictions) -> npt.NDArray[np.floating[Any]]:
        """Confidence in a class that is wrong."""
        if LABELS not in self._classes:
            return self._single.wrongness(predictions)
        scores, shown = (predictions.columns[f"{column}.{LABELS}"] for column in ("scores", "target"))
        wrong = shown.any(1) & ~shown[np.arange(len(shown)), scores.argmax(1)]
        return np.where(wrong, scores.max(1), -np.inf)

    def case(self, predictions: Predictions, place: int) -> dict[str, Any]:
        """Truth and answer, and how sure the answer was."""
        if LABELS not in self._classes:
            return self._single.case(predictions, place)
        scores, shown = (predictions.columns[f"{column}.{LABELS}"][place] for column in ("scores", "target"))
        names = self.tables.classes[LABELS]
        truth = ", ".join(names[k] for k in np.flatnonzero(shown)[:SHOWN_LABELS])
        answer = names[int(scores.argmax())]
        sure = None if self.options.fusion == "max_cosine" else float(scores.max())
        return {"truth": {"action": truth}, "predicted": {"action": answer}, "confidence": sure}

    def submit(self, parts: Iterable[Predictions], folder: Path, levels: SupervisionLevels) -> Path:
        """The file that EPIC-KITCHENS-100's challenge of action recognition takes."""
        return self._single.submit(parts, folder, levels)

    @property
    def _single(self) -> ClassScores:
        return self._scores_of(self._classes)

    def _scores_of(self, kinds: Iterable[str]) -> ClassScores:
        return ClassScores({kind: self.tables.classes[kind] for kind in kinds}, self.tables)

    def _class_features(self, texts: Sequence[Sequence[str]]) -> Floats:
        """[K,D] of unit length. texts: any number for each class. TaskError for a class without one."""
        if without := [k for k, said in enumerate(texts) if not said]:
            raise TaskError(f"{self.tables.of}: class {without[0]} has no text, as have {len(without) - 1} others")
        filled = [[template.format(text) for template in self.options.templates for text in said] for said in texts]
        features = self.encoders.texts([text for said in filled for text in said]).cpu().numpy()
        ends = np.cumsum([len(said) for said in filled])[:-1]
        means = np.stack([one.mean(0) for one in np.split(features, ends)])
        return np.asarray(means / np.linalg.norm(means, axis=1, keepdims=True), np.float32)

    def _targets(self, batch: VideoBatch, kind: str) -> npt.NDArray[Any]:
        if kind != LABELS:
            return batch.labels[kind].cpu().numpy()
        shown = np.zeros((len(batch), len(self.tables.classes[LABELS])), np.bool_)
        for row, labels in zip(shown, batch.label_sets, strict=True):
            row[list(labels)] = True
        return shown

    def _multi_label(self, parts: Iterable[Predictions]) -> Scores:
        whole = concatenate(parts)
        scores, shown = (whole.columns[f"{column}.{LABELS}"] for column in ("scores", "target"))
        each = average_precisions(scores, shown)
        known = ~np.isnan(each)
        if not known.any():
            raise TaskError(f"{self.tables.of}: not one of the evaluated clips has a label")
        chance = shown.mean(0)[known].mean()
        names = self.tables.classes[LABELS]
        order = [int(k) for k in np.argsort(-np.where(known, each, -1), kind="stable") if known[k]]
        listed = order if len(order) <= SHOWN_CLASSES else [*order[: SHOWN_CLASSES // 2], *order[-SHOWN_CLASSES // 2 :]]
        return Scores(
            metrics={
                "map": Metric(float(100 * each[known].mean()), Unit.percent),
                "classes_without_clip": Metric(int((~known).sum()), Unit.count),
            },
            controls={"chance_map": Metric(float(100 * chance), Unit.percent)},
            headlines=(
                Headline(
                    metric="map",
                    label="mAP over the classes",
                    sentence="the mean average precision over the classes is",
                    baselines=(Baseline(control="chance_map", label="random order", sentence="a random order gets"),),
                    others={"classes_without_clip": "classes that no clip shows, left out"},
                ),
            ),
            sections=(
                Section(
                    key="classes",
                    type="key_values",
                    title="The classes that it knows best and least",
                    note="Average precision of each.",
                    values={names[k]: float(100 * each[k]) for k in listed},
                    units={names[k]: Unit.percent for k in listed},
                ),
            ),
        )
