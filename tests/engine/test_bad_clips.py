"""Training on a set that was damaged after it was written: clips are named, replaced and counted; too many stop it."""

from __future__ import annotations

import json
import os
import signal
import threading
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from lavila.config.load import load_config
from lavila.config.schema import RunConfig
from lavila.engine.bad_clips import FILE, BadClipsError
from lavila.engine.evaluator import evaluate
from lavila.engine.trainer import train
from lavila.plan.plans import SUBSTITUTES
from lavila.report.files import read_metrics
from lavila.shards.format import ShardSetError
from lavila.shards.reader import ShardSet
from tests import forks
from tests.data.test_loader import damaged
from tests.engine.interrupted import clips_seen, train_until
from tests.engine.test_runs import ENVIRONMENT, ROOT, config_file, same, weights
from tests.shards.damaged_sets import CLIPS, Damage, many_clips

DAMAGE = Damage()
DECODERS = ["host", "dali_cpu"]
SAVING = "checkpoint_every_steps=1"  # for runs that are resumed


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, vp9_shards: ShardSet) -> Path:
    return many_clips(vp9_shards, tmp_path_factory.mktemp("many") / "whole")


@pytest.fixture(scope="module")
def harmed(tmp_path_factory: pytest.TempPathFactory, whole: Path) -> Path:
    return DAMAGE.do(whole, tmp_path_factory.mktemp("many") / "harmed")


@pytest.fixture
def config(tmp_path: Path, vp9_shards: ShardSet, harmed: Path) -> RunConfig:
    return of(tmp_path, vp9_shards, f"data.train={harmed}", f"data.val={harmed}")


def of(folder: Path, shards: ShardSet, *overrides: str) -> RunConfig:
    path = config_file(folder, shards, optim={"epochs": 1}, keep_checkpoints=2)
    return load_config(path, ["data.batch_size=20", "views.crops=center", "views.clips=1", *overrides])


def bad_clips(run_dir: str | Path) -> list[dict[str, Any]]:
    return read_metrics(Path(run_dir) / FILE)


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_set_with_five_bad_clips_in_a_hundred_trains_through(
    tmp_path: Path, vp9_shards: ShardSet, harmed: Path, decoder: str
) -> None:
    config = of(tmp_path, vp9_shards, f"data.train={harmed}", f"data.decoder={decoder}")
    with clips_seen() as seen:
        train(config)
    assert [len(rows) for rows in seen] == [20] * 5
    assert all(len(set(rows)) == 20 and not DAMAGE.rows & set(rows) for rows in seen)
    found = bad_clips(config.run_dir)
    assert {line["clip_id"] for line in found} == {f"clip_{row}" for row in DAMAGE.rows}
    reasons = {line["clip_id"]: line["reason"] for line in found}
    for row in (DAMAGE.flipped, DAMAGE.zeroed):
        assert "checksum" in reasons[f"clip_{row}"]
    assert "ends before the clip" in reasons[f"clip_{DAMAGE.cut}"]
    for row in DAMAGE.deleted:
        assert "missing" in reasons[f"clip_{row}"]
    for line in found:
        assert line["shard"] == f"shard-{int(line['clip_id'][5:]) // 2:06d}.tar" and line["epoch"] == 1
    assert read_metrics(Path(config.run_dir) / "metrics.jsonl")[-1]["bad_clips"] == len(found)

    # A run that is stopped in the middle continues with the same substitutes.
    again = of(tmp_path, vp9_shards, f"data.train={harmed}", f"data.decoder={decoder}", f"run_dir={tmp_path / 'two'}",
               SAVING)  # fmt: skip
    with clips_seen() as halves:
        train_until(again, 3)
        assert bad_clips(again.run_dir) == [line for line in found if line["step"] <= 3]
        train(again)
    assert halves == seen and same(weights(config.run_dir), weights(again.run_dir))
    assert bad_clips(again.run_dir) == found


def test_more_than_allowed_stop_the_run_with_a_summary(config: RunConfig, tmp_path: Path, vp9_shards: ShardSet) -> None:
    few = of(tmp_path, vp9_shards, f"data.train={config.data.train}", "data.max_bad_clips=3", SAVING)
    with pytest.raises(
        BadClipsError, match=r"4 clips.*data\.max_bad_clips=3.*shard-0000\d\d\.tar.*clip_\d+"
    ) as stopped:
        train(few)
    found = bad_clips(few.run_dir)
    assert FILE in str(stopped.value) and len(found) >= 4 and found[-1]["clip_id"] in str(stopped.value)
    # Whoever allows more continues from there, and nothing is listed twice.
    train(config)
    places = [(line["position"], line["attempt"]) for line in bad_clips(config.run_dir)]
    assert len(set(places)) == len(places) >= len(DAMAGE.rows)


def test_bad_clips_from_before_a_resume_count(config: RunConfig, tmp_path: Path, vp9_shards: ShardSet) -> None:
    train(of(tmp_path, vp9_shards, f"data.train={config.data.train}", f"run_dir={tmp_path / 'look'}"))
    met = [line["step"] for line in bad_clips(tmp_path / "look")]
    half = next(step for step in range(1, 5) if 0 < sum(one <= step for one in met) < len(met))
    few = of(tmp_path, vp9_shards, f"data.train={config.data.train}", f"data.max_bad_clips={len(met) - 1}", SAVING)
    train_until(few, half)
    with pytest.raises(BadClipsError, match=f"{len(met)} clips"):
        train(few)


