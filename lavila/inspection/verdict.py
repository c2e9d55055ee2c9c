"""Verifies a shard set as this machine would train on it, writes its quarantine, and puts the verdict into words."""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import Any

from tqdm import tqdm

from lavila.cluster.workers import Progress
from lavila.inspection.facts import SHOWN
from lavila.shards.format import QUARANTINE
from lavila.shards.reader import ShardSet

NVDEC_WORKERS = 8  # each has a CUDA context on the GPU, and a GPU has fewer decoding units than that


def verify(shard_set: ShardSet, *, workers: int) -> dict[str, Any]:
    """Check everything with a bar of tars and videos, and write quarantine.jsonl.

    `workers`: number of processes; 0 = one for each core. Returns the decoder, the problems of files (one line each),
    and the clips in quarantine (clip_id, shard, reason).
    """
    import torch

    from lavila.data.pictures import choose_decoder
    from lavila.inspection.verify import verify_shard_set, write_quarantine
    from lavila.inspection.videos import TrainingDecoder

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    decoder = choose_decoder("auto", codec=shard_set.codec, device=device)
    cores = len(os.sched_getaffinity(0))
    workers = workers or (min(cores, NVDEC_WORKERS) if decoder == "nvdec" else cores)
    stored = shard_set.clips if shard_set.chunks is None else shard_set.chunks
    total = stored.num_rows + len(shard_set.shards)
    with tqdm(total=total, unit="item", desc=f"tars and videos, {decoder}", dynamic_ncols=True) as bar:

        def show(progress: Progress) -> None:
            bar.set_postfix(bad=progress.failed, refresh=False)
            bar.update(progress.stored + progress.failed - bar.n)

        verdict = verify_shard_set(shard_set, TrainingDecoder(decoder=decoder), workers=workers, on_progress=show)
    write_quarantine(shard_set.path, verdict.bad)
    return {"decoder": decoder, "problems": verdict.problems, "quarantine": [asdict(one) for one in verdict.bad]}


def verdict_text(shard_set: ShardSet, found: dict[str, Any]) -> str:
    """The result of `verify` as text, with at most SHOWN lines of each kind."""
    problems, bad = found["problems"], found["quarantine"]
    clips = f"{len(shard_set):,} clips"
    if not problems and not bad:
        return f"sound: checksums, members, indexes and tables agree; all {clips} decode with {found['decoder']}"
    lines = [f"problem: {text}" for text in problems[:SHOWN]]
    lines += [f"problem: and {len(problems) - SHOWN} more; --json lists all"] if len(problems) > SHOWN else []
    lines += [f"bad clip: {one['clip_id']} in {one['shard']}: {one['reason']}" for one in bad[:SHOWN]]
    lines += [f"bad clip: and {len(bad) - SHOWN:,} more"] if len(bad) > SHOWN else []
    if bad:
        where = shard_set.path / QUARANTINE
        lines.append(f"{len(bad):,} of {clips} are listed in {where} and left out of training and evaluation")
    else:
        lines.append(f"all {clips} decode with {found['decoder']}")
    return "\n".join(lines)
