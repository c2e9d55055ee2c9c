"""`--config toy` makes every recipe small: all of them train and are evaluated, on the sample datasets, in seconds."""

from __future__ import annotations

import json
import math
import subprocess
from pathlib import Path

import make_toy_data
import pytest
import torch

from lavila.config.load import known_names, load_config
from lavila.config.schema import RunConfig
from lavila.engine import build
from lavila.engine.distributed import Process
from lavila.engine.evaluator import evaluate
from lavila.engine.trainer import train
from lavila.report.files import read_metrics
from tests.configs.test_recipes import RECIPES

ROOT = Path(__file__).parents[2]
HEADLINES = {
    "pretrain": "video_to_text_r1",
    "ek100_mir": "map",
    "charades_ego": "map",
    "ek100_cls": "action_top1",
    "egtea": "action_mean_class",
    "egomcq": "intra_accuracy",
    "narrator": "perplexity",
}
ZERO_SHOT = [name for name in known_names() if "_zeroshot_" in name]


@pytest.fixture(scope="session")
def dual_encoder(toy_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The last checkpoint of the baseline."""
    return train(toy("pretrain_dual_tsf_b", toy_data, tmp_path_factory.mktemp("baseline"), "evals.val.every_epochs=0"))


def toy(recipe: str, data: Path, run_dir: Path, *overrides: str) -> RunConfig:
    vocabulary = ROOT / "assets/toy_vocabulary"  # the config's is relative to the repository
    own = [
        f"data.folder={data}",
        f"model.text.vocabulary={vocabulary}",
        f"model.decoder.vocabulary={vocabulary}",
        f"run_dir={run_dir}",
        "data.threads=1",
    ]
    return load_config([recipe, "toy"], [*own, *overrides])


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_trains_and_is_evaluated(
    recipe: str, toy_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")  # for narrators: METEOR, a Java program, takes seconds to start
    config = toy(recipe, toy_data, tmp_path)
    train(config)
    lines = read_metrics(tmp_path / "metrics.jsonl")
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) >= 3 and all(map(math.isfinite, losses))
    assert [line for line in lines if f"val/{headline(recipe)}" in line]
    check_report(evaluate(config), headline(recipe))


@pytest.mark.parametrize("recipe", ZERO_SHOT)
def test_a_zero_shot_recipe_evaluates_a_dual_encoder(
    recipe: str, toy_data: Path, dual_encoder: Path, tmp_path: Path
) -> None:
    config = toy(recipe, toy_data, tmp_path, f"checkpoint={dual_encoder}")
    check_report(evaluate(config), headline(recipe))


def headline(recipe: str) -> str:
    return next(name for start, name in HEADLINES.items() if recipe.startswith(start))


def check_report(page: Path | None, metric: str) -> None:
    assert page is not None and page.is_file()
    report = json.loads(page.with_name("report.json").read_text())
    assert math.isfinite(report["metrics"][metric]) and report["units"]


def test_datasets_that_are_there_are_kept(
    toy_data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[list[str]] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        ran.append(command)
        return subprocess.CompletedProcess(command, returncode=3)

    monkeypatch.setattr(subprocess, "run", run)
    assert make_toy_data.main(["--out", str(toy_data)]) == 0 and not ran
    assert make_toy_data.main(["--out", str(toy_data / "other")]) == 3 and len(ran) == 1
    assert "make_sample_dataset.py" in capsys.readouterr().out


def test_narrations_of_all_tables_reach_lavilas_pre_training(toy_data: Path, tmp_path: Path) -> None:
    """Its captions tables are in the folder of the data, and a clip has people's, rephrased and machine's words."""
    config = toy("pretrain_lavila_tsf_b", toy_data, tmp_path)
    shards = build.shard_set(config, "train")
    device = torch.device("cpu")
    loader = build.training_loader(config, shards, Process(rank=0, world=1, local_world=1, device=device))
    batch = next(iter(loader))
    assert {source for sources in batch.sources for source in sources} == {"human", "rephrased", "machine"}
