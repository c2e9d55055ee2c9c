"""The shard-set format: names, columns, and what a tar is known by.

    shard_set.json     the manifest; written last, so a folder that has it is whole
    clips.parquet      one row per clip, columns as in CLIPS_SCHEMA
    clips.arrow        the same rows once more, in the form that is read in place (see `mapped`)
    chunks.parquet     layout "chunks" only: one row per stored stretch of video, columns as in CHUNKS_SCHEMA;
                       and chunks.arrow
    shard-000000.tar   WebDataset, GNU tar: <id>.mp4, then <id>.json with what was known when it was stored
    shard-000000.idx   DALI's index v1.2 of that tar
    <table>.parquet    what the annotations hold that is not about one clip: sentences, questions
    failures.jsonl     {clip_id, video, reason} for each clip that could not be stored
    quarantine.jsonl   {clip_id, shard, reason} for each stored clip that tools/inspect_shards.py could not decode

Every file is written under a temporary name, synced and renamed, so that nothing half-written is taken for whole. The
tar's headers are constant: the same clips give the same bytes. Reading goes past the tar format altogether: the tables
say at which byte of which tar a video lies. They also have a checksum of all that is read, which is compared each time,
since decoders make pictures of damaged bytes as well. (Format 2 had none.)

Two layouts. "clips": each clip is a file of its own. "chunks": a video is stored once, in stretches of fixed length,
and clips point into them. A chunk is a fragmented mp4, one fragment for each closed group of pictures, whose timestamps
count the frames of the whole video: the header of a chunk, followed by any fragments of it and of later chunks of the
same video, is again an mp4. So a clip is read as byte ranges, across chunks where need be.
"""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa

from lavila.errors import UserError

FORMAT = 3
WITHOUT_CHECKSUMS = 2  # the format before this one, which is read as well
MANIFEST, CLIPS, CHUNKS = "shard_set.json", "clips.parquet", "chunks.parquet"
FAILURES, QUARANTINE = "failures.jsonl", "quarantine.jsonl"
ROW_GROUP = 10_000  # rows of a table that are held in memory at a time
ADDING = ".adding-checksums"  # there while the tables of a whole set are exchanged for ones with checksums
WORK = ".work"  # what a run of tools/shard_videos.py needs to go on; gone once the set is whole
KEY = re.compile(r"[^\s./\\\x00-\x1f\x7f]+")  # WebDataset ends a key at its first dot; DALI's index separates by spaces

_PLACE = [
    pa.field("shard", pa.int32(), nullable=False),  # n of shard-n.tar
    pa.field("offset", pa.int64(), nullable=False),  # bytes from the start of the tar to the mp4
    pa.field("size", pa.int64(), nullable=False),  # bytes of the mp4
]
_PICTURE = [
    pa.field("fps", pa.float64(), nullable=False),  # frames per second as stored
    pa.field("height", pa.int32(), nullable=False),  # pixels as stored
    pa.field("width", pa.int32(), nullable=False),
    pa.field("source_fps", pa.float64(), nullable=False),  # the video's own average
    pa.field("source_height", pa.int32(), nullable=False),  # pixels of the video, upright and square
    pa.field("source_width", pa.int32(), nullable=False),
    pa.field("scaled_height", pa.int32(), nullable=False),  # pixels after resizing; cropped or padded to what is stored
    pa.field("scaled_width", pa.int32(), nullable=False),
]
CLIPS_SCHEMA = pa.schema(
    [
        pa.field("clip_id", pa.string(), nullable=False),
        pa.field("video_id", pa.string(), nullable=False),
        *_PLACE,  # layout "chunks": of the chunk that holds the clip's first frame
        pa.field("crc32", pa.uint32()),  # CRC-32 of the mp4; null in layout "chunks"
        pa.field("chunk", pa.int32()),  # row of that chunk in chunks.parquet; null in layout "clips"
        pa.field("first_frame", pa.int32(), nullable=False),  # of the clip, counted from the first one of that mp4
        pa.field("num_frames", pa.int32(), nullable=False),  # of the annotated interval, at `fps`
        pa.field("frames_after", pa.int32(), nullable=False),  # stored frames that follow it
        *_PICTURE,
        pa.field("start_second", pa.float64(), nullable=False),  # in the source video
        pa.field("stop_second", pa.float64(), nullable=False),
        pa.field("narrations", pa.list_(pa.string()), nullable=False),
        pa.field("verb", pa.int32()),  # class index, or null where the dataset has no such label
        pa.field("noun", pa.int32()),
        pa.field("action", pa.int32()),
        pa.field("labels", pa.list_(pa.int32()), nullable=False),  # class indices of a multi-label dataset
        pa.field("extra", pa.map_(pa.string(), pa.string()), nullable=False),
    ]
)
CHUNKS_SCHEMA = pa.schema(
    [
        pa.field("chunk_id", pa.string(), nullable=False),
        pa.field("video_id", pa.string(), nullable=False),
        *_PLACE,
        pa.field("first_frame", pa.int64(), nullable=False),  # in the whole video at `fps`
        pa.field("num_frames", pa.int32(), nullable=False),
        *_PICTURE,
        pa.field("gop", pa.int32(), nullable=False),  # frames of each group of pictures; the last may have fewer
        pa.field("gop_offsets", pa.list_(pa.int32()), nullable=False),  # bytes to each, and the last's end
        pa.field("piece_crc32", pa.list_(pa.uint32()), nullable=False),  # CRC-32 of the header, then of each group
    ]
)
CHECKSUMS = ("crc32", "piece_crc32")  # columns that sets of format 2 lack


