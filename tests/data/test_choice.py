"""Which decoder a loader uses, on machines with and without a GPU. The GPUs here are driver libraries that answer."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lavila.data import choice
from lavila.data.choice import Trial
from lavila.data.host.runner import HostRunner
from lavila.data.loader import ClipLoader
from lavila.data.nvdec import chip, fastest
from lavila.data.pictures import LoaderError
from lavila.shards.reader import ShardSet
from tests.data.nvdec.fakes import A100_CODECS, ANY_SIZE, H100_CODECS, fake_chip
from tests.data.test_loader import training


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No measurement is kept, no line was said, and no chip was asked."""
    monkeypatch.setenv("LAVILA_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(choice, "_said", set())
    chip.chip_of.cache_clear()
    yield
    chip.chip_of.cache_clear()


def with_rates(monkeypatch: pytest.MonkeyPatch, **rates: float) -> list[str]:
    """A measurement gives these rates. Returns what was measured, as it grows."""
    asked: list[str] = []

    def rate(self: Trial, decoder: str) -> float:
        asked.append(decoder)
        return rates[decoder]

    monkeypatch.setattr(Trial, "rate", rate)
    return asked


@pytest.mark.parametrize("faster", ["nvdec", "host"])
def test_auto_on_a_gpu_is_the_faster_one(
    vp9_shards: ShardSet, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, faster: str
) -> None:
    fake_chip(monkeypatch, ANY_SIZE)
    asked = with_rates(monkeypatch, **{"nvdec": 100.0, "host": 100.0, faster: 200.0})
    with caplog.at_level(logging.INFO, logger="lavila.data.choice"):
        loaders = [training(vp9_shards, device="cuda") for _ in range(2)]
    assert [loader.decoder for loader in loaders] == [faster] * 2
    assert asked == ["nvdec", "host"], "the second loader uses what was measured for the first"
    assert len(fastest.kept()) == 1
    (line,) = [message for message in caplog.messages if "data.decoder=auto is" in message]
    assert f"auto is {faster}" in line and "nvdec" in line and "200" in line


@pytest.mark.parametrize(
    ("codecs", "why"),
    [(H100_CODECS, "vp9 from 128x128"), ({4: A100_CODECS[4]}, "no decoder for vp9"), (None, "nvcuvid")],
)
def test_auto_is_host_where_the_chip_cannot_decode_the_set(
    vp9_shards: ShardSet,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    codecs: Any,
    why: str,
) -> None:
    """One line in the log says why, also if loaders are made again and again."""
    fake_chip(monkeypatch, codecs)
    asked = with_rates(monkeypatch)
    loaders = [training(vp9_shards, device="cuda") for _ in range(3)]
    assert {loader.decoder for loader in loaders} == {"host"} and asked == []
    assert isinstance(loaders[0]._runner, HostRunner)
    (line,) = caplog.messages
    assert why in line and str(vp9_shards.path) in line
    with pytest.raises(LoaderError, match=why):
        training(vp9_shards, device="cuda", decoder="nvdec")


def test_av1_is_never_given_to_a_gpu(h264_shards: ShardSet, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_chip(monkeypatch, {**ANY_SIZE, 11: ANY_SIZE[4]})
    monkeypatch.setattr(ShardSet, "codec", "av1")
    assert training(h264_shards, device="cuda").decoder == "host"
    with pytest.raises(LoaderError, match=r"hidden frames.*data\.decoder=auto"):
        training(h264_shards, device="cuda", decoder="nvdec")


def test_decoders_that_cannot_work_are_refused(vp9_shards: ShardSet) -> None:
    assert training(vp9_shards).decoder == "host"
    with pytest.raises(LoaderError, match=r"data\.decoder=nvdec.*data\.decoder=auto"):
        training(vp9_shards, decoder="nvdec")
    with pytest.raises(LoaderError, match="auto, nvdec, dali_cpu, host"):
        training(vp9_shards, decoder="cuvid")


def trial(loader: ClipLoader, shards: ShardSet) -> Trial:
    execution = choice.Execution(decoder="host", device_id=None, batch_size=4, threads=2, prefetch=1)
    return Trial(
        shard_set=shards,
        reader=loader._reader,
        spec=loader.spec,
        plan=loader.plan,
        execution=execution,
        host_memory_gib=1.0,
    )


@pytest.mark.parametrize("decoder", ["host", "dali_cpu"])
def test_a_rate_is_that_of_real_batches(vp9_shards: ShardSet, monkeypatch: pytest.MonkeyPatch, decoder: Any) -> None:
    """On the CPU, since the same runner runs there. Few clips are used again and again."""
    monkeypatch.setattr(choice, "SECONDS", 0.2)
    one = trial(training(vp9_shards), vp9_shards)
    read: list[int] = []
    real = vp9_shards.read_frames
    monkeypatch.setattr(vp9_shards, "read_frames", lambda row, frames: read.append(row) or real(row, frames))  # type: ignore[func-returns-value]
    one.warm_up_storage()
    assert sorted(read) == list(range(12))
    assert one.rate(decoder) > 10 and len(read) > 24


def test_a_bad_clip_does_not_stop_a_measurement(vp9_shards: ShardSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "SECONDS", 0.1)
    one = trial(training(vp9_shards), vp9_shards)
    real = vp9_shards.read_frames
    monkeypatch.setattr(
        vp9_shards, "read_frames", lambda row, frames: (bytes(1000) if row == 3 else real(row, frames)[0], frames)
    )
    one.warm_up_storage()
    assert one.rate("host") > 0
