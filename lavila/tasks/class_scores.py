"""What probabilities of classes are worth: accuracies, confusions and mistakes of any number of heads.

Tasks that classify share this, with heads or with class texts. For EPIC-KITCHENS-100 it has both published ways: verb
and noun as sums over joint actions (LaViLa), and the challenge's product of verb and noun (Damen et al., IJCV 2022).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lavila.metrics.classification import confused_pairs, confusion_matrix, mean_class_accuracy, topk_hits
from lavila.metrics.epic_kitchens import (
    CHALLENGE_ACCURACIES,
    JointActions,
    Segments,
    challenge_accuracies,
    verbs_and_nouns,
)
from lavila.metrics.epic_submissions import SupervisionLevels, write_recognition_submission
from lavila.metrics.units import Metric, Metrics, Unit
from lavila.tasks import Baseline, Headline, Predictions, Scores, Section, TaskError, TaskOptions, concatenate
from lavila.tasks.tables import Tables

LARGEST_MATRIX = 300  # classes; above, the report lists the pairs most often confused
PAIRS = 20
CHALLENGE = "ek100_cls"  # the dataset whose challenge scores in another way
PARTS = ("verb", "noun")  # what an action is made of
KINDS = ("top1", "top5", "mean_class")  # accuracies of a head

TABLES_NOTE = (
    "Matrix: a row is the truth, a column the model's first guess, a number counts clips; green is right, red is "
    "wrong, stronger for a larger share of the row. Bars: share of each class that is right, and how many clips it has."
)


class ClassScores:
    """Scores of predictions with columns `scores.<head>` [N,K] probabilities and `target.<head>` [N], -1 = no label.

    classes: head -> names of its classes. Where there is a head of actions and none of verbs and nouns, though the
    shard set has such classes, verbs and nouns are scored as well, each as the sum of the actions that have it.
    """

    def __init__(self, classes: Mapping[str, Sequence[str]], tables: Tables) -> None:
        self.classes, self._tables = classes, tables
        joint = "action" in classes and not any(part in classes for part in PARTS)
        self._actions = joint_actions(tables.classes) if joint else None
        summed = {part: tables.classes[part] for part in PARTS} if self._actions is not None else {}
        self._scored: dict[str, Sequence[str]] = {**classes, **summed}

    @property
    def metric_names(self) -> Collection[str]:
        """Names that a metric of `score` may have."""
        names = {f"{head}_{kind}" for kind in KINDS for head in self._scored}
        challenge = self._tables.dataset == CHALLENGE and all(part in self._scored for part in PARTS)
        return names | {f"challenge_{name}" for name in CHALLENGE_ACCURACIES} if challenge else names

    def score(self, parts: Iterable[Predictions]) -> Scores:
        """`<head>_top1`, `<head>_top5`, `<head>_mean_class` in percent over the clips that have the label.

        For EPIC-KITCHENS-100 also `challenge_*`, the challenge's accuracies. Only counts are kept between parts, and
        for the challenge the probabilities of verbs and nouns.
        """
        counts = {head: _Counts(len(names)) for head, names in self._scored.items()}
        for part in parts:
            for head, counted in counts.items():
                counted.add(*self._columns(part, head))
        seen = {head: counted for head, counted in counts.items() if counted.clips}
        by_head = {head: counted.metrics() for head, counted in seen.items()}
        controls: Metrics = {}
        for head, counted in seen.items():
            controls[f"chance_{head}_top1"] = Metric(100.0 / counted.classes, Unit.percent)
            largest = 100.0 * int(counted.confusion.sum(1).max()) / counted.clips
            controls[f"largest_class_{head}_top1"] = Metric(largest, Unit.percent)
        tables = {head: _table(list(self._scored[head]), counted.confusion) for head, counted in seen.items()}
        metrics = {f"{head}_{kind}": by_head[head][kind] for kind in KINDS for head in seen}
        return Scores(
            metrics=metrics | self._challenge(parts),
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

    def submit(self, parts: Iterable[Predictions], folder: Path, levels: SupervisionLevels) -> Path:
        """The file that the challenge of action recognition takes: probabilities of verbs, nouns and actions.

        TaskError where there are no probabilities of verbs and nouns.
        """
        whole = self._verbs_and_nouns(parts)
        if whole is None:
            raise TaskError(
                f"submission: the challenge wants verbs and nouns, the heads here are {', '.join(self.classes)}; set "
                "task.heads=[verb,noun,action] or [action]"
            )
        clip_ids = self._tables.clip_ids()
        write_recognition_submission(
            file := folder / "submission_recognition.zip",
            narration_ids=[clip_ids[row] for row in whole.rows],
            verb_probabilities=whole.columns["scores.verb"],
            noun_probabilities=whole.columns["scores.noun"],
            levels=levels,
        )
        return file

    def _columns(self, part: Predictions, head: str) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Probabilities [N,K] and targets [N] of a head, or of verbs or nouns as sums over actions."""
        if head in self.classes:
            return part.columns[f"scores.{head}"], part.columns[f"target.{head}"]
        assert self._actions is not None
        scores, targets = part.columns["scores.action"], part.columns["target.action"]
        place = PARTS.index(head)
        of_action = (self._actions.verbs, self._actions.nouns)[place]
        return verbs_and_nouns(scores, self._actions)[place], np.where(targets >= 0, of_action[targets], -1)

    def _verbs_and_nouns(self, parts: Iterable[Predictions]) -> Predictions | None:
        """Columns of verbs and nouns of all clips; None where there are none."""
        if not all(part in self._scored for part in PARTS):
            return None
        slim = []
        for part in parts:
            columns = {}
            for head in PARTS:
                columns[f"scores.{head}"], columns[f"target.{head}"] = self._columns(part, head)
            slim.append(Predictions(rows=part.rows, columns=columns))
        return concatenate(slim)

    def _challenge(self, parts: Iterable[Predictions]) -> Metrics:
        """The challenge's accuracies, where the dataset is its; groups that have no clip are left out."""
        whole = self._verbs_and_nouns(parts) if self._tables.dataset == CHALLENGE else None
        if whole is None:
            return {}
        columns = whole.columns
        labelled = (columns["target.verb"] >= 0) & (columns["target.noun"] >= 0)
        if not labelled.any():
            return {}
        clip_ids = self._tables.clip_ids()
        found = challenge_accuracies(
            columns["scores.verb"][labelled],
            columns["scores.noun"][labelled],
            Segments(
                verbs=columns["target.verb"][labelled],
                nouns=columns["target.noun"][labelled],
                participants=[clip_ids[row].partition("_")[0] for row in whole.rows[labelled]],  # "P01_11_0"
                unseen_participants=self._tables.groups("unseen_participants"),
                tail_verbs=[int(number) for number in self._tables.groups("tail_verbs")],
                tail_nouns=[int(number) for number in self._tables.groups("tail_nouns")],
            ),
        )
        return {
            f"challenge_{name}": Metric(value, Unit.percent) for name, value in found.items() if not np.isnan(value)
        }


def check_probabilities(options: TaskOptions) -> None:
    """TaskError where views are fused to something else: sums over actions and confidences need probabilities."""
    if options.fusion == "max_cosine":
        raise TaskError(
            "views.fusion=max_cosine: one label a clip is scored by probabilities of classes; set "
            "views.fusion=max_similarity (zero-shot) or mean_logits (heads)"
        )


def joint_actions(classes: Mapping[str, Sequence[str]]) -> JointActions | None:
    """Which verb and noun each action is, by the names "take plate"; None where the actions are not such pairs."""
    verbs, nouns = (classes.get(part) or () for part in PARTS)
    pairs = {f"{verb} {noun}": (v, n) for v, verb in enumerate(verbs) for n, noun in enumerate(nouns)}
    names = classes.get("action") or ()
    if not names or len(pairs) < len(verbs) * len(nouns) or not all(name in pairs for name in names):
        return None
    both = np.array([pairs[name] for name in names], np.int64)
    return JointActions(verbs=both[:, 0], nouns=both[:, 1], num_verbs=len(verbs), num_nouns=len(nouns))


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
        self.top1 += int(topk_hits(scores, targets, k=1).sum())
        self.top5 += int(topk_hits(scores, targets, k=min(5, self.classes)).sum())
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
