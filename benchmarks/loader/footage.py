"""The footage that the loader benchmark measures with: long moving video, the reference way's chunks, and shard sets.

There are two videos, 854x480 at 30 frames a second. The film in assets/ plays forward and backward in front of a
camera that turns, sways, zooms and rolls all the time, as one on a head does. The benchmark makes two things from them
once and keeps both. Chunks are as LaViLa's preparation makes them (x264 with FFmpeg's defaults, short side 288; a
video is as long as a chunk, 300 s). tools/shard_videos.py makes the shard sets.
"""

from __future__ import annotations

import csv
import math
import multiprocessing
import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.filter
import numpy as np
import numpy.typing as npt
import torch
from av.video.frame import PictureType

from benchmarks.common import ROOT
from benchmarks.sharding import COLUMNS, stamp
from lavila.ingest.jobs import BYTES_PER_SECOND
from lavila.sample.camera import WINDOW, Pose
from lavila.sample.drawing import Footage
from lavila.shards.reader import ShardSet, open_shard_set

FILM = ROOT / "assets/bigbuckbunny.mp4"
FILM_FRAMES, FILM_FPS = 130, 25
VIDEOS = ("P01_01", "P01_02")
FPS, HEIGHT = 30, 480
CLIPS_PER_TAR = 4  # so that every worker of a peer that deals out tars gets some
VIEW_GOP = 28  # frames; half the distance of 16 frames in 30 s, so that each chosen frame lies next to a keyframe
PROTOCOL = ("ek100_cls_tsf_l", "data.frames=16", "data.sampling=segments", "views.clips=1")
QUICK = {"vp9": "8", "h264": "superfast"}
CODE = {"normal": (), "gop": ("--gop", str(VIEW_GOP)), "frames-for": ("--frames-for", *PROTOCOL)}


@dataclass(frozen=True, kw_only=True)
class SetSpec:
    """A shard set to measure with."""

    seconds: int  # length of each clip
    codec: str  # vp9 or h264
    kind: str = "normal"  # normal, gop or frames-for


@dataclass(frozen=True, kw_only=True)
class Material:
    """All footage, and how much of it there is."""

    folder: Path
    video_seconds: int = 300
    clips: dict[int, int] = field(default_factory=lambda: {2: 32, 3: 32, 8: 16, 30: 8})  # seconds -> clips of a set
    kinds: tuple[str, ...] = tuple(CODE)  # kinds of sets; the first stands for those that are not here
    quick: bool = False  # code the sets as fast as it goes, instead of with the tool's default settings

    @classmethod
    def tiny(cls, folder: Path) -> Material:
        """Small footage to try the benchmark out. Each set is four clips of 2 s, whatever a row names."""
        return cls(folder=folder, video_seconds=4, clips={2: 4}, kinds=("normal",), quick=True)

    @property
    def chunks(self) -> Path:
        """The folder with the reference way's chunks."""
        return self.folder / "chunks"

    def shard_set(self, spec: SetSpec) -> ShardSet:
        """The set, made first where it is not there."""
        seconds = spec.seconds if spec.seconds in self.clips else min(self.clips)
        kind = spec.kind if spec.kind in self.kinds else self.kinds[0]
        folder = self.folder / f"{spec.codec}-{seconds}s-{kind}"
        if not (folder / "shard_set.json").is_file():
            self.make_sources()
            annotations = self.write_annotations(seconds)
            print(f"shard set {folder.name} ...", flush=True)
            command = shard_command(annotations, self.folder / "videos", folder, spec.codec, seconds)
            quiet = {**os.environ, "PYTHONPATH": str(ROOT), "TQDM_DISABLE": "1"}
            command += ["--speed", QUICK[spec.codec]] if self.quick else []
            subprocess.run([*command, *CODE[kind]], cwd=ROOT, check=True, env=quiet, stdout=subprocess.DEVNULL)
        return open_shard_set(folder)

    def make_sources(self) -> None:
        """The videos and their chunks, where they are not there yet."""
        videos = self.folder / "videos"
        missing = [name for name in VIDEOS if not video_path(videos, name).exists()]
        if missing:
            print(f"rendering {len(missing)} videos of {self.video_seconds} s ...", flush=True)
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload(["lavila.sample.drawing"])  # PyTorch, once for all
            with ProcessPoolExecutor(len(os.sched_getaffinity(0)), context) as pool:
                list(
                    pool.map(make_video, [video_path(videos, n) for n in missing], [self.video_seconds] * len(missing))
                )
        for name in VIDEOS:
            if not video_path(self.chunks, name).exists():
                make_chunk(video_path(videos, name), video_path(self.chunks, name))

    def write_annotations(self, seconds: int) -> Path:
        """Clips at random places of both videos, in the form of EPIC-KITCHENS-100. Returns their folder."""
        folder = self.folder / f"annotations-{seconds}s"
        folder.mkdir(parents=True, exist_ok=True)
        random = np.random.default_rng(seconds)
        tenths = random.integers(0, (self.video_seconds - seconds) * 10, size=self.clips[seconds], endpoint=True)
        rows = []
        for number, start in enumerate(tenths.tolist()):
            video = VIDEOS[number % len(VIDEOS)]
            times = (stamp(start * 10), stamp(start * 10 + seconds * 100))
            rows.append([f"{video}_{number}", video.partition("_")[0], video, *times, f"take plate {number}", 0, 0])
        for name in ("train", "validation"):  # action classes are numbered over both
            with (folder / f"EPIC_100_{name}.csv").open("w", newline="") as file:
                csv.writer(file, lineterminator="\n").writerows([[*COLUMNS, "noun_class"], *rows])
        for kind in ("verb", "noun"):
            (folder / f"EPIC_100_{kind}_classes.csv").write_text(f"id,key,instances,category\r\n0,{kind},[],none\r\n")
        return folder