class ShardSetError(UserError):
    """A shard set that is missing, unfinished, damaged or asked for what it does not hold."""


class DamagedClip(ShardSetError):
    """The stored bytes of one clip that are not those that were written. Other clips can still be read."""


@dataclass(frozen=True, kw_only=True)
class ShardFile:
    """One tar as the manifest lists it."""

    name: str
    clips: int
    bytes: int
    sha256: str
    index_sha256: str  # of the .idx: a wrong one makes DALI read past the tar


def schema_of(table: str, shard_format: int) -> pa.Schema:
    """Columns of CLIPS or CHUNKS in a set of that format."""
    schema = {CLIPS: CLIPS_SCHEMA, CHUNKS: CHUNKS_SCHEMA}[table]
    if shard_format >= FORMAT:
        return schema
    return pa.schema([field for field in schema if field.name not in CHECKSUMS])


def piece_crc32(video: bytes, gop_offsets: Sequence[int]) -> list[int]:
    """CRC-32 of a chunk's header and of each of its groups of pictures."""
    return [zlib.crc32(memoryview(video)[start:stop]) for start, stop in pairwise((0, *gop_offsets))]


def shard_name(number: int) -> str:
    """File name of shard `number`, counted from 0."""
    return f"shard-{number:06d}.tar"


def file_sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a whole set. ShardSetError for anything but a whole set of a format that can be read."""
    if not folder.is_dir():
        raise ShardSetError(f"{folder}: no such folder; make a shard set with tools/shard_videos.py --out {folder}")
    path = folder / MANIFEST
    if not path.is_file():
        if (folder / WORK).exists() or any(folder.glob("shard-*.tar*")):
            raise ShardSetError(
                f"{folder}: incomplete: it has no {MANIFEST}; run tools/shard_videos.py again with --resume"
            )
        raise ShardSetError(
            f"{folder}: not a shard set: it has no {MANIFEST}; name a folder made by tools/shard_videos.py"
        )
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        found = manifest["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise ShardSetError(f"{path}: not a shard set's manifest ({error}); make the set again") from error
    if found not in (WITHOUT_CHECKSUMS, FORMAT):
        raise ShardSetError(
            f"{folder}: shard-set format {found}, supported are {WITHOUT_CHECKSUMS} and {FORMAT}; make the set again "
            "with this version's tools/shard_videos.py"
        )
    return manifest


def verify_shard(folder: Path, shard: ShardFile, *, full: bool) -> None:
    """Raise ShardSetError unless a tar and its index are there with the size (`full`: and SHA-256) on record."""
    path = folder / shard.name
    for needed in (path, path.with_suffix(".idx")):
        if not needed.is_file():
            raise ShardSetError(f"{needed}: missing; copy it again, or make the set again")
    if path.stat().st_size != shard.bytes:
        raise ShardSetError(f"{path}: {path.stat().st_size} bytes, should be {shard.bytes}; copy the file again")
    for file, recorded in ((path, shard.sha256), (path.with_suffix(".idx"), shard.index_sha256)):
        if full and file_sha256(file) != recorded:
            raise ShardSetError(f"{file}: SHA-256 is not the one on record; copy the file again")
