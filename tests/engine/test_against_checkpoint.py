"""What a checkpoint says it was trained on is compared with what it meets, and its statistics are used."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lavila.checkpoints import store
from lavila.checkpoints.errors import CheckpointError
from lavila.checkpoints.store import trained_on
from lavila.checkpoints.zoo import CLIP_PICTURES, IMAGENET_PICTURES
from lavila.config.load import load_config
from lavila.config.schema import ConfigError, RunConfig
from lavila.engine import build, evaluator, trainer
from lavila.shards.reader import ShardSet, open_shard_set
from lavila.tasks import TaskError
from tests.checkpoints.published_files import published_state, tiny, write
from tests.engine.test_runs import config_file

MEAN, STD = [100.0, 110.0, 120.0], [50.0, 60.0, 70.0]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, vp9_shards: ShardSet) -> Path:
    """The checkpoints folder of a run with the statistics MEAN and STD."""
    folder = tmp_path_factory.mktemp("run")
    path = config_file(folder, vp9_shards, optim={"epochs": 1})
    config = load_config(path, [f"data.mean={MEAN}", f"data.std={STD}"])
    trainer.train(config)
    return Path(config.run_dir) / "checkpoints"


def evaluation(folder: Path, shards: ShardSet, checkpoint: Path | str, *overrides: str) -> RunConfig:
    path = config_file(folder, shards, views={"clips": 1, "crops": "center"})
    return load_config(path, [f"checkpoint={checkpoint}", *overrides])


def report_of(config: RunConfig) -> dict[str, Any]:
    page = evaluator.evaluate(config)
    assert page is not None
    found: dict[str, Any] = json.loads(page.with_name("report.json").read_text())
    return found | {"page": page.read_text()}


def with_classes(shards: ShardSet, folder: Path, **classes: list[str]) -> ShardSet:
    """A copy of a shard set whose heads have other classes."""
    shutil.copytree(shards.path, folder)
    manifest = json.loads((folder / "shard_set.json").read_text())
    manifest["classes"] |= classes
    (folder / "shard_set.json").write_text(json.dumps(manifest))
    return open_shard_set(folder)


def changed_metadata(run: Path, target: Path, **changes: str | None) -> Path:
    """A model file of the run with other metadata; None removes."""
    source = trained_on(run).file
    with safe_open(source, framework="pt") as opened:
        metadata = dict(opened.metadata())
    kept = {name: value for name, value in (metadata | changes).items() if value is not None}
    save_file(load_file(source), target, metadata=kept)
    return target


# --- class names


def test_the_same_classes_in_another_order_are_refused(run: Path, vp9_shards: ShardSet, tmp_path: Path) -> None:
    verbs = vp9_shards.classes["verb"]
    other = with_classes(vp9_shards, tmp_path / "reversed", verb=verbs[::-1])
    with pytest.raises(TaskError, match="head verb") as caught:
        evaluator.evaluate(evaluation(tmp_path, other, run))
    message = str(caught.value)
    assert "\n" not in message and "head verb" in message and str(other.path) in message and str(run) in message
    assert f"0: {verbs[-1]!r} here, {verbs[0]!r} there" in message


def test_other_classes_and_other_numbers_of_them_are_refused(run: Path, vp9_shards: ShardSet, tmp_path: Path) -> None:
    for number, nouns in enumerate((["dark", "grey"], ["dark", "bright", "grey"])):
        other = with_classes(vp9_shards, tmp_path / str(number), noun=nouns)
        with pytest.raises(TaskError, match="head noun") as caught:
            evaluator.evaluate(evaluation(tmp_path, other, run))
        assert "'grey'" in str(caught.value) and "order" not in str(caught.value)


def test_other_heads_are_refused_before_weights_are_read(
    run: Path, vp9_shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluator, "load_model", lambda *_, **__: pytest.fail("read"))
    for heads in ("[noun,verb,action]", "[verb]"):
        with pytest.raises(TaskError, match=r"task\.heads=\[verb,noun,action\]"):
            evaluator.evaluate(evaluation(tmp_path, vp9_shards, run, f"task.heads={heads}"))


def test_resuming_compares_classes_and_statistics(run: Path, vp9_shards: ShardSet, tmp_path: Path) -> None:
    other = with_classes(vp9_shards, tmp_path / "reversed", verb=vp9_shards.classes["verb"][::-1])
    again = [f"resume={run}", "optim.epochs=2"]
    with pytest.raises(TaskError, match="head verb"):
        trainer.train(load_config(config_file(tmp_path, other), again))
    with pytest.raises(ConfigError, match=r"data\.mean=\[1\.0, 2\.0, 3\.0\].*\[100\.0, 110\.0, 120\.0\]"):
        trainer.train(load_config(config_file(tmp_path, vp9_shards), [*again, "data.mean=[1,2,3]"]))
    trainer.train(load_config(config_file(tmp_path, vp9_shards), again))
    assert load_config(tmp_path / "run" / "config.yaml").data.mean == tuple(MEAN)


def test_validation_needs_the_classes_of_training(vp9_shards: ShardSet, tmp_path: Path) -> None:
    """An error before the first step, not after an epoch."""
    other = with_classes(vp9_shards, tmp_path / "reversed", action=vp9_shards.classes["action"][::-1])
    config = load_config(config_file(tmp_path, vp9_shards), [f"data.val={other.path}", "evals.val.every_epochs=1"])
    with pytest.raises(TaskError, match="head action"):
        trainer.train(config)
    assert not (tmp_path / "run" / "checkpoints").exists()


# --- statistics


def test_statistics_come_from_the_checkpoint_unless_set(run: Path, vp9_shards: ShardSet, tmp_path: Path) -> None:
    config = evaluation(tmp_path, vp9_shards, run)
    assert config.data.mean == () and config.data.std == ()
    unset = report_of(config)
    assert unset["config"]["data"]["mean"] == MEAN and unset["config"]["data"]["std"] == STD and unset["notes"] == []
    same = report_of(evaluation(tmp_path, vp9_shards, run, f"data.mean={MEAN}", "data.std=[50.001,60,70]"))
    assert same["heads"]["verb"]["confusion"] == unset["heads"]["verb"]["confusion"]


def test_set_statistics_that_differ_are_an_error_that_names_both_sides(
    run: Path, vp9_shards: ShardSet, tmp_path: Path
) -> None:
    for override, theirs in (("data.mean=[123.675,116.28,103.53]", MEAN), ("data.std=[1,1,1]", STD)):
        with pytest.raises(ConfigError) as caught:
            evaluator.evaluate(evaluation(tmp_path, vp9_shards, run, override))
        message = str(caught.value)
        assert override.split("=")[0] in message and str(theirs) in message and "allow_other_statistics" in message
        assert "\n" not in message


def test_other_statistics_on_purpose_are_used_and_noted(
    run: Path, vp9_shards: ShardSet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    allowed = ("data.mean=[0,0,0]", "data.std=[255,255,255]", "data.allow_other_statistics=true")
    report = report_of(evaluation(tmp_path, vp9_shards, run, *allowed))
    assert report["config"]["data"]["mean"] == [0.0, 0.0, 0.0] and len(report["notes"]) == 2
    assert all(note in caplog.text for note in report["notes"])
    assert report["notes"][0] in report["page"]


def test_frames_and_sizes_that_the_model_was_not_trained_on_are_noted(
    run: Path, vp9_shards: ShardSet, tmp_path: Path
) -> None:
    for override, part in (
        ("data.frames=2", "cut short"),
        ("data.frames=8", "resampled"),
        ("data.image_size=64", "64"),
    ):
        (note,) = report_of(evaluation(tmp_path, vp9_shards, run, override))["notes"]
        assert override in note and part in note


def test_a_run_folder_holds_the_resolved_statistics(vp9_shards: ShardSet, run: Path, tmp_path: Path) -> None:
    """Random weights: LaViLa's. Weights of a run: that run's. Both are in the new model file as well."""
    for init, mean in (("random", list(CLIP_PICTURES.mean)), (str(run), MEAN)):
        folder = tmp_path / ("fresh" if init == "random" else "tuned")
        options = [f"model.init={init}", f"run_dir={folder}", "optim.epochs=1"]
        last = trainer.train(load_config(config_file(tmp_path, vp9_shards), options))
        assert list(load_config(folder / "config.yaml").data.mean) == mean
        assert list(trained_on(last).mean) == mean
    with pytest.raises(ConfigError, match="allow_other_statistics"):
        trainer.train(load_config(config_file(tmp_path, vp9_shards), [f"model.init={run}", "data.std=[9,9,9]"]))


@pytest.mark.parametrize(("kind", "pictures"), [("clip", CLIP_PICTURES), ("egovlp", IMAGENET_PICTURES)])
def test_published_files_say_their_statistics(kind: str, pictures: Any, vp9_shards: ShardSet, tmp_path: Path) -> None:
    file = write(tmp_path / "published.pth", published_state(tiny(kind)))
    found = trained_on(file)
    assert (found.mean, found.std, found.frames, found.task_facts) == (pictures.mean, pictures.std, 4, {})
    assert found.text == {"clip": "clip", "egovlp": "distilbert"}[kind]
    config = load_config(config_file(tmp_path, vp9_shards))
    assert build.with_statistics(config, found).data.mean == pictures.mean
    other = replace(config, data=replace(config.data, mean=(1.0, 2.0, 3.0)))
    with pytest.raises(ConfigError, match="allow_other_statistics"):
        build.with_statistics(other, found)


def test_a_file_that_says_nothing_is_warned_of(
    run: Path, vp9_shards: ShardSet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    silent = changed_metadata(run, tmp_path / "m.safetensors", pictures=None, classes=None)
    found = trained_on(silent)
    assert (found.mean, found.task_facts, found.frames, found.image_size) == ((), {}, 4, 32)
    resolved = build.with_statistics(load_config(config_file(tmp_path, vp9_shards)), found)
    assert resolved.data.mean == CLIP_PICTURES.mean and "does not say the mean" in caplog.text


@pytest.mark.parametrize(
    "changes",
    [
        {"pictures": "{"}, {"pictures": "[]"}, {"pictures": '{"mean": [1, 2]}'}, {"pictures": '{"std": [1, 0, 1]}'},
        {"pictures": '{"mean": ["a", 1, 2]}'}, {"pictures": '{"mean": [NaN, 1, 1]}'},
    ],
)  # fmt: skip
def test_what_is_no_statistics_is_an_error_that_names_the_file(
    run: Path, tmp_path: Path, changes: dict[str, str]
) -> None:
    file = changed_metadata(run, tmp_path / "m.safetensors", **changes)
    with pytest.raises(CheckpointError, match=r"m\.safetensors") as caught:
        trained_on(file)
    assert "\n" not in str(caught.value)


def test_weights_are_read_once_and_from_the_file_that_was_compared(
    run: Path, vp9_shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`latest` may name a newer checkpoint by the time that the weights are read."""
    reads, read = [], store.load_file
    monkeypatch.setattr(store, "load_file", lambda file: reads.append(file) or read(file))
    file = trained_on(run).file
    assert reads == []
    evaluator.evaluate(evaluation(tmp_path, vp9_shards, run))
    assert reads == [file]


def test_a_statistic_is_three_numbers_or_none() -> None:
    with pytest.raises(ConfigError, match=r"data\.mean"):
        load_config("model/tiny", ["data.mean=[1,2]"])
