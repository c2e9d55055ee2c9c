"""Verifies a shard set on the CPU, writes its quarantine, and puts the verdict into words."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lavila.cluster.workers import Progress, WorkerDied
from lavila.inspection.facts import SHOWN
from lavila.shards.format import QUARANTINE
from lavila.shards.reader import ShardSet


def verify(shard_set: ShardSet, *, workers: int, quarantine: Path | None = None) -> dict[str, Any]:
    """Check everything with a bar of tars and videos, and write quarantine.jsonl or the file `quarantine`.

    `workers`: number of processes; 0 = one for each core. Returns the decoder, the problems of files (one line each),
    the clips in quarantine (clip_id, shard, reason), the file of quarantine, and why it could not be written or removed
    (None = it was). A set that cannot be written is verified like any other.

    The decoder is host on every machine: NVDEC makes pictures of damaged packets without an error.
    """
    from lavila.inspection.verify import verify_shard_set, write_quarantine
    from lavila.inspection.videos import decodes

    workers = workers or len(os.sched_getaffinity(0))
    stored = shard_set.clips if shard_set.chunks is None else shard_set.chunks
    total = stored.num_rows + len(shard_set.shards)
    with tqdm(total=total, unit="item", desc="tars and videos", dynamic_ncols=True) as bar:

        def show(progress: Progress) -> None:
            bar.set_postfix(bad=progress.failed, refresh=False)
            bar.update(progress.stored + progress.failed - bar.n)

        try:
            verdict = verify_shard_set(shard_set, decodes, workers=workers, on_progress=show)
        except WorkerDied as error:
            cause = str(error).partition(";")[0]
            raise WorkerDied(
                f"{cause}; {QUARANTINE} is as it was before: run again, with fewer --workers if memory is short"
            ) from error
    unwritten = None
    try:
        write_quarantine(shard_set.path, verdict.bad, file=quarantine)
    except OSError as error:
        unwritten = error.strerror or str(error)
    return {
        "decoder": "host",
        "problems": verdict.problems,
        "quarantine": [asdict(one) for one in verdict.bad],
        "quarantine_file": str(quarantine or shard_set.path / QUARANTINE),
        "quarantine_unwritten": unwritten,
    }


def verdict_text(shard_set: ShardSet, found: dict[str, Any]) -> str:
    """The result of `verify` as text, with at most SHOWN lines of each kind."""
    problems, bad = found["problems"], found["quarantine"]
    clips, unwritten = f"{len(shard_set):,} clips", found["quarantine_unwritten"]
    if not problems and not bad:
        sound = f"sound: checksums, members, indexes and tables agree; all {clips} decode with {found['decoder']}"
        if unwritten is None:
            return sound
        return f"{sound}\n{found['quarantine_file']} is out of date, and cannot be removed ({unwritten})"
    lines = [f"problem: {text}" for text in problems[:SHOWN]]
    lines += [f"problem: and {len(problems) - SHOWN} more; --json lists all"] if len(problems) > SHOWN else []
    lines += [f"bad clip: {one['clip_id']} in {one['shard']}: {one['reason']}" for one in bad[:SHOWN]]
    lines += [f"bad clip: and {len(bad) - SHOWN:,} more"] if len(bad) > SHOWN else []
    where = found["quarantine_file"]
    if bad and unwritten is not None:
        lines.append(
            f"{len(bad):,} of {clips} are bad. {where} cannot be written ({unwritten}): give --quarantine FILE, and "
            "train with data.quarantine=FILE"
        )
    elif bad and where != str(shard_set.path / QUARANTINE):
        lines.append(
            f"{len(bad):,} of {clips} are listed in {where}; training and evaluation with data.quarantine=FILE leave "
            "them out"
        )
    elif bad:
        lines.append(f"{len(bad):,} of {clips} are listed in {where} and left out of training and evaluation")
    else:
        lines.append(f"all {clips} decode with {found['decoder']}")
    return "\n".join(lines)