def video_path(folder: Path, video_id: str) -> Path:
    """Where EPIC-KITCHENS keeps a video; the chunks lie alike."""
    return folder / video_id.partition("_")[0] / f"{video_id}.MP4"


def shard_command(annotations: Path, videos: Path, out: Path, codec: str, seconds: int) -> list[str]:
    """The command that makes a set, with the tool's default settings."""
    bytes_per_tar = CLIPS_PER_TAR * (seconds * BYTES_PER_SECOND[codec] + 4096)  # as the tool estimates them
    command = [sys.executable, "tools/shard_videos.py", "--dataset", "ek100_cls", "--split", "val", "--codec", codec]
    command += ["--annotations", str(annotations), "--videos", str(videos), "--out", str(out)]
    return [*command, "--shard-size", f"{bytes_per_tar / 1000}KB", *(["--resume"] if out.exists() else [])]


def make_chunk(source: Path, out: Path) -> None:
    """One chunk of the reference way, as `ffmpeg -i SOURCE -vf scale=-2:288 -c:v libx264 -an OUT` makes it.

    x264 has FFmpeg's defaults: crf 23, medium, a keyframe every 250 frames at the latest.
    """
    print(f"chunk of {source.name} ...", flush=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = out.with_suffix(".part")
    with av.open(str(source)) as video, av.open(str(unfinished), "w", format="mp4") as chunk:
        stream = video.streams.video[0]
        graph: Any = av.filter.Graph()
        nodes = [graph.add_buffer(template=stream), graph.add("scale", "-2:288"), graph.add("buffersink")]
        graph.link_nodes(*nodes).configure()
        coded: Any = None
        for frame in video.decode(stream):
            graph.push(frame)
            small = graph.pull()
            if coded is None:
                coded = chunk.add_stream("libx264", rate=Fraction(stream.average_rate))
                coded.width, coded.height, coded.pix_fmt = small.width, small.height, small.format.name
                coded.codec_context.thread_type = "FRAME"  # PyAV's default cuts pictures into slices
                for tag in ("colorspace", "color_range", "color_primaries", "color_trc"):
                    setattr(coded.codec_context, tag, getattr(stream.codec_context, tag))
            small.pict_type = PictureType.NONE  # keyframes are x264's choice
            chunk.mux(coded.encode(small))
        chunk.mux(coded.encode(None))
    unfinished.rename(out)


def pose(second: float, phases: npt.NDArray[np.float64]) -> Pose:
    """Where the camera looks: slow turns, quicker glances, steps at 2 Hz; phases: [8] radians."""

    def wave(period: float, place: int) -> float:
        return math.sin(2 * math.pi * second / period + phases[place])

    x = 0.89 + 0.30 * wave(11, 0) + 0.14 * wave(2.9, 1) + 0.004 * wave(0.5, 2)
    y = 0.50 + 0.12 * wave(7, 3) + 0.06 * wave(2.3, 4) + 0.008 * wave(0.5, 5)
    return np.array([x, y, math.log(0.55 / WINDOW) + 0.25 * wave(17, 6), 0.10 * wave(4.1, 7)])


def make_video(path: Path, seconds: float) -> None:
    """Render one of VIDEOS. H.264 of high quality with B-frames and a keyframe a second, as cameras write."""
    torch.set_num_threads(1)
    film = Footage.load(FILM, 0, FILM_FRAMES, height=HEIGHT)
    phases = np.random.default_rng(VIDEOS.index(path.stem)).uniform(0, 2 * math.pi, 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    with av.open(str(unfinished), "w", format="mp4") as out:
        options = {"preset": "veryfast", "crf": "18", "g": str(FPS), "bf": "2", "threads": "1"}
        stream: Any = out.add_stream("libx264", rate=FPS, options=options)
        stream.height, stream.width = film.size
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = 6  # BT.601
        context.color_range = 1  # limited
        for number in range(round(seconds * FPS)):
            place = number * FILM_FPS // FPS % (2 * FILM_FRAMES)
            picture = film.render(min(place, 2 * FILM_FRAMES - 1 - place), pose(number / FPS, phases))
            frame: Any = av.VideoFrame.from_ndarray(picture, format="yuv420p")
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    unfinished.rename(path)
