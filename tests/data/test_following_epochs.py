"""While an epoch ends, the loader of a training makes the first batches of the next one."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lavila.data.loader import ClipLoader
from lavila.records import ClipPlan
from lavila.shards.reader import ShardSet
from tests.data.test_loader import damaged, training

EPOCHS, STEPS = 3, 3


def epochs_of(loader: ClipLoader, first: int = 0) -> list[list[torch.Tensor]]:
    found = []
    for epoch in range(first, EPOCHS):
        loader.set_epoch(epoch)
        found.append([batch.video.clone() for batch in loader])
    return found


def same(some: list[list[torch.Tensor]], others: list[list[torch.Tensor]]) -> bool:
    return all(torch.equal(a, b) for x, y in zip(some, others, strict=True) for a, b in zip(x, y, strict=True))


def watch(loader: ClipLoader, monkeypatch: pytest.MonkeyPatch) -> list[ClipPlan]:
    """The plans of the clips that are read, as they are read."""
    plans: list[ClipPlan] = []
    read = loader._runner._read  # type: ignore[attr-defined]

    def noted(plan: ClipPlan) -> Any:
        plans.append(plan)
        return read(plan)

    monkeypatch.setattr(loader._runner, "_read", noted)
    return plans


def clip_threads() -> int:
    return sum(thread.name.startswith(("clip", "read-ahead")) for thread in threading.enumerate())


@pytest.mark.parametrize("decoder", ["host", "dali_cpu"])
def test_epochs_that_follow_are_those_that_stand_alone(vp9_shards: ShardSet, decoder: str) -> None:
    alone = epochs_of(training(vp9_shards, decoder=decoder))
    loader = training(vp9_shards, decoder=decoder, epochs=EPOCHS)
    assert same(epochs_of(loader), alone)
    assert same(epochs_of(loader, first=1), alone[1:]), "an epoch that was not begun begins when it is asked for"
    assert clip_threads() == 0, "nothing follows the last one"


def test_the_next_epoch_begins_before_the_last_batch_is_used(
    vp9_shards: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = training(vp9_shards, decoder="host", epochs=EPOCHS)
    read = watch(loader, monkeypatch)
    for number, _ in enumerate(loader):
        if number == STEPS - 1:
            deadline = time.monotonic() + 10
            while {plan.epoch for plan in read} == {0} and time.monotonic() < deadline:
                time.sleep(0.01)
            assert {plan.epoch for plan in read} == {0, 1}
    assert len({(plan.epoch, plan.position) for plan in read}) == len(read), "no clip is read twice"
    assert clip_threads() > 0
    loader.close()
    assert clip_threads() == 0
    loader.set_epoch(1)
    assert len(list(loader)) == STEPS


@pytest.mark.parametrize("place", [{"epoch": 2, "step": 0}, {"epoch": 1, "step": 2}, {"epoch": 0, "step": 1}])
def test_another_place_than_the_one_that_was_begun(vp9_shards: ShardSet, place: dict[str, int]) -> None:
    alone = epochs_of(training(vp9_shards))
    loader = training(vp9_shards, decoder="host", epochs=EPOCHS)
    list(loader)
    loader.load_state_dict(place)
    found = [batch.video.clone() for batch in loader]
    assert same([found], [alone[place["epoch"]][place["step"] :]])
    loader.close()


def test_a_caller_that_stops_leaves_nothing_behind(vp9_shards: ShardSet) -> None:
    loader = training(vp9_shards, decoder="host", epochs=EPOCHS)
    for _ in loader:
        break
    assert clip_threads() == 0
    assert loader.state_dict() == {"epoch": 0, "step": 1}


def test_a_bad_clip_gets_the_substitute_of_its_epoch(vp9_shards: ShardSet, tmp_path: Path) -> None:
    shards = damaged(vp9_shards, tmp_path, 2, 7)
    alone, follows = training(shards), training(shards, decoder="host", epochs=EPOCHS)
    for epoch in range(EPOCHS):
        for loader in (alone, follows):
            loader.set_epoch(epoch)
        rows = [[batch.rows for batch in loader] for loader in (alone, follows)]
        assert all(np.array_equal(a, b) for a, b in zip(*rows, strict=True))
        bad = [{(one.position, one.attempt) for one in loader.bad_clips} for loader in (alone, follows)]
        assert bad[0] == bad[1] and bad[0]
