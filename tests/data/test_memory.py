"""What a loader holds in main memory is bounded by bytes, and its threads have work all the same."""

from __future__ import annotations

import logging
import threading
import tracemalloc
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from lavila.config.load import load_config
from lavila.data.host import runner as host_runner
from lavila.data.host.runner import HELD, HostRunner
from lavila.data.memory import GIB, Work, batches_ahead
from lavila.data.pictures import PictureSpec
from lavila.engine import build
from lavila.engine.distributed import Process
from lavila.shards.reader import ShardSet
from tests.data.test_loader import training

SPEC = PictureSpec(
    frames=1,
    size=148,
    view_grid=(1, 1),
    cuts_window=True,
    pads_black=False,
    mean=(0.0, 0.0, 0.0),
    std=(1.0, 1.0, 1.0),
)
CLIP = 3 * 148 * 148 * 4  # bytes of a clip's pictures
PATIENCE = 20  # seconds until a test says that threads are idle


def work(threads: int, batch: int) -> Work:
    return Work(batch_size=batch, batch_bytes=batch * CLIP, threads=threads, prefetch=2, held=HELD)


class FakeDecoder:
    """Each clip waits until `together` of them are being decoded: fewer threads at work than that break it."""

    def __init__(self, together: int) -> None:
        self._meeting = threading.Barrier(together)

    def read(self, plan: Any) -> tuple[bytes, Any]:
        self._meeting.wait(PATIENCE)
        return b"", np.zeros(1, np.int32)


def runner(monkeypatch: pytest.MonkeyPatch, decoder: FakeDecoder, *, threads: int, ahead: int) -> HostRunner:
    monkeypatch.setattr(host_runner, "decode_planes", lambda data, frames: ())
    monkeypatch.setattr(host_runner.ClipRenderer, "render", lambda self, plan, planes, out: None)
    return HostRunner(SPEC, decoder.read, threads=threads, ahead=ahead)


def counted(batches: int, batch: int, begun: list[int]) -> Iterator[list[Any]]:
    for _ in range(batches):
        begun[0] += 1
        yield [object()] * batch  # plans, which nothing looks into


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("threads", [2, 8, 64])
def test_all_threads_are_at_work_at_once(monkeypatch: pytest.MonkeyPatch, threads: int, batch: int) -> None:
    ahead = batches_ahead(work(threads, batch), memory_gib=8)
    made = runner(monkeypatch, FakeDecoder(threads), threads=threads, ahead=ahead)
    assert sum(len(done.plans) for done in made.run(counted(4 * threads // batch, batch, [0]))) == 4 * threads


@pytest.mark.parametrize(("threads", "batch"), [(2, 1), (8, 1), (64, 1), (64, 8)])
def test_batches_take_no_more_than_the_memory_for_them(
    monkeypatch: pytest.MonkeyPatch, threads: int, batch: int
) -> None:
    """Those that are handed out included, whatever the number of threads, and those that it leaves room for do work."""
    room = 5 * batch * CLIP
    ahead = batches_ahead(work(threads, batch), memory_gib=room / GIB)
    begun, taken, most = [0], 0, 0
    made = runner(monkeypatch, FakeDecoder(min(threads, ahead * batch)), threads=threads, ahead=ahead)
    tracemalloc.start()
    try:
        for done in made.run(counted(24, batch, begun)):
            assert done.pictures.nbytes == batch * CLIP
            most, taken = max(most, begun[0] - taken), taken + 1
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert taken == 24 and most <= ahead + 1
    assert 3 * batch * CLIP < peak < room + CLIP  # all that is not pictures is small


def test_at_least_one_batch_is_made_and_a_warning_says_what_it_takes(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert batches_ahead(work(2, 8), memory_gib=8) == 3 and not caplog.records
        assert batches_ahead(work(64, 1), memory_gib=20 * CLIP / GIB) == 18
        assert "data.host_memory_gib" in caplog.text and "18 of 64 threads" in caplog.text
        caplog.clear()
        assert batches_ahead(work(64, 8), memory_gib=CLIP / GIB) == 1
        assert len(caplog.records) == 1 and "data.host_memory_gib" in caplog.text
    made = runner(monkeypatch, FakeDecoder(8), threads=64, ahead=1)
    assert sum(len(done.plans) for done in made.run(counted(3, 8, [0]))) == 24


def test_memory_of_batches_is_used_again_and_not_hoarded(monkeypatch: pytest.MonkeyPatch) -> None:
    made = runner(monkeypatch, FakeDecoder(1), threads=2, ahead=3)
    places = {done.pictures.ctypes.data for done in made.run(counted(40, 2, [0]))}
    assert len(places) <= 3 + HELD + 1
    kept = [done.pictures for done in made.run(counted(20, 2, [0]))]
    del kept
    assert len(made._buffers._free) == 3 + HELD


def test_a_loader_makes_what_its_memory_allows(vp9_shards: ShardSet, caplog: pytest.LogCaptureFixture) -> None:
    batch = 4 * 4 * 3 * 32 * 32 * 4
    with caplog.at_level(logging.WARNING):
        few = training(vp9_shards, host_memory_gib=4 * batch / GIB)
        assert isinstance(few._runner, HostRunner) and few._runner._ahead == 2 and not caplog.records
        least = training(vp9_shards, host_memory_gib=1e-9)
        assert "data.host_memory_gib" in caplog.text
    for one, other, third in zip(training(vp9_shards), few, least, strict=True):
        assert torch.equal(one.video, other.video) and torch.equal(one.video, third.video)


def test_the_config_sets_the_memory_of_every_loader(vp9_shards: ShardSet) -> None:
    process = Process(rank=0, world=1, local_world=1, device=torch.device("cpu"))
    batch = 4 * 16 * 3 * 32 * 32 * 4
    overrides = [
        "data.image_size=32",
        "data.frames=16",
        "data.batch_size=4",
        "views.batch_size=4",
        "views.view_batch_size=4",  # at least so many views are a batch
        "views.crops=center",
    ]
    made = load_config("model/tiny", [*overrides, "data.threads=8", f"data.host_memory_gib={4 * batch / GIB}"])
    for build_loader in (build.training_loader, build.view_loader):
        found = build_loader(made, vp9_shards, process)._runner
        assert isinstance(found, HostRunner) and found._ahead == 2


@pytest.mark.parametrize("memory_batches", [3, 6])
def test_batches_for_a_gpu_are_bounded_too(vp9_shards: ShardSet, memory_batches: int) -> None:
    """On a GPU machine threads draw into page-locked memory: the bound is that of the CPU."""
    batch = 2 * 4 * 3 * 32 * 32 * 4  # bytes of two clips
    made = training(
        vp9_shards, batch_size=2, decoder="host", device="cuda", host_memory_gib=memory_batches * batch / GIB
    )
    assert isinstance(made._runner, HostRunner) and made._runner._ahead == {3: 1, 6: 3}[memory_batches]
