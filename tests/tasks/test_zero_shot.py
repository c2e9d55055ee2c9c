"""Zero-shot classification: features of classes, fusion of views, one label and several."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from lavila.metrics.multi_label import mean_average_precision
from lavila.tasks import NoModel, Predictions, TaskError
from lavila.tasks.registry import task_kind
from lavila.tasks.tables import Tables
from lavila.tasks.zero_shot import ZeroShotTask
from tests.tasks.dual import tiny_model, tiny_options, word_batch

ACTIONS = {"action": ["cut", "wash", "open"]}
TEXTS = {"action": [["cut onion", "cut the leek"], ["wash"], ["open"]]}
SINGLE = Tables(of="set", classes=ACTIONS, class_texts=TEXTS)
SEVERAL = Tables(of="set", classes={"labels": ACTIONS["action"]}, class_texts={"labels": [["a"], ["b"], ["c"]]})


def task(tables: Tables, model: Any = None, **options: Any) -> ZeroShotTask:
    settings = tiny_options(**{"heads": ("action",), **options})
    made = task_kind("zero_shot").task(model or NoModel(), {}, settings, tables)
    assert isinstance(made, ZeroShotTask)
    return made


@pytest.mark.parametrize("templates", [("{}",), ("#C C {}", "#C {}")])
def test_a_class_is_the_mean_of_its_texts_in_all_templates(templates: tuple[str, ...]) -> None:
    one = task(SINGLE, tiny_model(), templates=templates)
    found = one.know_texts(None)["action"]
    assert found.shape == (3, 8) and np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    filled = [template.format(text) for template in templates for text in TEXTS["action"][0]]
    mean = one.encoders.texts(filled).mean(0)
    assert np.allclose(found[0], normalize(mean, dim=0).numpy(), atol=1e-6)


@pytest.mark.parametrize("rule", ["max_similarity", "mean_logits"])
def test_views_are_fused_before_the_softmax(rule: str) -> None:
    one = task(SINGLE, tiny_model(), fusion=rule)
    texts = torch.from_numpy(one.know_texts(None)["action"])
    batch = word_batch([["x"], ["y"]], views=4, labels={"action": torch.tensor([2, -1])})
    columns = one.predict(batch).columns
    views = one.encoders.views(batch.video) @ texts.T
    fused = views.amax(1) if rule == "max_similarity" else views.mean(1)
    assert np.allclose(columns["scores.action"], fused.softmax(1).numpy(), atol=1e-6)
    assert columns["target.action"].tolist() == [2, -1]


def test_one_label_a_clip_is_scored_as_any_classification() -> None:
    scores = np.array([[0.8, 0.1, 0.1], [0.5, 0.3, 0.2], [0.1, 0.2, 0.7]], np.float32)
    one = task(SINGLE)
    one.know_texts({"action": np.eye(3, dtype=np.float32)})
    part = Predictions(rows=np.arange(3), columns={"scores.action": scores, "target.action": np.array([0, 1, 2])})
    found = one.score([part])
    assert found.metrics["action_top1"].value == pytest.approx(200 / 3)
    assert found.metrics["action_mean_class"].value == pytest.approx(200 / 3)
    assert one.wrongness(part).tolist() == [-np.inf, 0.5, -np.inf]
    assert one.case(part, 1)["predicted"] == {"action": "cut"}


def test_several_labels_a_clip_are_scored_by_mean_average_precision() -> None:
    """A class that no clip shows is left out and counted."""
    scores = np.array([[0.7, 0.2, 0.1], [0.3, 0.6, 0.1], [0.5, 0.4, 0.1]], np.float32)
    shown = np.array([[1, 0, 0], [1, 1, 0], [0, 1, 0]], np.bool_)
    one = task(SEVERAL)
    one.know_texts({"labels": np.eye(3, dtype=np.float32)})
    parts = [
        Predictions(rows=np.array([k]), columns={"scores.labels": scores[[k]], "target.labels": shown[[k]]})
        for k in (2, 0, 1)
    ]
    found = one.score(parts)
    wanted = mean_average_precision(scores, shown.astype(int), without_positives="left_out")
    assert found.metrics["map"].value == pytest.approx(100 * wanted)
    assert found.metrics["classes_without_clip"].value == 1
    assert set(found.sections[0].values) == {"cut", "wash"}
    assert one.wrongness(parts[0]).tolist() == [0.5] and one.wrongness(parts[1])[0] == -np.inf
    assert one.case(parts[2], 0)["truth"] == {"action": "cut, wash"}


def test_a_softmax_changes_the_mean_average_precision() -> None:
    """The first clip is nearer to all classes: by cosines it comes first in each, by probabilities in one."""
    clips, classes = normalize(torch.randn(5, 1, 8, generator=torch.manual_seed(1)), dim=-1), np.eye(8)[:3]
    shown = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [0, 1, 1]], np.bool_)
    found = {}
    for rule in ("max_cosine", "mean_logits"):
        one = task(SEVERAL, tiny_model(), fusion=rule)
        one.know_texts({"labels": classes.astype(np.float32)})
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(one.encoders, "views", lambda video: clips)
            batch = word_batch([[str(k)] for k in range(5)], label_sets=tuple(tuple(np.flatnonzero(s)) for s in shown))
            part = one.predict(batch)
        scores = clips[:, 0].numpy() @ classes.T
        if rule == "mean_logits":
            scores = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
        assert np.allclose(part.columns["scores.labels"], scores, atol=1e-6)
        wanted = mean_average_precision(scores, shown.astype(int))
        found[rule] = one.score([part]).metrics["map"].value
        assert found[rule] == pytest.approx(100 * wanted)
        assert (one.case(part, 0)["confidence"] is None) == (rule == "max_cosine")
    assert found["max_cosine"] != found["mean_logits"]


def test_cosines_are_no_score_of_one_label_a_clip() -> None:
    options = tiny_options(heads=("action",), fusion="max_cosine")
    with pytest.raises(TaskError, match="max_cosine"):
        task_kind("zero_shot").facts(options, replace(SINGLE, split="val"))
    task_kind("zero_shot").facts(options, replace(SEVERAL, split="val"))
    with pytest.raises(TaskError, match="max_cosine"):
        task_kind("classification").facts(options, SINGLE)


def test_labels_of_a_batch_become_columns() -> None:
    one = task(SEVERAL, tiny_model())
    one.know_texts(None)
    columns = one.predict(word_batch([["x"], ["y"]], label_sets=((0, 2), ()))).columns
    assert columns["target.labels"].tolist() == [[True, False, True], [False, False, False]]


def test_a_set_without_class_texts_is_refused() -> None:
    kind, options = task_kind("zero_shot"), tiny_options(heads=("verb",))
    with pytest.raises(TaskError, match=r"verb.*action"):
        kind.facts(options, replace(SINGLE, split="val"))
    empty = replace(SINGLE, class_texts={"action": [["a"], [], ["c"]]})
    with pytest.raises(TaskError, match="class 1"):
        task(empty, tiny_model()).know_texts(None)
