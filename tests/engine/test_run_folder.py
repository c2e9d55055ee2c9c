"""A run folder holds one run, and what lies in it speaks of that run alone."""

from __future__ import annotations

import errno
import json
import re
import shutil
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from lavila.checkpoints.errors import CheckpointError
from lavila.checkpoints.store import trained_on
from lavila.checkpoints.zoo import ZOO
from lavila.config.load import load_config
from lavila.config.schema import RunConfig
from lavila.engine import evaluator, run_folder
from lavila.engine.evaluator import evaluate
from lavila.engine.run_folder import RunFolderError, alone_in, of_run, subject_of
from lavila.engine.trainer import train
from lavila.errors import UserError
from lavila.report.files import append_stage, read_metrics
from lavila.shards.reader import ShardSet
from lavila.tasks import TaskError
from lavila.tasks.classification import ClassificationTask
from tests.engine.interrupted import train_until
from tests.engine.test_resume import files_of
from tests.engine.test_runs import config_file


@pytest.fixture
def folder(finished: RunConfig) -> Path:
    """The folder with tiny.yaml and `run`."""
    return Path(finished.run_dir).parent


def settings(folder: Path, *overrides: str) -> Any:
    return load_config(folder / "tiny.yaml", list(overrides))


def steps(run_dir: Path) -> list[int]:
    return [line["step"] for line in read_metrics(run_dir / "metrics.jsonl")]


def report_in(folder: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return report


def test_starting_afresh_in_a_used_folder_is_refused_or_sets_the_old_run_aside(folder: Path) -> None:
    before = files_of(folder / "run")
    with pytest.raises(CheckpointError, match=r"resume=none.*resume=aside"):
        train(settings(folder, "resume=none"))
    assert files_of(folder / "run") == before and not (folder / "run.1").exists()
    for number in (1, 2):
        kept = files_of(folder / "run")
        train(settings(folder, "resume=aside", "optim.epochs=1", f"seed={number}"))
        assert files_of(folder / f"run.{number}") == kept
        assert steps(folder / "run") == [1, 2, 3]
        assert sorted(path.name for path in (folder / "run" / "checkpoints").iterdir()) == ["latest", "step-00000003"]
    assert files_of(folder / "run.1") == before


def test_two_processes_do_not_train_into_one_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_folder, "WAIT_SECONDS", 0.0)
    before = files_of(folder / "run")
    with alone_in(folder / "run"):
        for more in ("resume=auto", "resume=aside"):
            with pytest.raises(RunFolderError, match=re.escape(str(folder / "run"))):
                train(settings(folder, more, "optim.epochs=9"))
    assert files_of(folder / "run") == before and not (folder / "run.1").exists()
    train(settings(folder, "optim.epochs=3"))  # after the other one it continues
    assert steps(folder / "run")[-1] == 9


def test_a_process_that_is_ending_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = ExitStack()
    first.enter_context(alone_in(tmp_path))
    monkeypatch.setattr("lavila.engine.run_folder.time.sleep", lambda seconds: first.close())
    with alone_in(tmp_path):
        pass


def test_a_damaged_line_of_metrics_is_named(folder: Path) -> None:
    metrics = folder / "run" / "metrics.jsonl"
    metrics.write_text("{broken\n" + metrics.read_text())
    with pytest.raises(UserError, match=r"metrics\.jsonl:1"):
        train(settings(folder, "optim.epochs=3"))


def test_a_start_that_is_refused_leaves_no_folder(folder: Path) -> None:
    with pytest.raises(UserError, match="batch_size"):
        train(settings(folder, "data.batch_size=1000", f"run_dir={folder / 'other'}"))
    assert not (folder / "other").exists()


def test_a_file_system_without_locks_is_used_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise OSError(errno.EBADF, "NFS wants a file that is open for writing")

    monkeypatch.setattr("lavila.engine.run_folder.fcntl.flock", refused)
    with alone_in(tmp_path):
        pass


def test_a_run_that_was_never_trained_is_named(folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"run_dir=.*other: no run was trained there.*train\.py"):
        evaluate(settings(folder, f"run_dir={folder / 'other'}"))


def test_a_run_without_a_checkpoint_is_not_lost_either(folder: Path) -> None:
    shutil.rmtree(folder / "run" / "checkpoints")
    before = files_of(folder / "run")
    with pytest.raises(CheckpointError, match="resume=aside"):
        train(settings(folder, "resume=none"))
    assert files_of(folder / "run") == before
    train(settings(folder, "resume=aside", "optim.epochs=1"))
    assert files_of(folder / "run.1") == before


