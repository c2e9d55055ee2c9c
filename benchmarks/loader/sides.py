"""One row measured: ours, every peer, and the limits, in turn, round by round, in one process."""

from __future__ import annotations

import gc
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.loader.limits import Count, decoding, working
from benchmarks.loader.peers import dali_webdataset, decord_chunks, pyav_clips, torchcodec_clips, webdataset_clips
from benchmarks.loader.peers.common import Epochs, Job, batches_ahead
from benchmarks.loader.rows import OVERHEAD_GOAL, Row
from lavila.data.loader import ClipLoader
from lavila.data.pictures import LoaderError

PEERS: dict[str, Any] = {
    "decord": decord_chunks,
    "torchcodec": torchcodec_clips,
    "pyav": pyav_clips,
    "webdataset": webdataset_clips,
    "dali": dali_webdataset,
}
LIMITS = ("decode", "work", "ideal")
CPU_DECODERS = ("dali_cpu", "host")


def loader_of(job: Job, *, decoder: str = "auto", device: str = "cpu") -> ClipLoader:
    """Our loader."""
    return ClipLoader(
        job.shards,
        job.plan,
        pictures=job.pictures,
        decoder=decoder,
        device=device,
        threads=job.workers,
        prefetch=batches_ahead(job),
    )


def ours(job: Job, *, decoder: str, device: str = "cpu") -> tuple[Epochs, str]:
    """Epochs of our loader, and which decoder it chose."""
    loader = loader_of(job, decoder=decoder, device=device)

    def epochs(number: int) -> Iterator[Tensor]:
        loader.set_epoch(number)
        return (batch.video for batch in loader)

    return epochs, loader.decoder


def shape_of(job: Job) -> tuple[int, ...]:
    """V, C, T, H, W of a clip's views."""
    choice = job.crop or job.views
    assert choice is not None
    clips, crops = job.plan.view_grid
    return clips * crops, 3, job.frames.frames, choice.size, choice.size


def counted(epochs: Epochs, job: Job) -> Count:
    """An epoch that counts its clips, and checks shape and type of each batch."""
    shape = shape_of(job)

    def epoch(number: int) -> int:
        clips = 0
        for batch in epochs(number):
            assert batch.shape[1:] == shape and batch.dtype == torch.float32, (batch.shape, batch.dtype, shape)
            clips += len(batch)
        assert clips == job.clips, (clips, job.clips)
        return clips

    return epoch


def ideal(job: Job) -> Count:
    """The same loop over one batch that exists already. Nothing reads its numbers, so it takes no memory either."""
    batch = torch.zeros(()).expand(job.batch_size, *shape_of(job))
    return counted(lambda number: iter([batch] * job.plan.steps), job)


@dataclass
class Sides:
    """Everything that a row is measured with."""

    epochs: dict[str, Count] = field(default_factory=dict)
    about: dict[str, str] = field(default_factory=dict)  # side -> the variant that runs
    absent: dict[str, str] = field(default_factory=dict)  # side -> the reason why it cannot run
    closing: list[Callable[[], None]] = field(default_factory=list)


@dataclass(frozen=True)
class Spent:
    """The time of an epoch."""

    wall: float  # seconds
    cores: float  # CPU seconds of this process and all its descendants


def core_seconds() -> float:
    """CPU seconds of this process and all its descendants so far, in steps of 10 ms."""
    ticks, waiting = 0, [os.getpid()]
    while waiting:
        folder = Path(f"/proc/{waiting.pop()}")
        try:
            # The fields after the name, which stands in brackets and may hold anything: utime and stime are 14 and 15.
            values = (folder / "stat").read_text().rpartition(")")[2].split()
            ticks += int(values[11]) + int(values[12])
            for children in folder.glob("task/*/children"):
                waiting += map(int, children.read_text().split())
        except (FileNotFoundError, ProcessLookupError):  # the process has ended meanwhile
            continue
    return ticks / os.sysconf("SC_CLK_TCK")


def spent_by(epoch: Count, number: int) -> Spent:
    """Go through an epoch."""
    cores, began = core_seconds(), time.perf_counter()
    epoch(number)
    return Spent(time.perf_counter() - began, core_seconds() - cores)


