"""Makes a shard set: finds the tars that are there, makes the missing ones, and assembles the set."""

from __future__ import annotations

import resource
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from lavila.annotations.base import AnnotationSet
from lavila.cluster.arrays import MEMORY, ClusterOptions, run_on_cluster
from lavila.cluster.workers import Progress, run_jobs
from lavila.errors import UserError
from lavila.ingest.assembly import ChunkAssembly, Stored, assemble, clip_failures, write_failures
from lavila.ingest.encode import Limits
from lavila.ingest.jobs import (
    ChunkNeeds,
    Failure,
    SetSettings,
    ShardJob,
    assign,
    missing_videos,
    needed_chunks,
    read_result,
)
from lavila.ingest.notes import note_lines
from lavila.records import Clip
from lavila.shards.format import FAILURES


class Stop(UserError):
    """The set cannot be completed. The message says why and what to do."""


@dataclass(frozen=True, kw_only=True)
class Machines:
    """The machines that make the tars."""

    workers: int  # number of processes on this machine
    cluster: Literal["none", "slurm", "local"] = "none"
    jobs: int = 1  # number of elements of the job array that run at a time
    options: ClusterOptions = field(default_factory=ClusterOptions)


@dataclass(frozen=True, kw_only=True)
class Run:
    """The arguments of a run, and the annotations that it has read."""

    out: Path
    videos: Path
    machines: Machines
    max_failures: int
    limits: Limits
    settings: SetSettings
    annotations: AnnotationSet

    @property
    def clips(self) -> list[Clip]:
        """The clips for the set."""
        return self.annotations.clips[: self.settings.limit]


def make_set(run: Run, facts: dict[str, Any], *, resume: bool) -> dict[str, Any]:
    """Make the missing tars and complete the set. Returns the manifest. Raises Stop for too many failures.

    `facts`: `SetSettings.as_json`, for the manifest.
    """
    clips = run.clips
    failures: list[Failure] = [
        {"clip_id": clip_id, "video": video, "reason": reason} for clip_id, video, reason in run.annotations.failures
    ]
    missing = missing_videos(clips, run.videos)
    lost = {clip.clip_id: "no such video" for clip in clips if clip.video_path in missing}
    if len(failures) + len(lost) > run.max_failures:
        # The first clip is not encoded yet, so this saves hours.
        _stop(run, [*failures, *clip_failures(clips, lost)])
    needs = needed_chunks(clips, run.settings, run.videos) if run.settings.layout == "chunks" else None
    groups = assign(needs.chunks if needs else clips, run.settings)
    jobs = [
        ShardJob(
            number=number,
            items=group,
            videos=run.videos,
            out=run.out,
            settings=run.settings,
            span_rule=run.annotations.span_rule,
            limits=run.limits,
        )
        for number, group in enumerate(groups)
    ]
    to_make = _to_make(run, jobs, needs, allowed=run.max_failures - len(failures)) if resume else jobs
    if to_make:
        _make(run, to_make, done=sum(job.num_items for job in jobs) - sum(job.num_items for job in to_make))
    stored = Stored(out=run.out, shards=len(jobs))
    return _complete(run, stored, needs, facts=facts, failures=failures)


def _to_make(run: Run, jobs: Sequence[ShardJob], needs: ChunkNeeds | None, *, allowed: int) -> list[ShardJob]:
    """The jobs whose tars are missing or damaged. If more than `allowed` clips failed, also the jobs with failures."""
    # A chunk that failed counts as many times as there are clips that need it.
    clips = None if needs is None else Counter(key for place in range(len(needs.by_clip)) for key in needs.ids(place))
    failed: dict[int, int] = {}
    missing = []
    for job in tqdm(jobs, desc="checking what is there", unit="tar", dynamic_ncols=True, disable=len(jobs) < 16):
        result = read_result(run.out, job.number)
        if result is None:
            missing.append(job)
            job.forget(lost=False)  # so that a damaged tar does not count as done
        elif result.failures:
            failed[job.number] = sum(1 if clips is None else clips[key] for key in result.failures)
    sys.stdout.write(f"{len(jobs) - len(missing)} of {len(jobs)} shards are whole already\n")
    if sum(failed.values()) <= allowed:
        return missing
    again = [job for job in jobs if job.number in failed]
    for job in again:  # items that ended a process are tried again, too, since their videos may have been mended
        job.forget(lost=True)
    return sorted([*missing, *again], key=lambda job: job.number)


