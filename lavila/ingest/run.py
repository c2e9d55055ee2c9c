"""Makes a shard set: finds the tars that are there, makes the missing ones, and assembles the set."""

from __future__ import annotations

import resource
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from lavila.annotations.base import AnnotationSet
from lavila.cluster.arrays import MEMORY, ClusterOptions, run_on_cluster
from lavila.cluster.workers import Progress, run_jobs
from lavila.errors import UserError, listed
from lavila.ingest.assembly import ChunkAssembly, Stored, assemble, clip_failures, write_failures
from lavila.ingest.encode import Limits
from lavila.ingest.jobs import (
    Failure,
    SetSettings,
    ShardJob,
    assign,
    item_key,
    read_result,
)
from lavila.ingest.mending import FAILED_CHUNKS, read_failures, reopen
from lavila.ingest.needs import ChunkNeeds, needed_chunks
from lavila.ingest.notes import note_lines
from lavila.ingest.places import FoundVideos, candidates, find_videos
from lavila.records import Clip
from lavila.shards.format import FAILURES, MANIFEST
from lavila.shards.pictures import StoredPictures, not_on_common_chips
from lavila.shards.reader import open_shard_set


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

    A set that is whole already gets the clips that failed and whose videos are there now. It is completed in any case.
    `facts`: `SetSettings.as_json`, for the manifest.
    """
    mends = (run.out / MANIFEST).exists()
    found = find_videos(run.annotations, run.clips, run.videos)
    run = replace(run, annotations=replace(run.annotations, clips=found.place(run.clips)))
    _say_where(found)
    clips = run.clips
    failures: list[Failure] = [
        {"clip_id": clip_id, "video": video, "reason": reason} for clip_id, video, reason in run.annotations.failures
    ]
    if mends:
        _check_hope(run, found.missing)
    else:
        _check_enough(run, failures, found.missing)
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
    to_make = jobs
    if mends:
        reopen(run.out, jobs, missing=found.missing)
        to_make = _to_make(run, jobs, needs, missing=found.missing, allowed=-1, full=False)
    elif resume:
        to_make = _to_make(run, jobs, needs, missing=found.missing, allowed=run.max_failures - len(failures))
    if to_make:
        _make(run, to_make, done=sum(job.num_items for job in jobs) - sum(job.num_items for job in to_make))
    stored = Stored(out=run.out, shards=len(jobs))
    return _complete(run, stored, needs, facts=facts, failures=failures, mends=mends)


def _say_where(found: FoundVideos) -> None:
    """Name the layouts in which videos were found, since several copies of a dataset may lie below one folder."""
    for layout, paths in found.layouts.items():
        shown = layout.format(folder="FOLDER", name="NAME")
        sys.stdout.write(f"{len(paths)} videos are found as {shown}, such as {paths[0]}\n")


def _check_enough(run: Run, failures: Sequence[Failure], missing: Mapping[str, str]) -> None:
    """Raise Stop if too many videos are missing. No clip is encoded yet, so this saves hours."""
    lost = {clip.clip_id: missing[clip.video_path] for clip in run.clips if clip.video_path in missing}
    known = [*failures, *clip_failures(run.clips, lost)]
    if len(known) > run.max_failures or len(known) == len(run.clips) + len(failures):
        _stop(run, known)


def _check_hope(run: Run, missing: Mapping[str, str]) -> None:
    """Raise Stop if no clip that failed has its video now. The set stays as it is."""
    failed = read_failures(run.out)
    if not any(clip.clip_id in failed and clip.video_path not in missing for clip in run.clips):
        first = next(iter(failed.items()), ("", "failures.jsonl is gone"))
        raise Stop(
            f"{run.out}: whole, and none of its {len(failed)} failures can be mended: their videos are still missing, "
            f"or their annotations are wrong; the first is {first[0]}: {first[1]}"
        )


def _to_make(
    run: Run,
    jobs: Sequence[ShardJob],
    needs: ChunkNeeds | None,
    *,
    missing: Mapping[str, str],
    allowed: int,
    full: bool = True,
) -> list[ShardJob]:
    """The jobs whose tars are missing or damaged (`full`: compare every byte).

    If more than `allowed` clips failed, also those with a failed item whose video is not among the missing ones.
    """
    # A chunk that failed counts as many times as there are clips that need it.
    clips = None if needs is None else Counter(key for place in range(len(needs.by_clip)) for key in needs.ids(place))
    failed: dict[int, int] = {}
    hopeful = []
    unmade = []
    for job in tqdm(jobs, desc="checking what is there", unit="tar", dynamic_ncols=True, disable=len(jobs) < 16):
        result = read_result(run.out, job.number, full=full)
        if result is None:
            unmade.append(job)
            job.forget(lost=False)  # so that a damaged tar does not count as done
        elif result.failures:
            failed[job.number] = sum(1 if clips is None else clips[key] for key in result.failures)
            if any(item_key(item) in result.failures and item.video_path not in missing for item in job.items):
                hopeful.append(job)
    sys.stdout.write(f"{len(jobs) - len(unmade)} of {len(jobs)} shards are whole already\n")
    if sum(failed.values()) <= allowed:
        return unmade
    for job in hopeful:  # items that ended a process are tried again, too, since their videos may have been mended
        job.forget(lost=True)
    return sorted([*unmade, *hopeful], key=lambda job: job.number)


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
    run: Run,
    stored: Stored,
    needs: ChunkNeeds | None,
    *,
    facts: dict[str, Any],
    failures: list[Failure],
    mends: bool,
) -> dict[str, Any]:
    clips = run.clips
    if needs is None:
        failures = [*failures, *clip_failures(clips, stored.failures())]
        rows = stored.rows()
    else:
        facts = {**facts, FAILED_CHUNKS: stored.failures()}
        assembly = ChunkAssembly(stored, clips=clips, needs=needs, rule=run.annotations.span_rule)
        failures = [*failures, *assembly.failures]
        rows = assembly.rows(in_storage_order=run.settings.split == "train")
    none = len(failures) == len(clips) + len(run.annotations.failures)
    if none or (len(failures) > run.max_failures and not mends):
        _stop(run, failures)
    if needs is not None:
        assembly.write_chunks(run.out)
    manifest = assemble(stored, rows=rows, annotations=run.annotations, facts=facts, failures=failures)
    if len(failures) > run.max_failures:
        first = failures[0]
        raise Stop(
            f"{run.out}: whole with {manifest['clips']} clips, but {len(failures)} still fail, --max-failures is "
            f"{run.max_failures}; the first is {first['clip_id']} of {run.videos / first['video']}: {first['reason']}"
        )
    return manifest


def _stop(run: Run, failures: Sequence[Failure]) -> None:
    """Raise Stop, with the advice that helps: a larger --max-failures does not where nothing can be stored."""
    write_failures(run.out, failures)
    if not failures:
        raise Stop("the annotations hold no clip of this split; check --annotations and --split")
    first = failures[0]
    example = f"the first is {first['clip_id']} of {run.videos / first['video']}: {first['reason']}"
    reasons = f"All are in {run.out / FAILURES}"
    if len(failures) == len(run.clips) + len(run.annotations.failures):
        places = dict.fromkeys(path for _, path in candidates(first["video"], run.annotations.layouts))
        raise Stop(
            f"no clip can be stored, all {len(failures)} fail; {example}. {reasons}. Videos are looked for below "
            f"--videos {run.videos}, this one as {listed(list(places)[::2], most=4)}; correct --videos, the videos or "
            "the annotations, and run again with --resume"
        )
    raise Stop(
        f"{len(failures)} clips cannot be stored, --max-failures is {run.max_failures}; {example}. {reasons}; correct "
        "the videos or raise --max-failures, and run again with --resume"
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
    no_gpu = not_on_common_chips(StoredPictures.of(open_shard_set(run.out)))
    text += [f"note: {no_gpu}"] if no_gpu else []
    if manifest["failures"]:
        text.append(f"failures are listed in {run.out / FAILURES}")
    text.append(f"shard set: {run.out}")
    text.append(f"next: python tools/inspect_shards.py {run.out} --verify --preview 12 --out {run.out.name}.png")
    return "\n".join(text)
