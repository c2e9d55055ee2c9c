"""How fast something is done, and the page cache, which must not be taken for a disk."""

from __future__ import annotations

import errno
import os
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Literal

CacheState = Literal["empty", "still in memory", "unknown"]
PROBES = 16  # places of a file at which it is asked whether they lie in memory
ROUNDS = 3  # slices of each thing that is measured, taken in turn


def rate(work: Callable[[], int], *, seconds: float, warm: int = 0) -> float:
    """Items per second of `work`, which returns how many it did: called until `seconds` are over, at least once.

    The first `warm` calls do not count.
    """
    for _ in range(warm):
        work()
    count, began = 0, time.perf_counter()
    while True:
        count += work()
        elapsed = time.perf_counter() - began
        if elapsed >= seconds:
            return count / elapsed


def medians(slices: Mapping[str, Callable[[float], float]], *, seconds: float) -> dict[str, float]:
    """Median rate of each thing. A slice takes seconds and returns a rate; slices of all things are taken in turn."""
    found: dict[str, list[float]] = {name: [] for name in slices}
    for _ in range(ROUNDS):
        for name, one in slices.items():
            found[name].append(one(seconds / ROUNDS))
    return {name: statistics.median(rates) for name, rates in found.items()}


def drop_cache(files: Iterable[Path]) -> CacheState:
    """Ask the kernel to forget what it holds in memory of some files, and see whether it did.

    "unknown" where the file system does not tell (some network and FUSE ones); caches of servers and disks are beyond
    this anyway.
    """
    states: set[CacheState] = set()
    for file in files:
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)  # else the look below reads ahead into the cache
            states.add(_cache_state(descriptor))
        finally:
            os.close(descriptor)
    if "unknown" in states:
        return "unknown"
    return "still in memory" if "still in memory" in states else "empty"


def _cache_state(descriptor: int) -> CacheState:
    size = os.fstat(descriptor).st_size
    for place in range(0, size, max(size // PROBES, 1)):
        try:  # refuses to wait, so that it reads what is in memory and nothing else
            if os.preadv(descriptor, [bytearray(1)], place, os.RWF_NOWAIT):
                return "still in memory"
        except OSError as error:
            if error.errno != errno.EAGAIN:
                return "unknown"
    return "empty"
