"""What benchmarks/scale measures in separate processes, so that one measurement leaves nothing to the next.

python -m benchmarks.scale.child NAME FOLDER ...    prints JSON
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

MIB = 1 << 20


def memory() -> dict[str, float]:
    """MiB of this process: resident in all, and of that its own, which no other process can share."""
    kib = {}
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        words = line.split()
        if len(words) == 3 and words[2] == "kB":
            kib[words[0].rstrip(":")] = int(words[1])
    return {"resident": kib["Rss"] / 1024, "own": kib["Anonymous"] / 1024}


class Watch:
    """Seconds and memory since the start, by the names of laps."""

    def __init__(self) -> None:
        self._before = memory()
        self.result: dict[str, Any] = {"at_start_mib": self._before}
        self._began = time.perf_counter()

    def lap(self, name: str) -> None:
        seconds = time.perf_counter() - self._began
        now = memory()
        self.result[name] = {"seconds": seconds, **{f"{kind}_mib": now[kind] - self._before[kind] for kind in now}}


def plan_of(shard_set: Any, *, rank: int = 0, world: int = 8, batch: int = 512, **shuffle: Any) -> Any:
    """A training plan, as a run makes it."""
    from lavila.data.sizes import StoredSizes, shuffle_of
    from lavila.plan.crops import CropChoice
    from lavila.plan.frames import FrameChoice
    from lavila.plan.plans import Ranks, TrainingPlan

    return TrainingPlan(
        StoredSizes(shard_set),
        frames=FrameChoice(frames=16),
        crop=CropChoice(size=224),
        batch_size=batch,
        seed=0,
        ranks=Ranks(rank=rank, world=world, local_world=world),
        shuffle=shuffle_of(shard_set, **({"window": 131_072} | shuffle)),
    )


def start(folder: Path) -> dict[str, Any]:
    """From the imports to the first batch's plan: what a rank does before it reads anything from a tar."""
    from lavila.data.loader import ClipLoader, Pictures
    from lavila.shards.reader import open_shard_set

    watch = Watch()
    shard_set = open_shard_set(folder)
    watch.lap("open")
    loader = ClipLoader(shard_set, plan_of(shard_set), pictures=Pictures(mean=(0, 0, 0), std=(1, 1, 1)))
    first = loader.plan.batch(0, 0)
    watch.lap("first plan")
    [loader.captions.of(clip.row) for clip in first]
    watch.lap("first words")
    return watch.result


def mapping(folder: Path) -> dict[str, Any]:
    """The limit: manifest and mapped table, and nothing made of them."""
    from lavila.shards.format import CLIPS_SCHEMA, MANIFEST
    from lavila.shards.mapped import open_mapped

    watch = Watch()
    manifest = json.loads((folder / MANIFEST).read_text())
    table = open_mapped(folder / "clips.arrow", CLIPS_SCHEMA)
    watch.lap("all")
    assert manifest["clips"] == table.num_rows
    return watch.result


def parquet(folder: Path) -> dict[str, Any]:
    """The whole table read from Parquet, as a set without clips.arrow has to."""
    import pyarrow.parquet as pq

    watch = Watch()
    table = pq.read_table(folder / "clips.parquet")
    watch.lap("all")
    assert table.num_rows
    return watch.result


def captions(folder: Path, *tables: str) -> dict[str, Any]:
    """Add captions tables to a set."""
    from lavila.shards.captions import Captions
    from lavila.shards.reader import open_shard_set

    shard_set = open_shard_set(folder)
    watch = Watch()
    words = Captions(shard_set, tables)
    watch.lap("all")
    words.of(len(shard_set) - 1)
    return watch.result


def dali(folder: Path, index: str) -> dict[str, Any]:
    """DALI's own reader of the same tars, up to its first batch; with the .idx files, or without."""
    from nvidia.dali import fn, pipeline_def

    tars = sorted(folder.glob("*.tar"))
    indexes = [str(tar.with_suffix(".idx")) for tar in tars] if index == "with" else None

    @pipeline_def(batch_size=64, num_threads=2, device_id=None)  # type: ignore[untyped-decorator]
    def pipeline() -> Any:
        return fn.readers.webdataset(
            paths=[str(tar) for tar in tars],
            index_paths=indexes,
            ext=["mp4"],
            missing_component_behavior="error",
            random_shuffle=True,
            initial_fill=64,
            shard_id=0,
            num_shards=8,
        )

    watch = Watch()
    built = pipeline()
    built.build()
    watch.lap("build")
    built.run()
    watch.lap("first batch")
    return watch.result


def plan_cost(*folders: Path) -> dict[str, Any]:
    """Microseconds for a clip's plan, and what an epoch and a window cost, for sets of several sizes in turn."""
    from lavila.shards.reader import open_shard_set

    plans = {folder: plan_of(open_shard_set(folder), world=1, batch=64) for folder in folders}
    costs: dict[Path, list[float]] = {folder: [] for folder in folders}
    epochs: dict[Path, list[float]] = {folder: [] for folder in folders}
    for turn in range(1, 8):
        for folder, plan in plans.items():
            began = time.perf_counter()
            plan.clip(turn, 0)  # draws the epoch's stretches and its first window
            epochs[folder].append(time.perf_counter() - began)
            began = time.perf_counter()
            for step in range(1, 21):
                plan.batch(turn, step)
            costs[folder].append((time.perf_counter() - began) / (20 * 64))
    return {
        str(len(plans[folder]._sizes)): {
            "clip_us": 1e6 * statistics.median(costs[folder]),
            "epoch_ms": 1e3 * statistics.median(epochs[folder]),
        }
        for folder in folders
    }


def evict(*files: Path) -> None:
    """Take files out of the page cache."""
    for path in files:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


MEASURED: dict[str, Callable[..., dict[str, Any]]] = {
    "start": start,
    "mapping": mapping,
    "parquet": parquet,
    "captions": captions,
    "dali": dali,
    "plan_cost": plan_cost,
}

if __name__ == "__main__":
    name, *arguments = sys.argv[1:]
    given = [Path(each) if Path(each).is_dir() else each for each in arguments]
    print(json.dumps(MEASURED[name](*given)))
