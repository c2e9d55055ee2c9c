"""What a GPU does with our clips, learnt in a few minutes: one command for the first GPU that is available.

    python -m benchmarks.gpu --minutes 8 --out DIR [--only PART ...] [--stub] [--tiny]

Each part is a process with a time limit. It writes DIR/<part>.json after every number, so that what was learnt before a
crash or the end of the time is kept. The parts come in the order of how much they teach:

    small      a 64 x 112 VP9 clip, which is below the chips' least size: an error, or an abort?
    chip       names, engines and sizes, as the driver gives them
    pictures   NVDEC against the CPU at 512 x 288: VP9, H.264, HEVC; whole, reduced and from chunks
    zeroed     packets of zeros: an error, or silent pictures?
    rates      clips/s of NVDEC by threads and by last wanted frame, whole and reduced
    host       CPU decoding with all cores: drawn by threads, or by the GPU
    decoders   2,000 clips: GPU memory, and the time of batches, of one size and of changing sizes
    stream     batches on PyTorch's stream, and batches that the host waits for
    step       a training step of TimeSformer B and L in bfloat16, and its data wait, with each decoder
    model      the rows of benchmarks.model for the GPU
    narrator   the row of benchmarks.narrator for the GPU

--stub tries the script where there is no GPU. Each stub has a name, which the results list: `stubs.py` says what it
stands for. --tiny uses small clips and few rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from benchmarks import common
from benchmarks.common import ROOT
from lavila.files import user_path

MATERIAL_SECONDS = 120  # time limit of making clips, which needs no GPU


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part, and at most how many seconds it may take of every 480."""

    name: str
    seconds: int


PARTS = (
    Part(name="small", seconds=25),
    Part(name="chip", seconds=20),
    Part(name="pictures", seconds=40),
    Part(name="zeroed", seconds=30),
    Part(name="rates", seconds=110),
    Part(name="host", seconds=45),
    Part(name="decoders", seconds=45),
    Part(name="stream", seconds=30),
    Part(name="step", seconds=90),
    Part(name="model", seconds=60),
    Part(name="narrator", seconds=40),
)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--minutes", type=float, default=8.0, help="time for all parts together (8)")
    add("--out", type=user_path, metavar="DIR", required=True, help="folder of the results")
    names = [part.name for part in PARTS]
    add("--only", nargs="+", metavar="PART", choices=names, default=names, help=f"of {', '.join(names)}")
    add("--material", type=user_path, metavar="DIR", default=common.SCRATCH / "gpu", help="where the clips are kept")
    add("--stub", action="store_true", help="stand-ins for what needs a driver, to try the script without a GPU")
    add("--tiny", action="store_true", help="small clips and few rounds; the figures mean nothing")
    args = parser.parse_args(argv)
    if args.minutes <= 0:
        parser.error(f"--minutes {args.minutes:g}: give more than 0")
    return args


def child(name: str, args: argparse.Namespace) -> list[str]:
    """The command of a part."""
    command = [sys.executable, "-m", "benchmarks.gpu.parts", name, "--out", str(args.out)]
    command += ["--material", str(args.material)]
    return command + [f"--{flag}" for flag in ("stub", "tiny") if getattr(args, flag)]


def run_part(name: str, args: argparse.Namespace, *, seconds: float) -> dict[str, Any]:
    """Run a part. Returns how it ended, and the last lines that it wrote to stderr."""
    began = time.monotonic()
    # A separate session: processes that the part has started are stopped with it.
    process = subprocess.Popen(
        child(name, args), cwd=ROOT, stderr=subprocess.PIPE, text=True, errors="replace", start_new_session=True
    )
    try:
        _, said = process.communicate(timeout=seconds)
        ended = "whole" if process.returncode == 0 else f"status {process.returncode}"
        if process.returncode < 0:
            ended = f"killed by signal {-process.returncode}"
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        _, said = process.communicate()
        ended = f"stopped after {seconds:.0f} s"
    finally:  # also of an interrupted run
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    lines = [] if ended == "whole" else said.strip().splitlines()[-15:]
    return {"ended": ended, "seconds": round(time.monotonic() - began, 1), "stderr": lines}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the parts that fit into the time. Returns 0 if all that ran ended by themselves, else 1."""
    args = parse(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    began, ends = time.monotonic(), {}
    made = run_part("material", args, seconds=min(MATERIAL_SECONDS, 60 * args.minutes))
    print(f"material: {made['ended']}, {made['seconds']} s", flush=True)
    for part in PARTS:
        if part.name not in args.only:
            continue
        left = 60 * args.minutes - (time.monotonic() - began)
        if left < 1:
            ends[part.name] = {"ended": "no time was left"}
        else:
            ends[part.name] = run_part(part.name, args, seconds=min(left, part.seconds * max(args.minutes / 8, 1)))
        print(
            f"{part.name}: {ends[part.name]['ended']}", *ends[part.name].get("stderr", ())[-3:], sep="\n  ", flush=True
        )
        (args.out / "parts.json").write_text(json.dumps({"material": made, **ends}, indent=1) + "\n")
    return 0 if all(end["ended"] == "whole" for end in [made, *ends.values()]) else 1
