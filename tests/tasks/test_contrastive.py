"""Contrastive training's evaluation: clips and narrations that find each other."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from lavila.tasks import Predictions, TaskError
from lavila.tasks.contrastive import Contrastive, ContrastiveTask
from lavila.tasks.tables import Tables
from tests.tasks.dual import tiny_model, tiny_options, word_batch


def task(**options: Any) -> ContrastiveTask:
    return Contrastive().task(tiny_model(), {}, tiny_options(**options), Tables(of="here"))


def pairs(video: Any, text: Any, words: list[str]) -> Predictions:
    columns = {"video": np.float32(video), "text": np.float32(text), "words": np.array(words)}
    return Predictions(rows=np.arange(len(words)), columns=columns)


def test_predictions_are_features_of_clips_and_their_words() -> None:
    batch = word_batch([["take plate"], [], ["put cup"]], views=2)
    found = task().predict(batch)
    assert found.columns["words"].tolist() == ["take plate", "", "put cup"]
    for name in ("video", "text"):
        assert found.columns[name].shape == (3, 8) and found.columns[name].dtype == np.float32
        assert np.allclose(np.linalg.norm(found.columns[name], axis=1), 1)
    alone = task().predict(word_batch([["put cup"]]))
    assert np.allclose(alone.columns["text"][0], found.columns["text"][2], atol=1e-6)


def test_scores_are_of_clips_with_words() -> None:
    eye = np.eye(3)
    found = task().score([pairs(eye[[0, 1, 2, 0]], eye[[0, 2, 1, 2]], ["a", "b", "c", ""])])
    assert {name: metric.value for name, metric in found.metrics.items() if name.endswith("r1")} == {
        "video_to_text_r1": pytest.approx(100 / 3), "text_to_video_r1": pytest.approx(100 / 3),
    }  # fmt: skip
    assert found.metrics["video_to_text_r5"].value == 100 and found.controls["pairs"].value == 3
    assert found.controls["chance_r1"].value == pytest.approx(100 / 3) and found.controls["chance_r5"].value == 100
    assert {headline.metric for headline in found.headlines} == {"video_to_text_r1", "text_to_video_r1"}
    with pytest.raises(TaskError, match=r"here.*data\.val_captions"):
        task().score([pairs(eye, eye, ["", "", ""])])


def test_mistakes_are_pairs_that_are_far_apart() -> None:
    one = task()
    found = pairs([[1, 0], [1, 0], [1, 0]], [[1, 0], [0, 1], [0, 1]], ["near", "far", ""])
    assert one.wrongness(found).tolist() == [0.0, 1.0, -np.inf]
    case = one.case(found, 1)
    assert case["truth"] == {"narration": "far"} and "0.00" in case["predicted"]["narration"]


def test_projections_and_temperature_are_no_backbone() -> None:
    one = task()
    outside = {name for name, _ in one.model.named_parameters() if not one.in_backbone(name)}
    assert outside == {"image_projection", "text_projection", "logit_scale"}


def test_training_learns_its_pairs() -> None:
    torch.manual_seed(0)
    one, batch = task(), word_batch([["take plate"], ["put cup"], ["wash"], ["open"]])
    optimizer = torch.optim.AdamW(one.model.parameters(), lr=1e-2)
    for _ in range(60):
        loss, logs = one.step(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        one.after_update()
    assert float(logs["video_to_text"]) == float(logs["text_to_video"]) == 100.0
    assert one.score([one.predict(batch)]).metrics["video_to_text_r1"].value == 100.0
