"""From annotated clips to a shard set: which clip goes where, one tar as a unit of work, and putting it all together.

The assignment of clips to tars is a pure function of annotations and settings, and a tar's bytes one of its clips, so
any number of workers, in any order, after any number of interruptions, gives the same set. Until the set is whole the
folder .work keeps

    lock                 held by the one run that may write here
    settings.json        what the tars are made with; a run with other settings may not go on
    shard-000000.json    rows, failures and hash of a tar that is whole
"""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from lavila import __version__
from lavila.annotations import AnnotationSet
from lavila.data.encode import ENCODERS, EncodedClip, EncodeError, EncodeSettings, encode_clip, encoder_versions
from lavila.data.shards import (
    FAILURES,
    MANIFEST,
    WORK,
    ShardFile,
    ShardSetError,
    ShardWriter,
    file_sha256,
    open_shard_set,
    shard_name,
    verify_shard,
    write_manifest,
)
from lavila.files import whole_file
from lavila.records import Clip

UNKNOWN_SECONDS = 10.0  # taken for a clip that lasts to the end of its video, when tars are filled by estimate
REFERENCE_AREA = 512 * 288  # pixels
BYTES_PER_SECOND = {"vp9": 32_000, "h264": 55_000, "hevc": 40_000, "av1": 36_000}  # of REFERENCE_AREA, default crf
CRF_PER_HALVING = 6  # a step of this size in crf about halves the bytes
MIN_SHARDS, MIN_SHARD_CLIPS = 16, 32  # small sets still get so many tars, so that workers can share the work

Failure = dict[str, str]  # clip_id, video, reason


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a shard set is made of; the same fields that a run may not change half-way."""

    dataset: str
    split: str
    encoder: EncodeSettings
    shard_bytes: int  # aimed at
    seed: int
    limit: int | None  # clips, from the start of the annotations; None = all

    def settings(self, annotations: AnnotationSet) -> dict[str, Any]:
        """As JSON: what two runs must agree on to give the same bytes."""
        return {
            "dataset": self.dataset,
            "split": self.split,
            "encoder": asdict(self.encoder),
            "shard_bytes": self.shard_bytes,
            "seed": self.seed,
            "limit": self.limit,
            "annotation_files": [{"name": path.name, "sha256": file_sha256(path)} for path in annotations.files],
            "versions": {"lavila": __version__, **encoder_versions()},
        }


@dataclass(frozen=True, kw_only=True)
class ShardJob:
    """One tar to be made, by any process."""

    number: int
    clips: tuple[Clip, ...]
    videos: Path  # root of the clips' video paths
    out: Path
    encoder: EncodeSettings


@dataclass(frozen=True, kw_only=True)
class ShardResult:
    """A tar that is whole. `file` is None where not one of its clips could be stored."""

    file: ShardFile | None
    rows: list[dict[str, Any]]
    failures: list[Failure]


def assign_clips(clips: Sequence[Clip], plan: Plan) -> list[tuple[Clip, ...]]:
    """Clips of each tar, in storage order.

    Training clips are shuffled over all tars (seeded), so that reading tar after tar is already random; other splits
    keep the order of their annotations. Tars are cut at equal shares of the estimated bytes.
    """
    chosen = list(clips[: plan.limit])
    if plan.split == "train":
        chosen = [chosen[i] for i in np.random.Generator(np.random.PCG64(plan.seed)).permutation(len(chosen))]
    if not chosen:
        return []
    settings = plan.encoder
    area = settings.short_side**2 * 16 / 9
    quality = 2.0 ** ((ENCODERS[settings.codec].crf - settings.crf) / CRF_PER_HALVING)
    rate = BYTES_PER_SECOND[settings.codec] * area / REFERENCE_AREA * quality
    seconds = [UNKNOWN_SECONDS if c.stop_second is None else c.stop_second - c.start_second for c in chosen]
    ends = np.cumsum(np.asarray(seconds) * rate + 4096)
    at_least = min(MIN_SHARDS, -(-len(chosen) // MIN_SHARD_CLIPS))
    count = max(at_least, -(-int(ends[-1]) // plan.shard_bytes))
    numbers = np.minimum((ends - ends[0]) * count // ends[-1], count - 1)
    cuts = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(chosen)]
    return [tuple(chosen[first:stop]) for first, stop in pairwise(cuts)]


def missing_videos(clips: Sequence[Clip], videos: Path) -> dict[str, int]:
    """Path below `videos` of each video that is not there -> number of clips that need it."""
    counts: dict[str, int] = {}
    for clip in clips:
        counts[clip.video_path] = counts.get(clip.video_path, 0) + 1
    return {path: count for path, count in counts.items() if not (videos / path).is_file()}


def make_shard(job: ShardJob, progress: Callable[[bool], None]) -> None:
    """Encode the clips of one tar and write it, its index and its record in .work.

    `progress(stored)` is called after each clip. A clip that cannot be cut becomes a failure; any other error ends the
    job and leaves nothing behind.
    """
    rows: list[dict[str, Any]] = []
    failures: list[Failure] = []
    with ShardWriter(job.out, job.number) as writer:
        for clip in job.clips:
            try:
                encoded = encode_clip(
                    job.videos / clip.video_path,
                    start_second=clip.start_second,
                    stop_second=clip.stop_second,
                    settings=job.encoder,
                )
            except EncodeError as error:
                reason = str(error).removeprefix(f"{job.videos / clip.video_path}: ")
                failures.append({"clip_id": clip.clip_id, "video": clip.video_path, "reason": reason})
                progress(False)
                continue
            rows.append(writer.add(encoded.data, clip_row(clip, encoded)))
            progress(True)
    assert writer.file is not None
    if not rows:
        writer.path.unlink()
        writer.path.with_suffix(".idx").unlink()
    record = {"file": asdict(writer.file) if rows else None, "rows": rows, "failures": failures}
    with whole_file(_record_path(job.out, job.number)) as file:
        file.write(json.dumps(record, ensure_ascii=False).encode())


def clip_row(clip: Clip, encoded: EncodedClip) -> dict[str, Any]:
    """A clip's row of clips.parquet, less where it lies."""
    stop = clip.stop_second
    return {
        "clip_id": clip.clip_id,
        "video_id": clip.video_id,
        "num_frames": encoded.num_frames,
        "fps": encoded.fps,
        "height": encoded.height,
        "width": encoded.width,
        "start_second": clip.start_second,
        "stop_second": clip.start_second + encoded.num_frames / encoded.fps if stop is None else stop,
        "source_fps": encoded.source_fps,
        "narrations": list(clip.narrations),
        "verb": clip.verb,
        "noun": clip.noun,
        "action": clip.action,
        "labels": list(clip.labels),
        "extra": dict(clip.extra),
    }


