"""Cuts the annotated clips out of a dataset's videos and stores them as a shard set.

    python tools/shard_videos.py --dataset ek100_cls --annotations epic-kitchens-100-annotations \\
        --videos EPIC-KITCHENS --out data/ek100/train --split train --workers 16

One worker process makes one tar at a time. With --cluster slurm --jobs 64, one element of a job array does. After an
interruption --resume continues, and ends in the same bytes, with any number of workers or jobs.

A clip that cannot be stored becomes a line of failures.jsonl. Reasons are a missing or damaged video, a bad annotation
row, or a video that crashes or stalls the decoder. With more than --max-failures of them the set stays incomplete:
repair the videos, or raise the number, and run again with --resume.

Videos may lie as the dataset's own download has them; docs/DATASETS.md lists the layouts. If videos come late, --resume
--max-failures 0 adds their clips to a whole set, and copies the others.

--layout chunks stores each video once, in chunks of --chunk-seconds with short groups of pictures. Clips point into the
chunks. Use it where annotated clips overlap or lie close together (Ego4D). --frames-for CONFIG stores only the frames
that an evaluation with that config asks for.

Exit status: 0 whole set, 1 not, 2 wrong arguments, 130 interrupted.
"""

from __future__ import annotations

if __name__ == "__main__":
    from lavila.interrupts import end_early, run_main

    end_early()

import argparse
import errno
import math
import os
import re
import sys
import time
from collections.abc import Sequence
from typing import Any

from lavila.annotations import DATASETS, read_annotations
from lavila.arguments import name_and_value, parser_of, whole_number
from lavila.cluster.arrays import ClusterOptions
from lavila.config.load import load_config
from lavila.config.schema import FRAMES
from lavila.errors import UserError
from lavila.files import explained, user_path
from lavila.ingest.assembly import work_folder
from lavila.ingest.encode import ENCODERS, EncodeSettings, Limits, check_encoder
from lavila.ingest.jobs import EvaluationFrames, SetSettings
from lavila.ingest.run import Machines, Run, Stop, make_set, summary
from lavila.plan.frames import FrameChoice
from lavila.shards.format import FAILURES, read_manifest

UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}
DEFAULT_MAX_FAILURES = 100


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


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = parser_of(__doc__)
    add = p.add_argument
    add("--dataset", required=True, choices=sorted(DATASETS), help="whose annotation files these are")
    add("--annotations", required=True, type=user_path, metavar="PATH", help="folder or file, as published")
    add(
        "--videos",
        required=True,
        type=user_path,
        metavar="DIR",
        help="folder of the videos, as the annotations or the dataset's download have them",
    )
    add("--out", required=True, type=user_path, metavar="DIR", help="new or empty folder for the shard set")
    add("--split", default="train", choices=["train", "val"], help="train is shuffled, val keeps its order (train)")
    add("--resume", action="store_true", help="continue an unfinished set in --out")
    add("--limit", type=whole_number(1), metavar="N", help="store only the first N clips of the annotations")
    add("--max-failures", default=DEFAULT_MAX_FAILURES, type=int, metavar="N",
        help=f"complete the set only if at most N clips fail ({DEFAULT_MAX_FAILURES})")  # fmt: skip
    add("--seed", default=0, type=int, help="number that decides how --split train is shuffled (0)")

    group = p.add_argument_group("what is stored")
    add = group.add_argument
    add(
        "--layout",
        default="clips",
        choices=["clips", "chunks"],
        help="a file for each clip, or each video once (clips)",
    )
    add("--chunk-seconds", default=60.0, type=float, metavar="S", help="length of a chunk of --layout chunks (60)")
    add("--margin", default=0.0, type=float, metavar="S", help="seconds to keep before and after each clip (0)")
    add(
        "--narrations-source",
        default="human",
        metavar="WHO",
        help="writer of the words: human, machine ... (human)",
    )
    add("--frames-for", nargs="+", metavar="CONFIG", help="store only the frames that this config's evaluation asks "
        "for; key=value settings may follow the name")  # fmt: skip

    group = p.add_argument_group("coding")
    add = group.add_argument
    add("--codec", default="vp9", choices=list(ENCODERS), help="vp9 decodes on any GPU and on the CPU (vp9)")
    add("--encoder", default="cpu", choices=["cpu", "nvenc"], help="nvenc: the GPU's encoder, not for vp9 (cpu)")
    add("--short-side", default=288, type=int, metavar="PIXELS", help="multiple of 16; never enlarges (288)")
    add("--fit", default="crop", choices=["crop", "pad"], help="how the other side becomes a multiple of 16 (crop)")
    add("--fps", default="native", type=parse_fps, metavar="native|N", help="frames per second (native)")
    add(
        "--gop",
        default=0,
        type=int,
        metavar="N",
        help="frames between keyframes; 0: a clip up to 8 s, 0.8 (vp9, av1) or 2 s of longer ones, 0.5 s in chunks",
    )
    add("--crf", default=-1, type=int, metavar="N", help="quality, lower is better (by codec, vp9: 36)")
    add("--speed", default="", help="vp9: cpu-used; others: preset (by codec, vp9: 5)")

    group = p.add_argument_group("how the work is done")
    add = group.add_argument
    add("--shard-size", default="512MB", type=parse_size, metavar="SIZE", help="size of a tar, about (512MB)")
    add("--workers", default=0, type=int, metavar="N", help="processes; 0 = one for each core (0)")
    add("--clip-seconds", default=Limits().seconds, type=float, metavar="S",
        help=f"a clip or chunk that takes longer fails ({Limits().seconds:.0f})")  # fmt: skip
    add("--cluster", default="none", choices=["none", "slurm", "local"],
        help="slurm: a job array, one tar for each element; local: the same path on this machine (none)")  # fmt: skip
    add("--jobs", default=8, type=whole_number(1), metavar="N", help="elements of the array that run at once (8)")
    add("--partition", metavar="NAME", help="SLURM partition")
    add("--minutes", default=24 * 60, type=whole_number(1), metavar="N", help="time limit of an element (1440)")
    add("--cluster-option", action="append", default=[], type=name_and_value, metavar="NAME=VALUE",
        help="any further sbatch option, such as account=vision; may be repeated")  # fmt: skip
    return p


