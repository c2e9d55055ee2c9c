"""The number of batches that a loader's threads make ahead: no thread is idle, and the batches fit into memory."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

log = logging.getLogger(__name__)

GIB = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Work:
    """The work of a loader's threads."""

    batch_size: int  # clips of the largest batch
    batch_bytes: int  # bytes of that batch in main memory
    threads: int
    prefetch: int  # the smallest number of batches to make ahead, with any number of threads
    held: int  # batches in memory that are finished: the caller uses them, or will next


def batches_ahead(work: Work, *, memory_gib: float) -> int:
    """The number of batches that may be unfinished or wait for the caller: at least one, even if memory is too small.

    Warns if memory leaves threads without work, and if one batch does not fit.
    """
    busy = math.ceil(work.threads / max(work.batch_size, 1))
    wanted = max(work.prefetch, busy) + 1  # one more keeps threads busy while a batch waits for its last clip
    fit = int(memory_gib * GIB) // max(work.batch_bytes, 1) - work.held
    clips = f"{work.batch_size} clip(s) of {work.batch_bytes / max(work.batch_size, 1) / 2**20:.1f} MiB"
    if fit < 1:
        log.warning(
            "data.host_memory_gib=%g: a loader holds %d batches of %s at least, which take %.1f GiB; "
            "make data.batch_size or views.batch_size smaller, or allow as much",
            memory_gib,
            work.held + 1,
            clips,
            (work.held + 1) * work.batch_bytes / GIB,
        )
    elif fit < busy:
        log.warning(
            "data.host_memory_gib=%g: %d batch(es) of %s in the making give work to %d of %d threads; "
            "%.1f GiB would to all",
            memory_gib,
            fit,
            clips,
            fit * work.batch_size,
            work.threads,
            (busy + 1 + work.held) * work.batch_bytes / GIB,
        )
    return max(1, min(wanted, fit))
