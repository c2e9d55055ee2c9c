"""How many batches a loader's threads make ahead: enough that none is idle, and no more than fit into its memory."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

log = logging.getLogger(__name__)

GIB = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Work:
    """What the threads of a loader make."""

    batch_size: int  # clips of the largest batch
    batch_bytes: int  # that it takes in main memory
    threads: int
    prefetch: int  # batches that shall be ready whatever the number of threads
    held: int  # batches in memory that are done: in use, or on their way


def batches_ahead(work: Work, *, memory_gib: float) -> int:
    """Batches in the making or ready; at least one, though that may take more memory than there is for it.

    Warns where memory leaves threads without work, and where it does not suffice for one batch.
    """
    busy = math.ceil(work.threads / max(work.batch_size, 1))
    wanted = max(work.prefetch, busy) + 1  # one more: while it waits for its last clip, the others' threads go on
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
