"""Cuts the annotated clips out of a dataset's videos and stores them as a shard set.

    python tools/shard_videos.py --dataset ek100_cls --annotations epic-kitchens-100-annotations \\
        --videos EPIC-KITCHENS --out data/ek100/train --split train --workers 16

One worker process makes one tar at a time. A run that was interrupted goes on with --resume and ends in the same
bytes, with any number of workers. A clip that cannot be stored (missing or damaged video, bad annotation row) becomes
a line of failures.jsonl; more than --max-failures of them and the set is not completed: put the videos right, or raise
the number, and --resume. Exit status: 0 whole set, 1 not, 2 wrong arguments, 130 interrupted.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lavila.annotations import DATASETS, AnnotationSet, read_annotations
from lavila.data.encode import ENCODERS, EncodeSettings
from lavila.data.sharding import (
    Failure,
    Plan,
    ShardJob,
    ShardResult,
    assemble,
    assign_clips,
    make_shard,
    missing_videos,
    read_result,
    work_folder,
    write_failures,
)
from lavila.data.shards import FAILURES

UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}
DEFAULT_MAX_FAILURES = 100


class _Stop(Exception):
    """The set cannot be completed; the message says why and what to do."""


@dataclass(frozen=True, kw_only=True)
class _Run:
    """One run's arguments and what they lead to."""

    out: Path
    videos: Path
    workers: int
    max_failures: int
    plan: Plan
    annotations: AnnotationSet


