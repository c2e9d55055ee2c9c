"""tools/doctor.py: which stage bounds a training step, measured on a tiny model and found from made-up figures."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import doctor
import numpy as np
import pytest
import torch
from tqdm import tqdm

from lavila.config.load import load_config
from lavila.data.host.decode import DecodeError
from lavila.doctor import examine, step
from lavila.doctor import model as model_bench
from lavila.doctor.findings import Finding
from lavila.doctor.verdict import bound, expected, stage_lines, step_finding
from lavila.engine import build
from lavila.engine.distributed import Process
from lavila.plan.plans import PlanError
from lavila.shards.reader import ShardSet
from tests.data.test_loader import damaged
from tests.doctor.fakes import Fake
from tests.engine.test_runs import config_file

STAGES = {"read", "decode", "augment", "loader", "model", "together"}
ON_A_GPU = step.StepFacts(
    rates={"read": 5000.0, "decode": 21.0, "augment": 900.0, "loader": 18.0, "model": 80.0},
    decoders={"dali_cpu": 21.0, "host": 42.0},
    decoder="dali_cpu",
    codec="vp9",
    device="cuda",
    threads=8,
    data_batch=16,
    model_batch=16,
    share=16,
    image_size=224,
    stored=(288, 512),
    wanted_frames=4.0,
    passed_frames=60.0,
    clip_bytes=90_000.0,
    page_cache="empty",
)
ON_THE_CPU = replace(ON_A_GPU, device="cpu", rates=ON_A_GPU.rates | {"model": 10.0})


def process() -> Process:
    return Process(rank=0, world=1, local_world=1, device=torch.device("cpu"))


def test_a_step_is_measured(vp9_shards: ShardSet, tmp_path: Path) -> None:
    config = load_config(config_file(tmp_path, vp9_shards))
    with tqdm(disable=True) as bar:
        facts = step.measure_step(config, vp9_shards, nvdec=False, seconds=0.1, bar=bar)
    # A busy machine may leave no time for the last one, which has a separate test.
    assert set(facts.rates) | {"together"} == STAGES and min(facts.rates.values()) > 0
    assert set(facts.decoders) == {"dali_cpu", "host"} and facts.decoders["host"] == facts.rates["decode"]
    assert (facts.decoder, facts.codec, facts.device) == ("host", "vp9", "cpu")
    assert facts.wanted_frames <= facts.passed_frames and facts.share == config.data.batch_size
    found = step_finding(facts)
    assert (
        found.facts["expected_is_measured"] is ("together" in facts.rates)
        and f"{found.facts['bound']} bounds" in found.found
    )
    assert [line.split()[0] for line in stage_lines(facts, plain=True) if "#" in line] == [*facts.rates]


def test_loader_and_model_are_measured_together(vp9_shards: ShardSet, tmp_path: Path) -> None:
    config = load_config(config_file(tmp_path, vp9_shards))
    bench, model = step._Bench(config, vp9_shards, process()), model_bench.ModelBench(config, vp9_shards, process())
    found = bench.together(model, 4, 1e6, seconds=0.3)
    assert found is not None and found[0] > 0 and 0 <= found[1] <= 100
    assert bench.together(model, 4, 1e-3, seconds=0.3) is None  # a step would take an hour
    assert model.task.model.training and all(one.grad is None for one in model.task.model.parameters())


def test_the_step_is_a_finding_of_the_tool(
    h264_shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(examine, "STEP_SECONDS", 0.1)
    monkeypatch.setattr(examine.Doctor, "decoder_checks", lambda self, folder: None)
    path = config_file(tmp_path, h264_shards)
    assert doctor.main(["--config", str(path), "--shards", str(h264_shards.path)]) in (0, 1)
    out = capsys.readouterr().out
    assert (
        "A training step, stage by stage" in out
        and "decode: by host" in out
        and "clips/s of training on this cpu" in out
    )


def test_a_model_that_cannot_be_built_is_a_finding(
    vp9_shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(config_file(tmp_path, vp9_shards))
    broken = replace(config, task=replace(config.task, heads=("scent",)))
    monkeypatch.setattr(examine, "STEP_SECONDS", 0.1)
    examined = examine.Doctor(doctor.Machine(), quick=False)
    with tqdm(disable=True) as bar:
        examined.step_check(broken, vp9_shards, bar=bar, plain=True)
    start, found = examined.findings
    assert (start.name, start.status) == ("config", "broken") and start.found.startswith("task.heads: ")
    assert found.status == "broken" and "could not be measured: task.heads" in found.found
    assert set(found.facts["rates"]) == {"read", "decode", "augment", "loader"}  # which do not need it


@pytest.mark.parametrize(
    ("setting", "status", "said"),
    [
        ("seed=1", "ok", "tiny can start: 3 steps an epoch of 4 clips on cpu, decoder host, classes: verb 3"),
        ("data.batch_size=512", "broken", "data.batch_size=512 is more than the 12 clip(s)"),
        ("data.decoder=nvdec", "broken", "data.decoder=nvdec decodes on a GPU, but device is cpu"),
    ],
)
def test_whether_a_config_can_start(vp9_shards: ShardSet, tmp_path: Path, setting: str, status: str, said: str) -> None:
    examined = examine.Doctor(doctor.Machine(), quick=True)
    config = load_config(config_file(tmp_path, vp9_shards), [setting])
    with tqdm(disable=True) as bar:
        examined.step_check(config, vp9_shards, bar=bar, plain=True)
    (found,) = examined.findings
    assert found.status == status and found.found.startswith(said)


def test_one_rank_of_a_larger_job_does_not_wait_for_the_others(
    vp9_shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    path = config_file(tmp_path, vp9_shards)
    assert doctor.main(["--quick", "--json", "--config", str(path)], machine=Fake(tmp_path).machine()) == 0
    findings = json.loads(capsys.readouterr().out)["findings"]
    assert findings[-1]["name"] == "config" and findings[-1]["facts"]["steps"] == 3


def test_a_clip_that_cannot_be_decoded_is_named(vp9_shards: ShardSet, tmp_path: Path) -> None:
    config = load_config(config_file(tmp_path, vp9_shards))
    bad = damaged(vp9_shards, tmp_path / "bad", *range(len(vp9_shards)))
    with pytest.raises(DecodeError, match=r"clip \S+.*inspect_shards\.py.*--verify"):
        step._Bench(config, bad, process())


def test_weights_to_start_from_are_not_read(vp9_shards: ShardSet, tmp_path: Path) -> None:
    config = load_config(config_file(tmp_path, vp9_shards), ["model.init=/no/such/file"])
    assert model_bench.ModelBench(config, vp9_shards, process()).task.model is not None


def test_a_batch_larger_than_the_shard_set_still_measures_the_data(vp9_shards: ShardSet, tmp_path: Path) -> None:
    config = load_config(config_file(tmp_path, vp9_shards), ["data.batch_size=512"])
    bench = step._Bench(config, vp9_shards, process())
    assert bench.share == 512 and bench.batch <= len(vp9_shards)
    with pytest.raises(PlanError):  # which training would refuse
        bench._loader(512)


def test_the_measured_clips_are_those_of_the_plan(vp9_shards: ShardSet, tmp_path: Path) -> None:
    config = load_config(config_file(tmp_path, vp9_shards), ["data.batch_size=12"])
    bench = step._Bench(config, vp9_shards, process())
    real = build.training_loader(config, vp9_shards, process()).plan.batch(0, 0)
    flat = [plan for batch in bench.data.plans for plan in batch]
    assert [plan.row for plan in flat] == [plan.row for plan in real[: len(flat)]]
    assert all(np.array_equal(one.frames, two.frames) for one, two in zip(flat, real, strict=False))
    shapes = [len(frames) for batch in bench.data.decoded for frames in batch]
    assert shapes == [len(plan.distinct_frames()) for plan in flat]


def test_the_model_takes_what_fits(vp9_shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config(config_file(tmp_path, vp9_shards))
    model = model_bench.ModelBench(config, vp9_shards, process())
    batch = step._Bench(config, vp9_shards, process()).one_batch()
    sizes = []

    def small(part: Any) -> None:
        sizes.append(len(part))
        if len(part) > 4:
            raise torch.OutOfMemoryError

    monkeypatch.setattr(model, "step", small)
    rate, best, notes = model.measure(batch, share=24, seconds=0.001)
    assert best == 4 and rate > 0 and sizes[-1] == 4 and max(sizes) == 8
    assert "8 clips at once do not fit" in notes[0] and "at most 4" in notes[0]
    monkeypatch.setattr(model, "step", lambda part: None)
    assert model.measure(batch, share=24, seconds=0.001)[1:] == (24, [])


def test_nvdec_is_compared_where_the_gpu_has_it(vp9_shards: ShardSet, tmp_path: Path) -> None:
    config = load_config(config_file(tmp_path, vp9_shards))
    without, with_it = (step._Bench(config, vp9_shards, process(), nvdec=nvdec) for nvdec in (False, True))
    assert without.decoders == ["dali_cpu", "host"] and with_it.decoders == ["nvdec", "dali_cpu", "host"]
    assert "decode nvdec" in with_it.slices() and "decode nvdec" not in without.slices()


def test_tiled_batches_are_whole(vp9_shards: ShardSet, tmp_path: Path) -> None:
    config = load_config(config_file(tmp_path, vp9_shards))
    batch = step._Bench(config, vp9_shards, process()).one_batch()
    more = model_bench.tiled(batch, len(batch) + 1)
    assert len(more) == len(batch) + 1 and more.clip_ids[-1] == batch.clip_ids[0]
    assert torch.equal(more.video[-1], batch.video[0]) and torch.equal(more.labels["verb"][:-1], batch.labels["verb"])


# --- what the figures mean


def test_decoding_bounds_a_gpu() -> None:
    found = step_finding(ON_A_GPU)
    assert found.status == "note" and found.found == (
        "decode bounds: 21.0 clips/s, the whole loader 18.0; the model could take 80.0; "
        "expect 18.0 clips/s of training on this cuda (estimate)"
    )
    assert found.fix[0] == "train.py ... data.decoder=host: decodes 2.0x as fast (measured)"
    assert found.fix[1].startswith("60 frames are decoded for 4 wanted: shards made with a lower --fps")
    assert found.fix[2].startswith("shards made with --short-side 224 (now 288) have 1/1.7 of the pixels")
    assert "about 36 would keep up with the model (estimate; now 8)" in found.fix[3]


def test_the_model_bounds_a_gpu() -> None:
    quick = replace(ON_A_GPU, rates=ON_A_GPU.rates | {"loader": 300.0, "decode": 310.0})
    found = step_finding(quick)
    assert bound(quick) == "model" and found.status == "ok" and not found.fix
    assert expected(quick) == (80.0, False)


def test_a_loader_slower_than_each_of_its_stages_bounds() -> None:
    tight = replace(ON_A_GPU, rates=ON_A_GPU.rates | {"decode": 90.0, "augment": 95.0, "loader": 46.0})
    assert bound(tight) == "decode"


def test_stages_share_the_cores_of_a_cpu() -> None:
    assert bound(ON_THE_CPU) == "model"
    clips, measured = expected(ON_THE_CPU)
    assert clips == pytest.approx(1 / (1 / 18 + 1 / 10)) and not measured
    assert step_finding(ON_THE_CPU).fix == (
        "a GPU: the model takes the larger part of the time",
        "train.py ... data.decoder=host: decodes 2.0x as fast (measured)",
    )
    both = replace(ON_THE_CPU, rates=ON_THE_CPU.rates | {"together": 6.5}, data_wait_percent=40.0)
    assert expected(both) == (6.5, True) and "40 % of the time waiting" in "\n".join(stage_lines(both, plain=True))


@pytest.mark.parametrize(("stage", "word"), [("read", "disk of this node"), ("augment", "--short-side")])
def test_other_stages(stage: str, word: str) -> None:
    slow = replace(ON_A_GPU, rates=ON_A_GPU.rates | {stage: 5.0, "loader": 5.0})
    found: Finding = step_finding(slow)
    assert bound(slow) == stage and word in found.fix[0] and f"{stage} bounds: 5.00" in found.found


def test_bars_are_as_long_as_the_time_a_clip_takes() -> None:
    lines = stage_lines(ON_THE_CPU, plain=True)
    bars = {line.split()[0]: line.count("#") for line in lines if "#" in line}
    assert bars["model"] == 40 and bars["loader"] == 22 and bars["read"] == 1
    assert "page cache was emptied" in "\n".join(lines)
