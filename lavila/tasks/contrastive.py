"""Pre-training of a dual encoder on narrated clips; evaluated by how often clip and narration find each other."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from lavila.metrics.recall import recall_at
from lavila.metrics.units import Metric, Metrics, Unit
from lavila.records import VideoBatch
from lavila.tasks import Baseline, Headline, Predictions, Scores, TaskError, TaskFacts, TaskOptions, concatenate
from lavila.tasks.dual_encoders import DualEncoderKind, DualEncoderTask
from lavila.tasks.tables import Tables
from lavila.tasks.training_steps import LABELS, ContrastiveStep, words_of

PLACES = (1, 5, 10)
DIRECTIONS = {"video_to_text": ("video", "text"), "text_to_video": ("text", "video")}  # query, gallery


class Contrastive(DualEncoderKind):
    """How contrastive training is made."""

    def task(self, model: nn.Module, facts: TaskFacts, options: TaskOptions, tables: Tables) -> ContrastiveTask:
        """The task around a dual encoder."""
        training = ContrastiveStep(options, tables)
        return ContrastiveTask(model, facts=facts, options=options, tables=tables, training=training)


class ContrastiveTask(DualEncoderTask):
    """A dual encoder, clips and the words of each.

    Columns of its predictions: `video` and `text` [N,D] float32 of unit length, a clip's over all of its views;
    `words` [N], "" where a clip has none; it is not counted then.
    """

    def predict(self, batch: VideoBatch) -> Predictions:
        """Features of each clip and of its words."""
        texts, _ = words_of(batch, self.tables.class_texts.get(LABELS, ()))
        columns: dict[str, npt.NDArray[Any]] = {
            "video": self.clip_features(batch).cpu().numpy(),
            "text": self.encoders.texts(texts).cpu().numpy(),
            "words": np.array(texts, np.str_),
        }
        return Predictions(rows=batch.rows, columns=columns)

    @property
    def metric_names(self) -> Collection[str]:
        """Recall in each direction."""
        return [f"{direction}_r{place}" for direction in DIRECTIONS for place in PLACES]

    def score(self, parts: Iterable[Predictions]) -> Scores:
        """Recall at 1, 5 and 10, `<direction>_r<k>` in percent, over the clips with words; all of them are held."""
        columns = concatenate(parts).columns
        said = columns["words"] != ""
        pairs = int(said.sum())
        if not pairs:
            raise TaskError(
                f"{self.tables.of}: not one clip has a narration to be found by; name tables in data.val_captions"
            )
        metrics: Metrics = {}
        for direction, (query, gallery) in DIRECTIONS.items():
            found = recall_at(columns[query][said], columns[gallery][said], places=PLACES)
            metrics |= {f"{direction}_r{place}": Metric(value, Unit.percent) for place, value in found.items()}
        chance = {f"chance_r{place}": Metric(100 * min(place, pairs) / pairs, Unit.percent) for place in PLACES}
        return Scores(
            metrics=metrics,
            controls=chance | {"pairs": Metric(pairs, Unit.count)},
            headlines=(
                _headline("video_to_text", "narration found first", "a clip's nearest narration is its own for"),
                _headline("text_to_video", "clip found first", "a narration's nearest clip is its own for"),
            ),
        )

    def wrongness(self, predictions: Predictions) -> npt.NDArray[np.floating[Any]]:
        """How far a clip and its words are apart: 1 - their similarity. No other clip is needed for that."""
        columns = predictions.columns
        apart = 1.0 - (columns["video"].astype(np.float64) * columns["text"]).sum(1)
        return np.where(columns["words"] != "", apart, -np.inf)

    def case(self, predictions: Predictions, place: int) -> dict[str, Any]:
        """The words of a clip, and how similar they are; which others are nearer is not known here."""
        columns = predictions.columns
        similarity = float((columns["video"][place].astype(np.float64) * columns["text"][place]).sum())
        truth, predicted = str(columns["words"][place]), f"similarity {similarity:.2f}"
        return {"truth": {"narration": truth}, "predicted": {"narration": predicted}, "confidence": None}


def _headline(direction: str, label: str, sentence: str) -> Headline:
    return Headline(
        metric=f"{direction}_r1",
        label=label,
        sentence=sentence,
        baselines=(Baseline(control="chance_r1", label="chance", sentence="chance is"),),
        others={f"{direction}_r{place}": f"among the first {place}" for place in PLACES[1:]},
    )
