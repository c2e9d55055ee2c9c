"""Eight ranks that plan and read as in training, without decoding: part of benchmarks/scale."""

from __future__ import annotations

import multiprocessing
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.scale.child import evict, plan_of
from lavila.shards import tars
from lavila.shards.reader import open_shard_set

RANKS, BATCH, THREADS = 8, 512, 4


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How the ranks read an epoch."""

    name: str
    folder: Path
    window: int
    read_ahead: bool = False
    steps: int = 64
    cold: bool = False  # the tars are taken out of the page cache first


def simulate(reading: Reading) -> dict[str, Any]:
    """All ranks at once, from the moment that all are ready."""
    if reading.cold:
        evict(*reading.folder.glob("*.tar"))
    context = multiprocessing.get_context("spawn")
    ready, results = context.Barrier(RANKS + 1), context.Queue()
    ranks = [context.Process(target=_rank, args=(rank, reading, ready, results)) for rank in range(RANKS)]
    for process in ranks:
        process.start()
    ready.wait(timeout=300)
    requests, began = _disk(reading.folder), time.perf_counter()
    found = [results.get(timeout=600) for _ in ranks]
    seconds = time.perf_counter() - began
    requests = {name: after - requests[name] for name, after in _disk(reading.folder).items()}
    for process in ranks:
        process.join()
    clips, size = (sum(one[name] for one in found) for name in ("clips", "bytes"))
    return {
        **{name: value.name if isinstance(value, Path) else value for name, value in asdict(reading).items()},
        "ranks": RANKS,
        "clips": clips,
        "seconds": seconds,
        "reads_per_second": clips / seconds,
        "bytes_per_second": size / seconds,
        "plan_us_per_clip": 1e6 * sum(one["plan_seconds"] for one in found) / clips,
        "cpu_us_per_clip": 1e6 * sum(one["cpu_seconds"] for one in found) / clips,
        "tar_opens_per_clip": sum(one["opens"] for one in found) / clips,
        "most_descriptors": max(one["descriptors"] for one in found),
        "disk_requests_per_clip": requests["requests"] / clips,
        "disk_bytes_per_request": requests["bytes"] / max(requests["requests"], 1),
    }


def _rank(rank: int, reading: Reading, ready: Any, results: Any) -> None:
    opens = 0

    class Counted(tars.OpenTar):
        def __init__(self, path: Path, *, size: int | None, other_size: bool) -> None:
            nonlocal opens
            opens += 1
            super().__init__(path, size=size, other_size=other_size)

    tars.OpenTar = Counted  # type: ignore[misc]
    shard_set = open_shard_set(reading.folder)
    plan = plan_of(shard_set, rank=rank, world=RANKS, batch=BATCH, window=reading.window, read_ahead=reading.read_ahead)
    plan.batch(0, 0)
    ready.wait()
    busy = time.process_time()
    clips = size = descriptors = 0
    planning = 0.0
    with ThreadPoolExecutor(THREADS) as pool:
        for step in range(reading.steps):
            began = time.perf_counter()
            plans, ahead = plan.batch(0, step), plan.ahead(0, step)
            planning += time.perf_counter() - began
            for stretch in ahead:
                pool.submit(shard_set.read_ahead, *stretch)
            for data, _ in pool.map(lambda clip: shard_set.read_frames(clip.row, clip.distinct_frames()), plans):
                clips, size = clips + 1, size + len(data)
            descriptors = max(descriptors, len(os.listdir("/proc/self/fd")))  # noqa: PTH208
    results.put(
        {
            "clips": clips,
            "bytes": size,
            "plan_seconds": planning,
            "cpu_seconds": time.process_time() - busy,
            "opens": opens,
            "descriptors": descriptors,
        }
    )


def _disk(folder: Path) -> dict[str, int]:
    """Reads of the disk that a folder lies on, since boot, whoever asked for them. 0 where it is not a disk."""
    device = folder.stat().st_dev
    stat = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/stat")
    if not stat.is_file():
        return {"requests": 0, "bytes": 0}
    words = stat.read_text().split()
    return {"requests": int(words[0]), "bytes": 512 * int(words[2])}
