"""Every runner takes plans and gives plans, pictures and bad clips: the same ones, whichever runner it is."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.dlpack import from_dlpack

from lavila.data.batches import LoadedBatch, PictureBatch, Place, fill, left_empty
from lavila.data.dali_pipelines.runner import PipelineRunner
from lavila.data.host.decode import DecodeError
from lavila.data.host.runner import HostRunner
from lavila.data.loader import ClipLoader, clip_sizes
from lavila.data.pictures import Execution, Payload
from lavila.data.reading import ClipReader
from lavila.data.runners import Runner, build_runner
from lavila.plan.crops import CropChoice
from lavila.plan.frames import FrameChoice
from lavila.plan.order import Shuffle
from lavila.plan.plans import Ranks, TrainingPlan
from lavila.records import ClipPlan
from lavila.shards.format import DamagedClip, ShardSetError
from lavila.shards.reader import ShardSet, open_shard_set
from tests.data.test_loader import PICTURES, training
from tests.tolerance import assert_same_pictures

EXECUTION = Execution(decoder="host", device_id=None, batch_size=2, threads=2, prefetch=2)


def runner_of(name: str, loader: ClipLoader, shards: ShardSet) -> Runner:
    reader = ClipReader(shards, threads=2)
    if name == "host for DALI":  # as for a GPU, the pipeline being on the CPU here
        return PipelineRunner(loader.spec, reader.read, EXECUTION, ahead=3)
    execution = replace(EXECUTION, decoder="host" if name == "host" else "dali_cpu")
    return build_runner(reader, loader.spec, execution, host_memory_gib=1)


@pytest.fixture(params=["host", "dali_cpu", "host for DALI"])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def steps(loader: ClipLoader) -> list[list[ClipPlan]]:
    return [loader.plan.batch(0, step) for step in range(loader.plan.steps)]


def pictures_of(batch: PictureBatch) -> dict[int, torch.Tensor]:
    """[K, S, C, T, H, W] by row, copied: a batch's memory is used again."""
    pictures = () if batch.pictures is None else from_dlpack(batch.pictures).transpose(3, 4).clone()
    return {plan.row: one for plan, one in zip(batch.plans, pictures, strict=True)}


def make_bad(monkeypatch: pytest.MonkeyPatch, shards: ShardSet, *, damaged: set[int], undecodable: set[int]) -> None:
    real = shards.read_frames

    def read(row: int, frames: Any) -> Any:
        if row in damaged:
            raise DamagedClip("other bytes than were stored")
        data, numbers = real(row, frames)
        return bytes(1000) if row in undecodable else data, numbers

    monkeypatch.setattr(shards, "read_frames", read)


