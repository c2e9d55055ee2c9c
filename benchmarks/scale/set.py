"""Shard sets of any size for benchmarks/scale: generated tables, and tars that are sparse or hold random bytes."""

from __future__ import annotations

import json
import os
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lavila.shards.captions import write_captions
from lavila.shards.format import CLIPS, CLIPS_SCHEMA, FORMAT, MANIFEST, ROW_GROUP, ShardFile, shard_name
from lavila.shards.writer import add_mapped

BLOCK = tarfile.BLOCKSIZE
TEXT = 512  # bytes of a clip's .json
WORDS = ("takes", "puts", "opens", "holds", "washes", "cuts", "turns", "the plate", "a knife", "the door", "her phone")


@dataclass(frozen=True, kw_only=True)
class Made:
    """What a generated set looks like."""

    clips: int
    tars: int
    clip_bytes: int = 65_536  # size of each mp4: about 1.5 s of VP9 at 288 px
    content: str = "holes"  # holes, headers (those of the tar only) or random (real bytes on the disk)

    @property
    def per_tar(self) -> int:
        return -(-self.clips // self.tars)

    @property
    def member_bytes(self) -> int:
        """From one clip of a tar to the next: two headers, the mp4 and the .json."""
        return 2 * BLOCK + -(-self.clip_bytes // BLOCK) * BLOCK + TEXT


def make_set(folder: Path, made: Made) -> Path:
    """A shard set of layout "clips", once; its videos cannot be decoded."""
    made_file = folder / "made.json"
    facts = {"format": FORMAT, **asdict(made)}
    if made_file.is_file() and json.loads(made_file.read_text()) == facts:
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    checksums = np.full(made.clips, zlib.crc32(bytes(made.clip_bytes)), np.uint32)  # the checksum of a hole
    shards = [_write_tar(folder, number, made, checksums) for number in range(made.tars)]
    with pq.ParquetWriter(folder / CLIPS, CLIPS_SCHEMA, compression="zstd") as out:
        for first in range(0, made.clips, ROW_GROUP):
            out.write_batch(_rows(np.arange(first, min(first + ROW_GROUP, made.clips)), made, checksums))
    manifest = {
        "format": FORMAT,
        "dataset": "made_up",
        "split": "train",
        "layout": "clips",
        "span_rule": "duration",
        "encoder": {"codec": "vp9"},
        "clips": made.clips,
        "seconds": made.clips * 1.5,
        "tables": {CLIPS: ""},
        "shards": [asdict(shard) for shard in shards],
        "classes": {"verb": ["take"] * 97},
        "class_texts": {},
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))
    add_mapped(folder)
    made_file.write_text(json.dumps(facts))
    return folder


def clip_name(number: int) -> str:
    """A clip id as long as Ego4D's."""
    return f"{_video(number)}_{number % 400 * 9:08d}_{number % 400 * 9 + 15:08d}"


def _video(number: int) -> str:
    return f"{number // 400:08x}-5b7c-4d2e-9f10-a1b2c3d4e5f6"


def _rows(
    numbers: np.ndarray[Any, np.dtype[np.int64]], made: Made, checksums: np.ndarray[Any, np.dtype[np.uint32]]
) -> pa.RecordBatch:
    def every(value: Any) -> list[Any]:
        return [value] * len(numbers)

    place = numbers % made.per_tar
    clips = numbers.tolist()
    columns: dict[str, Any] = {
        "clip_id": [clip_name(clip) for clip in clips],
        "video_id": [_video(clip) for clip in clips],
        "shard": numbers // made.per_tar,
        "offset": place * made.member_bytes + BLOCK,
        "size": every(made.clip_bytes),
        "crc32": checksums[numbers],
        "chunk": every(None),
        "first_frame": every(0),
        "num_frames": 30 + numbers % 31,
        "frames_after": every(60),
        **{name: every(30.0) for name in ("fps", "source_fps")},
        **{name: every(288) for name in ("height", "source_height", "scaled_height")},
        **{name: every(512) for name in ("width", "source_width", "scaled_width")},
        "start_second": place * 9.0,
        "stop_second": place * 9.0 + 1.5,
        "narrations": [[f"#C C {WORDS[clip % 7]} {WORDS[7 + clip % 4]} number {clip % 1000}"] for clip in clips],
        "verb": numbers % 97,
        **{name: every(None) for name in ("noun", "action")},
        "labels": every([]),
        "extra": every([("narration_pass", "narration_pass_1")]),
    }
    arrays = [pa.array(columns[field.name], field.type) for field in CLIPS_SCHEMA]
    return pa.record_batch(arrays, schema=CLIPS_SCHEMA)


def _write_tar(folder: Path, number: int, made: Made, checksums: np.ndarray[Any, np.dtype[np.uint32]]) -> ShardFile:
    """A tar and its index. Where nothing is written there is a hole, which reads as zeros and takes no space.

    Puts the CRC-32 of what is written into `checksums`, by clip.
    """
    path = folder / shard_name(number)
    clips = range(number * made.per_tar, min((number + 1) * made.per_tar, made.clips))
    size = len(clips) * made.member_bytes + 2 * BLOCK
    lines = [f"v1.2 {len(clips)}"]
    random = np.random.default_rng(number)
    with path.open("wb") as out:
        for place, clip in enumerate(clips):
            name, start = clip_name(clip), place * made.member_bytes
            text = start + made.member_bytes - TEXT
            lines.append(f"mp4 {start + BLOCK} {made.clip_bytes} {name}.mp4 json {text} {TEXT} {name}.json")
            if made.content != "holes":
                os.pwrite(out.fileno(), _header(f"{name}.mp4", made.clip_bytes), start)
                os.pwrite(out.fileno(), _header(f"{name}.json", TEXT) + b" " * TEXT, text - BLOCK)
            if made.content == "random":
                content = random.bytes(made.clip_bytes)
                os.pwrite(out.fileno(), content, start + BLOCK)
                checksums[clip] = zlib.crc32(content)
        os.ftruncate(out.fileno(), size)
    path.with_suffix(".idx").write_text("\n".join(lines) + "\n")
    return ShardFile(
        name=path.name, clips=len(clips), bytes=size, sha256=f"{number:064x}", index_sha256=f"{number:064x}"
    )


def _header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf(tarfile.GNU_FORMAT)


def make_captions(path: Path, clips: int, *, source: str) -> Path:
    """A captions table for every clip of a generated set, in another order than the set's; once."""
    if not path.is_file():
        step = 7_919  # a prime: visits every clip once
        order = (place * step % clips for place in range(clips))
        rows: Iterator[Any] = (
            (clip_name(clip), [f"{source} says that C {WORDS[clip % 7]} {WORDS[7 + clip % 4]}"] * 2, None)
            for clip in order
        )
        write_captions(path, rows, source=source)
    return path
