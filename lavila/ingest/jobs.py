"""From annotated clips to tars: the assignment of clips to tars, and one tar as a unit of work.

The assignment is a pure function of annotations and settings. The bytes of a tar are a pure function of its clips and
the settings. So any number of workers gives the same set, on any machines, in any order, after any interruptions.
`lavila.ingest.assembly` holds the folder meanwhile and assembles the set.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np

from lavila.annotations.base import AnnotationSet
from lavila.cluster.workers import ItemEvent
from lavila.files import whole_file
from lavila.ingest.encode import (
    ENCODERS,
    Chooser,
    EncodedChunk,
    EncodedClip,
    EncodeError,
    EncodeSettings,
    Interval,
    Limits,
    encode_chunk,
    encode_clip,
    encoder_versions,
)
from lavila.ingest.notes import ESTIMATED, KIND, stored_stop
from lavila.plan.frames import FrameChoice, chosen_frames
from lavila.records import Clip, SpanRule
from lavila.shards.format import WORK, ShardFile, ShardSetError, file_sha256, shard_name, verify_shard
from lavila.shards.writer import ShardWriter
from lavila.version import __version__

Layout = Literal["clips", "chunks"]

# Tars are filled by estimates.
UNKNOWN_SECONDS = 10.0  # the length of a clip that lasts to the end of its video
REFERENCE_AREA = 512 * 288  # pixels
BYTES_PER_SECOND = {"vp9": 32_000, "h264": 55_000, "hevc": 40_000, "av1": 36_000}  # at REFERENCE_AREA, default crf
CRF_PER_HALVING = 6  # the step in crf that about halves the bytes
# A small set still gets MIN_SHARDS tars of at least MIN_SHARD_CLIPS clips, so that workers can share the work.
MIN_SHARDS, MIN_SHARD_CLIPS = 16, 32

Failure = dict[str, str]
"""A line of failures.jsonl: clip_id, video, reason."""


@dataclass(frozen=True, kw_only=True)
class EvaluationFrames:
    """The frames that an evaluation uses."""

    choice: FrameChoice
    clips: int  # number of temporal clips

    def settings(self) -> dict[str, Any]:
        """The form in the manifest."""
        return {**asdict(self.choice), "clips": self.clips}


@dataclass(frozen=True, kw_only=True)
class SetSettings:
    """The settings that decide the bytes of a shard set. A resumed run may not change them."""

    dataset: str
    split: str
    encoder: EncodeSettings
    shard_bytes: int  # the intended size of a tar
    seed: int
    limit: int | None = None  # number of clips, from the start of the annotations; None = all
    layout: Layout = "clips"
    chunk_seconds: float = 60.0  # length of a chunk in layout "chunks"
    frames_for: EvaluationFrames | None = None  # store only the frames of this evaluation; None = all
    narrations_source: str = "human"  # who wrote the annotations' narrations

    def as_json(self, annotations: AnnotationSet) -> dict[str, Any]:
        """Everything that two runs must share to give the same bytes, as values for JSON."""
        return {
            "dataset": self.dataset,
            "split": self.split,
            "layout": self.layout,
            "chunk_seconds": self.chunk_seconds if self.layout == "chunks" else None,
            "frames_for": self.frames_for.settings() if self.frames_for else None,
            "span_rule": annotations.span_rule,
            "narrations_source": self.narrations_source,
            "encoder": asdict(self.encoder),
            "shard_bytes": self.shard_bytes,
            "seed": self.seed,
            "limit": self.limit,
            "annotation_files": [{"name": path.name, "sha256": file_sha256(path)} for path in annotations.files],
            "versions": {"lavila": __version__, **encoder_versions()},
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Chunk:
    """A stretch of a video that will be stored."""

    chunk_id: str
    video_id: str
    video_path: str
    number: int  # from 0 at the start of the video


@dataclass(frozen=True, kw_only=True)
class ShardResult:
    """A whole tar. `file` is None if none of its items could be stored."""

    file: ShardFile | None
    rows: list[dict[str, Any]]  # its rows of clips.parquet or chunks.parquet
    failures: dict[str, str]  # clip_id or chunk_id -> reason
    after_end: list[str]  # ids of chunks after the end of their video


@dataclass(frozen=True, kw_only=True)
class ShardJob:
    """One tar, which any process on any machine can make."""

    number: int
    items: tuple[Clip | Chunk, ...]
    videos: Path  # root of the video paths
    out: Path
    settings: SetSettings
    span_rule: SpanRule = "edges"
    limits: Limits = field(default_factory=Limits)

    @property
    def num_items(self) -> int:
        return len(self.items)

    def is_done(self) -> bool:
        """Whether the tar is there with its recorded size."""
        return read_result(self.out, self.number, full=False) is not None

    def run(self, report: Callable[[int, ItemEvent], None], lost: Mapping[int, str]) -> None:
        """Store every item and write the tar, its index and its record in .work.

        `report` is called when an item is begun, stored or failed. An item that cannot be stored becomes a failure. Any
        other error ends the job and leaves nothing behind. `lost`: items that ended a process -> the reason. Items that
        the tar held before `forget` are copied, so that only the others are encoded.
        """
        lost = {**self._remembered(), **lost}
        before = self._stored_before()
        rows: list[dict[str, Any]] = []
        failures: dict[str, str] = {}
        after_end: list[str] = []
        with ShardWriter(self.out, self.number) as writer, contextlib.ExitStack() as stack:
            old = stack.enter_context(writer.path.open("rb")) if before else None
            for place, item in enumerate(self.items):
                report(place, ItemEvent.BEGUN)
                key = item_key(item)
                try:
                    if place in lost:
                        raise EncodeError(lost[place])
                    if old is not None and key in before:
                        data, row = _copy(old, before[key]), before[key]
                    else:
                        data, row = self._encode(item)
                except EncodeError as error:
                    if error.after_end and isinstance(item, Chunk):
                        after_end.append(key)
                    else:
                        failures[key] = str(error).removeprefix(f"{self.videos / item.video_path}: ")
                    report(place, ItemEvent.FAILED)
                    continue
                rows.append(writer.add(key, data, row))
                report(place, ItemEvent.STORED)
        assert writer.file is not None
        if not rows:
            writer.path.unlink()
            writer.path.with_suffix(".idx").unlink()
        file = writer.file if rows else None
        self.record(ShardResult(file=file, rows=rows, failures=failures, after_end=after_end))
        self._before_path().unlink(missing_ok=True)

    def record(self, result: ShardResult) -> None:
        """Write the record of the tar in .work, by which a later run knows that it is done."""
        file = None if result.file is None else asdict(result.file)
        record = {"file": file, "rows": result.rows, "failures": result.failures, "after_end": result.after_end}
        with whole_file(_record_path(self.out, self.number)) as stream:
            stream.write(json.dumps(record, ensure_ascii=False).encode())

    def remember_loss(self, item: int, reason: str) -> None:
        """Record an item that ended a process, so that no later run tries it again."""
        with whole_file(self._loss_path()) as file:
            file.write(json.dumps({**self._remembered(), item: reason}).encode())

    def forget(self, *, lost: bool) -> None:
        """Have the tar made again, with what it holds. `lost`: try the items that ended a process, too."""
        record = _record_path(self.out, self.number)
        if record.exists():
            record.replace(self._before_path())
        if lost:
            self._loss_path().unlink(missing_ok=True)

    def _remembered(self) -> dict[int, str]:
        path = self._loss_path()
        return {int(k): v for k, v in json.loads(path.read_text()).items()} if path.exists() else {}

    def _loss_path(self) -> Path:
        return _record_path(self.out, self.number).with_suffix(".lost.json")

    def _before_path(self) -> Path:
        return _record_path(self.out, self.number).with_suffix(".before.json")

    def _stored_before(self) -> dict[str, dict[str, Any]]:
        """The rows of the tar as it was before `forget`, by key. None of them if a byte of it has changed since."""
        result = _read_record(self.out, self._before_path(), full=True)
        return {} if result is None else {row_key(row): row for row in result.rows}

    def _encode(self, item: Clip | Chunk) -> tuple[bytes, dict[str, Any]]:
        """The mp4 of a clip or chunk, and its row without its place."""
        path, settings = self.videos / item.video_path, self.settings.encoder
        if isinstance(item, Chunk):
            seconds = self.settings.chunk_seconds
            chunk = encode_chunk(path, number=item.number, seconds=seconds, settings=settings, limits=self.limits)
            row = {name: value for name, value in vars(chunk).items() if name not in ("data", "fps_stated", "kind")}
            header = hashlib.sha256(chunk.data[: chunk.header_size]).hexdigest()
            ids = {"chunk_id": item.chunk_id, "video_id": item.video_id}
            return chunk.data, {**ids, **row, **_noted(chunk), "header_sha256": header}
        assert isinstance(item, Clip)
        interval = Interval(start_second=item.start_second, stop_second=item.stop_second, rule=self.span_rule)
        choose = self._chooser(item) if self.settings.frames_for else None
        clip = encode_clip(path, interval=interval, settings=settings, limits=self.limits, choose=choose)
        return clip.data, clip_row(item, clip)

    def _chooser(self, clip: Clip) -> Chooser:
        assert self.settings.frames_for is not None
        protocol, rule = self.settings.frames_for.settings(), self.span_rule

        def choose(num_frames: int, frames_after: int, fps: float) -> list[int]:
            seconds = num_frames / fps if clip.stop_second is None else clip.stop_second - clip.start_second
            frames = chosen_frames(protocol, rule, stored=num_frames, after=frames_after, fps=fps, seconds=seconds)
            wanted: list[int] = frames.tolist()
            return wanted

        return choose


def assign(items: Sequence[Clip] | Sequence[Chunk], settings: SetSettings) -> list[tuple[Any, ...]]:
    """The items of each tar, in storage order.

    For training, clips (or chunks) are shuffled over all tars with a seed, so that even reading tar after tar is
    random. Other splits keep their order. Tars are cut at equal shares of the estimated bytes.
    """
    chosen: list[Any] = list(items)
    if settings.split == "train":
        chosen = [chosen[i] for i in np.random.Generator(np.random.PCG64(settings.seed)).permutation(len(chosen))]
    if not chosen:
        return []
    encoder = settings.encoder
    area = encoder.short_side**2 * 16 / 9
    quality = 2.0 ** ((ENCODERS[encoder.codec].crf - encoder.crf) / CRF_PER_HALVING)
    rate = BYTES_PER_SECOND[encoder.codec] * area / REFERENCE_AREA * quality
    ends = np.cumsum(np.asarray([_seconds(item, settings) for item in chosen]) * rate + 4096)
    at_least = min(MIN_SHARDS, -(-len(chosen) // MIN_SHARD_CLIPS))
    count = max(at_least, -(-int(ends[-1]) // settings.shard_bytes))
    numbers = np.minimum((ends - ends[0]) * count // ends[-1], count - 1)
    cuts = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(chosen)]
    return [tuple(chosen[first:stop]) for first, stop in pairwise(cuts)]


def _seconds(item: Clip | Chunk, settings: SetSettings) -> float:
    if isinstance(item, Chunk):
        return settings.chunk_seconds
    if item.stop_second is None:
        return UNKNOWN_SECONDS
    return item.stop_second - item.start_second + 2 * settings.encoder.margin


def clip_row(clip: Clip, encoded: EncodedClip) -> dict[str, Any]:
    """A clip's row of clips.parquet, without its place."""
    picture = ("fps", "height", "width", "source_fps", "source_height", "source_width", "scaled_height", "scaled_width")
    return {
        **words(clip, num_frames=encoded.num_frames, fps=encoded.fps),
        **{name: getattr(encoded, name) for name in ("first_frame", "num_frames", "frames_after", *picture)},
        **_noted(encoded),
        "chunk": None,
    }


