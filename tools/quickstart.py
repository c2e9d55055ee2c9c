"""Runs the whole way at once: sample dataset, shards, training, evaluation, report. `make quickstart` calls it.

Every step is a command that you would type for real data. The script prints each before it runs it. It keeps what an
earlier run made, so a second run does only what is missing.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import time
from pathlib import Path

from lavila.report.files import append_stage

ROOT = Path(__file__).resolve().parents[1]
SOURCE, SHARDS, RUN = Path("data/sample/source"), Path("data/sample/shards"), Path("runs/quickstart")


def steps() -> list[tuple[str, Path | None, list[str]]]:
    """Name, output folder (None: the run's own), and command of each step."""
    shard = ["tools/shard_videos.py", "--dataset", "ek100_cls", "--annotations", f"{SOURCE}/annotations"]
    shard += ["--videos", f"{SOURCE}/videos", "--short-side", "96"]
    # On CPUs H.264 decodes in half the time of VP9. GPUs decode it at this size, and VP9 only from 128 lines on.
    shard += ["--codec", "h264"]
    sample = ["tools/make_sample_dataset.py", "--footage", "assets/bigbuckbunny.mp4", "--out", str(SOURCE)]
    return [
        ("sample_dataset", SOURCE, [*sample, "--height", "112", "--fps", "15", "--train-clips", "720"]),
        ("shard_train", SHARDS / "train", [*shard, "--split", "train", "--out", f"{SHARDS}/train"]),
        ("shard_val", SHARDS / "val", [*shard, "--split", "val", "--out", f"{SHARDS}/val"]),
        ("train", None, ["train.py", "--config", "quickstart"]),
        ("evaluate", None, ["evaluate.py", "--config", "quickstart"]),
    ]


def main() -> int:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    began = time.perf_counter()
    for name, output, command in steps():
        fresh = output is not None and not (ROOT / output).exists()
        if output is not None and name.startswith("shard") and not fresh:
            command = [*command, "--resume"]  # an earlier run may have been interrupted
        print(f"\n$ python {shlex.join(command)}", flush=True)
        started = time.perf_counter()
        result = subprocess.run([sys.executable, *command], cwd=ROOT, check=False)
        if result.returncode:
            print(
                f"\nquickstart stopped: the step '{name}' failed (status {result.returncode}); see above",
                file=sys.stderr,
            )
            return result.returncode
        if fresh:  # train.py and evaluate.py record their times themselves
            append_stage(ROOT / RUN, name, time.perf_counter() - started)
    print(
        f"\nDone in {time.perf_counter() - began:.0f} s. Look at the report:\n\n    {RUN}/report.html\n\n"
        "Next, with EPIC-KITCHENS-100 at hand, make its shards and train on them:\n\n"
        "    python tools/shard_videos.py --dataset ek100_cls --annotations epic-kitchens-100-annotations "
        "--videos EPIC-KITCHENS --split train --out data/ek100/shards/train"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
