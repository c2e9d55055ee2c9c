"""Multiple choice: a sentence and a few clips, of which one shows it (EgoMCQ; Lin et al., NeurIPS 2022)."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from lavila.metrics.multiple_choice import accuracy_by_kind, lost_a_choice
from lavila.metrics.units import Metric, Metrics, Unit
from lavila.records import VideoBatch
from lavila.tasks import (
    Baseline,
    Headline,
    Predictions,
    Scores,
    Section,
    TaskFacts,
    TaskOptions,
    TextFeatures,
)
from lavila.tasks.dual_encoders import DualEncoderKind, DualEncoderTask
from lavila.tasks.tables import Questions, Tables
from lavila.tasks.training_steps import ContrastiveStep

log = logging.getLogger(__name__)

SHOWN = 3  # questions of each kind
LABELS = {"intra": "all choices from one video", "inter": "choices from many videos"}
HEADLINES = ("intra", "inter")  # the hard kind first: it is the published figure

Floats = npt.NDArray[np.float32]


class MultipleChoice(DualEncoderKind):
    """How multiple choice is made. It is for evaluation; training would be contrastive on the clips' own words."""

    def task(self, model: nn.Module, facts: TaskFacts, options: TaskOptions, tables: Tables) -> MultipleChoiceTask:
        """The task around a dual encoder."""
        training = ContrastiveStep(options, tables)
        return MultipleChoiceTask(model, facts=facts, options=options, tables=tables, training=training)


class MultipleChoiceTask(DualEncoderTask):
    """A dual encoder, the questions of a set and the clips that are choices of some of them.

    Its texts: `questions` [Q,D] of unit length. The column of its predictions: `video` [N,D], of unit length as well
    with `task.similarity=cosine`. With `dot` it has the length that the model gives it, and the published scores were
    made so: of two clips that point the same way, the longer is chosen. Both are float32. A clip is predicted once, in
    however many questions it is a choice.
    """

    def clip_features(self, batch: VideoBatch) -> Tensor:
        """[B,D]: of each clip the mean over its views."""
        if self.options.similarity == "dot":
            return self.encoders.views(batch.video, unit=False).mean(1)
        return super().clip_features(batch)

    def know_texts(self, known: TextFeatures | None) -> TextFeatures:
        """Features of all questions."""
        if known is None:
            known = {"questions": self.encoders.texts(self.tables.questions().texts).cpu().numpy()}
        self._questions: Floats = known["questions"]
        return known

    @property
    def metric_names(self) -> Collection[str]:
        """Accuracies and numbers of questions of each kind, and how many questions were lost."""
        kinds = self.tables.questions().kind_names.values()
        return [*(f"{name}_{what}" for name in kinds for what in ("accuracy", "questions")), "questions_lost"]

    def score(self, parts: Iterable[Predictions]) -> Scores:
        """`<kind>_accuracy` in percent for each kind of question, by the kind's number in the published file.

        A question with a choice that could not be read counts for nothing; `questions_lost` says how many there are,
        and the section `lost` and the log name them.
        """
        questions = self.tables.questions()
        scores = self._scores(parts, questions)
        lost = lost_a_choice(scores)
        names = questions.kind_names
        found = accuracy_by_kind(scores, questions.answers, questions.kinds)
        accuracies = {names[kind]: value for kind, value in found.items()}
        metrics: Metrics = {
            f"{name}_accuracy": Metric(accuracies[name], Unit.percent)
            for name in (*HEADLINES, *accuracies)
            if name in accuracies
        }
        asked = {name: Metric(int((questions.kinds == kind).sum()), Unit.count) for kind, name in names.items()}
        metrics |= {f"{name}_questions": count for name, count in asked.items()}
        metrics["questions_lost"] = Metric(int(lost.sum()), Unit.count)
        return Scores(
            metrics=metrics,
            controls={"chance": Metric(100 / scores.shape[1], Unit.percent)},
            headlines=tuple(_headline(name) for name in HEADLINES if name in accuracies),
            sections=(
                Section(
                    key="questions",
                    type="galleries",
                    title="Questions and choices",
                    note="The right clip is green; the model's choice is named, and red where it is wrong.",
                    values=_galleries(questions, scores),
                ),
                Section(
                    key="lost",
                    type="galleries",
                    title="Questions that lost a choice",
                    note="A clip of each could not be read, so they count for nothing.",
                    values=_lost(questions, scores),
                ),
            ),
        )

    def wrongness(self, predictions: Predictions) -> npt.NDArray[np.floating[Any]]:
        """No clip is wrong by itself: the section of questions shows which choices are."""
        return np.full(len(predictions.rows), -np.inf)

    def case(self, predictions: Predictions, place: int) -> dict[str, Any]:
        """There are no cases, see `wrongness`."""
        raise AssertionError("no clip is a mistake by itself")

    def _scores(self, parts: Iterable[Predictions], questions: Questions) -> Floats:
        """[questions, choices] similarities; NaN where a clip was not predicted."""
        video = np.full((self.tables.clips + 1, self._questions.shape[1]), np.nan, np.float32)  # the last: no clip
        for part in parts:
            video[part.rows] = part.columns["video"]
        scores: Floats = np.einsum("qcd,qd->qc", video[questions.choices], self._questions)
        return scores


def _headline(kind: str) -> Headline:
    return Headline(
        metric=f"{kind}_accuracy",
        label=f"right choice, {LABELS[kind]}",
        sentence=f"with {LABELS[kind]}, the right one is chosen for",
        baselines=(Baseline(control="chance", label="chance", sentence="chance is"),),
        others={f"{kind}_questions": "questions"},
    )


def _galleries(questions: Questions, scores: Floats) -> list[dict[str, Any]]:
    """A few questions of each kind, from all over the set."""
    whole = np.flatnonzero(~lost_a_choice(scores))
    shown = []
    for kind, name in questions.kind_names.items():
        there = whole[questions.kinds[whole] == kind]
        for number in there[np.linspace(0, len(there) - 1, min(SHOWN, len(there))).astype(int)]:
            answer, chosen = int(questions.answers[number]), int(scores[number].argmax())
            clips = []
            for place, row in enumerate(questions.choices[number]):
                said = [f"similarity {scores[number, place]:.2f}"]
                said += ["the right one"] if place == answer else []
                said += ["chosen"] if place == chosen else []
                right = True if place == answer else False if place == chosen else None
                clips.append({"row": int(row), "note": ", ".join(said), "right": right})
            outcome = "right" if chosen == answer else "wrong"
            note = f"question {questions.ids[number]}, {LABELS.get(name, name)}: {outcome}"
            shown.append({"title": questions.texts[number], "note": note, "clips": clips, "texts": []})
    return shown


def _lost(questions: Questions, scores: Floats) -> list[dict[str, Any]]:
    """The questions that lost a choice, with the clips that are missing."""
    lost = []
    for number in np.flatnonzero(lost_a_choice(scores)):
        gone = [questions.choice_ids[number][place] for place in np.flatnonzero(np.isnan(scores[number]))]
        log.warning("question %s lost choices and counts for nothing: %s", questions.ids[number], ", ".join(gone))
        texts = [{"text": clip_id, "note": "not read", "right": None} for clip_id in gone]
        lost.append(
            {"title": questions.texts[number], "note": f"question {questions.ids[number]}", "clips": [], "texts": texts}
        )
    return lost
