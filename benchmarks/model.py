"""How fast the TimeSformer is and how much memory it takes, beside the reference arithmetic and the machine's limit.

    python -m benchmarks.model [--models B L] [--steps forward forward+backward] [--precisions fp32 bf16]
                               [--checkpointing off on] [--compile off on] [--threads N] [--device cpu]
    python -m benchmarks.model --dry-run

The reference is benchmarks/reference_timesformer.py. Both sides have the same weights and run in turn in one process.
So does a matrix product of the MLP's shape. Its rate gives the limit: operations of our side over rate. Times on a CPU
are process time, which other work on the machine disturbs least; the result file has wall time, too.

Peak memory is what one step adds to the weights and the input, gradients included. Each side runs in a separate
process, after one step as a warm-up. On a CPU it is the highest resident size during the step (VmHWM, reset before it)
less the resident size before it; malloc returns freed tensors to the system at once. On a GPU it is
torch.cuda.max_memory_allocated less what was allocated before. bf16 is autocast over float32 weights. Each block is
compiled by itself (`block.compile()`).

Writes benchmarks/results/model.json, where a row replaces the row of the same case on the same processor, and the
table of docs/PERFORMANCE_TABLES.md between its markers. Numbers are medians: compare the two sides of a row, not the
seconds of two rows.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import importlib.util
import itertools
import json
import multiprocessing
import os
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import common
from benchmarks.common import TABLES, fill_docs, machine
from benchmarks.reference_timesformer import reference_of
from lavila.models.timesformer import TimeSformer, TimeSformerConfig

RESULTS = common.RESULTS / "model.json"
M_MMAP_THRESHOLD = -3  # the parameter of mallopt, from malloc.h
SIDES = ("ours", "reference")

# Temporal attention not at its zero start, so that every part of the arithmetic shows in the output.
BASE = TimeSformerConfig(zero_time_attention=False)
SIZES = {
    "B": BASE,
    "L": replace(BASE, patch_size=14, width=1024, depth=24, heads=16),
    "tiny": replace(BASE, image_size=64, patch_size=8, width=64, depth=2, heads=4),
}


@dataclass(frozen=True)
class Case:
    """One row: what is timed."""

    model: str  # key of SIZES
    step: str  # forward (no gradients) or forward+backward
    precision: str  # fp32 or bf16
    checkpointing: bool
    compiled: bool
    batch: int  # clips
    frames: int
    depth: int  # blocks
    device: str
    threads: int

    @property
    def config(self) -> TimeSformerConfig:
        """The numbers of our side and of the reference."""
        frames = max(self.frames, SIZES[self.model].num_frames)
        checkpointing = self.checkpointing
        size = SIZES[self.model]
        return replace(size, depth=self.depth, num_frames=frames, gradient_checkpointing=checkpointing)

    def __str__(self) -> str:
        extras = [name for name in ("checkpointing", "compiled") if getattr(self, name)]
        return " ".join([self.model, self.step, self.precision, *extras])


def sides_of(case: Case) -> dict[str, TimeSformer]:
    torch.manual_seed(0)
    with torch.device(case.device):
        ours = TimeSformer(case.config)
    sides = {"ours": ours, "reference": reference_of(ours)}
    if case.compiled:
        for model in sides.values():
            for block in model.blocks:
                block.compile()
    return sides


def video_of(case: Case) -> Tensor:
    torch.manual_seed(1)
    side = case.config.image_size
    return torch.randn(case.batch, 3, case.frames, side, side, device=case.device)


def run_step(case: Case, model: TimeSformer, video: Tensor) -> Tensor:
    """One step from cleared gradients; returns the class tokens."""
    model.zero_grad(set_to_none=True)
    half = torch.autocast(torch.device(case.device).type, torch.bfloat16) if case.precision == "bf16" else nullcontext()
    with torch.set_grad_enabled(case.step != "forward"), half:
        out: Tensor = model(video)
    if case.step != "forward":
        torch.autograd.backward(out.float().square().mean())
    if case.device != "cpu":
        torch.cuda.synchronize()
    return out.detach().float()


def operations(case: Case, side: str) -> int:
    """Floating-point operations of the matrix products of one step, recomputation of whole blocks left out."""
    plain = replace(case, checkpointing=False, compiled=False, device="meta", precision="fp32")
    model = sides_of(plain)[side]
    with FlopCounterMode(display=False) as counter:
        run_step(replace(plain, device="cpu"), model, video_of(plain))
    total: int = counter.get_total_flops()
    return total


def product_of(case: Case) -> tuple[Callable[[], None], int]:
    """A matrix product of the MLP's shape, ten times over, and its operations."""
    kind = torch.bfloat16 if case.precision == "bf16" else torch.float32
    width, rows = case.config.width, case.batch * (1 + case.frames * case.config.grid**2)
    left = torch.randn(rows, width, device=case.device, dtype=kind)
    right = torch.randn(4 * width, width, device=case.device, dtype=kind)

    def ten() -> None:
        for _ in range(10):
            torch.mm(left, right.T)
        if case.device != "cpu":
            torch.cuda.synchronize()

    return ten, 10 * 2 * rows * width * 4 * width