def read_settings(args: argparse.Namespace) -> SetSettings:
    """The settings of the set. UserError for settings that contradict each other."""
    encoder = EncodeSettings(
        codec=args.codec,
        short_side=args.short_side,
        fps=args.fps,
        gop=args.gop,
        crf=args.crf,
        speed=args.speed,
        encoder=args.encoder,
        margin=args.margin,
        fit=args.fit,
    )
    for name, least in (
        ("chunk_seconds", 1),
        ("clip_seconds", 0.001),
        ("workers", 0),
        ("max_failures", 0),
        ("seed", 0),
    ):
        if not least <= getattr(args, name) < math.inf:
            raise UserError(f"--{name.replace('_', '-')} {getattr(args, name)}: give {least} or more")
    if args.frames_for and (args.layout == "chunks" or args.split == "train"):
        what = "--layout chunks" if args.layout == "chunks" else "--split train"
        raise UserError(f"--frames-for stores the frames of an evaluation, clip by clip; it cannot be used with {what}")
    return SetSettings(
        dataset=args.dataset,
        split=args.split,
        encoder=encoder,
        shard_bytes=args.shard_size,
        seed=args.seed,
        limit=args.limit,
        layout=args.layout,
        chunk_seconds=args.chunk_seconds,
        frames_for=read_evaluation_frames(args.frames_for) if args.frames_for else None,
        narrations_source=args.narrations_source,
    )


def read_evaluation_frames(words: Sequence[str]) -> EvaluationFrames:
    """The frames that the evaluation of a config uses. `words`: its name, then settings key=value."""
    config = load_config(words[0], words[1:])
    data = config.data
    choice = FrameChoice(frames=data.frames or FRAMES, sampling=data.sampling, stride=data.stride)
    return EvaluationFrames(choice=choice, clips=config.views.clips)


def read_run(args: argparse.Namespace, settings: SetSettings) -> Run:
    """The run that the arguments describe. Reads the annotations."""
    if not args.videos.is_dir():
        raise Stop(f"--videos {args.videos}: no such folder")
    if not os.access(args.videos, os.R_OK | os.X_OK):
        raise Stop(f"--videos {args.videos}: may not be read by this user; change its permissions")
    options = ClusterOptions(
        item_seconds=args.clip_seconds,
        minutes=args.minutes,
        partition=args.partition,
        extra=dict(args.cluster_option),
    )
    machines = Machines(
        workers=args.workers or len(os.sched_getaffinity(0)), cluster=args.cluster, jobs=args.jobs, options=options
    )
    return Run(
        out=args.out.resolve(),
        videos=args.videos.resolve(),
        machines=machines,
        max_failures=args.max_failures,
        limits=Limits(seconds=args.clip_seconds),
        settings=settings,
        annotations=read_annotations(args.dataset, args.annotations, split=args.split),
    )


def explain(error: OSError) -> str:
    """An error of the operating system, with what to do about it."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"{error}: the disk is full; whole shards are kept: make room and run again with --resume"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{error}: this user may not read or write there; change the permissions or give another folder"
    return explained(error)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool. Returns the exit status."""
    began = time.monotonic()
    p = parser()
    args = p.parse_args(argv)
    try:
        settings = read_settings(args)
        check_encoder(settings.encoder)
    except UserError as error:
        p.error(str(error))
    try:
        run = read_run(args, settings)
        facts = settings.as_json(run.annotations)
        with work_folder(run.out, facts, resume=args.resume, allowed=args.max_failures) as whole:
            if whole:
                print(f"{args.out} is already whole, made with the same settings; nothing to do")
                failed = read_manifest(run.out).get("failures", 0)
                if failed:
                    print(f"{failed} clips failed, see {args.out / FAILURES}; to try them: --resume --max-failures 0")
                return 0
            manifest = make_set(run, facts, resume=args.resume)
        print(summary(run, manifest, began=began))
        print(f"      python train.py --config NAME data.{settings.split}={args.out}")
        return 0
    except KeyboardInterrupt:
        print("\ninterrupted; whole shards are kept: run again with --resume", file=sys.stderr)
        return 130
    except OSError as error:
        problem = explain(error)
    except UserError as error:
        problem = str(error)
    print(f"shard_videos: error: {problem}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    run_main(main)
