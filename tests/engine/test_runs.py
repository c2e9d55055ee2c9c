"""Training and evaluation end to end on a synthetic shard set: resume, ranks, bad clips, the report."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import evaluate as evaluate_command
import train as train_command
from lavila.checkpoints.store import load_model
from lavila.config.load import load_config
from lavila.config.schema import ConfigError, RunConfig
from lavila.engine import build, checkpoint, evaluator
from lavila.engine.command_line import compute_the_same_bits, parse
from lavila.engine.command_line import run as run_command
from lavila.engine.distributed import Process
from lavila.engine.evaluator import evaluate
from lavila.engine.predictions import PredictionParts
from lavila.engine.saving import TrainingError
from lavila.engine.trainer import train
from lavila.report import compose, environment
from lavila.report.compose import _view_strip
from lavila.report.files import read_metrics, read_stages
from lavila.shards.reader import ShardSet
from lavila.tasks import concatenate
from tests import forks
from tests.checkpoints.published_files import published_state, tiny, write
from tests.data.test_loader import damaged
from tests.engine.interrupted import train_until
from tests.shard_sets import make_shard_set

ROOT = Path(__file__).resolve().parents[2]
TRAIN, EVALUATE = ROOT / "train.py", ROOT / "evaluate.py"
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def config_file(folder: Path, shards: ShardSet, **changes: Any) -> Path:
    values: dict[str, Any] = {
        "data": {
            "train": str(shards.path), "val": str(shards.path), "batch_size": 4, "frames": 4, "image_size": 32,
            "threads": 1,
        },
        "model": {
            "patch_size": 16, "width": 32, "depth": 2, "heads": 2, "zero_time_attention": False, "drop_path": 0.2,
            "dropout": 0.3, "init": "random",
        },
        "optim": {"optimizer": "adamw", "epochs": 3, "lr": 1e-3, "lr_multiplier": 1.0},
        "views": {"clips": 2, "crops": "three", "batch_size": 4},
        "run_dir": str(folder / "run"),
        "device": "cpu",
        "log_every_steps": 1,
    }  # fmt: skip
    for key, value in changes.items():
        values[key] = values[key] | value if isinstance(values.get(key), dict) else value
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture
def config(tmp_path: Path, vp9_shards: ShardSet) -> RunConfig:
    return load_config(config_file(tmp_path, vp9_shards))


def run_here(script: str, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[object, str, str]:
    """A command in this process, which spares the seconds that importing PyTorch and DALI takes: status, out, err."""
    main = {"train.py": train_command.main, "evaluate.py": evaluate_command.main}[script]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as end:
        patch.setattr(sys, "argv", [script, *arguments])
        main()
    captured = capsys.readouterr()
    return end.value.code, captured.out, captured.err


def weights(run_dir: str | Path) -> dict[str, torch.Tensor]:
    return load_model(Path(run_dir) / "checkpoints").state_dict()


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def test_training_leaves_what_a_run_folder_holds(config: RunConfig) -> None:
    last = train(config)
    folder = Path(config.run_dir)
    assert last == folder / "checkpoints" / "step-00000009"
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == ["latest", "step-00000006", "step-00000009"]
    assert load_config(folder / "config.yaml") == build.with_statistics(config, None)
    lines = read_metrics(folder / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, 10))
    for line in lines:
        assert line["loss"] > 0 and line["clips_per_second"] > 0 and 0 <= line["data_wait_percent"] <= 100
        assert {"epoch", "lr", "verb_top1", "noun_top1", "action_top1"} <= set(line)


@pytest.mark.parametrize("stop_after", [1, 4])
def test_resume_in_the_middle_of_an_epoch_is_exact(
    config: RunConfig, trained: Path, tmp_path: Path, stop_after: int
) -> None:
    """Dropout, stochastic depth, optimiser state, order and crops: the same weights, bit by bit."""
    wanted = weights(trained / "run")
    values = json.loads(json.dumps({"run_dir": str(tmp_path / "resumed"), "checkpoint_every_steps": 1}))
    path = tmp_path / "again.yaml"
    path.write_text(f"base: tiny.yaml\n{yaml.safe_dump(values)}")
    again = load_config(path)
    train_until(again, stop_after)
    train(again)
    assert same(wanted, weights(again.run_dir))
    assert [line["step"] for line in read_metrics(tmp_path / "resumed" / "metrics.jsonl")] == list(range(1, 10))


def test_resuming_reports_what_changed_and_when_nothing_is_left(
    config: RunConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train(config)
    took = read_stages(config.run_dir)["train"]
    with caplog.at_level("INFO", logger="lavila"):
        train(config)
        assert read_stages(config.run_dir)["train"] == took  # nothing was trained, and the report's time stays
        assert any("this run has its 3 epochs already" in message for message in caplog.messages)
        assert not any("other settings" in message for message in caplog.messages)
        train(load_config(tmp_path / "tiny.yaml", ["optim.epochs=4", "data.flip=0.1"]))
    assert read_stages(config.run_dir)["train"] > took
    changed = next(message for message in caplog.messages if "other settings" in message)
    assert "optim.epochs=4 (was 3)" in changed and "data.flip=0.1 (was 0.5)" in changed


def test_a_finished_run_can_be_resumed_into_another_folder(finished: RunConfig, tmp_path: Path) -> None:
    first = Path(finished.run_dir) / "checkpoints" / "step-00000009"
    other = load_config(tmp_path / "tiny.yaml", [f"resume={first}", f"run_dir={tmp_path / 'other'}"])
    assert train(other) == first  # nothing was left to do
    more = train(
        load_config(tmp_path / "tiny.yaml", [f"resume={first}", f"run_dir={tmp_path / 'other'}", "optim.epochs=4"])
    )
    assert more == tmp_path / "other" / "checkpoints" / "step-00000012"


def test_a_killed_run_continues(tmp_path: Path, vp9_shards: ShardSet, caplog: pytest.LogCaptureFixture) -> None:
    path = config_file(tmp_path, vp9_shards, optim={"epochs": 400, "lr_end": 1e-3}, checkpoint_every_steps=2)
    process = forks.start(TRAIN, "--config", path, environment=ENVIRONMENT)
    latest = tmp_path / "run" / "checkpoints" / "latest"
    while not latest.is_file():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    reached = int(latest.read_text().strip().removeprefix("step-"))
    epochs = reached // 3 + 1
    with caplog.at_level("INFO", logger="lavila"):
        train(load_config(path, [f"optim.epochs={epochs}", "checkpoint_every_steps=0"]))
    assert str(latest.parent / checkpoint.step_name(reached)) in caplog.text
    assert latest.read_text().strip() == checkpoint.step_name(epochs * 3)


def test_two_ranks_train_as_one_does(tmp_path: Path, vp9_shards: ShardSet) -> None:
    still = {"drop_path": 0.0, "dropout": 0.0}  # random per rank, so off for this comparison
    path = config_file(tmp_path, vp9_shards, model=still, optim={"optimizer": "sgd", "lr": 0.05, "epochs": 2})
    train(load_config(path, [f"run_dir={tmp_path / 'one'}"]))
    ranks = forks.run_ranks(2, TRAIN, "--config", path, f"run_dir={tmp_path / 'two'}", environment=ENVIRONMENT)
    assert [rank.returncode for rank in ranks] == [0, 0], ranks
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert all(torch.allclose(one[name], two[name], atol=1e-5) for name in one)
    losses = [[line["loss"] for line in read_metrics(tmp_path / name / "metrics.jsonl")] for name in ("one", "two")]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


def test_accumulation_changes_nothing(tmp_path: Path, vp9_shards: ShardSet) -> None:
    path = config_file(tmp_path, vp9_shards, model={"drop_path": 0.0, "dropout": 0.0}, optim={"epochs": 1})
    for passes in (1, 2):
        train(load_config(path, [f"optim.accumulate={passes}", f"run_dir={tmp_path / str(passes)}"]))
    one, two = weights(tmp_path / "1"), weights(tmp_path / "2")
    assert all(torch.allclose(one[name], two[name], atol=2e-4) for name in one)
    assert (tmp_path / "2" / "checkpoints" / "step-00000003").is_dir()


def test_evaluation_writes_a_report_with_every_clip(finished: RunConfig) -> None:
    page = evaluate(finished)
    assert page is not None and page.is_file()
    report = json.loads((Path(finished.run_dir) / "report.json").read_text())
    assert report["clips"] == {"total": 12, "evaluated": 12, "failed": []}
    assert report["views"] | {"fusion": ""} == {
        "clips": 2, "crops": 3, "crops_rule": "three", "total": 6, "computed": 6, "frames": 4, "fusion": "",
    }  # fmt: skip
    assert sum(map(sum, report["heads"]["verb"]["confusion"])) == 12
    right = sum(report["heads"]["verb"]["confusion"][i][i] for i in range(3))
    assert report["metrics"]["verb_top1"] == pytest.approx(right / 12 * 100)
    assert len(report["mistakes"]) == 12 - right
    assert report["units"]["verb_top1"] == "percent"
    assert [section["key"] for section in report["sections"]] == ["heads", "mistakes"]
    assert not list(Path(finished.run_dir).glob(".predictions-*"))
    assert set(report["seconds"]) == {"train", "evaluate"}
    assert report["controls"] == {
        "chance_verb_top1": pytest.approx(100 / 3), "chance_noun_top1": 50.0,
        "chance_action_top1": pytest.approx(100 / 3), "largest_class_verb_top1": pytest.approx(100 / 3),
        "largest_class_noun_top1": 50.0, "largest_class_action_top1": pytest.approx(100 / 3),
    }  # fmt: skip


def test_nothing_beside_the_result_costs_it(finished: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """No DALI wheel that we know, spoilt logs of training, pictures that cannot be drawn: the report is there."""
    folder = Path(finished.run_dir)
    for name in ("metrics.jsonl", "stages.jsonl"):
        (folder / name).write_text("spoilt\nspoilt\n")
    monkeypatch.setattr(environment, "dali_wheels", lambda: 1 / 0)
    monkeypatch.setattr(compose, "_view_strip", lambda *_: 1 / 0)
    assert evaluate(finished) == folder / "report.html"
    report = json.loads((folder / "report.json").read_text())
    assert report["environment"]["dali"] is None and report["environment"]["torch"] == torch.__version__
    assert report["clips"]["evaluated"] == 12 and report["metrics"] and (folder / "report.html").is_file()


def test_strips_of_wide_and_tall_clips_name_their_crops(vp9_shards: ShardSet) -> None:
    frames = np.zeros((6, 4, 8, 8, 3), np.uint8)
    wide, tall = (_view_strip(vp9_shards, row, frames, (2, 3)) for row in (0, 1))
    assert (wide.labels[3], wide.labels[5]) == ("time 2, left", "time 2, right")
    assert (tall.labels[3], tall.labels[5]) == ("time 2, top", "time 2, bottom")


def predictions_of(folder: Path) -> dict[str, bytes]:
    """The bytes of each column over all clips."""
    whole = concatenate(PredictionParts(folder, "predicted"))
    return {"rows": whole.rows.tobytes()} | {name: values.tobytes() for name, values in whole.columns.items()}


def test_ranks_evaluate_to_the_same_report(config: RunConfig, tmp_path: Path) -> None:
    """Three processes with one thread each, and one that has two threads and other batches: bit by bit the same."""
    train(config)
    path, folder = str(tmp_path / "tiny.yaml"), Path(config.run_dir)
    alone = forks.run(
        EVALUATE, "--config", path, "views.batch_size=9", environment=ENVIRONMENT | {"OMP_NUM_THREADS": "2"}
    )
    assert alone.returncode == 0, alone.stderr
    wanted, predicted = json.loads((folder / "report.json").read_text()), predictions_of(folder / "predictions")
    ranks = forks.run_ranks(3, EVALUATE, "--config", path, environment=ENVIRONMENT)
    assert [rank.returncode for rank in ranks] == [0, 0, 0], ranks
    got = json.loads((folder / "report.json").read_text())
    assert got["environment"]["ranks"] == 3
    for key in ("metrics", "heads", "clips", "controls"):
        assert got[key] == wanted[key], key
    assert len(list((folder / "predictions").glob("*.parquet"))) == 3
    assert predictions_of(folder / "predictions") == predicted


@pytest.mark.parametrize("views", [1, 6])
def test_predictions_depend_on_neither_ranks_nor_batch_size(tmp_path: Path, vp9_shards: ShardSet, views: int) -> None:
    """One portion is 5 views: 5 clips of one view, or a clip of 6 in two passes. A bad clip makes a portion smaller."""
    shards = damaged(vp9_shards, tmp_path, 2)
    clips = {"clips": 2, "crops": "three"} if views == 6 else {"clips": 1, "crops": "center"}
    path = config_file(tmp_path, shards, views={**clips, "view_batch_size": 5})
    facts = build.task_facts(load_config(path), shards)
    model = build.fresh_model(load_config(path), facts)
    found = {}
    for world, batch_size in ((1, 1), (1, 7), (2, 30), (3, 4)):
        config = load_config(path, [f"views.batch_size={batch_size}"])
        task = build.build_task(config, model, facts, shards)
        output = tmp_path / f"{world}-{batch_size}"
        for rank in range(world):
            alone = Process(rank=rank, world=world, local_world=1, device=torch.device("cpu"))
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(evaluator, "predictions_folder", lambda there, *_, **__: nullcontext(there))
                output.mkdir(exist_ok=True)
                assert evaluator.evaluate_task(config, task, shards, alone, output=output) is not None
        found[world, batch_size] = predictions_of(output)
    first = found.pop((1, 1))
    assert len(np.frombuffer(first["rows"], np.int64)) == 11
    assert all(one == first for one in found.values())


def test_saved_predictions_are_scored_again_without_a_model(
    config: RunConfig, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same report, number by number, after the checkpoints are gone."""
    train(config)
    evaluate(replace(config, views=replace(config.views, single_frame_control=True)))
    folder = Path(config.run_dir)
    wanted, page = json.loads((folder / "report.json").read_text()), (folder / "report.html").read_text()
    assert wanted["controls"]["single_frame_verb_top1"] >= 0
    for name in ("report.json", "report.html"):
        (folder / name).unlink()
    shutil.rmtree(folder / "checkpoints")
    monkeypatch.setattr(sys, "argv", ["evaluate.py", "--from", str(folder / "predictions")])
    evaluate_command.main()
    assert json.loads((folder / "report.json").read_text()) == wanted
    assert (folder / "report.html").read_text() == page


