"""How fast the loader is on this machine, beside the limit that decoding alone sets.

    python benchmarks/loader.py [--shards DIR] [--size 224] [--threads N]

Makes a small VP9 and an H.264 shard set from the footage in assets/ (once), or takes yours; then times, after a
warm-up, training batches (random-resized crop) and multi-crop evaluation (10 clips x 3 crops) with each decoder of this
machine, and pure decoding of the same frames with the same number of threads. Writes benchmarks/results/loader.json
with the machine and the versions, and prints a table. Medians of five rounds; machines are shared, so compare the
columns of one run, not the seconds of two.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from lavila.data.encode import EncodeSettings, Interval, encode_clip
from lavila.data.host_decode import decode_frames
from lavila.data.loader import DALI_CPU_CODECS, ClipLoader, Pictures, clip_sizes
from lavila.data.plan import CropChoice, FrameChoice, Plan, Ranks, TrainingPlan, ViewChoice, ViewPlan
from lavila.data.shard_writer import SetContents, ShardWriter, write_manifest
from lavila.data.sharding import clip_row
from lavila.data.shards import ShardSet, open_shard_set
from lavila.records import Clip

ROOT = Path(__file__).resolve().parents[1]
FOOTAGE, SCRATCH, RESULTS = ROOT / "assets/bigbuckbunny.mp4", ROOT / "data/benchmark", ROOT / "benchmarks/results"
PICTURES = Pictures(mean=(108.3272985, 116.7460125, 104.09373615), std=(68.5005327, 66.6321579, 70.32316305))
CLIPS, ROUNDS = 32, 5


def benchmark_shards(codec: str) -> ShardSet:
    """Clips of 3 s at 288 px, cut from the footage at different moments."""
    folder = SCRATCH / codec
    if not (folder / "shard_set.json").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        settings = EncodeSettings(codec=codec, short_side=288)
        rows = []
        with ShardWriter(folder, 0) as writer:
            for i in range(CLIPS):
                start = 2.2 * i / CLIPS
                interval = Interval(start_second=start, stop_second=start + 3)
                encoded = encode_clip(FOOTAGE, interval=interval, settings=settings)
                clip = Clip(
                    clip_id=f"c{i}", video_id="bbb", video_path=FOOTAGE.name, start_second=start, stop_second=start + 3
                )
                rows.append(writer.add(clip.clip_id, encoded.data, clip_row(clip, encoded)))
        assert writer.file is not None
        facts = {"dataset": "benchmark", "split": "train", "encoder": {"codec": codec}}
        write_manifest(folder, rows=rows, shards=[writer.file], contents=SetContents(classes={}, facts=facts))
    return open_shard_set(folder)


def plans(shards: ShardSet, size: int) -> dict[str, Plan]:
    sizes, ranks = clip_sizes(shards), Ranks()
    training = TrainingPlan(
        sizes, frames=FrameChoice(frames=16), crop=CropChoice(size=size), batch_size=8, seed=0, ranks=ranks
    )
    views = ViewPlan(
        sizes,
        frames=FrameChoice(frames=16, sampling="strided", stride=2),
        views=ViewChoice(size=size, clips=10, crops="three"),
        batch_size=2,
        ranks=ranks,
    )
    return {"training": training, "10 clips x 3 crops": views}


def clips_per_second(once: Callable[[int], int]) -> dict[str, float]:
    """Median, lowest and highest rate of ROUNDS rounds; `once` takes the round's number and returns its clips."""
    once(0)
    rates = []
    for number in range(ROUNDS):
        started = time.perf_counter()
        clips = once(number + 1)
        rates.append(clips / (time.perf_counter() - started))
    return {"median": statistics.median(rates), "lowest": min(rates), "highest": max(rates)}


def loader_round(loader: ClipLoader) -> Callable[[int], int]:
    def once(epoch: int) -> int:
        loader.set_epoch(epoch)
        clips = sum(len(batch) for batch in loader)
        if loader.device.type == "cuda":
            torch.cuda.synchronize()
        return clips

    return once


def decode_round(shards: ShardSet, plan: Plan, threads: int) -> Callable[[int], int]:
    """Nothing but decoding the planned frames to RGB, one clip a thread."""

    def once(epoch: int) -> int:
        clips = [clip for step in range(plan.steps) for clip in plan.batch(epoch, step)]
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(lambda clip: decode_frames(shards.read_video(clip.row), clip.distinct_frames()), clips))
        return len(clips)

    return once


def measure(shards: ShardSet, args: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    for name, plan in plans(shards, args.size).items():
        about = {"codec": shards.codec, "what": name, "size": args.size, "threads": args.threads}
        limit = clips_per_second(decode_round(shards, plan, args.threads))
        rows.append({**about, "loader": "decoding alone (PyAV)", "clips_per_second": limit, "share_of_limit": 1.0})
        decoders = [("cpu", "host")] + ([("cpu", "dali_cpu")] if shards.codec in DALI_CPU_CODECS else [])
        decoders += [("cuda:0", d) for d in ("nvdec", "host")] if torch.cuda.is_available() else []
        for device, decoder in decoders:
            loader = ClipLoader(shards, plan, pictures=PICTURES, decoder=decoder, device=device, threads=args.threads)
            rate = clips_per_second(loader_round(loader))
            share = rate["median"] / limit["median"]
            rows.append(
                {**about, "loader": f"{decoder} -> {device}", "clips_per_second": rate, "share_of_limit": share}
            )
            print_row(rows[-1])
    return rows


def print_row(row: dict[str, Any]) -> None:
    rate = row["clips_per_second"]
    print(
        f"{row['codec']:5} {row['what']:20} {row['size']} px  {row['loader']:22} {rate['median']:7.1f} clips/s "
        f"({rate['lowest']:.1f} to {rate['highest']:.1f})  {100 * row['share_of_limit']:.0f} % of decoding alone",
        flush=True,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=Path, help="a shard set of yours instead of the benchmark's own")
    parser.add_argument("--size", type=int, default=224, help="side of the pictures, pixels (default 224)")
    parser.add_argument(
        "--threads", type=int, default=len(os.sched_getaffinity(0)), help="of the loader (default: all cores)"
    )
    args = parser.parse_args()
    sets = [open_shard_set(args.shards)] if args.shards else [benchmark_shards(codec) for codec in ("vp9", "h264")]
    rows = [row for shards in sets for row in measure(shards, args)]
    machine = {
        "cores": len(os.sched_getaffinity(0)),
        "machine": platform.machine(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        **{name: version(name) for name in ("lavila", "torch", "nvidia-dali-cuda130", "av")},
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / "loader.json"
    path.write_text(json.dumps({"machine": machine, "rounds": ROUNDS, "rows": rows}, indent=1) + "\n")
    print(f"written: {path.relative_to(ROOT)}")
    if not torch.cuda.is_available():
        print("no GPU here: NVDEC and GPU augmentation were not measured; run the same command on a GPU machine")
    return 0


if __name__ == "__main__":
    sys.exit(main())
