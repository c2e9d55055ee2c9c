"""Measures rates, and empties the page cache, so that memory is not measured in place of a disk."""

from __future__ import annotations

import errno
import os
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Literal

CacheState = Literal["empty", "still in memory", "unknown"]
PROBES = 16  # number of places of a file that are checked for being in memory
PAUSES = (0.0, 0.05, 0.2, 0.5)  # seconds before each attempt to drop a file from memory
ROUNDS = 3  # number of slices for each measurement; slices of all measurements alternate


def rate(work: Callable[[], int], *, seconds: float, warm: int = 0) -> float:
    """Items per second of `work`, which returns the number of items it did. It is called for `seconds`, at least once.

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
    """The median rate of each measurement. A slice gets a number of seconds and returns a rate; slices alternate."""
    found: dict[str, list[float]] = {name: [] for name in slices}
    for _ in range(ROUNDS):
        for name, one in slices.items():
            found[name].append(one(seconds / ROUNDS))
    return {name: statistics.median(rates) for name, rates in found.items()}


def drop_cache(files: Iterable[Path]) -> CacheState:
    """Ask the kernel to drop some files from its page cache, and check whether it did.

    "unknown" if the file system does not answer, as some network and FUSE ones. The caches of servers and disks cannot
    be dropped.
    """
    states: set[CacheState] = set()
    for file in files:
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        try:
            states.add(_dropped(descriptor))
        finally:
            os.close(descriptor)
    if "unknown" in states:
        return "unknown"
    return "still in memory" if "still in memory" in states else "empty"


def _dropped(descriptor: int) -> CacheState:
    """The state of a file after its pages were dropped. The kernel skips pages that it is busy with: ask again."""
    state: CacheState = "still in memory"
    for pause in PAUSES:
        time.sleep(pause)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)  # else the check below reads ahead into the cache
        if (state := _cache_state(descriptor)) != "still in memory":
            break
    return state


def _cache_state(descriptor: int) -> CacheState:
    size = os.fstat(descriptor).st_size
    for place in range(0, size, max(size // PROBES, 1)):
        try:  # RWF_NOWAIT reads only what is in memory
            if os.preadv(descriptor, [bytearray(1)], place, os.RWF_NOWAIT):
                return "still in memory"
        except OSError as error:
            if error.errno != errno.EAGAIN:
                return "unknown"
    return "empty"
