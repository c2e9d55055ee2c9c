"""The shard-set format: how it is written, opened, read and verified.

    shard_set.json     the manifest; written last, so a folder that has it is whole
    clips.parquet      one row per clip, in storage order, columns as in CLIPS_SCHEMA
    shard-000000.tar   WebDataset, GNU tar: <clip_id>.mp4, then <clip_id>.json with the same row as clips.parquet
    shard-000000.idx   DALI's index v1.2 of that tar
    failures.jsonl     {clip_id, video, reason} for each clip that could not be stored

Every file is written under a temporary name, synced and renamed, so that nothing half-written is taken for whole. The
tar's headers are constant: the same clips give the same bytes. Reading goes past the tar format altogether:
clips.parquet says at which byte of which tar a video lies.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import tarfile
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from lavila.files import whole_file

FORMAT = 1
MANIFEST, CLIPS, FAILURES = "shard_set.json", "clips.parquet", "failures.jsonl"
WORK = ".work"  # what a run of tools/shard_videos.py needs to go on; gone once the set is whole
MAX_OPEN_TARS = 64
KEY = re.compile(r"[^\s./\\]+")  # WebDataset ends a key at its first dot; DALI's index separates by spaces

CLIPS_SCHEMA = pa.schema(
    [
        pa.field("clip_id", pa.string(), nullable=False),
        pa.field("video_id", pa.string(), nullable=False),
        pa.field("shard", pa.int32(), nullable=False),  # n of shard-n.tar
        pa.field("offset", pa.int64(), nullable=False),  # bytes from the start of the tar to the mp4
        pa.field("size", pa.int64(), nullable=False),  # bytes of the mp4
        pa.field("num_frames", pa.int32(), nullable=False),  # as stored
        pa.field("fps", pa.float64(), nullable=False),  # frames per second as stored
        pa.field("height", pa.int32(), nullable=False),  # pixels
        pa.field("width", pa.int32(), nullable=False),
        pa.field("start_second", pa.float64(), nullable=False),  # in the source video
        pa.field("stop_second", pa.float64(), nullable=False),
        pa.field("source_fps", pa.float64(), nullable=False),
        pa.field("narrations", pa.list_(pa.string()), nullable=False),
        pa.field("verb", pa.int32()),  # class index, or null where the dataset has no such label
        pa.field("noun", pa.int32()),
        pa.field("action", pa.int32()),
        pa.field("labels", pa.list_(pa.int32()), nullable=False),  # class indices of a multi-label dataset
        pa.field("extra", pa.map_(pa.string(), pa.string()), nullable=False),
    ]
)


class ShardSetError(ValueError):
    """A shard set that is missing, unfinished, damaged or asked for what it does not hold, told in one line."""


@dataclass(frozen=True, kw_only=True)
class ShardFile:
    """One tar as the manifest lists it."""

    name: str
    clips: int
    bytes: int
    sha256: str
    index_sha256: str  # of the .idx: a wrong one makes DALI read past the tar


def shard_name(number: int) -> str:
    """File name of shard `number`, counted from 0."""
    return f"shard-{number:06d}.tar"


def file_sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class ShardWriter:
    """Writes one tar and its index. Leaving the `with` block by an error leaves neither.

    with ShardWriter(folder, 0) as writer:
        row = writer.add(video, row)
    writer.file  # ShardFile
    """

    def __init__(self, folder: Path, number: int) -> None:
        self.number = number
        self.path = folder / shard_name(number)
        self.file: ShardFile | None = None  # once closed without an error
        self._keys: set[str] = set()
        self._index: list[str] = []
        self._hash = hashlib.sha256()
        self._size = 0

    def __enter__(self) -> ShardWriter:
        self._stack = contextlib.ExitStack()
        self._out = self._stack.enter_context(whole_file(self.path))
        return self

    def add(self, video: bytes, row: Mapping[str, Any]) -> dict[str, Any]:
        """Store one clip; `row` is its row of clips.parquet less shard, offset and size. Returns the full row."""
        key = str(row["clip_id"])
        if not KEY.fullmatch(key):
            raise ShardSetError(f"clip id {key!r} cannot name a tar member: dots, slashes and spaces are not allowed")
        if key in self._keys:
            raise ShardSetError(f"{self.path}: clip id {key!r} comes twice; clip ids are unique in a dataset")
        self._keys.add(key)
        if not video:
            raise ShardSetError(f"{self.path}: clip {key!r} has no bytes; DALI cannot decode an empty video")
        offset = self._member(f"{key}.mp4", video)
        located = {**row, "shard": self.number, "offset": offset, "size": len(video)}
        full = {name: located[name] for name in CLIPS_SCHEMA.names}
        text = json.dumps(full, ensure_ascii=False).encode()
        text_offset = self._member(f"{key}.json", text)
        self._index.append(f"mp4 {offset} {len(video)} {key}.mp4 json {text_offset} {len(text)} {key}.json")
        return full

    def _member(self, name: str, content: bytes) -> int:
        info = tarfile.TarInfo(name)  # owner, group and time are 0 and the mode 0644 unless said otherwise
        info.size = len(content)
        self._write(info.tobuf(tarfile.GNU_FORMAT))
        offset = self._size
        self._write(content)
        self._write(bytes(-self._size % tarfile.BLOCKSIZE))
        return offset

    def _write(self, content: bytes) -> None:
        self._out.write(content)
        self._hash.update(content)
        self._size += len(content)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._write(bytes(2 * tarfile.BLOCKSIZE))
            self._write(bytes(-self._size % tarfile.RECORDSIZE))
            lines = [f"v1.2 {len(self._index)}", *self._index]
            index = "".join(f"{line}\n" for line in lines).encode()
            with whole_file(self.path.with_suffix(".idx")) as file:  # before the tar: a tar is never without it
                file.write(index)
        self._stack.__exit__(kind, error, trace)
        if error is None:
            self.file = ShardFile(
                name=self.path.name,
                clips=len(self._index),
                bytes=self._size,
                sha256=self._hash.hexdigest(),
                index_sha256=hashlib.sha256(index).hexdigest(),
            )


def write_manifest(
    folder: Path,
    *,
    rows: Sequence[Mapping[str, Any]],
    shards: Sequence[ShardFile],
    classes: Mapping[str, Sequence[str]],
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    """Write clips.parquet and, last of all, shard_set.json: from then on the folder is a shard set.

    `rows` in storage order, as `ShardWriter.add` returned them; `facts`: whatever else the manifest shall say (dataset,
    split, encoder ...). Returns the manifest. Raises ShardSetError for a set without clips or with a clip id twice.
    """
    if not rows:
        raise ShardSetError(f"{folder}: no clip could be stored; failures.jsonl says why")
    ids = [row["clip_id"] for row in rows]
    if len(set(ids)) != len(ids):
        twice = next(clip_id for clip_id in ids if ids.count(clip_id) > 1)
        raise ShardSetError(f"{folder}: clip id {twice!r} comes twice; clip ids are unique in a dataset")
    assert sum(shard.clips for shard in shards) == len(rows), "rows and tars disagree"
    columns = {name: [row[name] for row in rows] for name in CLIPS_SCHEMA.names}
    columns["extra"] = [list(extra.items()) for extra in columns["extra"]]
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns, schema=CLIPS_SCHEMA), buffer, compression="zstd")
    with whole_file(folder / CLIPS) as file:
        file.write(buffer.getbuffer())
    manifest = {
        "format": FORMAT,
        **facts,
        "clips": len(rows),
        "seconds": sum(row["num_frames"] / row["fps"] for row in rows),
        "clips_sha256": file_sha256(folder / CLIPS),
        "shards": [asdict(shard) for shard in shards],
        "classes": {kind: list(names) for kind, names in classes.items()},
    }
    with whole_file(folder / MANIFEST) as file:
        file.write((json.dumps(manifest, indent=1, ensure_ascii=False) + "\n").encode())
    return manifest


class _OpenTar:
    """A file descriptor that closes with its last user, so that eviction cannot pull it from under a reader."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


