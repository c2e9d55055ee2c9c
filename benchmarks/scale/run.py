"""What a set of 4,000,000 clips in 10,000 tars costs: start-up, memory, planning, reading; and how random its order is.

    python -m benchmarks.scale [--clips 4000000] [--clip-bytes 65536] [--rounds 5]

Generates shard sets in data/benchmark/scale (about 8 GB on the disk, kept for the next run): tables like Ego4D's, tars
that are sparse files, and one set of 65,536 clips with real bytes. Then measures, each in a separate process:

- start-up of a rank up to its first batch's plan, with the table in the page cache and without. Beside it: the limit
  (mapping table and manifest alone), reading the table from Parquet, and DALI's webdataset reader, on the same tars
  with .idx files, and on a tenth of them without (then it reads the headers of all tars);
- adding two captions tables to the set;
- the plan's cost for sets of 10,000 to 4,000,000 clips;
- eight ranks that plan and read without decoding: from the sparse tars, which cost system calls only, because holes
  hold no bytes; and from real bytes with a cold page cache;
- how random an epoch is.

Writes benchmarks/results/scale.json with the machine and the versions, and its tables into docs/PERFORMANCE.md.
Seconds are medians of --rounds. Machines are shared: compare figures of one run. Disk requests are those of the whole
disk, other programs' included.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks import common
from benchmarks.common import RESULTS, ROOT
from benchmarks.scale.child import evict
from benchmarks.scale.order import compare
from benchmarks.scale.ranks import BATCH, RANKS, Reading, simulate
from benchmarks.scale.set import Made, make_captions, make_set

SCRATCH = common.SCRATCH / "scale"
PER_TAR, REAL_CLIPS, ROUNDS = 400, 65_536, 5
FULL = 1 << 62  # a window that holds any set
NEEDS = {"16 frames, base": 170, "4 frames, base": 650}  # clips/s a GPU, see `needs`


def child(name: str, *arguments: object) -> dict[str, Any]:
    """A measurement in a separate process."""
    command = [sys.executable, "-m", "benchmarks.scale.child", name, *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def middle(rounds: list[dict[str, Any]], lap: str) -> dict[str, float]:
    """Median of each figure of a lap over some rounds, and of what the process held before it."""
    figures = {name: statistics.median(each[lap][name] for each in rounds) for name in rounds[0][lap]}
    before = {
        f"{k}_before_mib": statistics.median(each["at_start_mib"][k] for each in rounds) for k in ("resident", "own")
    }
    return {**figures, **before}


def start_up(folder: Path, tenth: Path, rounds: int) -> list[dict[str, Any]]:
    """Ours, the limit and the others, in turn."""
    found: dict[str, list[dict[str, Any]]] = {}
    for _ in range(rounds):
        evict(folder / "clips.arrow", folder / "shard_set.json", *folder.glob("*.idx"))
        found.setdefault("DALI webdataset reader, with .idx, cold page cache", []).append(child("dali", folder, "with"))
        found.setdefault("lavila, cold page cache", []).append(child("start", folder))
        found.setdefault("lavila", []).append(child("start", folder))
        found.setdefault("limit: map table, parse manifest", []).append(child("mapping", folder))
        found.setdefault("clips.parquet read whole", []).append(child("parquet", folder))
        found.setdefault("DALI webdataset reader, with .idx", []).append(child("dali", folder, "with"))
        found.setdefault("DALI, without .idx, a tenth of the set", []).append(child("dali", tenth, "without"))
    last = {"lavila": "first plan", "lavila, cold page cache": "first plan"}
    rows = []
    for name, each in found.items():
        lap = last.get(name, "build" if "DALI" in name else "all")
        rows.append({"what": name, **middle(each, lap), "laps": {key: middle(each, key) for key in list(each[0])[1:]}})
    return rows


def needs(clip_bytes: int) -> list[dict[str, Any]]:
    """What a machine with eight H100 would ask for.

    Clips/s a GPU are assumed, not measured: 400 TFLOP/s reached in bf16, three forward passes' worth a training step,
    0.8 TFLOP for a TimeSformer-base forward pass of 16 frames at 224 px, and a quarter of it for 4 frames.
    """
    return [
        {
            "model": model,
            "clips_per_second_per_gpu": rate,
            "reads_per_second": 8 * rate,
            "bytes_per_second": 8 * rate * clip_bytes,
        }
        for model, rate in NEEDS.items()
    ]


def reading(folder: Path, real: Path) -> list[dict[str, Any]]:
    """Eight ranks over both kinds of tars."""
    runs = [
        Reading(name="sparse, full shuffle", folder=folder, window=FULL),
        Reading(name="sparse, windows", folder=folder, window=131_072),
    ]
    window, steps = REAL_CLIPS // 8, REAL_CLIPS // BATCH  # all of the set
    for _ in range(3):
        runs += [
            Reading(name="real bytes, cold, full shuffle", folder=real, steps=steps, window=FULL, cold=True),
            Reading(name="real bytes, cold, windows", folder=real, steps=steps, window=window, cold=True),
            Reading(
                name="real bytes, cold, windows, read_ahead",
                folder=real,
                steps=steps,
                window=window,
                read_ahead=True,
                cold=True,
            ),
            Reading(name="real bytes, in the page cache, windows", folder=real, steps=steps, window=window),
        ]
    found = [simulate(run) for run in runs]
    rows = []
    for name in dict.fromkeys(one["name"] for one in found):
        same = [one for one in found if one["name"] == name]
        rows.append(
            {
                key: statistics.median(one[key] for one in same) if isinstance(value, float) else value
                for key, value in same[0].items()
            }
        )
    return rows


def tables(result: dict[str, Any]) -> dict[str, list[str]]:
    """Rows of the tables of the documentation, by the names of their places."""
    start = ["| | s | MB resident | MB own | MB before, by imports |", "| --- | --- | --- | --- | --- |"]
    for row in result["start_up"]:
        memory = (row[name] * 1.048576 for name in ("resident_mib", "own_mib", "resident_before_mib"))
        start.append(f"| {row['what']} | {row['seconds']:.2f} | " + " | ".join(f"{mb:,.0f}" for mb in memory) + " |")
    plan = ["| clips | plan of a clip, us | first clip of an epoch, ms |", "| --- | --- | --- |"]
    for clips, cost in result["plan_cost"].items():
        plan.append(f"| {int(clips):,} | {cost['clip_us']:.0f} | {cost['epoch_ms']:.1f} |")
    read = [
        f"| {RANKS} ranks | reads/s | MB/s | CPU, us | tars opened | descriptors | disk requests | KB of each |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in result["reading"]:
        disk = f"{row['disk_requests_per_clip']:.2f} | {row['disk_bytes_per_request'] / 1e3:.0f}"
        read.append(
            f"| {row['name']} | {row['reads_per_second']:,.0f} | {row['bytes_per_second'] / 1e6:,.0f} "
            f"| {row['cpu_us_per_clip']:.0f} | {row['tar_opens_per_clip']:.2f} | {row['most_descriptors']} "
            f"| {disk if row['cold'] else '- | -'} |"
        )
    need = ["| TimeSformer-base | clips/s a GPU (assumed) | reads/s | MB/s |", "| --- | --- | --- | --- |"]
    for row in result["needs"]:
        rates = f"{row['clips_per_second_per_gpu']} | {row['reads_per_second']:,} | {row['bytes_per_second'] / 1e6:.0f}"
        need.append(f"| {row['model']} | {rates} |")
    order = ["| order | autocorrelation at 1, 8, 64 | chi-square | pairs of a video |", "| --- | --- | --- | --- |"]
    for row in result["order"]:
        lags = ", ".join(f"{row[f'autocorrelation_{lag}']:.4f}" for lag in (1, 8, 64))
        order.append(f"| {row['order']} | {lags} | {row['batch_chi_square']:.3f} | {row['pairs_of_a_video']:,.0f} |")
    return {"start": start, "plan": plan, "read": read, "needs": need, "order": order}


def show(result: dict[str, Any]) -> None:
    """Print the tables, and put them into docs/PERFORMANCE.md."""
    made = tables(result)
    print("\n\n".join("\n".join(rows) for rows in made.values()))
    words = result["captions"]
    print(f"\ntwo captions tables: {words['seconds']:.2f} s, {words['own_mib']:.0f} MiB own")
    for name, rows in made.items():
        common.fill_docs(f"scale-{name}", "\n".join(rows))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=4_000_000, help="clips of the large set (4000000)")
    parser.add_argument("--clip-bytes", type=int, default=65_536, help="bytes of a clip's mp4 (65536)")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"timings of each start-up ({ROUNDS})")
    parser.add_argument("--tables", action="store_true", help="measure nothing; write the tables of earlier results")
    args = parser.parse_args()
    path = RESULTS / "scale.json"
    if args.tables:
        show(json.loads(path.read_text(encoding="utf-8")))
        return 0
    sizes = sorted({*(size for size in (10_000, 100_000, 1_000_000) if size < args.clips), args.clips})

    def made(name: str, clips: int, content: str = "holes") -> Path:
        print(f"set {name}: {clips:,} clips", flush=True)
        tars = max(1, clips // PER_TAR)
        return make_set(SCRATCH / name, Made(clips=clips, tars=tars, clip_bytes=args.clip_bytes, content=content))

    folders = [made(f"set-{size}", size) for size in sizes]
    tenth, real = made("tenth", args.clips // 10, "headers"), made("real", REAL_CLIPS, "random")
    tables = [make_captions(SCRATCH / f"{name}.parquet", args.clips, source=name) for name in ("rephrased", "machine")]
    result: dict[str, Any] = {
        "start_up": start_up(folders[-1], tenth, args.rounds),
        "captions": middle([child("captions", folders[-1], *tables) for _ in range(args.rounds)], "all"),
        "plan_cost": child("plan_cost", *folders),
        "reading": reading(folders[-1], real),
        "needs": needs(args.clip_bytes),
        "order": compare(1_000_000, (4_096, 16_384, 65_536, 131_072), (64, 256)),
    }
    machine = common.machine("torch", "nvidia-dali-cuda130", "pyarrow", "numpy")
    about = {"clips": args.clips, "tars": args.clips // PER_TAR, "clip_bytes": args.clip_bytes, "rounds": args.rounds}
    RESULTS.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": machine, "about": about, **result}, indent=1) + "\n")
    show(result)
    print(f"written: {path.relative_to(ROOT)}; {SCRATCH.relative_to(ROOT)} may be removed")
    return 0
