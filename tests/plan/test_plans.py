"""The plan: frame numbers and crops equal to the reference, the same batches on any number of ranks."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lavila.data.sizes import ClipSizes
from lavila.plan.crops import CropChoice, ViewChoice, crop_offsets, draw_window, resized_size
from lavila.plan.frames import FrameChoice, choose_frames, draw_frames, segment_bounds
from lavila.plan.order import Shuffle, random_numbers
from lavila.plan.plans import Ranks, TrainingPlan, ViewPlan
from lavila.records import BLACK_FRAME
from tests.golden_files import golden_json

SAMPLING = golden_json("sampling")
PICTURES = golden_json("preprocess")


def sizes(count: int, *, frames: int = 90) -> ClipSizes:
    return ClipSizes(num_frames=np.full(count, frames), height=np.full(count, 288), width=np.full(count, 512))


def training(count: int = 64, **changes: object) -> TrainingPlan:
    arguments = {
        "frames": FrameChoice(frames=16),
        "crop": CropChoice(size=224),
        "batch_size": 16,
        "seed": 0,
        "ranks": Ranks(),
    } | changes
    return TrainingPlan(sizes(count), **arguments)


@pytest.mark.parametrize("case", SAMPLING["get_frame_ids"], ids=lambda c: f"{c['start']}-{c['end']}x{c['n']}")
def test_segments_equal_the_reference(case):
    low, high = segment_bounds(case["start"], case["end"], case["n"])
    assert [list(pair) for pair in zip(low, high, strict=True)] == case["jitter_low_high_inclusive"]
    frames = choose_frames(case["end"] - case["start"], FrameChoice(frames=case["n"]), clips=1)
    # The reference reads frames before an interval that has none; here every interval has its first one.
    wanted = case["ids"] if case["end"] > case["start"] else [case["start"]] * case["n"]
    assert (frames[0] + case["start"]).tolist() == wanted


@pytest.mark.parametrize(
    "case",
    SAMPLING["strided_clips"],
    ids=lambda c: f"{c['num_frames']}-{c['clip_length']}x{c['clip_stride']}x{c['num_clips']}",
)
def test_strided_clips_equal_the_reference(case):
    choice = FrameChoice(frames=case["clip_length"], sampling="strided", stride=case["clip_stride"])
    assert choose_frames(case["num_frames"], choice, clips=case["num_clips"]).ravel().tolist() == case["frames"]


@pytest.mark.parametrize("case", SAMPLING["strided_training"], ids=lambda c: str(c["num_frames"]))
def test_strided_training_equals_the_reference(case):
    choice = FrameChoice(frames=case["clip_length"], sampling="strided", stride=case["clip_stride"])
    drawn = {tuple(draw_frames(case["num_frames"], choice, random_numbers(0, 9, 0, i))[0]) for i in range(4000)}
    low, high = case["start_low_high_inclusive"] or (0, 0)
    assert {frames[0] for frames in drawn} == set(range(low, high + 1))
    assert tuple(case["frames_for_highest_start"]) in drawn


@given(frames=st.integers(1, 400), parts=st.integers(1, 32), seed=st.integers(0, 1000))
def test_drawn_segments_stay_inside_their_parts(frames, parts, seed):
    low, high = segment_bounds(0, frames, parts)
    drawn = draw_frames(frames, FrameChoice(frames=parts), random_numbers(seed, 9, 0))[0]
    assert (low <= drawn).all() and (drawn <= high).all() and drawn.max() < frames and drawn.min() >= 0


def test_temporal_clips_of_segments_are_spread_around_the_centre():
    frames = choose_frames(161, FrameChoice(frames=4), clips=3)
    assert frames.tolist() == [[6, 46, 86, 126], [20, 60, 100, 140], [33, 73, 113, 153]]
    assert frames[1].tolist() == choose_frames(161, FrameChoice(frames=4), clips=1)[0].tolist()


@pytest.mark.parametrize("case", PICTURES["resize_sizes"], ids=str)
def test_resized_sizes_equal_the_reference(case):
    assert list(resized_size(case["height"], case["width"], case["size"])) == case["result"]


@pytest.mark.parametrize("case", PICTURES["uniform_crop_offsets"], ids=str)
def test_three_crops_equal_the_reference(case):
    assert crop_offsets(case["height"], case["width"], case["crop"], "three").tolist() == case["offsets_y_x"]


@pytest.mark.parametrize("case", PICTURES["centre_crop_offsets"], ids=str)
@pytest.mark.parametrize("rule", ["center", "center_repeated"])
def test_centre_crop_equals_the_reference(case, rule):
    assert crop_offsets(case["height"], case["width"], case["crop"], rule).tolist() == [case["offset_y_x"]]


@given(height=st.integers(16, 600), width=st.integers(16, 600), seed=st.integers(0, 10_000))
@settings(max_examples=300)
def test_windows_lie_inside_the_picture(height, width, seed):
    top, left, high, wide = draw_window(height, width, CropChoice(size=8), random_numbers(seed, 9, 0))
    assert top >= 0 and left >= 0 and high > 0 and wide > 0 and top + high <= height and left + wide <= width


def test_windows_cover_the_shares_and_shapes_asked_for():
    windows = [draw_window(288, 512, CropChoice(size=8), random_numbers(0, 9, 0, i)) for i in range(2000)]
    shares = np.array([h * w / (288 * 512) for _, _, h, w in windows])
    ratios = np.array([w / h for _, _, h, w in windows])
    assert 0.49 < shares.min() < 0.52 and shares.max() < 1.0 and ratios.min() > 0.74 and ratios.max() < 1.35
    hopeless = draw_window(10, 1000, CropChoice(size=8), random_numbers(0, 9, 0))
    assert hopeless == (0, 493, 10, 13)  # too flat for any ratio allowed: the widest one, centred


@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize("world", [2, 4])
def test_global_batches_do_not_depend_on_the_number_of_ranks(world, passes):
    alone = training(100)
    parts = [training(100, ranks=Ranks(rank=rank, world=world), passes=passes) for rank in range(world)]
    assert alone.steps == 6 and {part.steps for part in parts} == {6 * passes}
    for epoch in range(2):
        for step in range(alone.steps):
            together = [clip for part in parts for i in range(passes) for clip in part.batch(epoch, step * passes + i)]
            for one, other in zip(alone.batch(epoch, step), together, strict=True):
                assert (one.position, one.row, one.window, one.flip, one.caption) == (
                    other.position, other.row, other.window, other.flip, other.caption
                )  # fmt: skip
                assert (one.frames == other.frames).all()


def test_what_decides_the_order_is_named():
    """Two plans with the same `order` show the same clips in the same steps; the others differ in what it says."""
    alone = training(200)
    same = [
        training(200, ranks=Ranks(rank=1, world=2), passes=2),
        training(200, shuffle=Shuffle(window=500, stretch=3)),
    ]
    assert all(plan.order == alone.order for plan in same)
    assert [clip.row for clip in alone.batch(0, 5)] == [clip.row for clip in same[1].batch(0, 5)]
    others = [
        training(200, seed=1),
        training(200, batch_size=8),
        training(199),
        training(200, shuffle=Shuffle(window=100, stretch=4)),
        training(200, shuffle=Shuffle(window=100, stretch=5)),
        training(200, shuffle=Shuffle(window=50, stretch=5)),
    ]
    orders = [alone.order, *(plan.order for plan in others)]
    assert all(one != other for i, one in enumerate(orders) for other in orders[:i])
    seen = [[clip.row for clip in plan.batch(0, 5)] for plan in (alone, *others)]
    assert all(one != other for i, one in enumerate(seen) for other in seen[:i])


def test_a_plan_is_a_function_of_its_place_alone():
    straight, other = training(), training()
    wanted = [c for step in range(4) for c in straight.batch(3, step)]
    other.batch(0, 0)
    for clip in reversed(wanted):  # any order, any history
        again = other.clip(3, clip.position)
        assert again.row == clip.row and (again.frames == clip.frames).all() and again.window == clip.window
    assert [c.row for c in straight.batch(3, 0)] != [c.row for c in straight.batch(4, 0)]
    assert [c.row for c in straight.batch(3, 0)] != [c.row for c in training(seed=1).batch(3, 0)]


def test_an_epoch_shows_every_clip_once():
    plan = training(64)
    rows = [clip.row for step in range(plan.steps) for clip in plan.batch(0, step)]
    assert sorted(rows) == list(range(64)) and rows != list(range(64))


@pytest.mark.parametrize("portion", [1, 5])
@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("count", [1, 2, 7, 12, 31])
def test_evaluation_shows_every_clip_exactly_once(world, count, portion):
    """Whatever the ranks and the batch size, the same neighbours lie in one batch."""
    for batch_size in (1, 4, 20):
        seen: Counter[int] = Counter()
        together = set()
        for rank in range(world):
            plan = ViewPlan(
                sizes(count),
                frames=FrameChoice(frames=4),
                views=ViewChoice(size=32),
                batch_size=batch_size,
                ranks=Ranks(rank=rank, world=world),
                portion=portion,
            )
            assert plan.largest_batch == max(portion, batch_size // world // portion * portion)
            for step in range(plan.steps):
                batch = [clip.position for clip in plan.batch(0, step)]
                assert 0 < len(batch) <= plan.largest_batch
                seen.update(batch)
                portions = sorted({place // portion for place in batch})
                together |= {tuple(place for place in batch if place // portion == number) for number in portions}
        assert seen == Counter(range(count))
        assert together == {tuple(range(k, min(k + portion, count))) for k in range(0, count, portion)}


def test_batches_that_cannot_be_shared_are_refused_with_a_fitting_number():
    with pytest.raises(ValueError, match=r"data\.batch_size=16.*3 rank\(s\).*data\.batch_size=15"):
        training(ranks=Ranks(rank=0, world=3))
    with pytest.raises(ValueError, match=r"8 clip\(s\)"):
        training(8)


def test_distinct_frames_and_gather_put_the_frames_back():
    choice = FrameChoice(frames=5, sampling="strided", stride=3)
    plan = ViewPlan(
        sizes(1, frames=7), frames=choice, views=ViewChoice(size=32, clips=2), batch_size=1, ranks=Ranks()
    ).clip(0)
    distinct = plan.distinct_frames()
    assert distinct.tolist() == [0, 3, 6]
    back = np.append(distinct, BLACK_FRAME)[plan.gather()]
    assert (back == plan.frames).all() and (plan.frames == BLACK_FRAME).any()