def _noted(encoded: EncodedClip | EncodedChunk) -> dict[str, Any]:
    """What notes.jsonl says of a video; nothing for an ordinary one."""
    kind = encoded.kind.row()
    return {**({} if encoded.fps_stated else {ESTIMATED: True}), **({KIND: kind} if kind else {})}


def words(clip: Clip, *, num_frames: int, fps: float) -> dict[str, Any]:
    """The columns of clips.parquet that are not about pixels. `num_frames`, `fps`: stored of the interval."""
    start, stop = clip.start_second, clip.stop_second
    return {
        "clip_id": clip.clip_id,
        "video_id": clip.video_id,
        "start_second": start,
        "stop_second": start + num_frames / fps if stop is None else stop,
        "narrations": list(clip.narrations),
        "verb": clip.verb,
        "noun": clip.noun,
        "action": clip.action,
        "labels": list(clip.labels),
        "extra": {**clip.extra, **({} if stop is None else stored_stop(start, stop, num_frames=num_frames, fps=fps))},
    }


def _record_path(out: Path, number: int) -> Path:
    return out / WORK / f"{Path(shard_name(number)).stem}.json"


def item_key(item: Clip | Chunk) -> str:
    """The id that names an item's tar member."""
    return item.clip_id if isinstance(item, Clip) else item.chunk_id


def row_key(row: Mapping[str, Any]) -> str:
    """The id that names the tar member of a row of clips.parquet or chunks.parquet."""
    return str(row["chunk_id"] if "chunk_id" in row else row["clip_id"])


def _copy(tar: BinaryIO, row: Mapping[str, Any]) -> bytes:
    """The mp4 of a row."""
    tar.seek(row["offset"])
    return tar.read(row["size"])


def read_result(out: Path, number: int, *, full: bool = True) -> ShardResult | None:
    """The tar that an earlier job made, checked (`full`: byte by byte). None = it has to be made."""
    return _read_record(out, _record_path(out, number), full=full)


def _read_record(out: Path, path: Path, *, full: bool) -> ShardResult | None:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    entry = record.pop("file")
    file = None if entry is None else ShardFile(**entry)
    if file is not None:
        try:
            verify_shard(out, file, full=full)
        except ShardSetError:
            return None
    return ShardResult(file=file, **record)
