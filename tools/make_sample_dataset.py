"""Makes a small video dataset out of any footage, in the published form of EPIC-KITCHENS-100 or of another dataset.

A camera moves over the footage: it pans, tilts, zooms, rolls or holds still. One annotated move
follows another, with short unannotated glides or cuts between them. The verb of a clip is the move, the
noun is the scene that it looks at. No single frame shows the verb. Training and validation videos
show different moments of the footage. The same arguments give the same bytes.

    python tools/make_sample_dataset.py --footage assets/bigbuckbunny.mp4 --out data/sample

Each --form describes the same moves of the same videos, at the frame rate of the form.
<footage>.scenes.json beside the footage may name its scenes, as fractions of the picture:
{"name": [left, top, right, bottom], ...}. Without that file the scenes are the four quadrants.
"""

from __future__ import annotations

if __name__ == "__main__":
    from lavila.interrupts import end_early, run_main

    end_early()

import argparse
import os
import typing
from collections.abc import Sequence
from pathlib import Path

from lavila.arguments import parser_of, whole_number
from lavila.engine.command_line import run_tool
from lavila.files import user_path
from lavila.sample.camera import Between, Video, read_sources
from lavila.sample.files import Sample
from lavila.sample.forms import FORMS, commands, with_needed
from lavila.sample.make import CHUNK_SECONDS, already_there, describe, make, plan_videos


def report(videos: list[Video], out: Path, message: str, *, forms: list[str]) -> None:
    """Print what was made, and the commands that store its clips."""
    seconds = sum(video.frames / video.fps for video in videos)
    clips = {split: sum(len(v.moves) for v in videos if v.split == split) for split in ("train", "val")}
    counted = f"{clips['train']} training and {clips['val']} validation clips"
    print(f"{message}: {len(videos)} videos, {float(seconds):.0f} s, {counted}")
    print(f"in {out}. Next, store the clips:")
    for form in forms:
        print("\n".join(f"  {command}" for command in commands(form, str(out))))


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    usage = "\nforms:\n" + "".join(f"  {name:13} {form.about}\n" for name, form in FORMS.items())
    usage += "\nto store their clips:\n" + "".join(f"  {line}\n" for name in FORMS for line in commands(name, "DIR"))
    parser = parser_of(__doc__, more=usage)
    add, positive = parser.add_argument, whole_number(1)
    add("--footage", type=user_path, nargs="+", required=True, metavar="FILE", help="videos to move the camera over")
    add("--out", type=user_path, required=True, metavar="DIR", help="new folder; it appears when it is complete")
    add("--train-clips", type=positive, default=450, metavar="N", help="training clips (default %(default)s)")
    add("--val-clips", type=positive, default=108, metavar="N", help="validation clips (default %(default)s)")
    add("--videos", type=positive, default=8, metavar="N", help="videos in both splits together (default %(default)s)")
    add("--seed", type=whole_number(0), default=0, help="number that decides the moves (default %(default)s)")
    height = "height of the videos, px; smaller is faster (default %(default)s)"
    add("--height", type=whole_number(64, 1080, even=True), default=256, help=height)
    rates = "frames a second of ek100's videos (default: 50 and 59.94 in turn, as published)"
    add("--fps", type=whole_number(10, 120), default=0, metavar="N", help=rates)
    between = "how the camera gets to its next move (default %(default)s)"
    add("--between", choices=typing.get_args(Between), default="glide", help=between)
    forms = f"any of {', '.join(FORMS)} (default ek100)"
    add("--form", nargs="+", choices=list(FORMS), default=["ek100"], metavar="FORM", help=forms)
    chunks = "length of the files in ego4d's chunk folders, s (default %(default)s, as published)"
    add("--chunk-seconds", type=positive, default=CHUNK_SECONDS, metavar="N", help=chunks)
    cores = len(os.sched_getaffinity(0))
    add("--workers", type=positive, default=cores, metavar="N", help="processes (default: the cores, %(default)s)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    asked = parse_arguments(arguments)
    out = asked.out.resolve() if asked.out.name in ("", "..") else asked.out

    def work() -> None:
        sources = read_sources(asked.footage)
        clips = {"train": asked.train_clips, "val": asked.val_clips}
        videos = plan_videos(
            sources,
            clips=clips,
            videos=asked.videos,
            height=asked.height,
            seed=asked.seed,
            fps=asked.fps,
            between=asked.between,
        )
        described, forms = describe(sources, asked), with_needed(asked.form)
        there = already_there(out, described)
        if not there:
            sample = Sample(videos=videos, seed=asked.seed, chunk_seconds=asked.chunk_seconds)
            make(sample, out, described, forms=forms, workers=asked.workers)
        report(videos, out, "already there" if there else "made", forms=forms)

    return run_tool("make_sample_dataset", work, interrupted="nothing was written")


if __name__ == "__main__":
    run_main(main)
