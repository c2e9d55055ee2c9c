"""Multiple choice: questions keyed by their kind's number, choices looked up by row, lost ones counted and named."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import torch

from lavila.tasks import NoModel, Predictions
from lavila.tasks.multiple_choice import MultipleChoiceTask
from lavila.tasks.registry import task_kind
from lavila.tasks.tables import Questions, Tables
from tests.tasks.dual import tiny_model, tiny_options, word_batch

IDS = [f"clip{row}" for row in range(6)]
CHOICES = [[0, 1, 2], [3, 4, 5], [0, 3, 5], [5, 4, -1]]
QUESTIONS = Questions(
    ids=["7", "8", "9", "10"],
    texts=["cuts", "washes", "opens", "closes"],
    kinds=np.array([1, 2, 2, 1]),
    kind_names={1: "inter", 2: "intra"},
    choices=np.array(CHOICES),
    choice_ids=[[IDS[row] if row >= 0 else "gone" for row in rows] for rows in CHOICES],
    answers=np.array([0, 2, 0, 1]),
)
FEATURES = np.array([[1, 0], [0, 1], [0.6, 0.8], [0, 1], [0.8, 0.6], [1, 0]], np.float32)
ASKED = np.array([[1, 0], [0, 1], [0.8, 0.6], [1, 0]], np.float32)


def task(model: Any = None, **options: Any) -> MultipleChoiceTask:
    tables = Tables(of="set", clips=6, questions=lambda: QUESTIONS)
    made = task_kind("multiple_choice").task(model or NoModel(), {}, tiny_options(**options), tables)
    assert isinstance(made, MultipleChoiceTask)
    if model is None:
        made.know_texts({"questions": ASKED})
    return made


def predictions(*rows: int) -> Predictions:
    return Predictions(rows=np.array(rows), columns={"video": FEATURES[list(rows)]})


def test_kinds_have_the_names_of_their_numbers_and_lost_questions_are_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Question 7 is right; 8 takes clip 3 and is wrong; 9 is right; 10 has a choice that no clip is."""
    with caplog.at_level(logging.WARNING):
        found = task().score([predictions(5, 0, 1), predictions(2, 3, 4)])
    values = {name: metric.value for name, metric in found.metrics.items()}
    assert values == {
        "intra_accuracy": 50.0,
        "inter_accuracy": 100.0,
        "intra_questions": 2,
        "inter_questions": 2,
        "questions_lost": 1,
    }
    assert found.controls["chance"].value == pytest.approx(100 / 3)
    assert [headline.metric for headline in found.headlines] == ["intra_accuracy", "inter_accuracy"]
    (lost,) = found.sections[1].values
    assert "10" in lost["note"] and [text["text"] for text in lost["texts"]] == ["gone"]
    assert "question 10 " in caplog.text and "gone" in caplog.text


def test_a_clip_that_was_not_read_loses_its_questions() -> None:
    """Clip 3 is a choice of both intra questions: nothing is left of that kind."""
    found = task().score([predictions(0, 1, 2, 4, 5)])
    assert np.isnan(found.metrics["intra_accuracy"].value) and found.metrics["inter_accuracy"].value == 100
    assert found.metrics["questions_lost"].value == 3
    assert sum(entry["note"] == "not read" for lost in found.sections[1].values for entry in lost["texts"]) == 3


def test_the_report_shows_choices_with_the_right_and_the_chosen_one() -> None:
    galleries = task().score([predictions(0, 1, 2, 3, 4, 5)]).sections[0].values
    assert [one["title"] for one in galleries] == ["cuts", "washes", "opens"]
    right, wrong = galleries[0]["clips"], galleries[1]["clips"]
    assert [clip["right"] for clip in right] == [True, None, None] and "chosen" in right[0]["note"]
    assert [clip["row"] for clip in wrong] == [3, 4, 5] and [clip["right"] for clip in wrong] == [False, None, True]


def test_features_keep_their_length_for_dot_products() -> None:
    """The reference's choice is by the product of what the encoders give. Lengths differ from clip to clip."""
    batch = word_batch([["a"], ["b"], ["c"]])
    dot, cosine = task(tiny_model(), similarity="dot"), task(tiny_model())
    long, unit = (one.predict(batch).columns["video"] for one in (dot, cosine))
    with torch.no_grad():
        np.testing.assert_allclose(long, dot.encoders.inner.encode_video(batch.video[:, 0]).numpy(), atol=1e-6)
    lengths = np.linalg.norm(long, axis=1, keepdims=True)
    np.testing.assert_allclose(long / lengths, unit, atol=1e-6)
    assert lengths.max() > 1.01 * lengths.min()


def test_of_two_clips_the_longer_one_is_chosen_by_dot_products() -> None:
    longer = FEATURES.copy()
    longer[4] *= 2  # a choice of question 8, whose right one is clip 5
    longer[2] *= 3  # a choice of question 7, whose right one is clip 0
    parts = [Predictions(rows=np.arange(6), columns={"video": longer})]
    galleries = task(similarity="dot").score(parts).sections[0].values
    assert [clip["right"] for clip in galleries[0]["clips"]] == [True, None, False]


def test_questions_are_encoded_once() -> None:
    one = task(tiny_model())
    assert one.know_texts(None)["questions"].shape == (4, 8)
    assert one.predict(word_batch([["a"]])).columns["video"].shape == (1, 8)
    assert (one.wrongness(predictions(0, 1)) == -np.inf).all()
