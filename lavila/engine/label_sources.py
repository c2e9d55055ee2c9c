"""What a narrator labels: the clips of a shard set, or windows of videos. Both come in parts that never change.

A part is a unit of work. Whoever does it, the same clips meet in each of its forward passes, so its texts are the same
on any number of processes and after any interruption.
"""

from __future__ import annotations

import logging
import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from lavila.annotations.checks import ClipNames
from lavila.annotations.ego4d import read_narrated
from lavila.config.schema import DataConfig, Decoder, RunConfig, ViewsConfig
from lavila.demo.footage import (
    NO_LIMIT,
    Look,
    LostWindow,
    Window,
    WindowPictures,
    find_videos,
    one_ahead,
    read_or_lose,
    uncovered,
    windows_of,
)
from lavila.engine import build
from lavila.engine.distributed import Process
from lavila.errors import UserError
from lavila.ingest.source_video import probe_video
from lavila.ingest.video_files import EncodeError
from lavila.records import Ints
from lavila.shards.captions import Captions
from lavila.shards.format import MANIFEST, file_sha256
from lavila.shards.mapped import Column
from lavila.shards.reader import ShardSet

log = logging.getLogger(__name__)

LARGEST_PART = 256  # clips: what a kill can cost
PARTS = 64  # of a small set, so that a few processes share it evenly
ANY_NUMBER = 2**62  # bad clips that the loader allows; the labeller counts them