def test_predictions_of_other_clips_are_not_scored(
    config: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(config)
    evaluate(config)
    folder = Path(config.run_dir) / "predictions"
    (tmp_path / "videos").mkdir()
    fewer = make_shard_set(tmp_path / "fewer", tmp_path / "videos", codec="vp9", clips=9)
    code, _, err = run_here("evaluate.py", ["--from", str(folder), f"data.val={fewer.path}"], capsys)
    assert code == 2 and "clip_" in err and str(fewer.path) in err
    (folder / "evaluation.json").unlink()
    code, _, err = run_here("evaluate.py", ["--from", str(folder)], capsys)
    assert code == 2 and "evaluation.json" in err
    code, _, err = run_here("evaluate.py", ["--from", str(tmp_path)], capsys)
    assert code == 2 and "config.yaml" in err


def test_what_decided_predictions_cannot_be_changed_when_they_are_scored(
    config: RunConfig, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    train(config)
    evaluate(config)
    folder = str(Path(config.run_dir) / "predictions")
    for override in ("views.fusion=max_similarity", "views.clips=3", "task.similarity=dot", "data.frames=2"):
        code, _, err = run_here("evaluate.py", ["--from", folder, override], capsys)
        assert code == 2 and override in err and folder in err and "data.val" in err, err
    monkeypatch.setattr(sys, "argv", ["evaluate.py", "--from", folder, "views.batch_size=2", "name=again"])
    evaluate_command.main()
    assert json.loads((Path(config.run_dir) / "report.json").read_text())["name"] == "again"


def test_predictions_need_not_be_kept(config: RunConfig) -> None:
    train(config)
    evaluate(replace(config, keep_predictions=False))
    assert not [path for path in Path(config.run_dir).iterdir() if "predictions" in path.name]


def test_the_published_protocol_is_named_in_the_report(finished: RunConfig, tmp_path: Path) -> None:
    reports = {}
    for crops in ("center", "center_repeated"):
        evaluate(load_config(tmp_path / "tiny.yaml", [f"views.crops={crops}", "views.single_frame_control=true"]))
        reports[crops] = json.loads((Path(finished.run_dir) / "report.json").read_text())
    views = reports["center_repeated"]["views"]
    assert (views["crops_rule"], views["total"], views["computed"]) == ("center_repeated", 6, 2)
    assert reports["center"]["metrics"] == reports["center_repeated"]["metrics"]  # the mean over equal views
    assert "single_frame_verb_top1" in reports["center"]["controls"]


def test_losses_that_stay_infinite_stop_the_run(tmp_path: Path, vp9_shards: ShardSet) -> None:
    wild = {"optimizer": "sgd", "lr": 1e30, "lr_start": 1e30, "lr_end": 1e30, "epochs": 2}
    path = config_file(tmp_path, vp9_shards, optim=wild)
    with pytest.raises(TrainingError, match=r"step 4.*3 time"):
        train(load_config(path, ["checkpoint_every_steps=1"]))
    for latest in tmp_path.glob("*/checkpoints/latest"):  # whatever was saved before is sound
        model = load_model(latest.parent)
        assert all(bool(p.isfinite().all()) for p in model.parameters())


def test_gradients_are_clipped_and_bf16_trains(tmp_path: Path, vp9_shards: ShardSet) -> None:
    """With a vanishing gradient limit SGD without momentum cannot move; bf16 autocast gives nearly fp32's losses."""
    still = {"optimizer": "sgd", "lr": 1.0, "momentum": 0.0, "weight_decay": 0.0, "epochs": 1, "warmup_epochs": 0}
    path = config_file(tmp_path, vp9_shards, optim=still)
    moved = {}
    for limit in ("none=0", "norm=1e-9", "value=1e-9"):
        folder = tmp_path / limit
        clip = [] if limit == "none=0" else [f"optim.clip_grad_{limit}"]
        train(load_config(path, [*clip, f"run_dir={folder}", "checkpoint_every_steps=1", "keep_checkpoints=9"]))
        first, last = (load_model(folder / "checkpoints" / checkpoint.step_name(n)).state_dict() for n in (1, 3))
        moved[limit] = max(float((first[name] - last[name]).abs().max()) for name in first)
    assert max(moved["norm=1e-9"], moved["value=1e-9"]) < 1e-6 < 1e-3 < moved["none=0"]
    losses = {}
    for precision in ("fp32", "bf16"):
        train(load_config(path, [f"optim.precision={precision}", f"run_dir={tmp_path / precision}", "optim.lr=1e-3"]))
        losses[precision] = [line["loss"] for line in read_metrics(tmp_path / precision / "metrics.jsonl")]
    assert losses["bf16"] != losses["fp32"] and losses["bf16"] == pytest.approx(losses["fp32"], rel=0.02)


def test_weights_from_another_run_start_the_tower(config: RunConfig, tmp_path: Path) -> None:
    first = train(config)
    path = tmp_path / "tiny.yaml"
    start = load_config(
        path,
        [
            f"model.init={first}",
            f"run_dir={tmp_path / 'second'}",
            "task.heads=[verb]",
            "data.frames=8",
            "optim.epochs=1",
            "optim.lr=1e-12",
            "optim.lr_start=0",
            "optim.lr_end=0",
        ],
    )
    train(start)
    old, new = weights(config.run_dir), weights(start.run_dir)
    assert new["visual.temporal_embed"].shape[1] == 8 and set(new) - set(old) == {"fc_cls.weight", "fc_cls.bias"}
    assert torch.allclose(old["visual.pos_embed"], new["visual.pos_embed"])


def test_a_published_dual_encoder_starts_the_tower(vp9_shards: ShardSet, tmp_path: Path) -> None:
    published = tiny("clip")
    file = write(tmp_path / "published.pth", published_state(published))
    path = config_file(tmp_path, vp9_shards)
    same = [f"model.init={file}", "model.width=64", "model.depth=2", "model.heads=1", "model.patch_size=8"]
    model = build.fresh_model(
        load_config(path, [*same, "model.pre_norm=true", "model.activation=quick_gelu"]), {"classes": {"a": ["b"]}}
    )
    old, new = published.state_dict(), model.state_dict()
    resampled = {"visual.pos_embed", "visual.temporal_embed"}
    for name in {name for name in new if name.startswith("visual.")} - resampled:
        assert torch.equal(new[name], old[name]), name
    with pytest.raises(ConfigError, match=r"published\.pth.*model\.width=64"):
        build.fresh_model(load_config(path, [f"model.init={file}", "model.width=32"]), {"classes": {"a": ["b"]}})


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("train.py", ["--config", "quickstrat"], "no config named 'quickstrat'. Did you mean 'quickstart'?"),
        ("train.py", ["--config", "model/tiny"], "data.train is empty: give the folder of a shard set"),
        ("train.py", ["--config", "model/tiny", "data.train=/nowhere"], "/nowhere"),
        (
            "evaluate.py",
            ["--config", "model/tiny", "checkpoint=lavila_tsf_l_ep2"],
            "did you mean the published lavila_tsf_l_ep3",
        ),
        ("evaluate.py", ["--config", "model/tiny", "run_dir=/nowhere"], "run_dir=/nowhere: "),
    ],
)
def test_mistakes_end_a_command_with_one_line(
    script: str, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, _, err = run_here(script, arguments, capsys)
    assert status == 2 and message in err
    assert len(err.strip().splitlines()) == 1 and err.startswith("error: ")


def test_settings_that_cannot_work_are_one_line_too(
    tmp_path: Path, vp9_shards: ShardSet, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(config_file(tmp_path, vp9_shards))
    for override, message in (
        ("data.decoder=nvdec", "data.decoder=nvdec decodes on a GPU"),
        ("data.batch_size=64", "data.batch_size=64 is more than the 12 clip(s)"),
        ("task.heads=[verb,tool]", "has no tool labels; it has verb, noun, action"),
        ("resume=/nowhere", "resume=/nowhere: has no checkpoint.json"),
        ("optim.precision=fp16", "optim.precision=fp16 needs a GPU"),
    ):
        status, _, err = run_here("train.py", ["--config", path, override], capsys)
        assert status == 2 and message in err and len(err.strip().splitlines()) == 1, err


def test_print_config_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    given = [sys.executable, str(TRAIN), "--config", "quickstart", "--print-config", "seed=7"]
    printed = subprocess.run(given, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert printed.returncode == 0 and yaml.safe_load(printed.stdout)["seed"] == 7
    for script in ("train.py", "evaluate.py"):
        status, text, _ = run_here(script, ["--help"], capsys)
        assert status == 0 and "quickstart" in text and "key=value" in text and "example:" in text


def test_unknown_tasks(tmp_path: Path, vp9_shards: ShardSet) -> None:
    with pytest.raises(ConfigError, match=r"task\.name=dance.*classification"):
        train(load_config(config_file(tmp_path, vp9_shards), ["task.name=dance"]))


def test_commands_leave_cores_to_others_before_torch_is_there() -> None:
    code = (
        "import os, sys; from lavila.engine.command_line import parse; "
        "parse('', example='', arguments=['--config', 'quickstart']); "
        "assert 'torch' not in sys.modules; print(os.environ['OMP_WAIT_POLICY'])"
    )
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[2], env=environment, capture_output=True, text=True
    )
    assert done.stdout.strip() == "PASSIVE", done.stderr


def test_a_command_computes_on_as_many_threads_as_are_asked_for(config: RunConfig) -> None:
    before, seen = torch.get_num_threads(), []
    try:
        for wanted in (0, before + 1):
            given = replace(config, engine=replace(config.engine, cpu_threads=wanted))
            run_command(lambda _: seen.append(torch.get_num_threads()), given)
    finally:
        torch.set_num_threads(before)
    assert seen == [before, before + 1]


def test_training_and_evaluations_ask_mkl_for_one_order(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, vp9_shards: ShardSet
) -> None:
    """Where the processor has what that takes; a value that is set stays."""
    arguments = ["--config", str(config_file(tmp_path, vp9_shards))]
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    compute_the_same_bits()
    assert os.environ["MKL_CBWR"] == "COMPATIBLE"
    monkeypatch.delenv("MKL_CBWR")
    parse("trains", example="none", arguments=arguments)
    flags = Path("/proc/cpuinfo").read_text().split()
    wanted = "AVX512,STRICT" if "avx512f" in flags else "AVX2,STRICT" if "avx2" in flags else None
    assert os.environ.get("MKL_CBWR") == wanted