def build_sides(row: Row, job: Job, variants: dict[Any, str]) -> Sides:
    """Make every side and go through one epoch with it, so that nothing starts up later."""
    sides = Sides()
    chosen, decoder = ours(job, decoder="auto")
    sides.epochs["ours"], sides.about["ours"] = counted(chosen, job), decoder
    for name in CPU_DECODERS:
        if name != decoder:
            try:
                sides.epochs[f"ours ({name})"] = counted(ours(job, decoder=name)[0], job)
            except LoaderError as error:
                sides.absent[f"ours ({name})"] = str(error)
    for name, peer in PEERS.items():
        reason = peer.needs(job)
        if reason:
            sides.absent[name] = reason
        else:
            sides.epochs[name], sides.about[name] = fastest(peer, job, variants, (name, row.what, row.codec, row.kind))
    for name, (epoch, close) in (("decode", decoding(job)), ("work", working(job, loader_of(job).spec))):
        sides.epochs[name] = epoch
        sides.closing.append(close)
    sides.epochs["ideal"] = ideal(job)
    for epoch in sides.epochs.values():
        epoch(0)
    return sides


def fastest(peer: Any, job: Job, known: dict[Any, str], key: Any) -> tuple[Count, str]:
    """A peer in its fastest variant. The first row of a kind decides: the second of two epochs counts."""
    if not hasattr(peer, "VARIANTS"):
        return counted(peer.make(job), job), ""
    if key in known:
        return counted(peer.make(job, known[key]), job), known[key]
    tried: list[tuple[float, str, Count]] = []
    for variant in peer.VARIANTS:
        try:
            epoch = counted(peer.make(job, variant), job)
        except ValueError as error:
            print(f"  {peer.NAME} with {variant}: {error}")
            continue
        epoch(0)
        tried.append((spent_by(epoch, 0).wall, variant, epoch))
    _, known[key], epoch = min(tried, key=lambda each: each[0])
    return epoch, known[key]


def measure(row: Row, job: Job, *, rounds: int, variants: dict[Any, str]) -> list[dict[str, Any]]:
    """The row's results, one entry a side. `variants`: which variants of peers are the fastest, as far as is known."""
    sides = build_sides(row, job, variants)
    names = list(sides.epochs)
    spent: dict[str, list[Spent]] = {name: [] for name in names}
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            gc.collect()
            spent[name].append(spent_by(sides.epochs[name], number + 1))
    results = [{**result(row, job.clips, name, spent), "variant": sides.about.get(name, "")} for name in names]
    results += [
        {"row": row.name, "side": name, "rounds": rounds, "absent": reason} for name, reason in sides.absent.items()
    ]
    for close in sides.closing:
        close()
    sides.epochs.clear()
    gc.collect()
    return results


def result(row: Row, clips: int, side: str, spent: dict[str, list[Spent]]) -> dict[str, Any]:
    """One side of a row. Ratios are medians of each round's."""

    def ratio(of: str, to: str) -> float:
        return statistics.median(a.wall / b.wall for a, b in zip(spent[of], spent[to], strict=True))

    rates = [clips / each.wall for each in spent[side]]
    entry: dict[str, Any] = {
        "row": row.name,
        "side": side,
        "rounds": len(spent[side]),
        "clips_per_second": {"median": statistics.median(rates), "lowest": min(rates), "highest": max(rates)},
        "core_ms_per_clip": 1000 * statistics.median(each.cores for each in spent[side]) / clips,
        "ours_is_times": ratio(side, "ours"),
        "share_of_limit": ratio("decode", side),
    }
    if side == "ours":
        entry["overhead"] = 1 - ratio("work", "ours")
    goal = row.goal(side)
    if goal:
        entry |= {"must": goal[0], "aim": goal[1], "reached": grade(entry["ours_is_times"], goal)}
    if side == "ours":
        least = (-OVERHEAD_GOAL[0], -OVERHEAD_GOAL[1])
        entry |= {"must": OVERHEAD_GOAL[0], "aim": OVERHEAD_GOAL[1], "reached": grade(-entry["overhead"], least)}
    return entry


def grade(value: float, goal: tuple[float, float]) -> str:
    """Which of two rising marks is reached: aim, must or neither ("no")."""
    must, aim = goal
    return "aim" if value >= aim else "must" if value >= must else "no"
