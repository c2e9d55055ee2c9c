"""Multi-instance retrieval (Damen et al., IJCV 2022): clips find the sentences that fit them, and sentences the clips.

A sentence fits many clips more or less; its relevancy says how well, 0 to 1. Scores are mean average precision and
nDCG, of both directions and their mean, which is the published figure.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from lavila.metrics.epic_submissions import SupervisionLevels, write_retrieval_submission
from lavila.metrics.retrieval import RetrievalScores, both_scores
from lavila.metrics.units import Metric, Metrics, Unit
from lavila.tasks import (
    Baseline,
    Headline,
    Predictions,
    Scores,
    Section,
    TaskFacts,
    TaskOptions,
    TextFeatures,
    concatenate,
)
from lavila.tasks.dual_encoders import DualEncoderKind, DualEncoderTask
from lavila.tasks.tables import Tables
from lavila.tasks.training_steps import MaxMarginStep

DIRECTIONS = {"video_to_text": "clips that search sentences", "text_to_video": "sentences that search clips"}
SCORES, LEFT_OUT = ("map", "ndcg"), ("clips", "sentences")
SHOWN_SENTENCES, SHOWN_CLIPS, SHOWN_RESULTS = 6, 3, 5
SURENESS = 0.01  # weight of a similarity beside a relevancy, so that of equally wrong answers the surest comes first

Floats = npt.NDArray[np.float32]


class Retrieval(DualEncoderKind):
    """How retrieval is made. Its loss has no temperature."""

    uses_temperature = False

    def facts(self, options: TaskOptions, tables: Tables) -> TaskFacts:
        """How words become tokens. ShardSetError where the set has no sentences."""
        tables.sentences()
        return super().facts(options, tables)

    def needs_words(self, tables: Tables) -> bool:
        """No: its words are the sentences."""
        return False

    def task(self, model: nn.Module, facts: TaskFacts, options: TaskOptions, tables: Tables) -> RetrievalTask:
        """The task around a dual encoder."""
        training = MaxMarginStep(options, tables)
        return RetrievalTask(model, facts=facts, options=options, tables=tables, training=training)


class RetrievalTask(DualEncoderTask):
    """A dual encoder, clips and the sentences of their set.

    Its texts: `sentences` [S,D]. The column of its predictions: `video` [N,D]. Both float32 of unit length; a clip's is
    the mean over its views, brought to that length.
    """

    def know_texts(self, known: TextFeatures | None) -> TextFeatures:
        """Features of all sentences."""
        if known is None:
            known = {"sentences": self.encoders.texts(self.tables.sentences().texts).cpu().numpy()}
        self._sentences: Floats = known["sentences"]
        return known

    @property
    def metric_names(self) -> Collection[str]:
        """Both scores with their directions, and what was left out."""
        scored = [name for score in SCORES for name in (score, *(f"{score}_{direction}" for direction in DIRECTIONS))]
        return (*scored, *(f"{what}_without_match" for what in LEFT_OUT))

    def score(self, parts: Iterable[Predictions]) -> Scores:
        """`map` and `ndcg`, means of both directions, and `map_<direction>`, `ndcg_<direction>`, all in percent.

        Similarities and relevancies of all clips and sentences are held: 0.5 GB for EPIC-KITCHENS-100's test set.
        """
        rows, similarity = self._similarity(parts)
        relevancy = self.tables.relevancy(rows)
        average_precision, gain = both_scores(similarity, relevancy)
        knows_nothing = np.random.default_rng(0).random(similarity.shape, np.float32)
        chances = dict(zip(SCORES, both_scores(knows_nothing, relevancy), strict=True))
        metrics = _metrics("map", average_precision) | _metrics("ndcg", gain)
        left_out = dict(
            zip(LEFT_OUT, (average_precision.videos_left_out, average_precision.texts_left_out), strict=True)
        )
        return Scores(
            metrics=metrics
            | {f"{name}_without_match": Metric(count, Unit.count) for name, count in left_out.items() if count},
            controls={f"chance_{name}": Metric(100 * scores.mean, Unit.percent) for name, scores in chances.items()},
            headlines=(
                _headline("map", "mAP, mean of both directions", "the mean average precision is"),
                _headline("ndcg", "nDCG, mean of both directions", "the normalised discounted cumulative gain is"),
            ),
            sections=(
                Section(
                    key="queries",
                    type="galleries",
                    title="What it finds",
                    note="Sentences with the clips that are nearest to them, and clips with the nearest sentences. "
                    "Relevancy 1 is what was asked for.",
                    values=self._galleries(rows, similarity, relevancy),
                ),
            ),
        )

    def wrongness(self, predictions: Predictions) -> npt.NDArray[np.floating[Any]]:
        """How little a clip's nearest sentence fits it."""
        similarity = predictions.columns["video"] @ self._sentences.T
        nearest, places = similarity.argmax(1), np.arange(len(similarity))
        fits = self.tables.relevancy(predictions.rows)[places, nearest].astype(np.float64)
        return np.where(fits < 1, 1 - fits + SURENESS * similarity[places, nearest], -np.inf)

    def case(self, predictions: Predictions, place: int) -> dict[str, Any]:
        """The sentence that fits a clip best, and the nearest one."""
        texts = self.tables.sentences().texts
        nearest = int((self._sentences @ predictions.columns["video"][place]).argmax())
        best = int(self.tables.relevancy(predictions.rows[place : place + 1])[0].argmax())
        return {"truth": {"sentence": texts[best]}, "predicted": {"sentence": texts[nearest]}, "confidence": None}

    def submit(self, parts: Iterable[Predictions], folder: Path, levels: SupervisionLevels) -> Path:
        """The file that the challenge of multi-instance retrieval takes: similarities of all clips and sentences."""
        rows, similarity = self._similarity(parts)
        clip_ids = self.tables.clip_ids()
        write_retrieval_submission(
            file := folder / "submission_retrieval.zip",
            similarity=similarity,
            video_ids=[clip_ids[row] for row in rows],
            text_ids=self.tables.sentences().ids,
            levels=levels,
        )
        return file

    def _similarity(self, parts: Iterable[Predictions]) -> tuple[npt.NDArray[np.int64], Floats]:
        """Rows [N] of the clips, and cosines [N,S]."""
        whole = concatenate(parts)
        return whole.rows, whole.columns["video"] @ self._sentences.T

    def _galleries(self, rows: npt.NDArray[np.int64], similarity: Floats, relevancy: Floats) -> list[dict[str, Any]]:
        texts = self.tables.sentences().texts
        shown = []
        for sentence in _spread(len(texts), SHOWN_SENTENCES):
            best = _nearest(similarity[:, sentence])
            answers = [_answer(similarity[clip, sentence], relevancy[clip, sentence]) for clip in best]
            clips = [{"row": int(rows[clip]), **answer} for clip, answer in zip(best, answers, strict=True)]
            fitting = int((relevancy[:, sentence] == 1).sum())
            note = f"clips of relevancy 1: {fitting} of {len(rows)}"
            shown.append({"title": texts[sentence], "note": note, "clips": clips, "texts": []})
        for clip in _spread(len(rows), SHOWN_CLIPS):
            found = [
                {"text": texts[k], **_answer(similarity[clip, k], relevancy[clip, k])}
                for k in _nearest(similarity[clip])
            ]
            asked = {"row": int(rows[clip]), "note": "", "right": None}
            shown.append({"title": "The sentences nearest to a clip", "note": "", "clips": [asked], "texts": found})
        return shown


def _metrics(name: str, scores: RetrievalScores) -> Metrics:
    values = {name: scores.mean} | {f"{name}_{direction}": getattr(scores, direction) for direction in DIRECTIONS}
    return {key: Metric(100 * value, Unit.percent) for key, value in values.items()}


def _headline(name: str, label: str, sentence: str) -> Headline:
    return Headline(
        metric=name,
        label=label,
        sentence=sentence,
        baselines=(Baseline(control=f"chance_{name}", label="random order", sentence="a random order gets"),),
        others={f"{name}_{direction}": what for direction, what in DIRECTIONS.items()},
    )


def _answer(similarity: np.floating[Any], relevancy: np.floating[Any]) -> dict[str, Any]:
    right = True if relevancy == 1 else False if relevancy == 0 else None
    return {"note": f"relevancy {relevancy:.2f}, similarity {similarity:.2f}", "right": right}


def _nearest(similarities: Floats) -> list[int]:
    """Places of the largest, the largest first; of equals the first."""
    return [int(place) for place in np.argsort(-similarities, kind="stable")[:SHOWN_RESULTS]]


def _spread(count: int, most: int) -> list[int]:
    return sorted({int(place) for place in np.linspace(0, count - 1, min(count, most))})
