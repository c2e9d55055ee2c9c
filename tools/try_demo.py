"""Makes something to search in, and opens the demo's page on it. `make demo` runs it, on a fresh machine in minutes.

A tiny dual encoder learns from the sample dataset what a camera does and where, as in `make learn`. Then tools/demo.py
indexes other videos, of moments of the footage that the encoder has not seen. Every step is a command that is shown
before it runs, and what is there already is kept.
"""

from __future__ import annotations

if __name__ == "__main__":
    from lavila.interrupts import end_early, run_main

    end_early()

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path

import quickstart
from learn import folder
from quickstart import FOOTAGE, Step, run_command, run_steps

SOURCE, INDEX, RUNS = Path("data/demo/source"), Path("data/demo/features"), Path("runs/demo")
TRAIN_VIDEOS, VAL_VIDEOS = 1, 13  # the sample needs one of the training part, which is left out here
QUERIES = (
    "the camera zooms in on the ruins",
    "the camera pans right over the meadow",
    "the camera rotates clockwise over the woods",
)


def steps(demo: Sequence[str]) -> list[Step]:
    """All steps. demo: further options of tools/demo.py."""
    trained = folder(0, "pretraining")  # that of `make learn`
    sample = ["tools/make_sample_dataset.py", "--footage", FOOTAGE, "--out", str(SOURCE), "--seed", "1"]
    sample += ["--videos", str(TRAIN_VIDEOS + VAL_VIDEOS), "--train-clips", "14", "--val-clips", "252"]
    videos = [str(SOURCE / f"videos/P01/P01_{TRAIN_VIDEOS + 1 + number:02}.MP4") for number in range(VAL_VIDEOS)]
    command = ["tools/demo.py", "--videos", *videos, "--model", str(trained / "checkpoints"), "--index", str(INDEX)]
    command += ["--window", "1.5", "--every", "0.25", "--suggest", *QUERIES, *demo]
    return [
        *(step for step in quickstart.steps() if step.output),
        Step("pretrain", None, ["train.py", "--config", "learn_dual", "seed=0", f"run_dir={trained}"]),
        Step("footage", SOURCE, [*sample, "--height", "240", "--fps", "25", "--between", "cut"]),
        Step("demo", None, command),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--no-open", action="store_true", help="open no browser")
    parser.add_argument("--port", default="8765", metavar="N", help="of the page (%(default)s)")
    asked = parser.parse_args()
    *before, demo = steps(["--port", asked.port, *["--no-open"] * asked.no_open])
    if status := run_steps(before, stages=RUNS):
        return status
    print(f"\n$ python {shlex.join(demo.command)}", flush=True)
    try:
        return run_command(demo.command)
    except KeyboardInterrupt:  # the page was ended; the demo has said so
        return 0


if __name__ == "__main__":
    run_main(main)
