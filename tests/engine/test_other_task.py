"""A task without classes goes the whole way: the engine and the report know nothing but the interface."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

from lavila.checkpoints.store import trained_on
from lavila.config.load import load_config
from lavila.engine.evaluator import evaluate
from lavila.engine.trainer import train
from lavila.metrics.units import Metric, Unit
from lavila.models.classifier import VideoClassifier
from lavila.records import VideoBatch
from lavila.report.files import read_metrics
from lavila.shards.reader import ShardSet
from lavila.tasks import (
    Headline,
    ModelParts,
    Predictions,
    Scores,
    Section,
    TaskError,
    TaskFacts,
    TaskOptions,
    TextFeatures,
    concatenate,
    registry,
)
from lavila.tasks.tables import Tables
from tests.engine.test_runs import config_file

WORDS = ["dark", "bright"]


class Speaker:
    """Says whether a clip is dark or bright, in words."""

    def __init__(self, model: nn.Module, words: list[str]) -> None:
        self.model, self.words = model, words

    @property
    def logged(self) -> Mapping[str, Unit]:
        return {"agreement": Unit.fraction}

    @property
    def metric_names(self) -> Collection[str]:
        return ["cider"]

    def in_backbone(self, parameter: str) -> bool:
        return parameter.startswith("visual.")

    def step(self, batch: VideoBatch) -> tuple[Tensor, dict[str, Tensor]]:
        logits = self.model(batch.video[:, 0])
        target = self._truth(batch)
        loss = nn.functional.cross_entropy(logits, target)
        return loss, {"loss": loss.detach(), "agreement": (logits.argmax(1) == target).float().mean()}

    def after_update(self) -> None:
        pass

    def know_texts(self, known: TextFeatures | None) -> TextFeatures:
        return {}

    def predict(self, batch: VideoBatch) -> Predictions:
        with torch.no_grad():
            said = self.model(batch.video[:, 0]).argmax(1)
        columns = {
            name: np.array([self.words[i] for i in places.tolist()])
            for name, places in (("said", said), ("reference", self._truth(batch)))
        }
        return Predictions(rows=batch.rows, columns=columns)

    def score(self, parts: Iterable[Predictions]) -> Scores:
        whole = concatenate(parts)
        same = float((whole.columns["said"] == whole.columns["reference"]).mean())
        return Scores(
            metrics={"cider": Metric(same, Unit.fraction)},
            headlines=(Headline(metric="cider", label="CIDEr", sentence="CIDEr is"),),
            sections=(
                Section(key="lengths", type="key_values", title="Words", values={"longest": 7.0},
                        units={"longest": Unit.count}),
            ),
        )  # fmt: skip

    def wrongness(self, predictions: Predictions) -> npt.NDArray[np.floating[Any]]:
        return np.where(predictions.columns["said"] != predictions.columns["reference"], 1.0, -np.inf)

    def case(self, predictions: Predictions, place: int) -> dict[str, Any]:
        said, reference = (str(predictions.columns[name][place]) for name in ("said", "reference"))
        return {"truth": {"narration": reference}, "predicted": {"narration": said}}

    def _truth(self, batch: VideoBatch) -> Tensor:
        return torch.from_numpy(batch.rows % 2).to(batch.video.device)


class Speaking:
    def __init__(self, words: list[str]) -> None:
        self.words = words

    def facts(self, options: TaskOptions, tables: Tables) -> TaskFacts:
        return {"words": self.words}

    def needs_words(self, tables: Tables) -> bool:
        return False

    def check(self, found: TaskFacts, wanted: TaskFacts, *, of: object, wanted_by: object) -> None:
        if wanted.get("words", self.words) != found["words"]:
            raise TaskError(f"{of}: other words than {wanted_by}")

    def describe(self, facts: TaskFacts) -> str:
        return f"{len(facts['words'])} words"

    def model(self, parts: ModelParts, facts: TaskFacts, options: TaskOptions) -> nn.Module:
        return VideoClassifier(parts.tower, num_classes=(len(facts["words"]),), dropout=0.0)  # type: ignore[arg-type]

    def task(self, model: nn.Module, facts: TaskFacts, options: TaskOptions, tables: Tables) -> Speaker:
        return Speaker(model, facts["words"])


def test_a_task_that_speaks_trains_validates_and_reports(
    tmp_path: Path, vp9_shards: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(registry.KINDS, "speaking", Speaking(WORDS))
    path = config_file(
        tmp_path, vp9_shards, task={"name": "speaking"}, optim={"epochs": 2}, evals={"val": {"every_epochs": 1}}
    )
    config = load_config(path, ["views.single_frame_control=true"])
    last = train(config)
    assert trained_on(last).task_facts == {"words": WORDS}
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert all(0 <= line["agreement"] <= 1 for line in lines if "loss" in line)
    assert len([line for line in lines if "val/cider" in line]) == 2
    page = evaluate(config)
    assert page is not None
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    cider = report["metrics"]["cider"]
    assert set(report["metrics"]) == {"cider"} and set(report["controls"]) == {"single_frame_cider"}
    assert report["units"] == {"agreement": "fraction", "cider": "fraction", "single_frame_cider": "fraction"}
    assert report["lengths"] == {"longest": 7.0} and "heads" not in report
    assert len(report["mistakes"]) == round((1 - cider) * 12)
    assert f"CIDEr is {cider:.3f}" in page.read_text() and "metrics in %" not in page.read_text()
    monkeypatch.setitem(registry.KINDS, "speaking", Speaking(WORDS[::-1]))
    with pytest.raises(TaskError, match="step-00000006"):
        evaluate(config)