def parse_size(text: str) -> int:
    """'512MB' -> bytes."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*(KB|MB|GB)", text.strip().upper())
    if match is None or float(match[1]) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; give for example 512MB, 1.5GB or 800KB")
    return int(float(match[1]) * UNITS[match[2]])


def parse_fps(text: str) -> Any:
    """'native' or a number."""
    if text == "native":
        return text
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: give 'native' or frames per second, for example 30") from None


def parse_count(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    description, epilog = (__doc__ or "").split("\n\n", 1)
    p = argparse.ArgumentParser(
        description=description, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--dataset", required=True, choices=sorted(DATASETS), help="whose annotation files these are")
    p.add_argument("--annotations", required=True, type=Path, metavar="PATH", help="folder or file, as published")
    p.add_argument("--videos", required=True, type=Path, metavar="DIR", help="folder that video paths start from")
    p.add_argument("--out", required=True, type=Path, metavar="DIR", help="new or empty folder for the shard set")
    p.add_argument("--split", default="train", choices=["train", "val"], help="train is shuffled, val keeps its order")
    p.add_argument("--codec", default="vp9", choices=list(ENCODERS), help="vp9 decodes on any GPU and on the CPU (vp9)")
    p.add_argument("--short-side", default=288, type=int, metavar="PIXELS", help="multiple of 16; never enlarges (288)")
    p.add_argument("--fps", default="native", type=parse_fps, metavar="native|N", help="frames per second (native)")
    p.add_argument("--gop", default=0, type=int, metavar="N", help="frames between keyframes; 0 = whole clip (0)")
    p.add_argument("--crf", default=-1, type=int, metavar="N", help="quality, lower is better (by codec, vp9: 36)")
    p.add_argument("--speed", default="", help="cpu-used of vp9, preset of the others (by codec, vp9: 5)")
    p.add_argument("--shard-size", default="512MB", type=parse_size, metavar="SIZE", help="aimed at per tar (512MB)")
    p.add_argument("--workers", default=0, type=int, metavar="N", help="processes; 0 = one for each core (0)")
    p.add_argument("--resume", action="store_true", help="go on with an unfinished set in --out")
    p.add_argument("--limit", type=parse_count, metavar="N", help="only the first N clips of the annotations")
    p.add_argument("--max-failures", default=DEFAULT_MAX_FAILURES, type=int, metavar="N",
                   help=f"complete the set only if at most N clips fail ({DEFAULT_MAX_FAILURES})")  # fmt: skip
    p.add_argument("--seed", default=0, type=int, help="of the shuffling of --split train (0)")
    return p


_slots: Any = None  # in a worker: two counters per job, [2j] stored and [2j + 1] failed, each written by one process


def _start_worker(slots: Any) -> None:
    global _slots
    _slots = slots
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole process group; the parent decides
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def _work(slot: int, job: ShardJob) -> None:
    def count(stored: bool) -> None:
        _slots[2 * slot + (0 if stored else 1)] += 1

    make_shard(job, count)


def make_shards(jobs: Sequence[ShardJob], workers: int, *, clips_done: int) -> None:
    """Make the tars in worker processes, showing progress over clips. Raises what a worker raised."""
    context = multiprocessing.get_context("spawn")
    slots = context.RawArray("q", 2 * max(len(jobs), 1))  # no lock: a killed worker must not hold one
    total = clips_done + sum(len(job.clips) for job in jobs)
    pool = ProcessPoolExecutor(min(workers, len(jobs)) or 1, context, _start_worker, (slots,))
    with tqdm(total=total, initial=clips_done, unit="clip", dynamic_ncols=True) as bar:
        try:
            pending = {pool.submit(_work, slot, job) for slot, job in enumerate(jobs)}
            while pending:
                done, pending = wait(pending, timeout=0.2, return_when=FIRST_COMPLETED)
                bar.update(clips_done + sum(slots) - bar.n)
                bar.set_postfix(failed=sum(slots[1::2]), refresh=False)
                for future in done:
                    future.result()
        except BaseException:
            for child in multiprocessing.active_children():
                child.kill()
            raise
        finally:
            pool.shutdown(cancel_futures=True)


def shard(run: _Run, settings: dict[str, Any], *, resume: bool) -> dict[str, Any]:
    """Make what is missing and complete the set; returns the manifest. Raises _Stop at too many failures."""
    groups = assign_clips(run.annotations.clips, run.plan)
    failures: list[Failure] = [
        {"clip_id": clip_id, "video": video, "reason": reason} for clip_id, video, reason in run.annotations.failures
    ]
    missing = missing_videos([clip for group in groups for clip in group], run.videos)
    if len(failures) + sum(missing.values()) > run.max_failures:
        # Known before the first clip is encoded, so it is said now rather than hours later.
        lost = [clip for group in groups for clip in group if clip.video_path in missing]
        failures += [{"clip_id": c.clip_id, "video": c.video_path, "reason": "no such video"} for c in lost]
        _stop(run, failures)

    results: list[ShardResult | None] = [read_result(run.out, n) if resume else None for n in range(len(groups))]
    failed_before = len(failures) + sum(len(result.failures) for result in results if result)
    if failed_before > run.max_failures:  # as they stand the set cannot be completed: try those tars again
        results = [None if result and result.failures else result for result in results]
    jobs = [
        ShardJob(number=n, clips=group, videos=run.videos, out=run.out, encoder=run.plan.encoder)
        for n, group in enumerate(groups)
        if results[n] is None
    ]
    if resume:
        print(f"{len(groups) - len(jobs)} of {len(groups)} shards are whole already")
    if jobs:
        clips_done = sum(len(group) for group in groups) - sum(len(job.clips) for job in jobs)
        make_shards(jobs, run.workers, clips_done=clips_done)
    made = [result or read_result(run.out, n) for n, result in enumerate(results)]
    whole = [result for result in made if result is not None]
    assert len(whole) == len(groups), "a shard that was just made is not there"
    failures += [failure for result in whole for failure in result.failures]
    if len(failures) > run.max_failures or not any(result.rows for result in whole):
        _stop(run, failures)
    write_failures(run.out, failures)
    return assemble(run.out, whole, annotations=run.annotations, settings=settings)


def _stop(run: _Run, failures: Sequence[Failure]) -> None:
    write_failures(run.out, failures)
    if not failures:
        raise _Stop("the annotations hold no clip of this split; check --annotations and --split")
    first = failures[0]
    raise _Stop(
        f"{len(failures)} clips cannot be stored, --max-failures is {run.max_failures}; the first is "
        f"{first['clip_id']} of {run.videos / first['video']}: {first['reason']}. All are in {run.out / FAILURES}; put "
        "the videos right or raise --max-failures, and run again with --resume"
    )


def report(run: _Run, manifest: dict[str, Any], seconds: float) -> None:
    """What was made, where, and what to do next."""
    size = sum(shard["bytes"] for shard in manifest["shards"])
    clips = manifest["clips"]
    print(
        f"{clips} clips, {manifest['seconds'] / 3600:.2f} h, {size / 1e6:.1f} MB in {len(manifest['shards'])} shards, "
        f"{manifest['failures']} failures, {seconds:.0f} s ({clips / seconds:.2f} clips/s)"
    )
    if manifest["failures"]:
        print(f"failures are listed in {run.out / FAILURES}")
    print(f"shard set: {run.out}")
    print(f"next: python train.py --config NAME data.{run.plan.split}={run.out}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns the exit status."""
    started = time.monotonic()
    p = parser()
    args = p.parse_args(argv)
    try:
        encoder = EncodeSettings(
            codec=args.codec,
            short_side=args.short_side,
            fps=args.fps,
            gop=args.gop,
            crf=args.crf,
            speed=args.speed,
        )
    except ValueError as error:
        p.error(str(error))
    try:
        if not args.videos.is_dir():
            raise _Stop(f"--videos {args.videos}: no such folder")
        annotations = read_annotations(args.dataset, args.annotations, split=args.split)
        plan = Plan(
            dataset=args.dataset,
            split=args.split,
            encoder=encoder,
            shard_bytes=args.shard_size,
            seed=args.seed,
            limit=args.limit,
        )
        run = _Run(
            out=args.out,
            videos=args.videos,
            workers=args.workers or len(os.sched_getaffinity(0)),
            max_failures=args.max_failures,
            plan=plan,
            annotations=annotations,
        )
        settings = plan.settings(annotations)
        with work_folder(args.out, settings, resume=args.resume) as whole:
            if whole:
                print(f"{args.out} is already whole, made with the same settings; nothing to do")
                return 0
            manifest = shard(run, settings, resume=args.resume)
        report(run, manifest, time.monotonic() - started)
        return 0
    except BrokenProcessPool:
        problem = "a worker process died (killed, perhaps for memory); run again with --resume, and fewer --workers"
    except KeyboardInterrupt:
        print("\ninterrupted; whole shards are kept: run again with --resume", file=sys.stderr)
        return 130
    except (_Stop, ValueError, OSError) as error:
        problem = str(error)
    print(f"shard_videos: error: {problem}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