class ShardSet:
    """A whole shard set, opened for reading. Safe to use from many threads; pickles as its path."""

    path: Path
    manifest: dict[str, Any]
    clips: pa.Table  # columns as in CLIPS_SCHEMA, one row per clip in storage order

    def __init__(self, path: Path, manifest: dict[str, Any], clips: pa.Table) -> None:
        self.path, self.manifest, self.clips = path, manifest, clips
        self._shard = _integers(clips, "shard")
        self._offset = _integers(clips, "offset")
        self._size = _integers(clips, "size")
        self._open: OrderedDict[int, _OpenTar] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return int(self.clips.num_rows)

    def __reduce__(self) -> tuple[Callable[[Path], ShardSet], tuple[Path]]:
        return open_shard_set, (self.path,)

    @property
    def codec(self) -> str:
        """vp9, h264, hevc or av1."""
        return str(self.manifest["encoder"]["codec"])

    @property
    def classes(self) -> dict[str, list[str]]:
        """Kind of label ("verb", "noun", "action") -> name of each class, by class index."""
        return dict(self.manifest["classes"])

    @property
    def shards(self) -> list[ShardFile]:
        """The tars, as the manifest lists them."""
        return [ShardFile(**entry) for entry in self.manifest["shards"]]

    def read_video(self, row: int) -> bytes:
        """The whole mp4 file of the clip in `row` of `clips` (0-based)."""
        if not 0 <= row < len(self):
            raise ShardSetError(
                f"{self.path}: row {row} of a set of {len(self)} clips; allowed are 0 to {len(self) - 1}"
            )
        number, offset, size = int(self._shard[row]), int(self._offset[row]), int(self._size[row])
        tar = self._tar(number)
        data = os.pread(tar.descriptor, size, offset)
        if len(data) != size:
            raise ShardSetError(
                f"{self.path / shard_name(number)}: ends before the clip in row {row} "
                f"({size} bytes from {offset}); copy the file again"
            )
        return data

    def _tar(self, number: int) -> _OpenTar:
        with self._lock:
            tar = self._open.pop(number, None)
            if tar is None:
                tar = _OpenTar(self.path / shard_name(number))
            self._open[number] = tar
            if len(self._open) > MAX_OPEN_TARS:
                self._open.popitem(last=False)
            return tar

    def verify(self, *, full: bool = False) -> list[str]:
        """What is wrong with the files, one line each; empty = nothing. `full` reads every byte and compares hashes."""
        problems = []
        for shard in self.shards:
            try:
                verify_shard(self.path, shard, full=full)
            except ShardSetError as error:
                problems.append(str(error))
        if full and file_sha256(self.path / CLIPS) != self.manifest["clips_sha256"]:
            problems.append(f"{self.path / CLIPS}: SHA-256 is not the manifest's; copy the file again")
        return problems


