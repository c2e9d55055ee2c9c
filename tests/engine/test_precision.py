"""One place decides in which numbers a model computes, for training, validation and evaluation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from lavila.config.load import load_config
from lavila.config.schema import ConfigError
from lavila.engine import build
from lavila.engine.distributed import Process
from lavila.engine.evaluator import evaluate
from lavila.engine.precision import Arithmetic
from lavila.engine.trainer import train
from lavila.report.files import read_metrics
from lavila.shards.reader import ShardSet
from tests.engine.test_runs import config_file

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("precision", ["auto", "bf16"])
def test_half_precision_pictures_train_validate_and_evaluate(
    vp9_shards: ShardSet, tmp_path: Path, precision: str
) -> None:
    """What `tests/gpu/test_gpu_path.py` asks of a GPU, on the CPU."""
    path = config_file(tmp_path, vp9_shards, optim={"epochs": 1}, evals={"val": {"every_epochs": 1}})
    config = load_config(
        path, [f"optim.precision={precision}", "data.picture_type=float16", "views.single_frame_control=true"]
    )
    train(config)
    evaluate(config)
    assert "val/verb_top1" in read_metrics(Path(config.run_dir) / "metrics.jsonl")[-1]
    report = json.loads((Path(config.run_dir) / "report.json").read_text())
    assert report["clips"]["evaluated"] == 12
    assert report["environment"]["precision"] == {"auto": "fp32", "bf16": "bf16"}[precision]
    assert f"<td>{report['environment']['precision']}</td>" in (Path(config.run_dir) / "report.html").read_text()


@pytest.mark.parametrize(
    ("training", "evaluation", "device", "wanted"),
    [
        ("auto", "auto", CPU, ("fp32", "fp32")),
        ("bf16", "auto", CPU, ("bf16", "bf16")),
        ("fp32", "bf16", CPU, ("fp32", "bf16")),
        ("fp16", "auto", CPU, (None, "fp32")),
        ("auto", "fp16", CPU, ("fp32", None)),
        ("auto", "auto", CUDA, ("bf16", "bf16")),
        ("fp16", "auto", CUDA, ("fp16", "fp16")),
        ("fp32", "auto", CUDA, ("fp32", "fp32")),
        ("fp32", "fp16", CUDA, ("fp32", "fp16")),
    ],
)
def test_precisions_of_training_and_evaluation(
    monkeypatch: pytest.MonkeyPatch,
    training: str,
    evaluation: str,
    device: torch.device,
    wanted: tuple[str | None, ...],
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    config = load_config("model/tiny", [f"optim.precision={training}", f"views.precision={evaluation}"])
    for decide, value in zip((Arithmetic.of_training, Arithmetic.of_evaluation), wanted, strict=True):
        if value is None:
            with pytest.raises(ConfigError, match="precision=fp16"):
                decide(config, device)
        else:
            assert decide(config, device).precision == value


def test_auto_is_fp16_on_older_gpus_and_scales_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    arithmetic = Arithmetic.of_training(load_config("model/tiny"), CUDA)
    assert arithmetic.precision == "fp16" and arithmetic.scales_loss


@pytest.mark.parametrize(
    ("device", "picture_type", "precision", "half"),
    [
        ("cpu", "auto", "bf16", (False, False)),
        ("cuda", "auto", "bf16", (True, True)),
        ("cuda", "auto", "fp32", (False, False)),
        ("cuda", "float32", "bf16", (False, False)),
        ("cpu", "float16", "fp32", (True, True)),
    ],
)
def test_pictures_are_float16_where_a_gpu_rounds_them_anyway(
    vp9_shards: ShardSet, device: str, picture_type: str, precision: str, half: tuple[bool, bool]
) -> None:
    """In training and in evaluations. No GPU is needed to make a loader."""
    settings = [f"data.picture_type={picture_type}", f"optim.precision={precision}", "data.decoder=host"]
    config = load_config("model/tiny", [*settings, "data.image_size=32", "data.batch_size=4"])
    process = Process(rank=0, world=1, local_world=1, device=torch.device(device))
    loaders = [make(config, vp9_shards, process) for make in (build.training_loader, build.view_loader)]
    assert tuple(loader.spec.half for loader in loaders) == half
