"""Small shard sets of synthetic video, shared by many tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lavila.ingest.encode import EncodeSettings, Interval, encode_clip
from lavila.ingest.jobs import clip_row
from lavila.records import Clip
from lavila.shards.reader import ShardSet, open_shard_set
from lavila.shards.writer import SetContents, ShardWriter, write_manifest
from tests.footage import Coding, Picture, write_video

CLASSES = {
    "verb": ["left", "right", "hold"],
    "noun": ["dark", "bright"],
    "action": ["left dark", "right bright", "hold dark"],
}
FRAMES = (30, 24, 41, 9, 30, 33, 30, 24, 41, 9, 30, 33)  # frames of each clip; 9 is shorter than a view
TALL = (2, 8)  # clips that are higher than wide


def moving_picture(number: int, *, seed: int, height: int, width: int) -> Picture:
    """A smooth coloured pattern that moves to the left; every clip has its own."""
    phase = np.random.default_rng(seed).uniform(0, 6, 3)
    y, x = np.mgrid[0:height, 0:width] / 24.0
    waves = [np.sin(x + number * 0.3 + p) * np.cos(y * (1 + i / 2) + p) for i, p in enumerate(phase)]
    return (128 + 100 * np.stack(waves, axis=2)).astype(np.uint8)


def make_shard_set(
    folder: Path, videos: Path, *, codec: str, clips: int = len(FRAMES), size: tuple[int, int] = (64, 112)
) -> ShardSet:
    """A whole shard set of `clips` clips in two tars. `size`: height and width of most clips, multiples of 16."""
    folder.mkdir(parents=True)
    rows, files = [], []
    settings = EncodeSettings(codec=codec, short_side=size[0], speed="8" if codec == "vp9" else "ultrafast")
    for number in range(2):
        with ShardWriter(folder, number) as writer:
            for i in range(number, clips, 2):
                height, width = size[::-1] if i in TALL else size
                path = videos / f"{i}.mp4"
                if not path.exists():
                    pictures = (moving_picture(n, seed=i, height=height, width=width) for n in range(FRAMES[i]))
                    write_video(path, pictures, Coding())
                clip = Clip(
                    clip_id=f"clip_{i}",
                    video_id=str(i),
                    video_path=path.name,
                    start_second=0.0,
                    stop_second=None,
                    narrations=(f"clip number {i}",),
                    verb=i % 3,
                    noun=i % 2,
                    action=i % 3,
                )
                encoded = encode_clip(path, interval=Interval(start_second=0.0, stop_second=None), settings=settings)
                rows.append(writer.add(clip.clip_id, encoded.data, clip_row(clip, encoded)))
        files.append(writer.file)
    facts = {"dataset": "synthetic", "split": "train", "encoder": {"codec": codec}}
    write_manifest(folder, rows=rows, shards=files, contents=SetContents(classes=CLASSES, facts=facts))
    return open_shard_set(folder)