def _record_path(out: Path, number: int) -> Path:
    return out / WORK / f"{Path(shard_name(number)).stem}.json"


def read_result(out: Path, number: int) -> ShardResult | None:
    """The tar that an earlier job made, checked byte by byte; None = it has to be made (again)."""
    path = _record_path(out, number)
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    file = None if record["file"] is None else ShardFile(**record["file"])
    if file is not None:
        try:
            verify_shard(out, file, full=True)
        except ShardSetError:
            return None
    return ShardResult(file=file, rows=record["rows"], failures=record["failures"])


@contextmanager
def work_folder(out: Path, settings: Mapping[str, Any], *, resume: bool) -> Iterator[bool]:
    """Hold `out` for one run. Yields whether it already is a whole set made with these settings.

    Raises ShardSetError where another run writes, the folder holds something else, or settings differ from those of
    what is there.
    """
    if _is_whole(out, settings):
        yield True
        return
    work = out / WORK
    if not work.exists() and out.exists() and any(out.iterdir()):
        raise ShardSetError(f"{out}: holds other files; give an empty or new folder as --out")
    work.mkdir(parents=True, exist_ok=True)
    with (work / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ShardSetError(f"{out}: another run is writing here; wait for it, or give another --out") from None
        if _is_whole(out, settings):  # the run that held the lock has just ended
            yield True
            return
        recorded = work / "settings.json"
        if recorded.exists():
            if not resume:
                raise ShardSetError(f"{out}: holds an unfinished set; add --resume to go on, or give another --out")
            _check_same(out, json.loads(recorded.read_text(encoding="utf-8")), settings)
        for leftover in (*out.glob("*.tmp"), *work.glob("*.tmp")):
            leftover.unlink()
        with whole_file(recorded) as file:
            file.write(json.dumps(settings, indent=1).encode())
        yield False


def _is_whole(out: Path, settings: Mapping[str, Any]) -> bool:
    if not (out / MANIFEST).exists():
        return False
    manifest = open_shard_set(out).manifest
    # A whole set stays good when an encoder is updated; only an unfinished one would become a mixture.
    _check_same(out, manifest, {name: value for name, value in settings.items() if name != "versions"})
    if (out / WORK).exists():  # killed between the manifest and the clearing up
        shutil.rmtree(out / WORK)
    return True


def _check_same(out: Path, found: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    for name, value in settings.items():
        there = found.get(name)
        if isinstance(value, dict) and isinstance(there, dict):
            name, there, value = next(
                ((f"{name}.{key}", there.get(key), value[key]) for key in value if there.get(key) != value[key]),
                (name, value, value),
            )
        if there != value:
            raise ShardSetError(
                f"{out}: made with {name} = {json.dumps(there)}, asked for is {json.dumps(value)}; "
                "use the same settings, or give another --out"
            )


def write_failures(out: Path, failures: Sequence[Failure]) -> None:
    """failures.jsonl, one line for each clip that could not be stored."""
    with whole_file(out / FAILURES) as file:
        file.write("".join(json.dumps(failure, ensure_ascii=False) + "\n" for failure in failures).encode())


def assemble(
    out: Path, results: Sequence[ShardResult], *, annotations: AnnotationSet, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Turn a folder whose tars are all whole into a shard set, and return its manifest."""
    manifest = write_manifest(
        out,
        rows=[row for result in results for row in result.rows],
        shards=[result.file for result in results if result.file is not None],
        classes=annotations.classes,
        facts={**settings, "failures": sum(1 for _ in (out / FAILURES).open(encoding="utf-8"))},
    )
    shutil.rmtree(out / WORK)
    return manifest
