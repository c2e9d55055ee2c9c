"""The order of an epoch: every clip once, whole stretches in a window, mixed within it, at a bounded cost."""

from __future__ import annotations

import sys
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lavila.data.sizes import ClipSizes
from lavila.plan import order as order_module
from lavila.plan.crops import CropChoice
from lavila.plan.frames import FrameChoice
from lavila.plan.order import EpochOrder, Shuffle, random_numbers
from lavila.plan.plans import Ranks, TrainingPlan

SMALL = Shuffle(window=64, stretch=4)


def whole(num_clips: int, shuffle: Shuffle, *, seed: int = 0, epoch: int = 0) -> list[int]:
    order = EpochOrder(num_clips, seed=seed, epoch=epoch, shuffle=shuffle)
    return [order[position] for position in range(num_clips)]


def training(count: int, *, ranks: Ranks, shuffle: Shuffle = SMALL, batch_size: int = 12) -> TrainingPlan:
    sizes = ClipSizes(num_frames=np.full(count, 90), height=np.full(count, 288), width=np.full(count, 512))
    return TrainingPlan(
        sizes,
        frames=FrameChoice(frames=4),
        crop=CropChoice(size=32),
        batch_size=batch_size,
        seed=0,
        ranks=ranks,
        shuffle=shuffle,
    )


@given(
    num_clips=st.integers(1, 400),
    window=st.integers(1, 150),
    stretch=st.integers(1, 40),
    seed=st.integers(0, 5),
    epoch=st.integers(0, 5),
)
def test_every_clip_comes_once(num_clips: int, window: int, stretch: int, seed: int, epoch: int) -> None:
    found = whole(num_clips, Shuffle(window=window, stretch=stretch), seed=seed, epoch=epoch)
    assert sorted(found) == list(range(num_clips))


