"""Writes a shard set: each tar with its index, then the tables, and last the manifest."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lavila.files import whole_file, whole_path
from lavila.shards.format import (
    CHUNKS,
    CLIPS,
    CLIPS_SCHEMA,
    FORMAT,
    KEY,
    MANIFEST,
    ROW_GROUP,
    ShardFile,
    ShardSetError,
    file_sha256,
    piece_crc32,
    read_manifest,
    shard_name,
)
from lavila.shards.mapped import mapped_path, write_mapped


class ShardWriter:
    """Writes one tar and its index. If the `with` block ends by an error, there is neither.

    with ShardWriter(folder, 0) as writer:
        row = writer.add(clip_id, video, row)
    writer.file  # ShardFile
    """

    def __init__(self, folder: Path, number: int) -> None:
        self.number = number
        self.path = folder / shard_name(number)
        self.file: ShardFile | None = None  # set when the block has ended without an error
        self._keys: set[str] = set()
        self._index: list[str] = []
        self._hash = hashlib.sha256()
        self._size = 0

    def __enter__(self) -> ShardWriter:
        self._stack = contextlib.ExitStack()
        self._out = self._stack.enter_context(whole_file(self.path))
        return self

    def add(self, key: str, video: bytes, row: Mapping[str, Any]) -> dict[str, Any]:
        """Store an mp4 and its row. Returns `row` with shard, offset, size and checksums."""
        if not KEY.fullmatch(key):
            raise ShardSetError(f"clip id {key!r} cannot name a tar member: dots, slashes and spaces are not allowed")
        if key in self._keys:
            raise ShardSetError(f"{self.path}: clip id {key!r} comes twice; clip ids are unique in a dataset")
        self._keys.add(key)
        if not video:
            raise ShardSetError(f"{self.path}: clip {key!r} has no bytes; DALI cannot decode an empty video")
        offset = self._member(f"{key}.mp4", video)
        located = {**row, "shard": self.number, "offset": offset, "size": len(video), **_checksums(video, row)}
        text = json.dumps(located, ensure_ascii=False).encode()
        text_offset = self._member(f"{key}.json", text)
        self._index.append(f"mp4 {offset} {len(video)} {key}.mp4 json {text_offset} {len(text)} {key}.json")
        return located

    def _member(self, name: str, content: bytes) -> int:
        info = tarfile.TarInfo(name)  # by default owner, group and time are 0 and the mode is 0644
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
            with whole_file(
                self.path.with_suffix(".idx")
            ) as file:  # written before the tar is renamed, so that a tar always has an index
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


def _checksums(video: bytes, row: Mapping[str, Any]) -> dict[str, Any]:
    if "gop_offsets" in row:  # a chunk
        return {"piece_crc32": piece_crc32(video, row["gop_offsets"])}
    return {"crc32": zlib.crc32(video)}


@dataclass(frozen=True, kw_only=True)
class SetContents:
    """The content of a manifest, without its tars."""

    classes: Mapping[str, Sequence[str]]  # kind of label -> name of each class
    facts: Mapping[str, Any]  # dataset, split, encoder and other entries of the manifest
    class_texts: Mapping[str, Sequence[Sequence[str]]] = field(
        default_factory=dict
    )  # kind -> descriptions of each class
    tables: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)  # name -> rows


def write_table(path: Path, rows: Iterable[Mapping[str, Any]], schema: pa.Schema | None) -> int:
    """Write rows to a Parquet file as they come. Returns their number. Without a schema, the rows decide it."""
    source = iter(rows)
    count = 0
    with whole_path(path) as temporary, contextlib.ExitStack() as stack:
        writer: pq.ParquetWriter | None = None
        for group in _groups(source):
            # Arrow takes a map as a list of pairs.
            plain = [{**row, "extra": list(row["extra"].items())} if "extra" in row else row for row in group]
            table = pa.Table.from_pylist(plain, schema=schema)
            if writer is None:
                schema = table.schema
                writer = stack.enter_context(pq.ParquetWriter(temporary, schema, compression="zstd"))
            writer.write_table(table, row_group_size=ROW_GROUP)
            count += len(group)
        if writer is None:
            assert schema is not None, "a table without rows needs a schema"
            stack.enter_context(pq.ParquetWriter(temporary, schema, compression="zstd"))
    return count


def _groups(source: Iterator[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    while group := list(itertools.islice(source, ROW_GROUP)):
        yield group


def write_manifest(
    folder: Path, *, rows: Iterable[Mapping[str, Any]], shards: Sequence[ShardFile], contents: SetContents
) -> dict[str, Any]:
    """Write clips.parquet, the other tables and, last of all, shard_set.json. Then the folder is a shard set.

    Tables whose rows a step looks up are also written in their mapped form. `rows`: those of clips.parquet, of which
    only some are in memory at a time. Returns the manifest. Raises ShardSetError for a set without clips, and for a
    clip id that comes twice.
    """
    checked = _CheckedRows(folder)
    clips = write_table(folder / CLIPS, checked.each(rows), CLIPS_SCHEMA)
    if not clips:
        (folder / CLIPS).unlink()
        raise ShardSetError(f"{folder}: no clip could be stored; failures.jsonl says why")
    names = [f"{name}.parquet" for name, table in contents.tables.items() if table]
    for name in names:
        write_table(folder / name, contents.tables[Path(name).stem], None)
    manifest = {
        "format": FORMAT,
        **contents.facts,
        "clips": clips,
        "seconds": checked.seconds,
        "tables": {path.name: file_sha256(path) for path in sorted(folder.glob("*.parquet"))},
        "mapped": write_all_mapped(folder),
        "shards": [asdict(shard) for shard in shards],
        "classes": {kind: list(names) for kind, names in contents.classes.items()},
        "class_texts": {kind: [list(texts) for texts in all_] for kind, all_ in contents.class_texts.items()},
    }
    put_manifest(folder, manifest)
    return manifest


def add_mapped(folder: Path) -> list[str]:
    """Add mapped tables to a whole set that was made without them. Returns their names."""
    mapped = write_all_mapped(folder)
    put_manifest(folder, {**read_manifest(folder), "mapped": mapped})
    return list(mapped)


def write_all_mapped(folder: Path) -> dict[str, str]:
    """Write the Arrow files of the tables whose rows a step looks up. Returns file name -> SHA-256."""
    tables = [folder / name for name in (CHUNKS, CLIPS) if (folder / name).is_file()]
    for table in tables:
        write_mapped(table)
    return {mapped_path(table).name: file_sha256(mapped_path(table)) for table in tables}


def put_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write shard_set.json, or replace it."""
    with whole_file(folder / MANIFEST) as file:
        file.write((json.dumps(manifest, indent=1, ensure_ascii=False) + "\n").encode())


class _CheckedRows:
    """Passes rows on, adds up their seconds, and checks that no clip id comes twice."""

    def __init__(self, folder: Path) -> None:
        self.seconds = 0.0
        self._folder = folder
        self._ids: set[str] = set()

    def each(self, rows: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
        for row in rows:
            clip_id = row["clip_id"]
            if clip_id in self._ids:
                raise ShardSetError(f"{self._folder}: clip id {clip_id!r} comes twice; ids are unique in a dataset")
            self._ids.add(clip_id)
            self.seconds += row["num_frames"] / row["fps"]
            yield row
