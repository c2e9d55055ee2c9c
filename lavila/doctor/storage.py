"""Measures how fast a shard set is read: tar after tar, and clip by clip in random order."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from lavila.doctor.findings import Finding, Machine
from lavila.doctor.rate import drop_cache
from lavila.inspection.facts import amount
from lavila.shards.reader import ShardSet

SHARDS_READ = 32  # the largest number of tars to read, spread evenly over the set
BLOCK = 8 << 20  # bytes of a sequential read
SLOW_CLIPS = 100  # clips/s; an experience: a slower rate is likely to bound a training step on a GPU
CACHE_WORDS = {
    "empty": "page cache emptied",
    "still in memory": "from memory: the page cache could not be emptied",
    "unknown": "this file system does not show whether from memory or disk",
}


def file_system(machine: Machine, folder: Path) -> str:
    """The kind of a folder's file system, such as ext4, nfs4 or lustre; "unknown" if /proc does not list it."""
    best, kind = "", "unknown"
    for line in (machine.read("proc/mounts") or "").splitlines():
        _, place, found = line.split(" ")[:3]
        place = place.replace("\\040", " ")
        if folder.resolve().is_relative_to(place) and len(place) >= len(best):
            best, kind = place, found
    return kind


def some_shards(shard_set: ShardSet) -> list[int]:
    """The numbers of the tars to read: all, or evenly spread ones of a large set."""
    total = len(shard_set.shards)
    return sorted({int(place) for place in np.linspace(0, total - 1, min(total, SHARDS_READ))})


def check_storage(machine: Machine, shard_set: ShardSet | None, *, threads: int, seconds: float) -> Finding:
    """Measure both ways of reading, for `seconds` each; 0 = do not measure."""
    name = "storage"
    if shard_set is None:
        return Finding(name=name, status="ok", found="not measured: give --shards DIR")
    kind, layout = file_system(machine, shard_set.path), shard_set.manifest.get("layout", "clips")
    size = sum(shard.bytes for shard in shard_set.shards)
    summary = f"{shard_set.path}: {len(shard_set):,} clips, {amount(size)}, {shard_set.codec}, layout {layout}"
    summary += f", on {kind}"
    facts = {"folder": str(shard_set.path), "file_system": kind, "clips": len(shard_set), "bytes": size}
    if not seconds:
        return Finding(name=name, status="ok", found=f"{summary}; not measured", facts=facts)
    numbers = some_shards(shard_set)
    files = [shard_set.path / shard_set.shards[number].name for number in numbers]
    state = drop_cache(files)
    sequential = _sequential(files, seconds=seconds)
    drop_cache(files)
    rows = np.flatnonzero(np.isin(np.asarray(shard_set.clips.column("shard").to_numpy()), numbers))
    np.random.default_rng(0).shuffle(rows)
    clips, rate = _random(shard_set, rows, threads=threads, seconds=seconds)
    summary += f"; sequential {sequential / 1e6:,.0f} MB/s, random {clips:,.0f} clips/s = {rate / 1e6:,.0f} MB/s"
    summary += f" with {threads} reader(s); {CACHE_WORDS[state]}"
    facts |= {"sequential_bytes_per_second": sequential, "random_bytes_per_second": rate}
    facts |= {"random_clips_per_second": clips, "page_cache": state, "readers": threads}
    if clips < SLOW_CLIPS:
        fix = (f"copy the shards to a disk of this node: cp -r {shard_set.path} /local/... and data.train=/local/...",)
        return Finding(name=name, status="note", found=f"slow: {summary}", fix=fix, facts=facts)
    return Finding(name=name, status="ok", found=summary, facts=facts)


def _sequential(files: list[Path], *, seconds: float) -> float:
    """Bytes per second of reading tar after tar."""
    done, began = 0, time.perf_counter()
    for file in files:
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_SEQUENTIAL)
            place = 0
            while block := os.pread(descriptor, BLOCK, place):
                place += len(block)
                done += len(block)
                if time.perf_counter() - began > seconds:
                    return done / (time.perf_counter() - began)
        finally:
            os.close(descriptor)
    return done / (time.perf_counter() - began)


def _random(shard_set: ShardSet, rows: np.ndarray, *, threads: int, seconds: float) -> tuple[float, float]:
    """Clips and bytes per second of reading in random order. No clip is read twice."""
    clips, size, began = 0, 0, time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(rows), 4 * threads):
            part = rows[start : start + 4 * threads].tolist()
            size += sum(pool.map(lambda row: len(shard_set.read_video(row)), part))
            clips += len(part)
            if time.perf_counter() - began > seconds:
                break
    elapsed = time.perf_counter() - began
    return clips / elapsed, size / elapsed
