"""How fast tools/shard_videos.py makes a large set, how much memory a worker takes, and how large the set is.

    python -m benchmarks.sharding [--clips 10000] [--workers N]

Makes one hour of video out of the footage in assets/, and annotations of overlapping one-second clips in the form of
EPIC-KITCHENS-100. The pictures are small, so that the encoder takes little of the time. Stores the clips in a run with
layout "clips" and in another with layout "chunks". Writes benchmarks/results/sharding.json and the table of
docs/SHARDS.md between its markers.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import av

from benchmarks import common
from benchmarks.common import RESULTS, ROOT, fill_docs
from lavila.shards.reader import open_shard_set

FOOTAGE, SCRATCH = ROOT / "assets/bigbuckbunny.mp4", common.SCRATCH / "sharding"
DOCS = ROOT / "docs/SHARDS.md"
SECONDS, HEIGHT, WIDTH = 3600, 96, 160
COLUMNS = ["narration_id", "participant_id", "video_id", "start_timestamp", "stop_timestamp", "narration", "verb_class"]


def make_video(path: Path) -> None:
    """An hour: the footage once, coded small, and its packets again and again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    once = path.with_name("once.mp4")
    with av.open(str(FOOTAGE)) as source, av.open(str(once), "w") as out:
        stream: Any = out.add_stream("libx264", rate=25, options={"preset": "veryfast", "g": "25", "bf": "0"})
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        for number, frame in enumerate(source.decode(video=0)):
            small = frame.reformat(width=WIDTH, height=HEIGHT, format="yuv420p")
            small.pts, small.time_base = number, Fraction(1, 25)
            out.mux(stream.encode(small))
        out.mux(stream.encode(None))
    with av.open(str(once)) as source, av.open(str(path), "w") as out:
        packets = [packet for packet in source.demux(video=0) if packet.size]
        copy: Any = out.add_stream_from_template(source.streams.video[0])
        period = packets[-1].pts + packets[-1].duration
        unit = packets[0].time_base
        times = [(packet.pts, packet.dts) for packet in packets]
        for turn in range(int(SECONDS / float(period * unit)) + 1):
            for packet, (pts, dts) in zip(packets, times, strict=True):
                packet.pts, packet.dts, packet.stream = pts + turn * period, dts + turn * period, copy
                out.mux(packet)
    once.unlink()


def stamp(hundredths: int) -> str:
    """A time as the published csv writes it."""
    seconds, rest = divmod(hundredths, 100)
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}.{rest:02}"


def write_annotations(folder: Path, clips: int) -> None:
    """Clips of one second, spread over the hour."""
    folder.mkdir(parents=True)
    rows = []
    for number in range(clips):
        start = number * 100 * (SECONDS - 2) // clips
        rows.append([f"P01_01_{number}", "P01", "P01_01", stamp(start), stamp(start + 100), f"take plate {number}", 0])
    for name in ("train", "validation"):
        with (folder / f"EPIC_100_{name}.csv").open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([[*COLUMNS, "noun_class"], *([*row, 0] for row in rows)])
    for kind in ("verb", "noun"):
        (folder / f"EPIC_100_{kind}_classes.csv").write_text(f"id,key,instances,category\r\n0,{kind},[],none\r\n")


def run(out: Path, *more: str) -> tuple[float, float]:
    """Seconds that the tool takes, and MiB of its largest process so far."""
    command = [sys.executable, "tools/shard_videos.py", "--dataset", "ek100_cls", "--out", str(out)]
    command += ["--annotations", str(SCRATCH / "annotations"), "--videos", str(SCRATCH / "videos")]
    command += ["--short-side", "96", "--codec", "h264", "--speed", "ultrafast", "--shard-size", "16MB", *more]
    began = time.perf_counter()
    subprocess.run(command, cwd=ROOT, check=True)
    return time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024


def measure(layout: str, clips: int, workers: int) -> dict[str, Any]:
    """One set made and looked at."""
    out = SCRATCH / layout
    seconds, memory = run(out, "--layout", layout, "--workers", str(workers))
    shards = open_shard_set(out)
    assert len(shards) == clips, (len(shards), clips)
    size = sum(shard.bytes for shard in shards.shards)
    return {
        "layout": layout,
        "clips": clips,
        "tars": len(shards.shards),
        "seconds": seconds,
        "clips_per_second": clips / seconds,
        "times_real_time": shards.manifest["seconds"] / seconds,
        "set_bytes": size,
        "table_bytes": sum(path.stat().st_size for path in out.glob("*.parquet")),
        "largest_process_mib": memory,
    }


def write_table(rows: list[dict[str, Any]], *, cores: int) -> None:
    """The table of docs/SHARDS.md."""
    lines = [
        f"`python -m benchmarks.sharding`, {cores} workers, one-second clips of {WIDTH}x{HEIGHT} out of one hour:",
        "",
        "| layout | clips | seconds | clips/s | tars | tars and indexes | tables | largest process |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {row['layout']} | {row['clips']} | {row['seconds']:.0f} | {row['clips_per_second']:.0f} | {row['tars']} "
        f"| {row['set_bytes'] / 1e6:.1f} MB | {row['table_bytes'] / 1e3:.0f} KB "
        f"| {row['largest_process_mib']:.0f} MiB |"
        for row in rows
    ]
    fill_docs("sharding", "\n".join(lines), DOCS)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=10_000, help="number of clips (10000)")
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--workers", type=int, default=cores, help=f"processes (all cores: {cores})")
    args = parser.parse_args()
    shutil.rmtree(SCRATCH, ignore_errors=True)
    make_video(SCRATCH / "videos/P01/P01_01.MP4")
    write_annotations(SCRATCH / "annotations", args.clips)
    rows = [measure(layout, args.clips, args.workers) for layout in ("clips", "chunks")]
    for row in rows:
        print(
            f"{row['layout']:7} {row['clips']} clips in {row['seconds']:.0f} s, {row['clips_per_second']:.0f} clips/s; "
            f"{row['set_bytes'] / 1e6:.1f} MB in {row['tars']} tars; {row['largest_process_mib']:.0f} MiB at the most"
        )
    machine = {"workers": args.workers, **common.machine("av", "pyarrow")}
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "sharding.json").write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")
    write_table(rows, cores=args.workers)
    print(f"written: {(RESULTS / 'sharding.json').relative_to(ROOT)}, and the table of {DOCS.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
