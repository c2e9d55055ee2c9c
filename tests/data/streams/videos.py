"""Small videos in every codec and layout of shards, with every frame decoded, for tests that compare frames."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import av
import numpy as np

from lavila.ingest.codecs import ENCODERS
from lavila.ingest.encode import EncodeSettings, Interval, encode_chunk, encode_clip
from tests.footage import Coding, Picture, write_video

FRAMES, HEIGHT, WIDTH = 75, 64, 112
LAYOUTS = ("one group", "groups of 20", "fragments")
VIDEOS = [(codec, layout) for codec in ENCODERS for layout in LAYOUTS]


@dataclass(frozen=True)
class Video:
    """An mp4, and the bytes of all of its decoded frames (planes, not RGB)."""

    data: bytes
    frames: list[bytes]


def moving(count: int) -> list[Picture]:
    """Coarse noise that moves under a shade that changes: no two frames are alike."""
    noise = np.random.default_rng(0).integers(16, 200, (HEIGHT // 4, 4 * WIDTH // 4, 3), np.uint8)
    wide = np.kron(noise, np.ones((4, 4, 1), np.uint8))
    return [np.ascontiguousarray(np.roll(wide, 2 * n, axis=1)[:, :WIDTH] // 2 + n) for n in range(count)]


def source(folder: Path) -> Path:
    """A video of FRAMES frames, 25 a second."""
    return write_video(folder / "source.mp4", moving(FRAMES), Coding(gop=25))


def video(path: Path, codec: str, layout: str) -> Video:
    """One of VIDEOS, made from the video at `path`."""
    settings = EncodeSettings(codec=codec, short_side=HEIGHT, gop=20 if layout == "groups of 20" else 0)
    if layout == "fragments":
        chunks = [encode_chunk(path, number=n, seconds=2, settings=settings) for n in (0, 1)]
        data = chunks[0].data + chunks[1].data[chunks[1].header_size :]
        assert [chunk.gop for chunk in chunks] == [12, 12]
    else:
        data = encode_clip(path, interval=Interval(start_second=0, stop_second=3), settings=settings).data
    frames = decoded(data)
    assert len(set(frames)) == len(frames) == FRAMES
    return Video(data, frames)


def decoded(data: bytes) -> list[bytes]:
    """Every frame of a video, as FFmpeg gives them. The times of the frames ascend."""
    with av.open(io.BytesIO(data)) as container:
        frames = list(container.decode(video=0))
    times = [frame.pts for frame in frames]
    assert times == sorted(set(times)), times
    return [frame.to_ndarray().tobytes() for frame in frames]


def chosen(frames: Sequence[int], of: Video) -> list[bytes]:
    return [of.frames[frame] for frame in frames]


def random_plan(random: np.random.Generator) -> list[int]:
    """Frames of a made-up plan: segments of the clip or of a part of it, a stride, or any."""
    kind = random.integers(3)
    if kind == 0:
        low, high = np.sort(random.choice(FRAMES + 1, 2, replace=False))
        edges = np.linspace(low, high, random.integers(1, 17) + 1)
        return sorted({int(random.uniform(a, b)) for a, b in pairwise(edges)})
    if kind == 1:
        return list(range(int(random.integers(FRAMES)), FRAMES, int(random.integers(1, 12))))[:16]
    count = int(random.integers(1, 20))
    return sorted(random.choice(FRAMES, count, replace=False).tolist())