def test_none_and_aside_start_in_a_folder_that_holds_no_run(tmp_path: Path, vp9_shards: ShardSet) -> None:
    path = config_file(tmp_path, vp9_shards, optim={"epochs": 1})
    for name in ("none", "aside"):
        append_stage(tmp_path / name, "shard_train", 3.0)  # as the quickstart does before it trains
        assert train(load_config(path, [f"resume={name}", f"run_dir={tmp_path / name}"])).name == "step-00000003"
        assert not (tmp_path / f"{name}.1").exists()


def test_a_mistake_sets_nothing_aside(folder: Path) -> None:
    before = files_of(folder / "run")
    with pytest.raises(ValueError, match="precision=fp16"):
        train(settings(folder, "resume=aside", "optim.precision=fp16"))
    assert files_of(folder / "run") == before


def test_an_older_checkpoint_does_not_mix_with_the_later_ones(folder: Path) -> None:
    before, older = files_of(folder / "run"), folder / "run" / "checkpoints" / "step-00000003"
    for other in (f"resume={older}", f"resume={older.parent / 'step-00000006'}"):
        with pytest.raises(CheckpointError, match="step-00000009"):
            train(settings(folder, other))
    train(settings(folder, f"run_dir={folder / 'second'}", "seed=5", "optim.epochs=1"))
    with pytest.raises(CheckpointError, match="step-00000009"):
        train(settings(folder, f"resume={folder / 'second' / 'checkpoints'}"))
    assert files_of(folder / "run") == before
    branch = train(settings(folder, f"resume={older}", f"run_dir={folder / 'branch'}"))
    assert branch == folder / "branch" / "checkpoints" / "step-00000009" and steps(folder / "branch") == list(
        range(4, 10)
    )


@pytest.mark.parametrize("epochs", [3, 5])  # a run that is finished, and one that would continue
def test_a_run_of_another_task_or_dataset_does_not_mix_with_it(folder: Path, epochs: int) -> None:
    before = files_of(folder / "run")
    newest = folder / "run/checkpoints/step-00000009"
    for key, was, now in (("task.name", "classification", "zero_shot"), ("data.dataset", "synthetic", "egtea")):
        config = yaml.safe_load((newest / "config.yaml").read_text())
        config["data"]["dataset"] = "synthetic"
        (newest / "config.yaml").write_text(yaml.safe_dump(config))
        with pytest.raises(CheckpointError, match=rf"{key}={was}, .*{key}={now}.*run_dir=.*model\.init="):
            of_run(settings(folder, f"{key}={now}", f"optim.epochs={epochs}"), newest)
    with pytest.raises(CheckpointError, match=r"task\.name=classification, .*task\.name=zero_shot"):
        train(settings(folder, "task.name=zero_shot", f"optim.epochs={epochs}"))
    assert {name: kept for name, kept in files_of(folder / "run").items() if "config.yaml" not in str(name)} == {
        name: kept for name, kept in before.items() if "config.yaml" not in str(name)
    }