class LabelError(UserError):
    """Clips that cannot be labelled, or labels that cannot be kept."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stretch:
    """A clip as a label names it."""

    clip_id: str
    video_id: str
    start: float  # seconds in the video
    stop: float


@dataclass(frozen=True, kw_only=True)
class LabelPass:
    """The clips of one forward pass."""

    part: int
    clips: list[Stretch]
    video: Tensor  # [B, C, T, H, W], one for each of `clips`
    bad: list[tuple[Stretch, str]]  # clips without pictures, each with the reason
    is_last: bool  # whether the part ends with it


class LabelSource(Protocol):
    """Clips in parts."""

    @property
    def facts(self) -> dict[str, Any]:
        """What decides which clips lie in which part, as JSON types."""
        ...

    @property
    def part_sizes(self) -> Sequence[int]:
        """The number of clips of each part."""
        ...

    @property
    def unreadable(self) -> Sequence[tuple[str, str]]:
        """Videos that have no clips here, since they cannot be opened, each with the reason."""
        ...

    def passes(self, parts: Sequence[int]) -> Iterator[LabelPass]:
        """The forward passes of some parts, ascending."""
        ...


def part_length(clips: int, batch_size: int) -> int:
    """The clips of a part: whole forward passes, few enough that a small set has many parts."""
    wanted = min(LARGEST_PART, math.ceil(clips / PARTS))
    return max(1, math.ceil(wanted / batch_size)) * batch_size


class ShardClips:
    """The clips of a shard set, without those in quarantine.

    captioned: captions tables (and "own"); a clip that has words in one of them is left out. CaptionError for a table
    without a clip of the set. LabelError where nothing is left.
    """

    unreadable: Sequence[tuple[str, str]] = ()

    def __init__(
        self,
        shards: ShardSet,
        look: Look,
        process: Process,
        *,
        batch_size: int,
        decoder: Decoder = "auto",
        captioned: Sequence[str] = (),
    ) -> None:
        self._shards, self._batch_size = shards, batch_size
        # Every process reads its parts alone.
        self._process = replace(process, rank=0, world=1)
        self._config = RunConfig(
            data=DataConfig(
                val=str(shards.path),
                frames=look.frames,
                image_size=look.size,
                mean=look.mean,
                std=look.std,
                decoder=decoder,
                max_bad_clips=ANY_NUMBER,
            ),
            views=ViewsConfig(crops="center", batch_size=batch_size, view_batch_size=batch_size),
        )
        self._rows: Ints = shards.usable_rows()
        if captioned:
            self._rows = self._rows[~Captions(shards, captioned).worded_rows()[self._rows]]
        if not len(self._rows):
            why = f"have words in {', '.join(captioned)}" if captioned else "are in quarantine"
            raise LabelError(f"{shards.path}: all its clips {why}; nothing to label")
        self._part = part_length(len(self._rows), batch_size)
        count = len(self._rows)
        self.part_sizes = [min(self._part, count - first) for first in range(0, count, self._part)]
        self._columns = [Column(shards.clips, name) for name in ("clip_id", "video_id", "start_second", "stop_second")]

    @property
    def facts(self) -> dict[str, Any]:
        """The set by its manifest, and which of its clips."""
        which = f"{len(self._rows)} clips, crc32 {zlib.crc32(self._rows.tobytes()):08x}"
        return {"shards": file_sha256(self._shards.path / MANIFEST), "clips": which}

    def passes(self, parts: Sequence[int]) -> Iterator[LabelPass]:
        """Read by the loader that evaluations use."""
        if not parts:
            return
        rows_of = {part: self._rows[part * self._part : (part + 1) * self._part] for part in parts}
        loader = build.view_loader(
            self._config, self._shards, self._process, rows=np.concatenate([*rows_of.values()]).tolist()
        )
        batches = iter(loader)
        for part, rows in rows_of.items():
            for first in range(0, len(rows), self._batch_size):
                batch = next(batches)
                reasons = {bad.clip_id: bad.reason for bad in loader.bad_clips}
                lost = np.setdiff1d(rows[first : first + self._batch_size], batch.rows).tolist()
                bad = [(stretch, reasons[stretch.clip_id]) for stretch in map(self._stretch, lost)]
                loader.bad_clips.clear()
                yield LabelPass(
                    part=part,
                    clips=[self._stretch(row) for row in batch.rows.tolist()],
                    video=batch.video[:, 0],
                    bad=bad,
                    is_last=first + self._batch_size >= len(rows),
                )

    def _stretch(self, row: int) -> Stretch:
        clip_id, video_id, start, stop = (column[row] for column in self._columns)
        return Stretch(clip_id=clip_id, video_id=video_id, start=start, stop=stop)


@dataclass(frozen=True, kw_only=True)
class LongVideo:
    """A video and the stretches of it that are labelled in windows."""

    path: Path
    video_id: str
    spans: list[tuple[float, float]]  # seconds, ascending
    every: float  # seconds from the start of one window to the next
    length: float  # seconds of a window

    def windows(self) -> list[Window]:
        """All its windows. They are made when they are needed, for a large set has many millions."""
        return [
            window
            for start, stop in self.spans
            for window in windows_of(start, stop, every=self.every, length=self.length)
        ]


class VideoWindows:
    """Windows of videos. LabelError where there is none.

    unreadable: further videos, which cannot be opened, with the reasons.
    """

    def __init__(
        self,
        videos: Sequence[LongVideo],
        look: Look,
        *,
        batch_size: int,
        unreadable: Sequence[tuple[str, str]] = (),
    ) -> None:
        self._videos, self._look, self._batch_size, self.unreadable = videos, look, batch_size, unreadable
        counts = [len(video.windows()) for video in videos]
        if not sum(counts):
            left = any(video.spans for video in videos)
            fix = "give a shorter --window" if left else "no stretch of at least half a --window is left uncovered"
            why = f"; {unreadable[0][0]}: {unreadable[0][1]}" if unreadable else f"; {fix}"
            raise LabelError(f"the videos have no window to label{why}")
        length = part_length(sum(counts), batch_size)
        # The video of each part, and its first window and the one after its last.
        self._parts = [
            (place, first, min(first + length, count))
            for place, count in enumerate(counts)
            for first in range(0, count, length)
        ]
        self.part_sizes = [stop - first for _, first, stop in self._parts]

    @property
    def facts(self) -> dict[str, Any]:
        """The videos and their windows, in few numbers."""
        text = repr([(video.video_id, video.spans, video.every, video.length) for video in self._videos])
        which = f"{sum(self.part_sizes)} windows, crc32 {zlib.crc32(text.encode()):08x}"
        return {"videos": len(self._videos), "clips": which}

    def passes(self, parts: Sequence[int]) -> Iterator[LabelPass]:
        """Decoded by a thread while the model works. Parts that follow each other are read in one go."""
        return one_ahead(self._passes(parts))

    def _passes(self, parts: Sequence[int]) -> Iterator[LabelPass]:
        # Neighbours in one video have the same video, and the same number less their place.
        for (place, _), run in groupby(enumerate(parts), key=lambda item: (self._parts[item[1]][0], item[1] - item[0])):
            numbers = [number for _, number in run]
            video = self._videos[place]
            windows = video.windows()[self._parts[numbers[0]][1] : self._parts[numbers[-1]][2]]
            seen = read_or_lose(video.path, windows, [self._look])
            for number in numbers:
                left = self.part_sizes[number]
                while left:
                    group = list(islice(seen, min(left, self._batch_size)))
                    left -= len(group)
                    yield self._pass(number, video.video_id, group, is_last=not left)

    def _pass(
        self, part: int, video_id: str, group: Sequence[WindowPictures | LostWindow], *, is_last: bool
    ) -> LabelPass:
        good = [one for one in group if isinstance(one, WindowPictures)]
        bad = [(_stretch_of(video_id, one.window), one.reason) for one in group if isinstance(one, LostWindow)]
        for clip, reason in bad:
            log.warning("%s is left out: %s", clip.clip_id, reason)
        side, frames = self._look.size, self._look.frames
        video = np.stack([one.videos[0] for one in good]) if good else np.zeros((0, frames, 3, side, side), np.float32)
        return LabelPass(
            part=part,
            clips=[_stretch_of(video_id, one.window) for one in good],
            video=torch.from_numpy(video).transpose(1, 2),
            bad=bad,
            is_last=is_last,
        )


def _stretch_of(video_id: str, window: Window) -> Stretch:
    """Named as a shard set would name the clip that is made from its label."""
    clip_id = ClipNames().make(video_id, window.start, window.stop)
    return Stretch(clip_id=clip_id, video_id=video_id, start=window.start, stop=window.stop)


def long_videos(
    paths: Sequence[Path], *, every: float, length: float, between: tuple[float, float] | None = None
) -> tuple[list[LongVideo], list[tuple[str, str]]]:
    """All windows of the videos that paths mean, and the videos that cannot be read, with the reasons.

    Raises FootageError where a path holds no video.
    """
    found, failed = [], []
    for path in paths:
        for file in find_videos(path):
            name = (file.relative_to(path) if file != path else Path(file.name)).as_posix()
            try:
                seconds = probe_video(file, NO_LIMIT).seconds
            except EncodeError as error:
                failed.append((name, str(error)))
                continue
            start, stop = between or (0.0, seconds)
            if not start < seconds:
                failed.append((name, f"has {seconds:.2f} s, and --between begins at {start:g} s"))
                continue
            spans = [(start, min(stop, seconds))]
            found.append(
                LongVideo(path=file, video_id=name.removesuffix(".mp4"), spans=spans, every=every, length=length)
            )
    return found, failed


def uncovered_videos(
    annotations: Path, videos: Path, *, every: float, length: float
) -> tuple[list[LongVideo], list[tuple[str, str]]]:
    """Windows of the stretches that no clip of an Ego4D-style pickle covers, of each video that it names.

    annotations: as `annotations.ego4d` reads it. videos: the folder of the videos. Returns the videos, and those that
    cannot be read, with the reasons. Stretches of less than half a window are left out.
    """
    covered: dict[str, list[tuple[float, float]]] = {}
    for clip in read_narrated(annotations).clips:
        assert clip.stop_second is not None  # Ego4D's clips have one
        covered.setdefault(clip.video_path, []).append((clip.start_second, clip.stop_second))
    found, failed = [], []
    for name, intervals in sorted(covered.items()):
        try:
            seconds = probe_video(videos / name, NO_LIMIT).seconds
        except EncodeError as error:
            failed.append((name, str(error)))
            continue
        gaps = uncovered(intervals, start=0.0, stop=seconds)
        spans = [(start, stop) for start, stop in gaps if stop - start >= length / 2]
        video_id = name.removesuffix(".mp4")
        found.append(LongVideo(path=videos / name, video_id=video_id, spans=spans, every=every, length=length))
    return found, failed
