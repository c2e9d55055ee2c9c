"""Whether making shards became slower: tools/shard_videos.py of this tree beside that of an earlier commit.

    python -m benchmarks.sharding_against REVISION [--rounds 5] [--clips 30]

Stores one-second clips of the footage in assets/, repeated to a minute, from each container, as H.264: that coder takes
the least time, so reading weighs most. Both trees store the same clips in turn, with one worker. Times are CPU time
(user and system) of the tool and its workers, and the median of the rounds counts. Each tree runs in its own folder,
with this environment's packages, and once before it is measured, so that all its modules are compiled.
"""

from __future__ import annotations

import argparse
import os
import pickle
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import av

from benchmarks.common import ROOT, earlier_tree

FOOTAGE = ROOT / "assets/bigbuckbunny.mp4"
SECONDS = 60


def make_video(path: Path) -> None:
    """The packets of the footage, again and again."""
    with av.open(str(FOOTAGE)) as source, av.open(str(path), "w") as out:
        stream: Any = source.streams.video[0]
        packets = [packet for packet in source.demux(stream) if packet.size]
        times = [(packet.pts, packet.dts) for packet in packets]
        period = round(len(packets) / stream.average_rate / stream.time_base)
        copy: Any = out.add_stream_from_template(stream)
        for turn in range(-(-SECONDS * stream.time_base.denominator // (period * stream.time_base.numerator))):
            for packet, (pts, dts) in zip(packets, times, strict=True):
                packet.pts, packet.dts, packet.stream = pts + turn * period, dts + turn * period, copy
                packet.time_base = stream.time_base
                out.mux(packet)


def cpu_seconds(tree: Path, videos: Path, out: Path) -> float:
    """The CPU time of storing the clips of a folder with the tool of a tree."""
    words: list[str | Path] = [
        "--dataset",
        "ego4d",
        "--annotations",
        videos / "clips.pkl",
        "--videos",
        videos,
        "--split",
        "val",
    ]
    more: list[str | Path] = ["--codec", "h264", "--workers", "1", "--out", out]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, tree / "tools/shard_videos.py", *words, *more],
        cwd=tree,
        env={name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        | {"PYTHONPATH": str(tree)},
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def compare(before: Path, folder: Path, ending: str, *, clips: int, rounds: int) -> tuple[float, float]:
    """The median CPU time of the earlier tree, and of this one."""
    videos = folder / ending
    videos.mkdir()
    make_video(folder / f"v.{ending}")
    (folder / f"v.{ending}").rename(videos / "v.mp4")  # the annotations name every video so; FFmpeg looks at the bytes
    starts = [place * (SECONDS - 2) / clips for place in range(clips)]
    (videos / "clips.pkl").write_bytes(pickle.dumps([("v", start, start + 1.0, "moves") for start in starts]))
    times: dict[Path, list[float]] = {before: [], ROOT: []}
    for tree in times:  # compiles the modules that are new
        cpu_seconds(tree, videos, folder / f"{ending}-first-{tree == ROOT}")
    for number in range(rounds):
        for tree in (before, ROOT) if number % 2 else (ROOT, before):
            times[tree].append(cpu_seconds(tree, videos, folder / f"{ending}-{number}-{tree == ROOT}"))
    return statistics.median(times[before]), statistics.median(times[ROOT])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("revision", help="the commit to compare with, as git knows it")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clips", type=int, default=30)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        before = earlier_tree(args.revision, folder / "before")
        for ending in ("mp4", "ts", "flv", "mkv"):
            old, new = compare(before, folder, ending, clips=args.clips, rounds=args.rounds)
            print(f"{ending}: {old:.2f} s before, {new:.2f} s now, ratio {new / old:.3f}", flush=True)


if __name__ == "__main__":
    main()
