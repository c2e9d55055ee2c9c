"""What a decoder is given for a step's frames: the stored clip, or the clip with only what the frames need.

    python -m benchmarks.streams [--dry-run]

Codes a rendered video (benchmarks.loader.footage) in every codec with the tool's default settings, and draws the frames
of many plans: 16 frames of 3, 8 and 30 s for training, 10 x 3 views of 3 s, and 16 frames of 3 s in layout "chunks".
For each it counts the packets, bytes and pictures of the stored clip and of the reduced one, hidden pictures too, and
times the reduction. In layout "chunks" the stored clip is the groups of pictures that hold a wanted frame.

Counts do not depend on the machine. Times are medians of CPU time of one core; the results have the smallest, too.
Writes benchmarks/results/streams.json and the table of docs/SHARDS.md between its markers. --dry-run takes small clips
of 2 s, and writes nothing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import common
from benchmarks.common import RESULTS, ROOT, fill_docs
from benchmarks.encoding import markdown
from benchmarks.loader.footage import VIDEOS, make_video, video_path
from lavila.data.streams.headers import pictures_in
from lavila.data.streams.mp4 import read_mp4
from lavila.data.streams.reduction import reduced
from lavila.ingest.codecs import ENCODERS
from lavila.ingest.encode import EncodeSettings, Interval, encode_chunk, encode_clip
from lavila.plan.frames import FrameChoice, choose_frames, draw_frames

DOCS, SCRATCH = ROOT / "docs/SHARDS.md", common.SCRATCH / "streams"
SECONDS, DRY_SECONDS = 31, 2  # of the video
PLANS, TIMINGS = 100, 300
MUST = {"16 of 3 s": {"h264": 0.45, "hevc": 0.45}, "16 of 30 s": dict.fromkeys(ENCODERS, 0.25)}
MUST_MS = 0.3  # for clips of 3 s
SEGMENTS, STRIDED = FrameChoice(frames=16), FrameChoice(frames=16, sampling="strided", stride=2)

Draw = Callable[[int, np.random.Generator], Sequence[int]]
"""(frames of the clip, random numbers) -> the distinct frames of a plan."""


def training(count: int, random: np.random.Generator) -> list[int]:
    """One random frame of each of 16 parts."""
    return sorted(set(draw_frames(count, SEGMENTS, random).ravel().tolist()))


def views(count: int, random: np.random.Generator) -> list[int]:
    """10 temporal clips of 16 frames at stride 2. The three crops of each share its frames."""
    return sorted(frame for frame in set(choose_frames(count, STRIDED, clips=10).ravel().tolist()) if frame >= 0)


@dataclass(frozen=True, kw_only=True)
class Use:
    """A way to use clips."""

    name: str
    seconds: int
    draw: Draw = training
    chunks: bool = False  # whether the video is stored in layout "chunks"


USES = (
    Use(name="16 of 3 s", seconds=3),
    Use(name="16 of 8 s", seconds=8),
    Use(name="16 of 30 s", seconds=30),
    Use(name="10 x 3 views of 3 s", seconds=3, draw=views),
    Use(name="16 of 3 s in chunks", seconds=3, chunks=True),
)


@dataclass(frozen=True)
class Stored:
    """A coded video, and how many bytes a step would read for some of its frames."""

    data: bytes
    frames: int

    def read(self, wanted: Sequence[int]) -> tuple[bytes, list[int]]:
        """What a shard set gives for some frames."""
        return self.data, list(wanted)


@dataclass(frozen=True)
class StoredChunk(Stored):
    """The same in layout "chunks"."""

    gop: int
    offsets: list[int]

    def read(self, wanted: Sequence[int]) -> tuple[bytes, list[int]]:
        groups = sorted({frame // self.gop for frame in wanted})
        pieces = [self.data[self.offsets[group] : self.offsets[group + 1]] for group in groups]
        numbers = [groups.index(frame // self.gop) * self.gop + frame % self.gop for frame in wanted]
        return self.data[: self.offsets[0]] + b"".join(pieces), numbers


def stored(video: Path, codec: str, use: Use, settings: dict[str, Any]) -> Stored:
    """A clip as tools/shard_videos.py stores it."""
    coding = EncodeSettings(codec=codec, **settings)
    if use.chunks:
        chunk = encode_chunk(video, number=0, seconds=use.seconds, settings=coding)
        return StoredChunk(chunk.data, chunk.num_frames, chunk.gop, chunk.gop_offsets)
    clip = encode_clip(video, interval=Interval(start_second=0, stop_second=use.seconds), settings=coding)
    return Stored(clip.data, clip.num_frames)


def given(data: bytes) -> dict[str, int]:
    """What a decoder is given."""
    packets = read_mp4(data).packets
    return {"packets": len(packets.sizes), "bytes": len(data), "pictures": pictures_in(packets)}


def milliseconds(inputs: Sequence[tuple[bytes, list[int]]], times: int) -> tuple[float, float]:
    """Median and smallest CPU time of a reduction."""
    taken = []
    for number in range(times):
        data, wanted = inputs[number % len(inputs)]
        began = time.thread_time()
        reduced(data, wanted)
        taken.append(time.thread_time() - began)
    return 1000 * statistics.median(taken), 1000 * min(taken)


def measure(clip: Stored, codec: str, use: Use, *, plans: int, times: int) -> dict[str, Any]:
    """One row: means over the plans."""
    random = np.random.default_rng(0)
    inputs = [clip.read(use.draw(clip.frames, random)) for _ in range(plans)]
    whole = [given(data) for data, _ in inputs]
    less = [given(reduced(data, wanted).data) for data, wanted in inputs]
    row: dict[str, Any] = {"codec": codec, "use": use.name, "frames": clip.frames}
    row["wanted"] = statistics.mean(len(wanted) for _, wanted in inputs)
    for name, each in (("whole", whole), ("reduced", less)):
        row[name] = {key: statistics.mean(one[key] for one in each) for key in each[0]}
    row["share"] = {key: row["reduced"][key] / row["whole"][key] for key in row["whole"]}
    row["milliseconds"], row["least_milliseconds"] = milliseconds(inputs, times)
    if use.seconds == 3:
        row["fast"] = row["milliseconds"] < MUST_MS
    if (most := MUST.get(use.name, {}).get(codec)) is not None:
        row |= {"must": most, "reached": row["share"]["pictures"] <= most}
    return row


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The Markdown of docs/SHARDS.md."""
    header = ["16 frames of", "codec", "packets", "KB", "pictures", "share of the pictures", "reduction, ms"]

    def pair(row: dict[str, Any], key: str, scale: float = 1) -> str:
        return f"{row['whole'][key] / scale:.0f} -> {row['reduced'][key] / scale:.0f}"

    cells = []
    for row in rows:
        share, must = f"{row['share']['pictures']:.2f}", row.get("must")
        counts = [pair(row, "packets"), pair(row, "bytes", 1000), pair(row, "pictures")]
        goal = "" if must is None else f" (at most {must})"
        use = row["use"].removeprefix("16 of ")
        cells.append([use, row["codec"], *counts, f"**{share}**{goal}", f"{row['milliseconds']:.2f}"])
    return markdown(header, cells)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry-run", action="store_true", help="small clips of 2 s, a few plans; write nothing")
    dry = parser.parse_args(argv).dry_run
    video = video_path(SCRATCH / ("dry" if dry else "videos"), VIDEOS[0])
    if not video.exists():
        print(f"rendering {DRY_SECONDS if dry else SECONDS} s of video ...", flush=True)
        make_video(video, DRY_SECONDS if dry else SECONDS)
    uses = [Use(name="16 of 2 s", seconds=2), Use(name="chunks", seconds=2, chunks=True)] if dry else USES
    rows = []
    for codec in ENCODERS:
        clips: dict[tuple[int, bool], Stored] = {}
        for use in uses:
            key = (use.seconds, use.chunks)
            if key not in clips:
                clips[key] = stored(video, codec, use, {"short_side": 96, "fps": 15.0} if dry else {})
            rows.append(measure(clips[key], codec, use, plans=4 if dry else PLANS, times=4 if dry else TIMINGS))
            print(json.dumps(rows[-1]), flush=True)
    if dry:
        return 0
    RESULTS.mkdir(parents=True, exist_ok=True)
    result = {"machine": common.machine("av"), "plans": PLANS, "milliseconds_must": MUST_MS, "rows": rows}
    (RESULTS / "streams.json").write_text(json.dumps(result, indent=1) + "\n")
    ordered = sorted(rows, key=lambda row: [use.name for use in USES].index(row["use"]))
    fill_docs("streams", table(ordered), DOCS)
    print(f"written: {(RESULTS / 'streams.json').relative_to(ROOT)}, and the table of {DOCS.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
