"""The classification task: heads, views, scores, and what the report gets."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lavila.metrics.units import Metric, Unit
from lavila.records import VideoBatch
from lavila.tasks import Predictions, TaskError, TaskOptions, concatenate
from lavila.tasks.classification import ClassificationTask
from lavila.tasks.registry import task_kind
from lavila.tasks.tables import Tables

CLASSES = {"verb": ["a", "b", "c"], "noun": ["x", "y"]}


class Brightness(nn.Module):
    """Logits that follow from the mean of the picture, so that what a batch gives can be said in advance."""

    num_classes = (3, 2)

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.largest = 0

    def forward(self, video: Tensor) -> tuple[Tensor, Tensor]:
        self.largest = max(self.largest, len(video))
        mean = video.mean(dim=(1, 2, 3, 4)) * self.scale
        return torch.stack([mean, -mean, mean * 0], 1), torch.stack([mean, -mean], 1)


def batch(values: Any, **labels: list[int]) -> VideoBatch:
    """A clip of each row of `values` [B, V], each view a picture of that one value."""
    views = torch.as_tensor(values, dtype=torch.float32)
    clips = len(views)
    return VideoBatch(
        video=views[:, :, None, None, None, None].expand(-1, -1, 3, 2, 4, 4)
        if clips
        else torch.zeros(0, 1, 3, 2, 4, 4),
        rows=np.arange(clips),
        positions=np.arange(clips),
        clip_ids=tuple(f"c{i}" for i in range(clips)),
        label_sets=((),) * clips,
        labels={name: torch.tensor(values, dtype=torch.int64) for name, values in labels.items()},
        narrations=((),) * clips,
        sources=((),) * clips,
        chosen=np.full(clips, -1),
        draws=np.zeros(clips),
    )


def task(**settings: Any) -> ClassificationTask:
    return ClassificationTask(Brightness(), classes=CLASSES, options=TaskOptions(head_weights=(1.0, 0.5), **settings))


def test_a_step_sums_the_weighted_losses() -> None:
    loss, logs = task(label_smoothing=0.0).step(batch([[2.0], [-2.0]], verb=[0, 1], noun=[0, -1]))
    verb = -torch.log_softmax(torch.tensor([2.0, -2.0, 0.0]), 0)[0]
    noun = -torch.log_softmax(torch.tensor([2.0, -2.0]), 0)[0]
    assert torch.isclose(loss, verb + 0.5 * noun)
    assert (float(logs["verb_top1"]), float(logs["noun_top1"])) == (100.0, 100.0)


def test_an_empty_batch_takes_part_with_no_weight() -> None:
    one = task()
    loss, _ = one.step(batch([], verb=[], noun=[]))
    loss.backward()
    assert float(loss.detach()) == 0 and one.model.scale.grad == 0


@pytest.mark.parametrize("view_batch_size", [1, 2, 16])
def test_views_are_fused_as_the_rule_says(view_batch_size: int) -> None:
    views = [[3.0, -1.0, 1.0], [-4.0, 1.0, 0.0]]
    mean, most = (
        task(fusion=rule, view_batch_size=view_batch_size).predict(batch(views, verb=[0, 0], noun=[0, 0]))
        for rule in ("mean_logits", "max_similarity")
    )
    assert np.allclose(mean.columns["scores.noun"][0], torch.softmax(torch.tensor([1.0, -1.0]), 0))
    assert np.allclose(most.columns["scores.noun"][0], torch.softmax(torch.tensor([3.0, 1.0]), 0))
    assert mean.columns["scores.verb"].shape == (2, 3)


def test_views_pass_in_the_portions_asked_for() -> None:
    one = task(view_batch_size=2)
    one.predict(batch([[0.0] * 5], verb=[0], noun=[0]))
    assert isinstance(one.model, Brightness) and one.model.largest == 2


def test_scores_and_what_the_report_gets() -> None:
    scores = np.array([[0.6, 0.3, 0.1], [0.5, 0.4, 0.1], [0.1, 0.2, 0.7], [0.2, 0.5, 0.3]], np.float32)
    predictions = Predictions(
        rows=np.arange(4),
        columns={
            "scores.verb": scores, "scores.noun": scores[:, :2],
            "target.verb": np.array([0, 1, 2, -1]), "target.noun": np.full(4, -1),
        },
    )  # fmt: skip
    result = task().score([predictions])
    assert {metric.unit for metric in result.metrics.values()} == {Unit.percent}
    assert {name: metric.value for name, metric in result.metrics.items()} == {
        "verb_top1": pytest.approx(200 / 3),
        "verb_top5": 100.0,
        "verb_mean_class": pytest.approx(200 / 3),
    }
    (section,) = result.sections
    heads = section.values
    assert (section.key, section.type) == ("heads", "class_tables")
    assert heads["verb"]["confusion"] == [[1, 0, 0], [1, 0, 0], [0, 0, 1]]
    assert heads["verb"]["per_class_accuracy"] == [100.0, 0.0, 100.0]
    assert heads["verb"]["support"] == [1, 1, 1] and "noun" not in heads
    assert [headline.metric for headline in result.headlines] == ["verb_top1"]


def test_scores_do_not_depend_on_the_parts() -> None:
    rng = np.random.default_rng(0)

    def part(rows: list[int]) -> Predictions:
        return Predictions(rows=np.array(rows), columns={name: values[rows] for name, values in columns.items()})

    columns: dict[str, Any] = {
        "scores.verb": rng.random((50, 3)).astype(np.float32), "target.verb": rng.integers(-1, 3, 50),
        "scores.noun": rng.random((50, 2)).astype(np.float32), "target.noun": rng.integers(0, 2, 50),
    }  # fmt: skip
    whole = task().score([part(list(range(50)))])
    assert task().score([part([7]), part(list(range(7))), part(list(range(8, 50)))]) == whole
    known = columns["target.verb"] >= 0
    right = columns["scores.verb"].argmax(1)[known] == columns["target.verb"][known]
    assert whole.metrics["verb_top1"].value == pytest.approx(right.mean() * 100)


def test_chance_and_the_largest_class_are_two_things() -> None:
    columns = {"scores.verb": np.zeros((5, 4), np.float32), "target.verb": np.array([1, 1, 1, 0, -1])}
    one = ClassificationTask(nn.Linear(1, 1), classes={"verb": list("abcd")}, options=TaskOptions())
    found = one.score([Predictions(rows=np.arange(5), columns=columns)]).controls
    assert found == {
        "chance_verb_top1": Metric(25.0, Unit.percent), "largest_class_verb_top1": Metric(75.0, Unit.percent),
    }  # fmt: skip


def test_a_confident_mistake_is_the_worst_and_says_what_was_taken_for_what() -> None:
    predictions = Predictions(
        rows=np.arange(4),
        columns={
            "scores.verb": np.array([[0.6, 0.3, 0.1], [0.9, 0.1, 0], [0.1, 0.2, 0.7], [1, 0, 0]], np.float32),
            "target.verb": np.array([1, 2, 2, -1]),
            "scores.noun": np.array([[0.6, 0.4]] * 4, np.float32), "target.noun": np.array([0, -1, 1, 1]),
        },
    )  # fmt: skip
    wrongness = task().wrongness(predictions)
    assert wrongness.tolist() == [
        pytest.approx(0.6),
        pytest.approx(0.9),
        -np.inf,
        pytest.approx(0.6),
    ]  # the last by its noun
    assert task().case(predictions, 0) == {
        "truth": {"verb": "b", "noun": "x"}, "predicted": {"verb": "a", "noun": "x"}, "confidence": pytest.approx(0.6),
    }  # fmt: skip
    assert task().case(predictions, 1)["truth"] == {"verb": "c"}


def test_a_number_prints_as_its_unit_wants() -> None:
    pairs = ((0.8333, Unit.fraction), (91.66, Unit.percent), (12.0, Unit.count), (17.239, Unit.number))
    assert [str(Metric(*pair)) for pair in pairs] == ["0.833", "91.7 %", "12", "17.24"]


def test_tasks_are_found_by_name() -> None:
    kind = task_kind("classification")
    facts = kind.facts(TaskOptions(heads=("noun",)), Tables(of="here", classes=CLASSES))
    assert facts == {"classes": {"noun": ["x", "y"]}}
    with pytest.raises(TaskError, match="classification"):
        task_kind("dance")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (TaskOptions(), r"task\.heads"),
        (TaskOptions(heads=("verb",), head_weights=(1.0, 2.0)), r"task\.head_weights=\[1\.0, 2\.0\].*verb"),
        (TaskOptions(heads=("verb", "noun"), head_weights=(0.0, 0.0)), r"task\.head_weights=\[0\.0, 0\.0\]"),
        (TaskOptions(heads=("verb", "action")), r"here.*action"),
    ],
    ids=["none", "weights", "zeros", "missing"],
)
def test_heads_that_make_no_sense_are_refused(options: TaskOptions, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        task_kind("classification").facts(options, Tables(of="here", classes=CLASSES))


@pytest.mark.parametrize("classes", [[1], {"verb": 3}])
def test_classes_of_another_form_are_an_error_that_names_the_file(classes: Any) -> None:
    with pytest.raises(TaskError, match="the file"):
        task_kind("classification").check({"classes": CLASSES}, {"classes": classes}, of="here", wanted_by="the file")


def test_many_classes_are_reported_as_pairs() -> None:
    names = [str(i) for i in range(400)]
    one = ClassificationTask(nn.Linear(1, 1), classes={"action": names}, options=TaskOptions(head_weights=(1.0,)))
    targets = np.array([7, 7, 7, 9])
    predicted = np.array([8, 8, 7, 7])
    scores = np.eye(400, dtype=np.float32)[predicted]
    predictions = Predictions(rows=np.arange(4), columns={"scores.action": scores, "target.action": targets})
    head = one.score([predictions]).sections[0].values["action"]
    assert head["confused_pairs"] == [[7, 8, 2], [9, 7, 1]] and "confusion" not in head


def test_a_model_for_other_classes_is_refused() -> None:
    with pytest.raises(TaskError, match=r"\[3, 2\].*\{'verb': 1, 'noun': 2\}"):
        ClassificationTask(
            Brightness(), classes=CLASSES | {"verb": ["a"]}, options=TaskOptions(head_weights=(1.0, 1.0))
        )


def test_parts_come_together_in_row_order() -> None:
    def part(*rows: int) -> Predictions:
        values = np.array(rows)
        return Predictions(rows=values, columns={"s": values[:, None].astype(np.float32), "t": values})

    whole = concatenate([part(3, 1), part(0, 2)])
    assert whole.rows.tolist() == whole.columns["t"].tolist() == whole.columns["s"][:, 0].tolist() == [0, 1, 2, 3]
    with pytest.raises(AssertionError, match="twice"):
        concatenate([part(1), part(1)])