def time_case(case: Case, rounds: int) -> dict[str, Any]:
    """Seconds of both sides and of the product, in turn; runs in a separate process."""
    torch.set_num_threads(case.threads)
    sides, video = sides_of(case), video_of(case)
    product, product_operations = product_of(case)
    jobs: dict[str, Callable[[], object]] = {"product": product}
    jobs |= {side: lambda model=model: run_step(case, model, video) for side, model in sides.items()}  # type: ignore[misc]
    outputs = [run_step(case, model, video) for model in sides.values()]
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in jobs}
    product()
    for _ in range(rounds):
        for name, job in jobs.items():
            cpu, wall = time.process_time(), time.perf_counter()
            job()
            spent[name].append((time.process_time() - cpu, time.perf_counter() - wall))
    medians = {
        name: [statistics.median(column) for column in zip(*times, strict=True)] for name, times in spent.items()
    }
    clock = 0 if case.device == "cpu" else 1
    return {
        **{side: {"cpu_seconds": medians[side][0], "wall_seconds": medians[side][1]} for side in SIDES},
        "time_ratio": medians["reference"][clock] / medians["ours"][clock],
        "wall_ratio": medians["reference"][1] / medians["ours"][1],
        "matmul_per_second": product_operations / medians["product"][clock],
        "difference": float((outputs[0] - outputs[1]).abs().max() / outputs[1].abs().max()),
    }


def resident(field: str) -> int:
    """VmRSS or VmHWM of this process, bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])


def peak_of(case: Case, side: str) -> dict[str, int]:
    """Bytes that one step adds to weights and input, and bytes of the weights; runs in a separate process."""
    torch.set_num_threads(case.threads)
    if case.device == "cpu":
        # Each tensor gets a separate mapping: a freed one leaves the resident size at once, and no heap keeps holes.
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 1 << 16)
    model, video = sides_of(case)[side], video_of(case)
    run_step(case, model, video)
    model.zero_grad(set_to_none=True)
    gc.collect()
    if case.device == "cpu":
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before = resident("VmRSS")
        run_step(case, model, video)
        peak = resident("VmHWM") - before
    else:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run_step(case, model, video)
        peak = torch.cuda.max_memory_allocated() - before
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    return {"peak_bytes": peak, "weight_bytes": weights}


def in_fresh_process(function: Callable[..., Any], *args: Any) -> Any:
    """function(*args) in a child that holds nothing but imports. MemoryError when it dies."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.model"])  # so that no child imports anything
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            return pool.submit(function, *args).result()
        except BrokenProcessPool:
            raise MemoryError("its process died, most likely of too little memory") from None


def cannot(case: Case) -> str | None:
    """Why this machine cannot run a case, or None."""
    cuda = case.device != "cpu"
    if case.compiled and cuda and importlib.util.find_spec("triton") is None:
        return "torch.compile needs triton here"
    if case.compiled and not cuda and not any(shutil.which(name) for name in ("g++", "clang++", "c++")):
        return "torch.compile needs a C++ compiler here"
    return None


def measure(case: Case, rounds: int) -> dict[str, Any]:
    """One row."""
    timed = in_fresh_process(time_case, case, rounds)
    for side in SIDES:
        timed[side] |= in_fresh_process(peak_of, case, side)
        timed[side]["operations"] = in_fresh_process(operations, case, side)
    ours, theirs = (timed[side] for side in SIDES)
    limit = ours["operations"] / timed["matmul_per_second"]
    whole = [side["peak_bytes"] + side["weight_bytes"] for side in (ours, theirs)]
    return {
        **asdict(case),
        **timed,
        "peak_ratio": ours["peak_bytes"] / max(theirs["peak_bytes"], 1),
        "peak_ratio_with_weights": whole[0] / whole[1],
        "limit_seconds": limit,
        "limit_ratio": theirs["cpu_seconds" if case.device == "cpu" else "wall_seconds"] / limit,
        "rounds": rounds,
        "machine": machine_of(case),
    }


def machine_of(case: Case) -> dict[str, Any]:
    return machine("torch", "timm", gpu=torch.cuda.get_device_name() if case.device != "cpu" else None)


