"""The clips of the GPU benchmark: a film that moves, coded as tools/shard_videos.py codes clips. Made in seconds."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import av

from benchmarks.common import ROOT
from lavila.ingest.encode import EncodeSettings, Interval, encode_chunk, encode_clip
from lavila.ingest.jobs import clip_row
from lavila.records import Clip
from lavila.shards.reader import ShardSet, open_shard_set
from lavila.shards.writer import SetContents, ShardWriter, write_manifest

FILM, FPS = ROOT / "assets/bigbuckbunny.mp4", 30
CODECS = ("h264", "hevc", "vp9")
CLIPS = 16  # clips of a set


@dataclass(frozen=True, kw_only=True)
class Material:
    """Clips in a folder. Each is made at its first use, or by `make`."""

    folder: Path
    tiny: bool

    @property
    def short_side(self) -> int:
        """Lines of a clip."""
        return 144 if self.tiny else 288

    @property
    def seconds(self) -> int:
        """Length of the long clip."""
        return 3 if self.tiny else 30

    @property
    def count(self) -> int:
        """Clips of a set."""
        return 4 if self.tiny else CLIPS

    @property
    def film(self) -> Path:
        """The film forward and backward, long enough for every clip."""
        return self.folder / "film.mp4"

    def clip(self, codec: str, kind: str) -> bytes:
        """An mp4. `kind`: short (3 s), long (30 s), chunk (3 s in groups of pictures), small (64 x 112)."""
        return (self.folder / f"{codec}-{kind}.mp4").read_bytes()

    def shard_set(self, codec: str, *, short_side: int = 0) -> ShardSet:
        """A set of clips of 3 s. `short_side` other than 0: of another size."""
        return open_shard_set(self.folder / f"set-{codec}-{short_side or self.short_side}")

    def make(self) -> None:
        """Make everything that is missing, on all cores."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self.film.exists():
            write_film(self.film, frames=(self.seconds + 2) * FPS, short_side=self.short_side)
        clips = [(codec, kind) for codec in CODECS for kind in ("long", "short", "chunk")] + [("vp9", "small")]
        sets = [(codec, self.short_side) for codec in CODECS] + [("h264", self.short_side - 32)]
        with ProcessPoolExecutor(len(os.sched_getaffinity(0)), get_context("spawn")) as pool:
            jobs = [pool.submit(make_clip, self, *one) for one in clips]
            jobs += [pool.submit(make_set, self, *one) for one in sets]
            for job in jobs:
                job.result()


def write_film(path: Path, *, frames: int, short_side: int) -> None:
    """The footage forward and backward again and again, at FPS frames a second."""
    with av.open(str(FILM)) as source:
        pictures = [
            frame.reformat(width=round(short_side * 16 / 9 / 16) * 16, height=short_side, format="yuv420p")
            for frame in source.decode(video=0)
        ]
    there_and_back = [*pictures, *pictures[::-1]]
    with av.open(str(path.with_suffix(".part")), "w", format="mp4") as out:
        stream: Any = out.add_stream("libx264", rate=FPS, options={"preset": "ultrafast", "crf": "16", "g": str(FPS)})
        stream.width, stream.height, stream.pix_fmt = pictures[0].width, pictures[0].height, "yuv420p"
        for number in range(frames):
            frame = there_and_back[number % len(there_and_back)]
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            frame.pict_type = av.video.frame.PictureType.NONE
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    path.with_suffix(".part").rename(path)


def make_clip(material: Material, codec: str, kind: str) -> None:
    """Code one of `Material.clip`."""
    path = material.folder / f"{codec}-{kind}.mp4"
    if path.exists():
        return
    side = 64 if kind == "small" else material.short_side
    settings = EncodeSettings(codec=codec, short_side=side)
    if kind == "chunk":
        data = encode_chunk(material.film, number=0, seconds=3, settings=settings).data
    else:
        stop = material.seconds if kind == "long" else 3
        data = encode_clip(material.film, interval=Interval(start_second=0, stop_second=stop), settings=settings).data
    path.write_bytes(data)


def make_set(material: Material, codec: str, short_side: int) -> None:
    """Code one of `Material.shard_set`: clips from different places of the film."""
    folder = material.folder / f"set-{codec}-{short_side}"
    if (folder / "shard_set.json").exists():
        return
    folder.mkdir(exist_ok=True)
    settings = EncodeSettings(codec=codec, short_side=short_side)
    rows = []
    with ShardWriter(folder, 0) as writer:
        for number, start in enumerate(starts(material)):
            interval = Interval(start_second=start, stop_second=start + 3)
            coded = encode_clip(material.film, interval=interval, settings=settings)
            clip = Clip(
                clip_id=f"clip_{number}",
                video_id="film",
                video_path=material.film.name,
                start_second=start,
                stop_second=start + 3,
                narrations=("take plate",),
                verb=number % 2,
                noun=0,
                action=number % 2,
            )
            rows.append(writer.add(clip.clip_id, coded.data, clip_row(clip, coded)))
    classes = {"verb": ["a", "b"], "noun": ["c"], "action": ["a c", "b c"]}
    facts = {"dataset": "synthetic", "split": "train", "encoder": {"codec": codec}}
    assert writer.file is not None
    write_manifest(folder, rows=rows, shards=[writer.file], contents=SetContents(classes=classes, facts=facts))


def starts(material: Material) -> Iterator[float]:
    """Where the clips of a set begin, in seconds: spread over the film."""
    return (round(number * (material.seconds - 2) / material.count, 1) for number in range(material.count))
