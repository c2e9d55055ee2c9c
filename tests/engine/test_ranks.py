"""Two ranks decide together: about bad clips, about a run folder, about errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from lavila.checkpoints.store import load_model
from lavila.config.load import load_config
from lavila.engine import build, checkpoint
from lavila.engine.distributed import Process
from lavila.engine.evaluator import evaluate
from lavila.engine.trainer import prepare, train
from lavila.plan.plans import Ranks
from lavila.report.files import read_metrics
from lavila.shards.reader import ShardSet
from tests import forks
from tests.data.test_loader import damaged, viewing
from tests.engine.ranks_scenarios import CONTRASTIVE
from tests.engine.test_runs import ENVIRONMENT, ROOT, config_file

Ended = list[dict[str, str]]
# One clip in each forward pass, so that the ranks take turns: rank 0 evaluates the even rows.
VIEWS = {"clips": 1, "crops": "center", "batch_size": 4, "view_batch_size": 1}


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory, vp9_shards: ShardSet) -> tuple[Path, Ended]:
    """How each scenario ended on each rank: twenty trainings, one after another."""
    folder = tmp_path_factory.mktemp("ranks")
    path = config_file(folder, vp9_shards, optim={"epochs": 1}, views=VIEWS)
    orders = []
    for rank in (0, 1):
        process = Process(rank=rank, world=2, local_world=2, device=build.torch.device("cpu"))
        loader = build.training_loader(load_config(path), vp9_shards, process)
        orders.append([clip.row for step in range(len(loader)) for clip in loader.plan.batch(0, step)])
    # Rows that rank 0 meets both in training (by the order of the epoch) and in evaluation (the even ones).
    first = [row for row in orders[0] if row % 2 == 0]
    second = [row for row in orders[1] if row % 2 == 1]
    assert len(first) >= 2 <= len(second), (orders, "choose another seed")
    for name, rows in (("first", first[:2]), ("both", first[:2] + second[:2]), ("none", list(range(12))), ("good", [])):
        damaged(vp9_shards, folder, *rows).path.rename(folder / name)
    train(load_config(path, [f"data.train={folder / 'good'}", f"run_dir={folder / 'one'}"]))
    script, environment = ROOT / "tests/engine/ranks_scenarios.py", ENVIRONMENT | {"PYTHONPATH": str(ROOT)}
    # A rank that waits for one that has stopped would wait for half an hour.
    results = forks.run_ranks(2, script, folder, environment=environment, timeout=300)
    assert [result.returncode for result in results] == [0, 0], results
    (folder / "log").write_text("".join(result.stderr for result in results))
    return folder, [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in (0, 1)]


def test_an_error_of_the_main_rank_is_raised_on_every_rank(ended: tuple[Path, Ended]) -> None:
    assert [one["on_main raises"] for one in ended[1]] == ["ValueError: rank 0"] * 2


@pytest.mark.parametrize(("name", "error"), [("train", "BadClipsError"), ("evaluate", "LoaderError")])
def test_bad_clips_are_counted_over_all_ranks(ended: tuple[Path, Ended], name: str, error: str) -> None:
    """Two on each rank are more than three; two on one rank are not, and the other rank does not wait for anything."""
    for one in ended[1]:
        assert one[name] == one[f"{name}, one meets bad clips"] == "done"
        assert one[f"{name}, both meet bad clips"].startswith(f"{error}: ")
    if name == "evaluate":
        assert all(": 4 clips of this epoch" in one["evaluate, both meet bad clips"] for one in ended[1])
        return
    for run, ranks in (("both", {0, 1}), ("first", {0})):
        lines = read_metrics(ended[0] / run / "bad_clips.jsonl")
        assert {line["rank"] for line in lines if not line["attempt"]} == ranks
    # All ranks say the same, and stop where one of them meets what is too much for it alone.
    assert len({one["train, both meet bad clips"] for one in ended[1]}) == 1
    assert [one["train, one meets too many"].split(":")[0] for one in ended[1]] == ["BadClipsError"] * 2


def test_validation_and_evaluation_stop_on_all_ranks(ended: tuple[Path, Ended]) -> None:
    for one in ended[1]:
        assert one["validate, both meet bad clips"].startswith("LoaderError: ")
        assert one["evaluate, all are bad"].startswith("EvaluationError: ")


def test_ranks_evaluate_to_the_same_report(ended: tuple[Path, Ended], tmp_path: Path) -> None:
    folder, _ = ended
    run = folder / "run.1"  # set aside by a later scenario
    found = json.loads((run / "report.json").read_text())
    assert found["environment"]["ranks"] == 2
    paths = [f"data.val={folder / 'good'}", f"checkpoint={run / 'checkpoints'}", f"run_dir={tmp_path}"]
    page = evaluate(load_config(folder / "tiny.yaml", paths))
    assert page is not None
    alone = json.loads(page.with_name("report.json").read_text())
    for key in ("metrics", "heads", "clips", "controls"):
        assert found[key] == alone[key], key


def test_one_rank_decides_about_the_run_folder_and_all_follow(ended: tuple[Path, Ended]) -> None:
    folder, ranks = ended
    assert all(one["train none"].startswith("CheckpointError: resume=none") for one in ranks)
    assert all(one["train aside"] == "done" for one in ranks)
    assert sorted(path.name for path in folder.glob("run*")) == ["run", "run.1"]
    assert "seed: 1" in (folder / "run/config.yaml").read_text()
    assert "seed: 0" in (folder / "run.1/config.yaml").read_text()
    for name in ("run", "run.1"):
        assert [line["step"] for line in read_metrics(folder / name / "metrics.jsonl")] == [1, 2, 3]
        assert (folder / name / "checkpoints/step-00000003/checkpoint.json").is_file()


@pytest.mark.parametrize("clips", ["good", "first"])
def test_two_ranks_train_a_dual_encoder_as_one_does(ended: tuple[Path, Ended], tmp_path: Path, clips: str) -> None:
    """Also where one rank meets bad clips: the loss is that of as many clips, and of the same ones."""
    folder, ranks = ended
    assert all(one[f"train, contrastive, {clips}"] == "done" for one in ranks)
    alone = [f"data.train={folder / clips}", *CONTRASTIVE, f"run_dir={tmp_path}", "data.batch_size=4"]
    train(load_config(folder / "tiny.yaml", alone))
    together = load_model(folder / f"contrastive-{clips}" / "checkpoints").state_dict()
    for name, tensor in load_model(tmp_path / "checkpoints").state_dict().items():
        assert torch.allclose(tensor, together[name], atol=2e-6), name
    losses = [
        [line["loss"] for line in read_metrics(run / "metrics.jsonl")]
        for run in (tmp_path, folder / f"contrastive-{clips}")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_a_rank_stops_at_once_where_it_alone_exceeds(vp9_shards: ShardSet, tmp_path: Path) -> None:
    shards = damaged(vp9_shards, tmp_path, *range(12))
    loader = viewing(shards, ranks=Ranks(rank=1, world=2), max_bad_clips=1)
    with pytest.raises(ValueError, match="2 clips"):
        list(loader)


ALONE = Process(rank=0, world=1, local_world=1, device=torch.device("cpu"))


def state_of(folder: Path, run: str) -> dict[str, torch.Tensor]:
    """Weights and state of the optimizer in the newest checkpoint of a run, as one rank reads them."""
    overrides = [f"data.train={folder / 'good'}", f"resume={folder / run / 'checkpoints'}", f"run_dir={folder / 'no'}"]
    state = prepare(load_config(folder / "tiny.yaml", overrides), ALONE).state
    found = dict(state.model.state_dict())
    for name, parameter in state.model.named_parameters():
        kept = state.optimizer.state[parameter]
        assert set(kept) == {"step", "exp_avg", "exp_avg_sq"}, name
        found |= {f"{name} {slot}": value for slot, value in kept.items()}
    return found


def equal(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return set(one) == set(two) and all(torch.equal(value, two[name]) for name, value in one.items())


def test_a_sharded_optimizer_continues_from_one_rank_bit_by_bit(ended: tuple[Path, Ended]) -> None:
    """Two ranks that keep a share each, and two that keep all; then one rank reads what the shares have become."""
    folder, ranks = ended
    for one in ranks:
        assert one["one rank's run, whole"] == one["one rank's run, sharded"] == one["saved again"] == "done"
    first, again = state_of(folder, "one"), state_of(folder, "again")
    assert equal(first, again)
    whole, sharded = state_of(folder, "whole"), state_of(folder, "sharded")
    assert equal(whole, sharded) and not equal(first, sharded)
    steps = {int(value) for name, value in sharded.items() if name.endswith(" step")}
    assert steps == {6}  # three updates on one rank, three on two


def test_a_dry_run_of_two_ranks_writes_nothing(ended: tuple[Path, Ended]) -> None:
    folder, ranks = ended
    assert all(one["dry run"] == "done" for one in ranks) and not (folder / "dry").exists()


def test_ranks_skip_an_update_together_and_name_who_had_a_bad_loss(ended: tuple[Path, Ended]) -> None:
    folder, ranks = ended
    assert all(one["a loss of one rank is not finite"] == "done" for one in ranks)
    lines = read_metrics(folder / "skipped" / "metrics.jsonl")
    assert [line.get("skipped_updates") for line in lines] == [None, 1, None]
    assert all(line["loss"] > 0 for line in lines)  # the other rank's
    kept = folder / "skipped" / "nonfinite" / "checkpoints" / "step-00000001"
    (bad,) = json.loads((kept / "passes.json").read_text())
    assert (bad["rank"], bad["loss"], len(bad["clip_ids"]), len(bad["rows"])) == (1, "nan", 2, 2)
    # The state is the one before the skipped update, and the run's checkpoint is sound.
    for model in (kept, folder / "skipped" / "checkpoints"):
        assert all(bool(p.isfinite().all()) for p in load_model(model).parameters())
    resumed = [f"data.train={folder / 'good'}", f"resume={kept}", f"run_dir={folder / 'looked at'}"]
    progress = prepare(load_config(folder / "tiny.yaml", resumed), ALONE).state.progress
    assert (progress.updates, progress.epoch_updates) == (1, 1)


@pytest.mark.parametrize("state", ["whole", "sharded"])
def test_ranks_skip_a_shared_gradient_and_name_whose_it_is(ended: tuple[Path, Ended], state: str) -> None:
    """All ranks meet it in what they share; only the rank whose passes made it has it when alone."""
    folder, ranks = ended
    assert all(one[f"a gradient of one rank is not finite, {state}"] == "done" for one in ranks)
    run = folder / f"gradient-{state}"
    assert [line.get("skipped_updates") for line in read_metrics(run / "metrics.jsonl")] == [None, 1, None]
    kept = run / "nonfinite" / "checkpoints" / "step-00000001"
    (bad,) = json.loads((kept / "passes.json").read_text())
    assert (bad["rank"], len(bad["clip_ids"])) == (1, 2) and float(bad["loss"]) > 0 and bad["gradient"]
    steps = [load_model(run / "checkpoints" / checkpoint.step_name(number)).state_dict() for number in (1, 2, 3)]
    assert equal(steps[0], steps[1]) and not equal(steps[1], steps[2])
    assert all(bool(value.isfinite().all()) for value in steps[2].values())


def test_a_rank_whose_losses_stay_bad_stops_all_ranks(ended: tuple[Path, Ended]) -> None:
    folder, ranks = ended
    for one in ranks:
        message = one["all losses of one rank are not finite"]
        assert (
            message.startswith("TrainingError: ")
            and "2 time(s) in a row" in message
            and "rank 1: nan for clip_" in message
        )
        assert "rank 0" not in message and str(folder / "stopped" / "nonfinite") in message
    names = [path.name for path in (folder / "stopped" / "nonfinite" / "checkpoints").glob("step-*")]
    assert names == ["step-00000000"]  # of the first in a row
    assert not list((folder / "stopped" / "checkpoints").glob("step-*"))


def test_a_signal_to_one_rank_saves_the_same_update_on_all(ended: tuple[Path, Ended]) -> None:
    folder, ranks = ended
    kept = folder / "SIGTERM" / "checkpoints"
    for one in ranks:
        assert one["SIGTERM"].startswith("Stopped: ") and str(kept / "step-00000002") in one["SIGTERM"]
        assert one["SIGUSR1"] == "done"
    assert [path.name for path in checkpoint.step_folders(kept)] == ["step-00000002"]
    names = [path.name for path in checkpoint.step_folders(folder / "SIGUSR1" / "checkpoints")]
    assert names == ["step-00000002", "step-00000003"]


def test_a_rank_that_hangs_is_named_by_all_and_shows_its_stack(ended: tuple[Path, Ended]) -> None:
    folder, ranks = ended
    assert [one["one rank hangs"] for one in ranks] == ["done", "done"]
    log = (folder / "log").read_text()
    assert log.count("Behind all others: rank 1 (makes update 3)") == 2
    assert log.count("in hanging") == 1
