"""How fast the loader is, beside every other way to load the same footage, and beside the limits of any loader.

    python -m benchmarks.loader [--only PATTERN ...] [--rounds 5] [--workers 2] [--full] [--dry-run]

All sides run in turn, round by round: our ClipLoader with each decoder; decord on 300 s chunks (the reference way);
torchcodec, PyAV and webdataset with torch transforms and DataLoader workers; DALI's webdataset reader with sampling in
the graph. limits.py has the limits. Each figure is a median of the rounds, each ratio a median of the rounds' ratios.
The time of an epoch runs from the request for its first batch to its last batch; processes and pipelines exist before.
With a GPU, the rows of gpu.py follow. docs/PERFORMANCE.md explains the names of the rows.

The first run renders the footage and makes chunks and shard sets (minutes) under data/benchmark/loader. Writes
benchmarks/results/loader.json and the tables of docs/PERFORMANCE_TABLES.md between its markers.
"""

from __future__ import annotations

import argparse
import fnmatch
import os
import time
from typing import Any

import torch

from benchmarks import common
from benchmarks.common import ROOT
from benchmarks.loader.footage import Material
from benchmarks.loader.gpu import dry_run, gpu_job, gpu_rows, measure_gpu
from benchmarks.loader.report import FORM, RESULTS, machine, row_text, write_results
from benchmarks.loader.rows import core_rows, full_rows, job_of
from benchmarks.loader.sides import PEERS, measure
from lavila.files import user_path


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--only", nargs="+", metavar="PATTERN", help="rows whose name contains one of these (* and ?)")
    add("--rounds", type=int, default=5, help="timings of each figure (5)")
    add("--workers", type=int, default=min(2, len(os.sched_getaffinity(0))), help="threads or processes a side (2)")
    add("--full", action="store_true", help="the whole grid instead of the rows with goals; many hours on two cores")
    add("--dry-run", action="store_true", help="make every row with tiny footage, GPU graphs included; time nothing")
    add("--tiny", action="store_true", help="measure with tiny footage, to try the script out; needs --out")
    add("--material", type=user_path, metavar="DIR", help="where the footage is kept (data/benchmark/loader)")
    add("--out", type=user_path, metavar="DIR", help="write loader.json and the tables there instead")
    args = parser.parse_args(argv)
    if args.rounds < 1 or args.workers < 1:
        parser.error(f"--rounds {args.rounds} --workers {args.workers}: give 1 or more of each")
    if args.tiny and not args.out and not args.dry_run:
        parser.error("--tiny: its figures mean nothing and must not replace those of the docs; give --out DIR")
    return args


def material_of(args: argparse.Namespace) -> Material:
    """The footage to measure with."""
    if args.tiny or args.dry_run:
        return Material.tiny(args.material or ROOT / "data/benchmark/loader-tiny")
    return Material(folder=args.material or ROOT / "data/benchmark/loader")


def chosen(rows: list[Any], args: argparse.Namespace) -> list[Any]:
    """The rows asked for. SystemExit where there is none."""
    found = [row for row in rows if any(fnmatch.fnmatch(row.name, f"*{part}*") for part in args.only or [""])]
    if not found and rows:
        names = "; ".join(row.name for row in rows)
        raise SystemExit(f"--only {' '.join(args.only)}: no such row; there are: {names}")
    return found


def check(rows: list[Any], gpu: list[Any], material: Material) -> None:
    """Make every row's job and the graphs of the GPU rows, and print which sides can run here."""
    for row in rows:
        job = job_of(row, material)
        assert job.plan.batch(0, 0), row.name
        print(f"{row.name}: {job.clips} clips, batches of {job.batch_size}")
    for name, peer in PEERS.items():
        print(f"{name}: {peer.needs(job) or 'can run'}")
    for row in gpu:
        dry_run(row, gpu_job(row, material))
        print(f"{row.name}: graphs made")


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    args = parse(argv)
    material, cuda = material_of(args), torch.cuda.is_available()
    every = [*(full_rows() if args.full else core_rows(args.workers)), *gpu_rows()]
    wanted = chosen(every, args)
    gpu = [row for row in wanted if row.name.startswith("gpu")]
    rows = [row for row in wanted if row not in gpu]
    if args.dry_run:
        check(rows, gpu, material)
        return 0
    for row in rows:  # all footage is made before the first timing
        job_of(row, material)
    results: list[dict[str, Any]] = []
    variants: dict[Any, str] = {}
    for row in [*rows, *(gpu if cuda else [])]:
        began = time.perf_counter()
        if row in gpu:
            found = measure_gpu(row, gpu_job(row, material), rounds=args.rounds)
        else:
            found = measure(row, job_of(row, material), rounds=args.rounds, variants=variants)
        print(row_text(row.name, found, seconds=time.perf_counter() - began), flush=True)
        results += found
    if gpu and not cuda:
        print(f"no GPU here: {len(gpu)} rows were not measured; run the same command on a GPU machine")
    report = {"form": FORM, "machine": machine(), "rows": results}
    out = args.out
    if out:
        write_results(report, results=out / "loader.json", tables=out / common.TABLES.name)
    else:
        write_results(report, results=RESULTS, tables=common.TABLES)
        print("run python -m benchmarks.summary next: it draws the chart and writes the numbers of README.md")
    return 0