def test_every_epoch_counts_anew(config: RunConfig, tmp_path: Path, vp9_shards: ShardSet) -> None:
    train(of(tmp_path, vp9_shards, f"data.train={config.data.train}", "optim.epochs=2", "data.max_bad_clips=8"))
    epochs = [line["epoch"] for line in bad_clips(tmp_path / "run")]
    assert set(epochs) == {1, 2} and len(epochs) > 8 >= max(epochs.count(1), epochs.count(2))


def test_a_set_that_lacks_more_clips_than_allowed_is_refused_at_the_start(
    tmp_path: Path, vp9_shards: ShardSet, harmed: Path
) -> None:
    with pytest.raises(ShardSetError, match=r"shard-000035\.tar: missing"):
        train(of(tmp_path, vp9_shards, f"data.train={harmed}", "data.max_bad_clips=1"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_set_without_one_good_clip_stops_at_once(tmp_path: Path, vp9_shards: ShardSet, decoder: str) -> None:
    shards = damaged(vp9_shards, tmp_path, *range(12))
    config = of(tmp_path, shards, "data.batch_size=4", f"data.decoder={decoder}")
    with pytest.raises(BadClipsError, match=rf"{SUBSTITUTES + 1} clips in a row.*shard-00000\d\.tar"):
        train(config)
    assert {line["step"] for line in bad_clips(config.run_dir)} == {1}


def test_a_read_that_hangs_costs_its_clips_and_is_named(
    tmp_path: Path, vp9_shards: ShardSet, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = of(tmp_path, vp9_shards, f"data.train={whole}", "data.read_seconds=0.3")
    real, answer, name = os.pread, threading.Event(), "shard-000007.tar"

    def read(descriptor: int, *arguments: Any) -> bytes:
        if Path(f"/proc/self/fd/{descriptor}").readlink().name == name:
            answer.wait()
        return real(descriptor, *arguments)

    monkeypatch.setattr(os, "pread", read)
    try:
        train(config)
    finally:
        answer.set()
    found = bad_clips(config.run_dir)
    assert {line["clip_id"] for line in found} == {"clip_14", "clip_15"} and {line["shard"] for line in found} == {name}
    assert all("hangs" in line["reason"] for line in found)


def test_storage_that_hangs_altogether_stops_the_run(
    tmp_path: Path, vp9_shards: ShardSet, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = of(tmp_path, vp9_shards, f"data.train={whole}", "data.read_seconds=0.2", "data.threads=4")
    answer = threading.Event()
    monkeypatch.setattr(os, "pread", lambda *_: answer.wait())
    try:
        with pytest.raises(BadClipsError, match=r"clips in a row.*shard-0000\d\d\.tar.*hangs"):
            train(config)
    finally:
        answer.set()


def test_an_evaluation_says_over_how_many_clips_its_score_is(
    config: RunConfig, caplog: pytest.LogCaptureFixture
) -> None:
    train(config)
    with caplog.at_level("INFO", logger="lavila"):
        evaluate(config)
    report = json.loads((Path(config.run_dir) / "report.json").read_text())
    assert (report["clips"]["evaluated"], report["clips"]["total"]) == (CLIPS - 5, CLIPS)
    failed = {one["clip_id"]: one for one in report["clips"]["failed"]}
    assert failed.keys() == {f"clip_{row}" for row in DAMAGE.rows}
    assert failed["clip_70"]["shard"] == "shard-000035.tar" and "missing" in failed["clip_70"]["reason"]
    assert any(f"{CLIPS - 5} of {CLIPS} clips" in message for message in caplog.messages)
    page = (Path(config.run_dir) / "report.html").read_text()
    assert all(name in page for name in failed)


def test_three_ranks_keep_step_whoever_meets_bad_clips(
    tmp_path: Path, vp9_shards: ShardSet, whole: Path, harmed: Path
) -> None:
    """Damage that all ranks meet, a read that hangs on one of them, and a rank that dies."""
    config = of(tmp_path, vp9_shards, "data.batch_size=12", f"run_dir={tmp_path / 'one'}", f"data.train={harmed}")
    with clips_seen() as alone:
        train(config)
    script = [ROOT / "tests/engine/bad_clips_scenarios.py", tmp_path, whole, harmed]
    # A rank that waits for a dead one would wait for half an hour.
    done = forks.run_ranks(3, *script, environment=ENVIRONMENT | {"PYTHONPATH": str(ROOT)}, timeout=200)
    assert [one.returncode for one in done] == [0, 0, -signal.SIGKILL], done  # the last scenario
    ranks = [json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in range(3)]
    assert all(rank["harmed"] == rank["hung"] == "done" for rank in ranks)
    assert [list(chain(*parts)) for parts in zip(*(rank["rows"] for rank in ranks), strict=True)] == alone
    hung = bad_clips(tmp_path / "hung")
    assert hung and {line["rank"] for line in hung} == {1} and all("hangs" in line["reason"] for line in hung)
    assert [line["step"] for line in read_metrics(tmp_path / "hung" / "metrics.jsonl")] == list(range(1, 9))
    assert len({rank["too many"] for rank in ranks}) == 1 and ranks[0]["too many"].startswith("BadClipsError: ")
