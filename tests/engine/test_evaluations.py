"""Evaluations during training have separate names, intervals and settings, and decide which checkpoint is best."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from lavila.config.load import load_config
from lavila.config.schema import ConfigError, RunConfig
from lavila.engine import checkpoint, evaluations
from lavila.engine.checkpoint import best_of
from lavila.engine.dry_run import check_training
from lavila.engine.evaluations import NamedEvaluation
from lavila.engine.run_folder import subject_of
from lavila.engine.trainer import TrainingError, train
from lavila.metrics.units import Metric, Unit
from lavila.report.files import read_metrics
from lavila.shards.reader import ShardSet
from lavila.tasks import Scores, TaskError
from tests.engine.test_against_checkpoint import with_classes
from tests.engine.test_runs import config_file

EVERY = {"often": {"every_epochs": 1, "views": {"clips": 1, "crops": "center"}}, "seldom": {"every_epochs": 2}}


def evaluated(config: RunConfig) -> list[tuple[int, str]]:
    """Step and name of each evaluation in metrics.jsonl."""
    lines = read_metrics(Path(config.run_dir) / "metrics.jsonl")
    return [(line["step"], name) for line in lines for name in {key.split("/")[0] for key in line if "/" in key}]


def names_in(folder: Path) -> list[str]:
    return [path.name for path in checkpoint.step_folders(folder / "checkpoints")]


def steps(*numbers: int) -> list[str]:
    return [checkpoint.step_name(number) for number in numbers]


@pytest.fixture
def scores(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[float]]:
    """Scores that evaluations give, one after another, instead of going through the clips."""
    waiting: dict[str, list[float]] = {}

    def run(self: NamedEvaluation, *_: Any, **__: Any) -> Scores:
        return Scores(metrics={"verb_top1": Metric(waiting[self.name].pop(0), Unit.percent)})

    monkeypatch.setattr(NamedEvaluation, "run", run)
    return waiting


def test_each_runs_at_its_own_interval_with_its_own_settings(
    vp9_shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, int, str, Sequence[str]]] = []
    whole = evaluations.evaluate_task

    def noting(config: RunConfig, *parts: Any, **named: Any) -> Any:
        seen.append((config.data.val, config.views.clips, config.views.crops, config.task.heads))
        return whole(config, *parts, **named)

    monkeypatch.setattr(evaluations, "evaluate_task", noting)
    link = tmp_path / "other"
    link.symlink_to(vp9_shards.path)
    evals = {**EVERY, "seldom": {"every_epochs": 2, "data": {"val": str(link)}}, "never": {"every_epochs": 0}}
    config = load_config(config_file(tmp_path, vp9_shards, optim={"epochs": 2}, evals=evals))
    train(config)
    assert evaluated(config) == [(3, "often"), (6, "often"), (6, "seldom")]
    heads = ("verb", "noun", "action")
    often = (str(vp9_shards.path), 1, "center", heads)
    assert seen == [often, often, (str(link), 2, "three", heads)]
    last = read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]
    assert 0 <= last["seldom/verb_top1"] <= 100 and last["epoch"] == 2 and "seldom/action_mean_class" in last


def test_the_best_checkpoint_stays_beside_the_newest(
    vp9_shards: ShardSet, tmp_path: Path, scores: dict[str, list[float]]
) -> None:
    path = config_file(tmp_path, vp9_shards, keep_checkpoints=1, evals=EVERY)
    scores |= {"often": [10.0, 30.0, 20.0, float("nan"), 30.0, 31.0, 0.0], "seldom": [99.0] * 9}
    train(load_config(path, ["keep_best=often/verb_top1", "optim.epochs=3"]))
    assert names_in(tmp_path / "run") == steps(6, 9)
    best = best_of(tmp_path / "run" / "checkpoints")
    assert best is not None and (best.checkpoint, best.metric, best.value) == (*steps(6), "often/verb_top1", 30.0)
    # A resume continues with it; of equals the first is kept.
    train(load_config(path, ["keep_best=often/verb_top1", "optim.epochs=5"]))
    assert names_in(tmp_path / "run") == steps(6, 15)
    train(load_config(path, ["keep_best=often/verb_top1", "optim.epochs=7"]))
    assert names_in(tmp_path / "run") == steps(18, 21)
    assert json.loads((tmp_path / "run/checkpoints/best.json").read_text())["value"] == 31.0
    assert subject_of(tmp_path / "run", "best").model.endswith(checkpoint.step_name(18))
    assert subject_of(tmp_path / "run", "").model.endswith(checkpoint.step_name(21))


def test_another_metric_begins_anew(vp9_shards: ShardSet, tmp_path: Path, scores: dict[str, list[float]]) -> None:
    path = config_file(tmp_path, vp9_shards, keep_checkpoints=1, evals={"a": {}, "b": {}})
    scores |= {"a": [50.0, 60.0], "b": [7.0, 6.0]}
    train(load_config(path, ["keep_best=a/verb_top1", "optim.epochs=1"]))
    train(load_config(path, ["keep_best=b/verb_top1", "optim.epochs=2"]))
    best = best_of(tmp_path / "run" / "checkpoints")
    assert best is not None and (best.metric, best.value) == ("b/verb_top1", 6.0)
    assert names_in(tmp_path / "run") == steps(6)


def test_a_resume_makes_up_for_what_a_kill_prevented(
    vp9_shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scores: dict[str, list[float]]
) -> None:
    config = load_config(
        config_file(tmp_path, vp9_shards, evals=EVERY, keep_best="seldom/verb_top1"), ["optim.epochs=2"]
    )
    scores |= {"often": [1.0, 2.0, 3.0], "seldom": []}
    with pytest.raises(IndexError):  # in place of a kill, between two evaluations after the last epoch
        train(config)
    assert evaluated(config) == [(3, "often"), (6, "often")]
    scores["seldom"].append(5.0)
    train(config)
    assert evaluated(config)[2:] == [(6, "seldom")]
    best = best_of(tmp_path / "run" / "checkpoints")
    assert best is not None and best.checkpoint == checkpoint.step_name(6)
    train(config)  # nothing is left
    assert len(evaluated(config)) == 3


def test_a_metric_that_is_none_is_named_with_those_that_are(
    vp9_shards: ShardSet, tmp_path: Path, scores: dict[str, list[float]]
) -> None:
    """Before the first step, and in a dry run."""
    path = config_file(tmp_path, vp9_shards, evals=EVERY, keep_best="often/verb_top")
    for command in (train, check_training):
        with pytest.raises(ConfigError, match=r"keep_best=often/verb_top: .* often/verb_top5\? .*often/verb_top1"):
            command(load_config(path))
    assert not (tmp_path / "run").exists()


def test_a_metric_that_these_clips_do_not_give_is_named_too(
    vp9_shards: ShardSet, tmp_path: Path, scores: dict[str, list[float]]
) -> None:
    path = config_file(tmp_path, vp9_shards, evals=EVERY, keep_best="often/verb_top5")
    scores |= {"often": [1.0]}
    with pytest.raises(TrainingError, match=r"keep_best=often/verb_top5: .* often/verb_top1"):
        train(load_config(path))
    assert names_in(tmp_path / "run") == steps(3)  # nothing is lost


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["evals.x.data.vall=3"], r"evals\.x: data\.vall: no such key\. Did you mean 'val'"),
        (["evals.x.views.clips=0"], r"evals\.x: views\.clips=0: must be at least 1"),
        (["evals.x.views.crops=all"], r"evals\.x: views\.crops: is 'all'; .*'three'"),
        (["evals.x.every_epochs=-1"], r"evals\.x\.every_epochs=-1: must be at least 0"),
        (["evals.x.optim=3"], r"evals\.x\.optim: no such key\. Allowed here: every_epochs, data, views, task"),
        (["evals=3"], "evals: is 3; it maps names to sections"),
        (["evals.a b.every_epochs=1"], r"evals\.a b: a name of letters"),
        (["keep_best=mir/map"], r"keep_best=mir/map: .*none is set"),
        (["evals.x.every_epochs=1", "keep_best=x"], r"keep_best=x: .* \(x\)"),
        (["evals.x.every_epochs=0", "keep_best=x/top1"], r"keep_best=x/top1: "),
    ],
)
def test_mistakes_in_the_config_are_errors_in_one_line(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_config("model/tiny", overrides)
    assert "\n" not in str(caught.value)


def test_what_does_not_fit_is_refused_before_the_first_step(vp9_shards: ShardSet, tmp_path: Path) -> None:
    reversed_verbs = with_classes(vp9_shards, tmp_path / "reversed", verb=vp9_shards.classes["verb"][::-1])
    path = config_file(tmp_path, vp9_shards)
    for override, kind, message in (
        (f"evals.x.data.val={reversed_verbs.path}", TaskError, r"^evals\.x: head verb"),
        ("evals.x.data.val=", ConfigError, r"^evals\.x: data\.val is empty"),
        ("evals.x.data.frames=8", ConfigError, r"^evals\.x: data\.frames=8, but the model is trained with 4"),
        ("evals.x.data.mean=[1,2,3]", ConfigError, r"^evals\.x: data\.mean="),
        ("evals.x.data.dataset=egtea", ConfigError, r"^evals\.x: data\.val=.* of synthetic, .* for egtea"),
        ("evals.x.task.name=dance", ConfigError, r"^evals\.x: .*dance"),
    ):
        with pytest.raises(kind, match=message) as caught:
            train(load_config(path, [override]))
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()