def _make(run: Run, jobs: Sequence[ShardJob], *, done: int) -> None:
    """Make the tars on this machine or a cluster, with a bar of clips or chunks."""
    unit = "clip" if run.settings.layout == "clips" else "chunk"
    total = done + sum(job.num_items for job in jobs)
    with tqdm(total=total, initial=done, unit=unit, dynamic_ncols=True) as bar:

        def show(progress: Progress) -> None:
            bar.set_postfix(failed=progress.failed, refresh=False)
            bar.update(done + progress.stored + progress.failed - bar.n)

        machines = run.machines
        if machines.cluster == "none":
            seconds = run.limits.seconds
            run_jobs(jobs, workers=machines.workers, item_seconds=seconds, memory=MEMORY, on_progress=show)
        else:
            run_on_cluster(
                jobs,
                cluster=machines.cluster,
                concurrent=machines.jobs,
                folder=run.out / ".work" / "logs",
                options=machines.options,
                on_progress=show,
            )


def _complete(
    run: Run, stored: Stored, needs: ChunkNeeds | None, *, facts: dict[str, Any], failures: list[Failure]
) -> dict[str, Any]:
    clips = run.clips
    if needs is None:
        failures = [*failures, *clip_failures(clips, stored.failures())]
        rows = stored.rows()
    else:
        assembly = ChunkAssembly(stored, clips=clips, needs=needs, rule=run.annotations.span_rule)
        failures = [*failures, *assembly.failures]
        rows = assembly.rows(in_storage_order=run.settings.split == "train")
    if len(failures) > run.max_failures or len(failures) == len(clips) + len(run.annotations.failures):
        _stop(run, failures)
    if needs is not None:
        assembly.write_chunks(run.out)
    return assemble(stored, rows=rows, annotations=run.annotations, facts=facts, failures=failures)


def _stop(run: Run, failures: Sequence[Failure]) -> None:
    write_failures(run.out, failures)
    if not failures:
        raise Stop("the annotations hold no clip of this split; check --annotations and --split")
    first = failures[0]
    raise Stop(
        f"{len(failures)} clips cannot be stored, --max-failures is {run.max_failures}; the first is "
        f"{first['clip_id']} of {run.videos / first['video']}: {first['reason']}. All are in {run.out / FAILURES}; "
        "correct the videos or raise --max-failures, and run again with --resume"
    )


def summary(run: Run, manifest: dict[str, Any], *, began: float) -> str:
    """The figures of the set that was made, as text."""
    seconds = max(time.monotonic() - began, 1e-9)
    shards, clips, hours = manifest["shards"], manifest["clips"], manifest["seconds"] / 3600
    size = sum(shard["bytes"] for shard in shards)
    encoder = run.settings.encoder
    rows = [
        ("clips", f"{clips} clips of {hours:.2f} h, {manifest['failures']} failures"),
        ("stored", f"{size / 1e6:.1f} MB in {len(shards)} shards, {size / clips / 1e3:.1f} KB a clip"),
        ("coding", f"{encoder.codec}, crf {encoder.crf}, speed {encoder.speed}, short side {encoder.short_side}"),
        ("rate", f"{clips / seconds:.2f} clips/s, {manifest['seconds'] / seconds:.1f} x real time, {seconds:.0f} s"),
    ]
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    if run.machines.cluster == "none" and peak:
        rows.append(("memory", f"{peak / 1024:.0f} MiB in the largest worker"))
    text = [f"  {name:8}{value}" for name, value in rows]
    text += [f"note: {line}" for line in note_lines(manifest)]
    if manifest["failures"]:
        text.append(f"failures are listed in {run.out / FAILURES}")
    text.append(f"shard set: {run.out}")
    text.append(f"next: python tools/inspect_shards.py {run.out} --verify --preview 12 --out {run.out.name}.png")
    return "\n".join(text)