def _integers(clips: pa.Table, name: str) -> npt.NDArray[np.int64]:
    return np.asarray(clips.column(name).to_numpy(), dtype=np.int64)


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


def open_shard_set(folder: Path | str) -> ShardSet:
    """Open a folder that tools/shard_videos.py made.

    Reads the manifest and clips.parquet and compares the size of every tar; `ShardSet.verify(full=True)` reads them.
    Raises ShardSetError for anything but a whole set of this format version.
    """
    path = Path(folder)
    if not path.is_dir():
        raise ShardSetError(f"{path}: no such folder; make a shard set with tools/shard_videos.py --out {path}")
    if not (path / MANIFEST).is_file():
        if (path / WORK).exists() or any(path.glob("shard-*.tar*")):
            raise ShardSetError(
                f"{path}: incomplete: it has no {MANIFEST}; run tools/shard_videos.py again with --resume"
            )
        raise ShardSetError(
            f"{path}: not a shard set: it has no {MANIFEST}; name a folder made by tools/shard_videos.py"
        )
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        found = manifest["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise ShardSetError(f"{path / MANIFEST}: not a shard set's manifest ({error}); make the set again") from error
    if found != FORMAT:
        raise ShardSetError(
            f"{path}: shard-set format {found}, supported is {FORMAT}; make the set again with this version's "
            "tools/shard_videos.py"
        )
    if not (path / CLIPS).is_file():
        raise ShardSetError(f"{path / CLIPS}: missing; copy it again, or make the set again")
    try:
        clips = pq.read_table(path / CLIPS)
    except (pa.ArrowException, OSError) as error:
        raise ShardSetError(f"{path / CLIPS}: not readable ({error}); copy it again") from error
    if clips.num_rows != manifest["clips"] or clips.schema.names != CLIPS_SCHEMA.names:
        raise ShardSetError(f"{path / CLIPS}: not the table the manifest was written for; copy both again")
    shard_set = ShardSet(path, manifest, clips)
    for shard in shard_set.shards:
        verify_shard(path, shard, full=False)
    return shard_set