@given(num_clips=st.integers(1, 2000), window=st.integers(1, 300), stretch=st.integers(1, 50))
def test_windows_hold_whole_stretches_and_no_more_clips_than_allowed(num_clips: int, window: int, stretch: int) -> None:
    order = EpochOrder(num_clips, seed=1, epoch=2, shuffle=Shuffle(window=window, stretch=stretch))
    sizes = []
    for number in range(order.windows):
        clips = order.window(number)
        sizes.append(len(clips))
        assert len(clips) <= window + stretch
        stretches, counts = np.unique(clips // stretch, return_counts=True)
        full = np.minimum(stretch, num_clips - stretches * stretch)  # the set's last stretch may be shorter
        assert (counts == full).all()
    assert sum(sizes) == num_clips
    assert max(sizes) - min(sizes) <= 2 * stretch  # no small window at the end


def test_a_window_comes_from_all_over_the_set_and_is_mixed() -> None:
    order = EpochOrder(100_000, seed=0, epoch=0, shuffle=Shuffle(window=10_000, stretch=50))
    assert order.windows == 10
    for number in range(10):
        clips = order.window(number)
        assert np.histogram(clips, bins=10, range=(0, 100_000))[0].min() > 300  # of 1000 expected in each tenth
        apart = np.abs(np.diff(clips // 50))
        assert (apart == 0).mean() < 0.02  # neighbours of one stretch: 0.5 % expected
        assert abs(np.corrcoef(clips[:-1], clips[1:])[0, 1]) < 0.05


def test_a_set_of_one_window_is_shuffled_fully() -> None:
    full = random_numbers(3, order_module.ORDER, 7).permutation(1000)
    assert whole(1000, Shuffle(window=1000, stretch=64), seed=3, epoch=7) == full.tolist()
    assert whole(1000, Shuffle(), seed=3, epoch=7) == full.tolist()


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    first = whole(500, SMALL)
    assert first == whole(500, SMALL)
    windows = [
        EpochOrder(500, seed=seed, epoch=epoch, shuffle=SMALL).window(0).tolist()
        for seed, epoch in ((0, 0), (0, 1), (1, 0))
    ]
    assert len({tuple(sorted(clips)) for clips in windows}) == 3  # other stretches, not only another order


def test_a_place_gives_the_same_clip_whatever_was_asked_before() -> None:
    wanted = whole(500, SMALL)
    order = EpochOrder(500, seed=0, epoch=0, shuffle=SMALL)
    assert [order[position] for position in reversed(range(500))] == wanted[::-1]
    with pytest.raises(AssertionError):
        order[500]


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_share_the_batches_that_one_rank_sees_across_windows(world: int) -> None:
    alone = training(500, ranks=Ranks())
    parts = [training(500, ranks=Ranks(rank=rank, world=world)) for rank in range(world)]
    assert alone.steps == 41 > 500 // SMALL.window
    for step in range(alone.steps):
        together = [clip.row for part in parts for clip in part.batch(1, step)]
        assert together == [clip.row for clip in alone.batch(1, step)]


@pytest.mark.parametrize("step", [1, 5, 6, 40])
def test_a_run_continues_in_the_middle_of_a_window(step: int) -> None:
    straight = training(500, ranks=Ranks())
    seen = [[clip.row for clip in straight.batch(0, number)] for number in range(straight.steps)]
    again = training(500, ranks=Ranks())
    assert [[clip.row for clip in again.batch(0, number)] for number in range(step, again.steps)] == seen[step:]


def test_what_an_order_holds_is_bounded_by_window_and_stretches() -> None:
    def peak(num_clips: int) -> int:
        tracemalloc.start()
        order = EpochOrder(num_clips, seed=0, epoch=0, shuffle=Shuffle(window=4096, stretch=256))
        assert len({order[position] for position in range(num_clips - 50, num_clips)}) == 50
        held = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return held

    peak(10_000)  # what is imported on the way
    small, large = peak(10_000), peak(4_000_000)
    assert small < 400_000 and large < 1_000_000  # a full permutation has 32 MB


def test_a_plan_looks_up_the_clips_of_its_step_only() -> None:
    class Counting(ClipSizes):
        asked = 0

        def row(self, index: int) -> int:
            type(self).asked += 1
            return super().row(index)

    for count in (10_000, 1_000_000):
        blank = np.broadcast_to(np.int64(90), count)  # takes no memory
        sizes = Counting(num_frames=blank, height=blank, width=blank)
        plan = TrainingPlan(
            sizes, frames=FrameChoice(frames=4), crop=CropChoice(size=32), batch_size=16, seed=0, ranks=Ranks()
        )
        Counting.asked = 0
        calls = 0

        def count_calls(frame: object, event: str, argument: object) -> None:
            nonlocal calls
            calls += event == "call"

        plan.batch(0, 1)  # the epoch's stretches are drawn once
        Counting.asked = 0
        sys.setprofile(count_calls)
        plan.batch(0, 2)
        sys.setprofile(None)
        assert Counting.asked == 16
        assert calls < 16 * 40, calls


@given(
    num_clips=st.integers(1, 3000),
    stretch=st.integers(1, 30),
    batch=st.integers(1, 400),
    parts=st.integers(1, 3),
    seed=st.integers(0, 3),
)
def test_the_next_window_is_read_ahead_once_by_all_readers_together(
    num_clips: int, stretch: int, batch: int, parts: int, seed: int
) -> None:
    order = EpochOrder(num_clips, seed=seed, epoch=1, shuffle=Shuffle(window=500, stretch=stretch))
    first_window = set(order.window(0).tolist())
    read: list[int] = []
    for start in range(0, num_clips - batch + 1, batch):
        used = {order[position] for position in range(start, start + batch)}
        coming = [order.coming(start, start + batch, part=part, parts=parts) for part in range(parts)]
        read += [clip for spans in coming for first, last in spans for clip in range(first, last + 1)]
        assert batch > 200 or used <= first_window | set(read)
    assert len(read) == len(set(read))
    assert not set(read) & first_window
