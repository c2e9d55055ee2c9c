"""The clips that take the places of bad ones follow from seed, epoch and place; the step has none of them already."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lavila.plan.crops import ViewChoice
from lavila.plan.frames import FrameChoice
from lavila.plan.order import Shuffle
from lavila.plan.plans import SUBSTITUTES, Ranks, TrainingPlan, ViewPlan
from lavila.records import ClipPlan
from tests.plan.test_plans import sizes, training


def planned(clips: int, batch_size: int, **changes: Any) -> TrainingPlan:
    return training(clips, batch_size=batch_size, shuffle=Shuffle(window=64, stretch=4), **changes)


def tried(plan: TrainingPlan, first: ClipPlan, *, epoch: int = 2) -> list[ClipPlan]:
    """A clip and all that may take its place."""
    found = [first]
    while (following := plan.instead(found[-1])) is not None:
        found.append(following)
    return found


@pytest.mark.parametrize(("clips", "batch_size"), [(200, 16), (200, 200), (24, 16), (23, 16), (12, 8), (5, 2), (1, 1)])
def test_substitutes_are_other_clips(clips: int, batch_size: int) -> None:
    plan = planned(clips, batch_size)
    for step in range(plan.steps):
        whole = plan.batch(2, step)
        for first in whole:
            found = tried(plan, first)
            assert len({one.row for one in found}) == len(found) == 1 + min(SUBSTITUTES, clips - 1)
            assert [one.attempt for one in found] == list(range(len(found)))
            assert {one.position for one in found} == {first.position}


def test_a_step_gets_no_clip_twice() -> None:
    plan = planned(200, 16)
    for step in range(plan.steps):
        whole = plan.batch(2, step)
        for attempt in range(1, SUBSTITUTES + 1):
            others = [tried(plan, first)[attempt].row for first in whole]
            assert len(set(others)) == 16 and not set(others) & {one.row for one in whole}


def test_substitutes_follow_from_seed_epoch_and_place_alone() -> None:
    whole = planned(48, 12)
    parts = [planned(48, 12, ranks=Ranks(rank=rank, world=3), passes=2) for rank in range(3)]
    for step in range(whole.steps):
        wanted = [tried(whole, first) for first in whole.batch(2, step)]
        found = [tried(part, first) for part in parts for once in (0, 1) for first in part.batch(2, 2 * step + once)]
        for ours, theirs in zip(wanted, found, strict=True):
            for one, other in zip(ours, theirs, strict=True):
                assert (one.row, one.attempt, one.window, one.flip, one.caption) == (
                    other.row, other.attempt, other.window, other.flip, other.caption,
                ) and np.array_equal(one.frames, other.frames)  # fmt: skip
    first = whole.batch(2, 0)[0]
    assert len({one.window for one in tried(whole, first)}) > 1  # each draws anew
    other_epoch = tried(whole, whole.batch(3, 0)[0], epoch=3)
    assert [one.row for one in other_epoch] != [one.row for one in tried(whole, first)]


def test_views_have_no_substitutes() -> None:
    views = ViewChoice(size=32, clips=1, crops="center")
    plan = ViewPlan(sizes(4), frames=FrameChoice(frames=4), views=views, batch_size=2, ranks=Ranks())
    assert plan.substitutes is None and plan.instead(plan.batch(0, 0)[0]) is None