def shown(row: dict[str, Any]) -> str:
    case = Case(**{name: row[name] for name in Case.__dataclass_fields__})
    return (
        f"{str(case)!s:46} {row['time_ratio']:5.2f}x as fast (at the limit {row['limit_ratio']:.2f}x), "
        f"peak {row['peak_ratio']:.2f} of the reference's ({row['peak_ratio_with_weights']:.2f} with weights)"
    )


def table(rows: list[dict[str, Any]]) -> str:
    """The Markdown of docs/PERFORMANCE_TABLES.md."""
    header = "| model | step | precision | checkpointing | compiled | on | times as fast | at the limit | peak memory"
    lines = [f"{header} | with weights |", "| --- " * 10 + "|"]
    for row in rows:
        full = SIZES[row["model"]].depth
        size = row["model"] + (f", {row['depth']} of {full} blocks" if row["depth"] != full else "")
        cells = [f"{size}, {row['batch']} x {row['frames']} frames", row["step"], row["precision"]]
        cells += ["yes" if row[name] else "no" for name in ("checkpointing", "compiled")]
        cells += [row["machine"].get("gpu") or f"CPU, {row['threads']} thread{'s' * (row['threads'] > 1)}"]
        cells += [f"{row[name]:.2f}" for name in ("time_ratio", "limit_ratio", "peak_ratio", "peak_ratio_with_weights")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def identity(row: dict[str, Any]) -> tuple[Any, ...]:
    about = row["machine"]
    return (*(row[name] for name in Case.__dataclass_fields__), about["processor"], about.get("gpu"))


def store(rows: list[dict[str, Any]], skipped: list[dict[str, Any]]) -> None:
    """Replace older rows of the same cases; then write the table of the docs."""
    known = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {"rows": [], "skipped": []}
    merged = {identity(row): row for row in [*known["rows"], *rows]}
    known = {"rows": sorted(merged.values(), key=lambda row: [str(part) for part in identity(row)]), "skipped": skipped}
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(known, indent=1) + "\n")
    fill_docs("model", table(known["rows"]), TABLES)


def cases_of(args: argparse.Namespace) -> list[Case]:
    flags = {"off": False, "on": True}
    grid = itertools.product(args.models, args.steps, args.precisions, args.checkpointing, args.compile)
    return [
        Case(
            model=model,
            step=step,
            precision=precision,
            checkpointing=flags[checkpointing],
            compiled=flags[compiled],
            batch=args.batch,
            frames=args.frames,
            depth=args.depth or SIZES[model].depth,
            device=args.device,
            threads=args.threads,
        )
        for model, step, precision, checkpointing, compiled in grid
        if not (step == "forward" and checkpointing == "on")  # nothing to save
    ]


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    several: dict[str, Any] = {"nargs": "+"}
    parser.add_argument("--models", **several, choices=["B", "L"], default=["B", "L"])
    parser.add_argument(
        "--steps", **several, choices=["forward", "forward+backward"], default=["forward", "forward+backward"]
    )
    parser.add_argument("--precisions", **several, choices=["fp32", "bf16"], default=["fp32", "bf16"])
    for name in ("--checkpointing", "--compile"):
        parser.add_argument(name, **several, choices=["off", "on"], default=["off", "on"])
    parser.add_argument("--batch", type=int, default=1, help="clips (1)")
    parser.add_argument("--frames", type=int, default=16, help="frames of a clip (16)")
    parser.add_argument("--depth", type=int, help="blocks, instead of the model's own number")
    parser.add_argument("--rounds", type=int, default=5, help="timings of each figure (5)")
    parser.add_argument(
        "--threads", type=int, default=len(os.sched_getaffinity(0)), help="threads on a CPU (all cores)"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dry-run", action="store_true", help="run a tiny model once; write nothing")
    args = parser.parse_args(argv)
    if args.dry_run:
        args.models, args.steps, args.precisions = ["tiny"], ["forward+backward"], ["fp32"]
        args.checkpointing, args.compile, args.rounds, args.threads = ["off"], ["off"], 1, 1
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    rows, skipped = [], []
    for case in cases_of(args):
        try:
            reason = cannot(case)
            if reason is None:
                rows.append(measure(case, args.rounds))
                print(shown(rows[-1]), flush=True)
        except (MemoryError, torch.OutOfMemoryError) as error:
            reason = str(error)
        if reason is not None:
            skipped.append({**asdict(case), "reason": reason})
            print(f"{case}: skipped, {reason}", flush=True)
        if not args.dry_run:
            store(rows, skipped)
    if args.dry_run:
        print(json.dumps(rows))
    return 1 if args.dry_run and skipped else 0


if __name__ == "__main__":
    sys.exit(main())
