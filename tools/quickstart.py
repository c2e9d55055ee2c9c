"""Runs the whole way at once: sample dataset, shards, training, evaluation, report. `make quickstart` calls it.

Every step is a command that you would type for real data. The script prints each before it runs it. It keeps what an
earlier run made, so a second run does only what is missing.
"""

from __future__ import annotations

if __name__ == "__main__":
    from lavila.interrupts import end_early, run_main

    end_early()

import argparse
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from lavila.report.files import append_stage

ROOT = Path(__file__).resolve().parents[1]
SOURCE, SHARDS, RUN = Path("data/sample/source"), Path("data/sample/shards"), Path("runs/quickstart")
FOOTAGE = "assets/bigbuckbunny.mp4"
INTERRUPTED = 130  # exit status
END_SECONDS = 10  # for which an interrupted command may end by itself


class Step(NamedTuple):
    """One command on the way."""

    name: str
    output: Path | None  # the folder that it makes; None for train.py and evaluate.py, which find out what is left
    command: list[str]  # a script of the repository and its arguments


def steps() -> list[Step]:
    """All steps, in order."""
    sample = ["tools/make_sample_dataset.py", "--footage", FOOTAGE, "--out", str(SOURCE)]
    return [
        Step("sample_dataset", SOURCE, [*sample, "--height", "80", "--fps", "15", "--train-clips", "720"]),
        shard("train", dataset="ek100_cls", split="train", out=SHARDS / "train"),
        shard("val", dataset="ek100_cls", split="val", out=SHARDS / "val"),
        Step("train", None, ["train.py", "--config", "quickstart"]),
        Step("evaluate", None, ["evaluate.py", "--config", "quickstart"]),
    ]


def shard(
    name: str,
    *,
    dataset: str,
    split: str,
    out: Path,
    annotations: Path = SOURCE / "annotations",
    videos: Path = SOURCE / "videos",
) -> Step:
    """The step that stores a split of a sample dataset as a shard set."""
    # The model sees 32 pixels of crops that are nearly as high as the picture: 64 lines are enough for them.
    command = ["tools/shard_videos.py", "--dataset", dataset, "--annotations", str(annotations)]
    command += ["--videos", str(videos), "--short-side", "64"]
    # On CPUs H.264 decodes in half the time of VP9. GPUs decode it at this size, and VP9 only from 128 lines on.
    # To code clips as small as possible (the default) takes twice as long, and these are read from memory.
    command += ["--codec", "h264", "--speed", "superfast"]
    return Step(f"shard_{name}", out, [*command, "--split", split, "--out", str(out)])


def run_command(command: Sequence[str]) -> int:
    """The exit status of a command of this project.

    A terminal sends Ctrl-C to the command as well: it may end in its own way before KeyboardInterrupt is raised here.
    """
    with subprocess.Popen([sys.executable, *command], cwd=ROOT) as process:
        try:
            return process.wait()
        except KeyboardInterrupt:
            try:
                process.wait(timeout=END_SECONDS)
            except subprocess.TimeoutExpired:  # the signal was for this process alone
                process.terminate()
            raise


def run_steps(steps: Sequence[Step], *, stages: Path) -> int:
    """Show and run each command, up to the first that fails. Returns its exit status, or 0.

    stages: a run's folder, whose stages.jsonl gets the seconds of the steps that make data.
    """
    for name, output, command in steps:
        fresh = output is not None and not (ROOT / output).exists()
        if output is not None and name.startswith("shard") and not fresh:
            command = [*command, "--resume"]  # an earlier run may have been interrupted
        print(f"\n$ python {shlex.join(command)}", flush=True)
        started = time.perf_counter()
        program = Path(sys.argv[0]).stem
        try:
            status = run_command(command)
        except KeyboardInterrupt:
            print(f"\n{program}: interrupted in the step '{name}'; the same command continues", file=sys.stderr)
            return INTERRUPTED
        if status:
            print(f"\n{program} stopped: the step '{name}' failed (status {status}); see above", file=sys.stderr)
            return status
        if fresh:  # train.py and evaluate.py record their times themselves
            append_stage(ROOT / stages, name, time.perf_counter() - started)
    return 0


def main() -> int:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    began = time.perf_counter()
    if status := run_steps(steps(), stages=RUN):
        return status
    print(
        f"\nDone in {time.perf_counter() - began:.0f} s. Look at the report:\n\n    {RUN}/report.html\n\n"
        "Next, with EPIC-KITCHENS-100 at hand, make its shards and train on them:\n\n"
        "    python tools/shard_videos.py --dataset ek100_cls --annotations epic-kitchens-100-annotations "
        "--videos EPIC-KITCHENS --split train --out data/ek100/shards/train"
    )
    return 0


if __name__ == "__main__":
    run_main(main)