def test_a_finished_run_keeps_its_config(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = files_of(folder / "run")
    with caplog.at_level("INFO", logger="lavila"):
        train(settings(folder, "optim.lr=7.0"))
    assert files_of(folder / "run") == before
    assert any("3 epochs already" in message and "optim.lr=7.0 (was 0.001)" in message for message in caplog.messages)


def test_the_report_of_a_run_shows_its_own_training(folder: Path) -> None:
    with (folder / "run/checkpoints/step-00000009/config.yaml").open("a") as config:
        config.write("noted_by_hand: 2026-01-31\n")
    page = evaluate(settings(folder, "optim.lr=7.0", "seed=9"))
    report = report_in(folder / "run")
    assert page == folder / "run" / "report.html"
    assert report["checkpoint"] == str(folder / "run" / "checkpoints" / "step-00000009")
    assert list(report["seconds"]) == ["train", "evaluate"] and "train_clips_per_second" in report["throughput"]
    assert report["trained_with"]["optim"]["lr"] == 1e-3 and report["trained_with"]["seed"] == 0
    assert report["trained_with"]["noted_by_hand"] == "2026-01-31"
    assert not {"optim", "seed", "model"} & set(report["config"])
    text = page.read_text()
    assert 'id="training"' in text and "7.0" not in text.split('id="details"')[1]


def test_a_step_of_the_run_is_known_by_its_name(folder: Path) -> None:
    found = subject_of(folder / "run", "step-00000003")
    assert found.model == str(folder / "run/checkpoints/step-00000003")
    assert found.output == folder / "run/evaluations/step-00000003"
    with pytest.raises(CheckpointError, match="step-00000004"):
        subject_of(folder / "run", "step-00000004")


def test_an_evaluation_is_kept_where_there_is_no_challenge(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*args: object) -> None:
        raise TaskError("submission: there is no challenge")

    monkeypatch.setattr(ClassificationTask, "submit", none)
    with pytest.raises(TaskError, match="submission"):
        evaluate(settings(folder, "submission=[0,1,2]"))
    assert (folder / "run/report.html").is_file()
    predictions = f"predictions={folder / 'run/predictions'}"
    assert evaluate(settings(folder, predictions)) == folder / "run/report.html"


def test_evaluations_of_other_checkpoints_lie_beside_it(folder: Path) -> None:
    evaluate(settings(folder))
    append_stage(folder / "run", "shard_train", 3.0)
    own = files_of(folder / "run")
    train_until(settings(folder, f"run_dir={folder / 'other'}", "seed=5"), 6)
    places = {
        "older": folder / "run" / "checkpoints" / "step-00000003",
        "of another run": folder / "other" / "checkpoints",
        "of nobody knows": folder / "run" / "checkpoints" / "step-00000009" / "model.safetensors",
    }
    shutil.copy(places["of nobody knows"], folder / "some.safetensors")
    places["of nobody knows"] = folder / "some.safetensors"
    pages = {name: evaluate(settings(folder, f"checkpoint={path}")) for name, path in places.items()}
    assert {name: data for name, data in files_of(folder / "run").items() if "evaluations" not in name} == own
    reports = {name: report_in(page.parent) for name, page in pages.items() if page is not None}
    assert len({page.parent for page in pages.values() if page}) == 3
    assert all(page.parent.parent == folder / "run" / "evaluations" for page in pages.values() if page)
    assert pages["older"] == folder / "run" / "evaluations" / "step-00000003" / "report.html"
    assert reports["of another run"]["checkpoint"] == str(folder / "other" / "checkpoints" / "step-00000006")
    assert reports["of another run"]["trained_with"]["seed"] == 5

    unknown = reports["of nobody knows"]
    assert list(unknown["seconds"]) == ["evaluate"] and list(unknown["throughput"]) == ["evaluate_views_per_second"]
    assert "train" not in unknown["data_wait_percent"] and "trained_with" not in unknown
    page = pages["of nobody knows"]
    assert page is not None and 'id="training"' not in page.read_text()

    facts = {
        path: json.loads((path / "checkpoint.json").read_text())["progress"]["seconds"]
        for path in (folder / "run/checkpoints/step-00000003", folder / "other/checkpoints/step-00000006")
    }
    assert [reports[name]["seconds"]["train"] for name in ("older", "of another run")] == list(facts.values())


def test_an_older_checkpoints_curves_end_where_it_was_saved(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    curves = {}
    monkeypatch.setattr(
        evaluator, "write_report", lambda output, report, *, pictures, history: curves.update({output: history})
    )
    evaluate(settings(folder, f"checkpoint={folder / 'run/checkpoints/step-00000006'}"))
    assert [line["step"] for line in curves[folder / "run/evaluations/step-00000006"]] == [1, 2, 3, 4, 5, 6]


def test_a_published_model_claims_no_training(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = evaluator.load_model(folder / "run" / "checkpoints")
    known = replace(trained_on(folder / "run" / "checkpoints"), file=Path("lavila_tsf_l_ep3"))
    monkeypatch.setattr(evaluator, "trained_on", lambda name: {"lavila_tsf_l_ep3": known}[name])
    monkeypatch.setattr(evaluator, "load_model", lambda file, **_: {known.file: model}[file])
    assert "lavila_tsf_l_ep3" in ZOO
    page = evaluate(settings(folder, "checkpoint=lavila_tsf_l_ep3"))
    assert page == folder / "run" / "evaluations" / "lavila_tsf_l_ep3" / "report.html"
    report = report_in(page.parent)
    assert report["checkpoint"] == "lavila_tsf_l_ep3" and list(report["seconds"]) == ["evaluate"]
    assert 'id="training"' not in page.read_text() and not (folder / "run" / "report.json").exists()


def test_training_time_is_the_sum_of_what_was_saved(folder: Path) -> None:
    parts = [
        json.loads((path / "checkpoint.json").read_text())
        for path in sorted((folder / "run/checkpoints").glob("step-*"))
    ]
    seconds = [part["progress"]["seconds"] for part in parts]
    assert seconds == sorted(seconds) and seconds[0] > 0
    newest = train(settings(folder, "optim.epochs=4"))
    more = json.loads((newest / "checkpoint.json").read_text())["progress"]["seconds"]
    assert more > seconds[-1]
