"""Batches that threads draw reach a device through `BatchCopy`. Here its memory and its device are the CPU's."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lavila.data.host.gpu_copy import GpuCopy
from lavila.data.host.runner import HostRunner
from lavila.data.pictures import PictureSpec
from lavila.data.reading import ClipReader
from lavila.shards.reader import ShardSet
from tests.data.test_loader import damaged, training


class Counted:
    """A `BatchCopy` on the CPU, that says what it was asked."""

    def __init__(self) -> None:
        self.handed_out: list[torch.Tensor] = []
        self.copies = 0

    def memory(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        self.handed_out.append(torch.full(shape, float("nan"), dtype=dtype))
        return self.handed_out[-1]

    def copied(self, pictures: torch.Tensor) -> torch.Tensor:
        assert any(pictures is one for one in self.handed_out)
        self.copies += 1
        return pictures.clone()


def run(shards: ShardSet, spec: PictureSpec, copy: Any) -> tuple[list[Any], list[str]]:
    loader = training(shards)
    planned = [loader.plan.batch(0, step) for step in range(loader.plan.steps)]
    runner = HostRunner(spec, ClipReader(shards, threads=1).read, threads=2, ahead=2, copy=copy)
    batches = [(batch.plans, batch.pictures, batch.bad) for batch in runner.run(planned)]
    return [pictures for _, pictures, _ in batches], [reason for *_, bad in batches for _, reason in bad]


@pytest.mark.parametrize("half", [False, True])
def test_threads_draw_into_the_memory_that_is_copied(vp9_shards: ShardSet, half: bool) -> None:
    from dataclasses import replace

    spec, copy = replace(training(vp9_shards).spec, half=half), Counted()
    plain, _ = run(vp9_shards, spec, None)
    got, bad = run(vp9_shards, spec, copy)
    assert copy.copies == len(got) == 3 and not bad
    for one, other in zip(plain, got, strict=True):
        assert other.dtype == (torch.float16 if half else torch.float32)
        assert torch.equal(torch.from_numpy(one), other)


def test_bad_clips_leave_the_copy(vp9_shards: ShardSet, tmp_path: Any) -> None:
    shards, copy = damaged(vp9_shards, tmp_path, 1, 4, 5), Counted()
    got, bad = run(shards, training(vp9_shards).spec, copy)
    assert len(bad) == 3 and sum(len(one) for one in got) == 9
    assert not any(one.isnan().any() for one in got)


def test_a_gpu_is_not_touched_before_the_first_batch() -> None:
    assert GpuCopy(0)._stream is None
