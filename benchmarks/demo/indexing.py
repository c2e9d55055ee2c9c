"""How fast a video is indexed, against decoding each of its windows for itself.

    python -m benchmarks.demo.indexing [--seconds 600]

Both sides use the same decoder, pictures and encoder (the tiny one of `make learn`, with random weights), and their
vectors must be equal. Windows of 2 s begin every 0.5 s. Two videos: one with a key frame each second, as cameras and
phones write them, and one with x264's default of a key frame every 250 frames. Wall and CPU time, one run of each side.

Writes benchmarks/results/demo_indexing.json and the table of docs/SEARCH.md between its markers.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch

from benchmarks import common
from benchmarks.common import fill_docs, machine
from lavila.checkpoints.store import save_model
from lavila.demo.encoders import OpenEncoder, Vectors, open_encoder
from lavila.demo.footage import WindowPictures, one_ahead, read_windows, windows_of
from lavila.demo.index_plan import IndexOptions
from lavila.demo.indexing import update_index
from lavila.models.dual_encoder import ClipDualEncoder
from lavila.models.text_tower import ClipTextConfig
from lavila.models.timesformer import TimeSformer, TimeSformerConfig

SECONDS, FPS, WIDTH, HEIGHT = 600, 30, 640, 360
LOOP = 30  # seconds that are encoded at most; a longer video repeats their packets
CODING = {"preset": "veryfast", "crf": "23"}  # of x264
OPTIONS = IndexOptions(window=2.0, every=0.5, batch_size=16)
KEY_FRAMES = {"every second": FPS, "every 250 frames": 250}
GOAL = 4.0  # times
DOCS = common.ROOT / "docs/SEARCH.md"
TOWER = TimeSformerConfig(image_size=32, patch_size=16, width=192, depth=2, heads=6, num_frames=4)  # model/tiny.yaml


def write_video(path: Path, *, seconds: int, key_frame: int) -> Path:
    """A camera that wanders over a picture with detail of all sizes. After LOOP seconds at most it begins again."""
    random = np.random.default_rng(0)
    world = np.full((2 * HEIGHT, 2 * WIDTH, 3), 128.0, np.float32)
    for cell in (4, 16, 64, 240):
        coarse = random.uniform(-40, 40, (2 * HEIGHT // cell + 1, 2 * WIDTH // cell + 1, 3))
        world += coarse.repeat(cell, 0).repeat(cell, 1)[: 2 * HEIGHT, : 2 * WIDTH]
    picture = world.clip(0, 255).astype(np.uint8)
    loop = math.gcd(seconds, LOOP) * FPS
    with av.open(str(path), "w") as output:
        stream: Any = output.add_stream("libx264", rate=FPS, options=CODING)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = WIDTH, HEIGHT, "yuv420p", key_frame
        packets: list[Any] = []
        for number in range(loop):
            top = int(HEIGHT / 2 * (1 + np.sin(number / 97)))
            left = int(WIDTH / 2 * (1 + np.cos(number / 131)))
            seen = np.ascontiguousarray(picture[top : top + HEIGHT, left : left + WIDTH])
            frame: Any = av.VideoFrame.from_ndarray(seen, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            packets += stream.encode(frame)
        packets += stream.encode(None)
        parts = [(bytes(one), one.pts, one.dts, one.is_keyframe, one.time_base) for one in packets]
        for first in range(0, seconds * FPS, loop):
            for data, pts, dts, is_key, base in parts:
                packet: Any = av.Packet(data)
                packet.stream, packet.is_keyframe, packet.time_base = stream, is_key, base
                shift = int(first / FPS / base)
                packet.pts, packet.dts = pts + shift, dts + shift
                output.mux(packet)
    return path


def tiny_encoder(folder: Path) -> OpenEncoder:
    """A dual encoder of a size that a laptop trains in minutes, with random weights."""
    torch.manual_seed(0)
    text = ClipTextConfig(width=64, depth=2, heads=2, context_length=16)
    model = ClipDualEncoder(TimeSformer(TOWER), text=text, embed_dim=64)
    pictures = {"mean": [110.0] * 3, "std": [70.0] * 3, "frames": TOWER.num_frames}
    file = folder / "tiny.safetensors"
    save_model(model, file, extra={"pictures": json.dumps(pictures), "context_length": "16"})
    return open_encoder(str(file), vocabulary="", device=torch.device("cpu"))


def each_for_itself(video: Path, encoder: OpenEncoder, *, seconds: float) -> Vectors:
    """float16 [N, D]: every window is sought, decoded and drawn as if there were no other."""

    def pictures() -> Iterator[WindowPictures]:
        for window in windows_of(0, seconds, every=OPTIONS.every, length=OPTIONS.window):
            (one,) = read_windows(video, [window], [encoder.look])
            assert isinstance(one, WindowPictures)
            yield one

    coming = pictures()
    groups = one_ahead(iter(lambda: list(islice(coming, OPTIONS.batch_size)), []))
    found = [
        encoder.embed(torch.from_numpy(np.stack([one.videos[0] for one in group])).transpose(1, 2)) for group in groups
    ]
    return np.concatenate(found)


def timed(work: Callable[[], Vectors]) -> tuple[Vectors, dict[str, float]]:
    """What some work gives, its wall time and its CPU time, in seconds."""
    wall, cpu = time.perf_counter(), sum(os.times()[:2])
    found = work()
    return found, {"wall_seconds": time.perf_counter() - wall, "cpu_seconds": sum(os.times()[:2]) - cpu}


def compare(folder: Path, encoder: OpenEncoder, *, key_frames: str, seconds: int) -> dict[str, Any]:
    """Both sides on one video."""
    video = write_video(folder / f"{KEY_FRAMES[key_frames]}.mp4", seconds=seconds, key_frame=KEY_FRAMES[key_frames])
    index = folder / video.stem
    ours, ours_time = timed(lambda: update_index(index, [video], encoder, OPTIONS).vectors(video.name))
    theirs, theirs_time = timed(lambda: each_for_itself(video, encoder, seconds=seconds))
    np.testing.assert_allclose(ours.astype(np.float32), theirs.astype(np.float32), atol=2e-3)
    return {
        "key_frames": key_frames,
        "windows": len(ours),
        "index": ours_time,
        "each_for_itself": theirs_time,
        "times_as_fast": theirs_time["wall_seconds"] / ours_time["wall_seconds"],
        "times_less_cpu": theirs_time["cpu_seconds"] / ours_time["cpu_seconds"],
    }


def measure(*, seconds: int = SECONDS) -> dict[str, Any]:
    """All figures."""
    with tempfile.TemporaryDirectory() as folder:
        encoder = tiny_encoder(Path(folder))
        warm = write_video(
            Path(folder) / "warm.mp4", seconds=4, key_frame=FPS
        )  # kernels are compiled at their first use
        update_index(Path(folder) / "warm", [warm], encoder, OPTIONS)
        rows = [compare(Path(folder), encoder, key_frames=name, seconds=seconds) for name in KEY_FRAMES]
    return {"seconds": seconds, "size": [WIDTH, HEIGHT], "fps": FPS, "goal": GOAL, "rows": rows}


def table(found: dict[str, Any]) -> str:
    """The figures as Markdown."""
    about, (width, height) = found["machine"], found["size"]
    lines = [
        f"{found['seconds'] / 60:g} minutes of H.264, {width} x {height}, {found['fps']} frames/s; "
        f"{about['processor']}, {about['cores']} cores, PyAV {about['av']}, torch {about['torch']}.",
        "",
        "| key frames | indexed | each window for itself | times as fast | CPU time |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in found["rows"]:
        ours, theirs = row["index"], row["each_for_itself"]
        lines.append(
            f"| {row['key_frames']} | {ours['wall_seconds']:.1f} s | {theirs['wall_seconds']:.1f} s | "
            f"**{row['times_as_fast']:.1f}x** | {ours['cpu_seconds']:.0f} s instead of {theirs['cpu_seconds']:.0f} s |"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=SECONDS, metavar="S", help="of video (%(default)s)")
    seconds = parser.parse_args(arguments).seconds
    found = {"machine": machine("av", "torch", "numpy"), **measure(seconds=seconds)}
    sys.stdout.write(json.dumps(found, indent=1) + "\n")
    if seconds == SECONDS:
        (common.RESULTS / "demo_indexing.json").write_text(json.dumps(found, indent=1) + "\n")
        fill_docs("demo-indexing", table(found), DOCS)


if __name__ == "__main__":
    main()
