"""The shard-set format: names, columns, and the checksums of a tar.

    shard_set.json     the manifest; it is written last, so a folder with it is whole
    clips.parquet      one row per clip, columns as in CLIPS_SCHEMA
    clips.arrow        the same rows, in the form that is read in place (see `mapped`)
    chunks.parquet     layout "chunks" only: one row per stored stretch of video, columns as in CHUNKS_SCHEMA;
                       and chunks.arrow
    shard-000000.tar   WebDataset, GNU tar: <id>.mp4, then <id>.json with its row of the table
    shard-000000.idx   DALI's index v1.2 of that tar
    <table>.parquet    annotations that are not about one clip: sentences, questions
    failures.jsonl     {clip_id, video, reason} for each clip that could not be stored
    notes.jsonl        what to know of stored clips: shortened by the end of their video, estimated frame rate
    quarantine.jsonl   {clip_id, shard, reason} for each stored clip that tools/inspect_shards.py could not decode

Every file is written under a temporary name, synced and renamed, so a half-written file never looks whole. The headers
in a tar are constant, so the same clips give the same bytes. Reading does not use the tar format: the tables say at
which byte of which tar a video lies. They also hold a checksum of everything that is read. It is compared on each
reading, since decoders make pictures from damaged bytes, too. (Format 2 had no checksums.)

There are two layouts. "clips": each clip is one file. "chunks": a video is stored once, in stretches of fixed length,
and clips point into them. A chunk is a fragmented mp4 with one fragment for each closed group of pictures. Its
timestamps count the frames of the whole video. So the header of a chunk, followed by any fragments of this and later
chunks of the same video, is again an mp4. A clip is read as byte ranges, from several chunks if necessary.
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
WITHOUT_CHECKSUMS = 2  # the format before this one, which can be read, too
MANIFEST, CLIPS, CHUNKS = "shard_set.json", "clips.parquet", "chunks.parquet"
FAILURES, QUARANTINE, NOTES = "failures.jsonl", "quarantine.jsonl", "notes.jsonl"
ROW_GROUP = 10_000  # number of rows of a table that are in memory at a time
ADDING = ".adding-checksums"  # a file that is there while the tables of a set get columns of checksums
WORK = ".work"  # the folder from which tools/shard_videos.py resumes; removed when the set is whole
KEY = re.compile(
    r"[^\s./\\\x00-\x1f\x7f]+"
)  # WebDataset ends a key at its first dot; DALI's index has spaces between its fields

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
    pa.field(
        "scaled_height", pa.int32(), nullable=False
    ),  # pixels after the resize, before the crop or padding to the stored size
    pa.field("scaled_width", pa.int32(), nullable=False),
]
CLIPS_SCHEMA = pa.schema(
    [
        pa.field("clip_id", pa.string(), nullable=False),
        pa.field("video_id", pa.string(), nullable=False),
        *_PLACE,  # in layout "chunks" the place of the chunk with the clip's first frame
        pa.field("crc32", pa.uint32()),  # CRC-32 of the mp4; null in layout "chunks"
        pa.field("chunk", pa.int32()),  # that chunk's row in chunks.parquet; null in layout "clips"
        pa.field(
            "first_frame", pa.int32(), nullable=False
        ),  # the clip's first frame, counted from the first one of the mp4
        pa.field("num_frames", pa.int32(), nullable=False),  # frames of the annotated interval at `fps`
        pa.field("frames_after", pa.int32(), nullable=False),  # stored frames after the interval
        *_PICTURE,
        pa.field("start_second", pa.float64(), nullable=False),  # seconds of the source video
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
        pa.field("first_frame", pa.int64(), nullable=False),  # the chunk's first frame in the whole video at `fps`
        pa.field("num_frames", pa.int32(), nullable=False),
        *_PICTURE,
        pa.field("gop", pa.int32(), nullable=False),  # frames of each group of pictures; the last may have fewer
        pa.field("gop_offsets", pa.list_(pa.int32()), nullable=False),  # bytes before each group, and before the end
        pa.field("piece_crc32", pa.list_(pa.uint32()), nullable=False),  # CRC-32 of the header, then of each group
    ]
)
CHECKSUMS = ("crc32", "piece_crc32")  # columns that sets of format 2 lack


class ShardSetError(UserError):
    """A shard set that is missing, unfinished or damaged, or that does not hold what is requested."""


class DamagedClip(ShardSetError):
    """The bytes of one clip are not those that were stored. Other clips can still be read."""


class UnreadableClip(ShardSetError):
    """The bytes of one clip cannot be read: its tar is missing, too short, or its storage does not answer."""


@dataclass(frozen=True, kw_only=True)
class ShardFile:
    """One tar as the manifest lists it."""

    name: str
    clips: int
    bytes: int
    sha256: str
    index_sha256: str  # hash of the .idx; a wrong index makes DALI read past the end of the tar


def schema_of(table: str, shard_format: int) -> pa.Schema:
    """The columns of CLIPS or CHUNKS in a set of a format."""
    schema = {CLIPS: CLIPS_SCHEMA, CHUNKS: CHUNKS_SCHEMA}[table]
    if shard_format >= FORMAT:
        return schema
    return pa.schema([field for field in schema if field.name not in CHECKSUMS])


def piece_crc32(video: bytes, gop_offsets: Sequence[int]) -> list[int]:
    """The CRC-32 of a chunk's header, and of each of its groups of pictures."""
    return [zlib.crc32(memoryview(video)[start:stop]) for start, stop in pairwise((0, *gop_offsets))]


def shard_name(number: int) -> str:
    """The file name of shard `number`, counted from 0."""
    return f"shard-{number:06d}.tar"


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a whole set. ShardSetError for anything else than a whole set of a known format."""
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
    """Raise ShardSetError unless a tar and its index have the recorded size and, with `full`, the recorded SHA-256."""
    path = folder / shard.name
    for needed in (path, path.with_suffix(".idx")):
        if not needed.is_file():
            raise ShardSetError(f"{needed}: missing; copy it again, or make the set again")
    if path.stat().st_size != shard.bytes:
        raise ShardSetError(f"{path}: {path.stat().st_size} bytes, should be {shard.bytes}; copy the file again")
    for file, recorded in ((path, shard.sha256), (path.with_suffix(".idx"), shard.index_sha256)):
        if full and file_sha256(file) != recorded:
            raise ShardSetError(f"{file}: SHA-256 is not the one on record; copy the file again")