def test_bad_clips_leave_every_runner_alike(vp9_shards: ShardSet, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """First and last of a batch, a whole batch, and the last batch: found by the reader, and by the decoder."""
    loader = training(vp9_shards, batch_size=2)
    planned = steps(loader)
    clean = {
        row: one
        for batch in runner_of("host", loader, vp9_shards).run(planned)
        for row, one in pictures_of(batch).items()
    }
    damaged = {planned[0][0].row, planned[2][0].row, planned[5][0].row}
    undecodable = {planned[1][1].row, planned[2][1].row, planned[5][1].row}
    make_bad(monkeypatch, vp9_shards, damaged=damaged, undecodable=undecodable)
    made = 0
    for plans, batch in zip(planned, runner_of(name, loader, vp9_shards).run(iter(planned)), strict=True):
        bad = [plan for plan in plans if plan.row in damaged | undecodable]
        assert batch.plans == tuple(plan for plan in plans if plan not in bad)
        assert sorted(plan.row for plan, _ in batch.bad) == sorted(plan.row for plan in bad)
        assert all(reason and "\n" not in reason for _, reason in batch.bad)
        assert (batch.pictures is None) == (not batch.plans)
        for row, one in pictures_of(batch).items():
            assert_same_pictures(one, clean[row], std=PICTURES.std)
            made += 1
    assert made == 6


def test_a_runner_may_be_left_half_way_and_run_again(vp9_shards: ShardSet, name: str) -> None:
    loader = training(vp9_shards, batch_size=2)
    runner, before = runner_of(name, loader, vp9_shards), set(threading.enumerate())
    with closing(runner.run(steps(loader))) as made:
        first = pictures_of(next(made))
        assert set(threading.enumerate()) - before
    assert not set(threading.enumerate()) - before
    again = [pictures_of(batch) for batch in runner.run(steps(loader))]
    assert len(again) == 6 and again[0].keys() == first.keys()
    assert all(torch.equal(again[0][row], one) for row, one in first.items())


@pytest.mark.parametrize("decoder", ["host", "dali_cpu"])
def test_no_thread_is_left_of_a_loader_that_is_left_half_way(vp9_shards: ShardSet, decoder: str) -> None:
    """Those that read tars ahead included, though the runner does not know of them."""
    plan = TrainingPlan(
        clip_sizes(vp9_shards),
        frames=FrameChoice(frames=4),
        crop=CropChoice(size=32),
        batch_size=2,
        seed=3,
        ranks=Ranks(),
        shuffle=Shuffle(window=4, stretch=2, read_ahead=True),
    )
    shards, before = open_shard_set(vp9_shards.path), set(threading.enumerate())
    with closing(iter(ClipLoader(shards, plan, pictures=PICTURES, decoder=decoder, threads=2))) as batches:
        next(batches)
        begun = {thread.name.rpartition("_")[0] for thread in set(threading.enumerate()) - before}
        assert begun == {"storage", "read-ahead", "clip" if decoder == "host" else "clip-reader"}
    assert not set(threading.enumerate()) - before


@pytest.mark.parametrize("error", [ShardSetError("shard-000001.tar: missing"), TypeError("of ours"), MemoryError()])
def test_errors_that_no_clip_is_to_blame_for_end_the_run(
    vp9_shards: ShardSet, monkeypatch: pytest.MonkeyPatch, name: str, error: Exception
) -> None:
    """Those of reading a clip, and those of the plans themselves."""
    loader = training(vp9_shards, batch_size=2)

    def fail(row: int, frames: Any) -> Any:
        raise error

    def plans() -> Iterator[list[ClipPlan]]:
        yield from steps(loader)[:4]
        raise error

    with pytest.raises(type(error)):
        list(runner_of(name, loader, vp9_shards).run(plans()))
    monkeypatch.setattr(vp9_shards, "read_frames", fail)
    with pytest.raises(type(error)):
        list(runner_of(name, loader, vp9_shards).run(steps(loader)))


@pytest.mark.parametrize(
    ("decoder", "device_id", "kind"),
    [
        ("host", None, HostRunner),
        ("host", 0, HostRunner),
        ("dali_cpu", None, PipelineRunner),
        ("dali_cpu", 0, PipelineRunner),
        ("nvdec", 0, PipelineRunner),
    ],
)
def test_decoder_and_device_choose_the_runner(
    vp9_shards: ShardSet, decoder: Any, device_id: int | None, kind: type
) -> None:
    execution = replace(EXECUTION, decoder=decoder, device_id=device_id)
    spec = training(vp9_shards).spec
    assert type(build_runner(ClipReader(vp9_shards, threads=1), spec, execution, host_memory_gib=1)) is kind


def places_of(plans: list[ClipPlan], reasons: list[str | None]) -> list[Place[Any]]:
    return [
        Place(plan=plan, made=True) if reason is None else left_empty(plan, reason)
        for plan, reason in zip(plans, reasons, strict=True)
    ]


def test_empty_places_go_and_full_batches_are_not_copied(vp9_shards: ShardSet) -> None:
    plans = training(vp9_shards).plan.batch(0, 0)
    pictures = np.arange(4 * 6, dtype=np.float32).reshape(4, 1, 1, 1, 1, 2, 3)
    whole = PictureBatch.of(places_of(plans, [None] * 4), pictures)
    assert whole.plans == tuple(plans) and whole.pictures is pictures and whole.bad == ()
    some = PictureBatch.of(places_of(plans, ["a", None, "b", None]), pictures)
    assert some.plans == (plans[1], plans[3]) and np.array_equal(some.pictures, pictures[[1, 3]])
    assert some.bad == ((plans[0], "a"), (plans[2], "b"))
    none = PictureBatch.of(places_of(plans, list("abcd")), pictures)
    assert none.plans == () and none.pictures is None and len(none.bad) == 4
    filled = Place(plan=plans[2], made=True, bad=((plans[0], "a"), (plans[1], "b")))
    again = PictureBatch.of([filled, *places_of(plans[1:], [None] * 3)], pictures)
    assert again.plans == (plans[2], *plans[1:]) and again.pictures is pictures and again.bad == filled.bad


def test_a_place_takes_the_first_good_clip(vp9_shards: ShardSet) -> None:
    plans = training(vp9_shards).plan.batch(0, 0)
    following = dict(pairwise([*(plan.position for plan in plans), -1]))
    by_position = {plan.position: plan for plan in plans}

    def make(plan: ClipPlan) -> str:
        if plan.position in bad:
            raise DecodeError(str(plan.position))
        return f"made {plan.position}"

    def instead(plan: ClipPlan) -> ClipPlan | None:
        return by_position.get(following[plan.position])

    bad: set[int] = set()
    assert fill(plans[0], make, instead) == Place(plan=plans[0], made="made 0")
    bad = {0, 1}
    assert fill(plans[0], make, instead) == Place(plan=plans[2], made="made 2", bad=((plans[0], "0"), (plans[1], "1")))
    bad = {0, 1, 2, 3}
    assert fill(plans[1], make, instead, bad=((plans[0], "0"),)) == Place(
        plan=None, made=None, bad=tuple((plan, str(plan.position)) for plan in plans)
    )


def test_a_loaded_batch_holds_the_good_clips_of_its_places(vp9_shards: ShardSet) -> None:
    plans = training(vp9_shards).plan.batch(0, 0)
    payloads = [Payload(data=np.zeros(size, np.uint8), frames=np.zeros(1, np.int32)) for size in range(3)]
    places = [Place(plan=plan, made=payload) for plan, payload in zip(plans, payloads, strict=False)]
    loaded = LoadedBatch.of([places[0], left_empty(plans[3], "unread"), places[2]], bad=((plans[1], "earlier"),))
    assert loaded.plans == (plans[0], plans[2]) and [len(one.data) for one in loaded.payloads] == [0, 2]
    made = loaded.with_pictures("pictures")
    assert made.plans == loaded.plans and made.bad == ((plans[1], "earlier"), (plans[3], "unread"))


def test_every_runner_gives_a_bad_clips_place_to_the_same_others(
    vp9_shards: ShardSet, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Bad clips that reading finds, that decoding finds, and whose first substitutes are bad in the other way."""
    loader = training(vp9_shards, batch_size=2)
    planned, instead = steps(loader), loader.plan.instead
    damaged, undecodable = {planned[0][0].row, planned[3][1].row}, {planned[1][0].row, planned[4][1].row}
    make_bad(monkeypatch, vp9_shards, damaged=damaged, undecodable=undecodable)
    bad = damaged | undecodable
    wanted: list[list[ClipPlan]] = []
    tried = 0
    for plans in planned:
        wanted.append([])
        for plan in plans:
            one: ClipPlan | None = plan
            while one is not None and one.row in bad:
                one, tried = instead(one), tried + 1
            assert one is not None
            wanted[-1].append(one)
    assert tried >= 6, "a substitute is bad, too"
    batches = list(runner_of(name, loader, vp9_shards).run(iter(planned), instead))
    places = [[(plan.position, plan.row, plan.attempt) for plan in batch.plans] for batch in batches]
    assert places == [[(plan.position, plan.row, plan.attempt) for plan in plans] for plans in wanted]
    assert sum(len(batch.bad) for batch in batches) == tried
