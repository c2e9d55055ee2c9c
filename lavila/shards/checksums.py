"""Adds checksums to a whole shard set of format 2, which has none. Its tables get new columns, and no tar changes.

The checksums will make the present bytes the right ones, so these are first compared with what was stored: each tar and
index by the manifest's SHA-256, and each video's place by the index.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lavila.files import sync, whole_path
from lavila.shards.format import (
    ADDING,
    CHECKSUMS,
    CHUNKS,
    CLIPS,
    FORMAT,
    ROW_GROUP,
    ShardFile,
    ShardSetError,
    file_sha256,
    piece_crc32,
    read_manifest,
    schema_of,
    shard_name,
    verify_shard,
)
from lavila.shards.writer import put_manifest, write_all_mapped


def add_checksums(folder: Path, *, threads: int, on_progress: Callable[[int], object]) -> list[str]:
    """Add checksums to a whole set of format 2, which makes it one of format 3. Returns the names of the new files.

    It reads all tars on `threads` threads, and calls `on_progress` with the bytes of each. An interrupted run changes
    nothing, or leaves a folder that cannot be opened until this runs again. A set with checksums does not change.

    Raises ShardSetError for a tar or an index that is not the recorded one, and for a table of other videos.
    """
    manifest = read_manifest(folder)
    if manifest["format"] >= FORMAT:
        (folder / ADDING).unlink(missing_ok=True)
        return []
    chunked = manifest.get("layout") == "chunks"
    stored = CHUNKS if chunked else CLIPS
    names = ["chunk_id", "gop_offsets"] if chunked else ["clip_id"]
    table = pq.read_table(folder / stored, columns=[*names, "shard", "offset", "size"]).combine_chunks()
    shards = table.column("shard").to_numpy()
    files = [ShardFile(**entry) for entry in manifest["shards"]]
    number = {shard_name(n): n for n in np.unique(shards).tolist()}
    if set(number) != {file.name for file in files}:
        raise ShardSetError(f"{folder / stored}: not the tars that the manifest lists; copy both again")
    found: list[int | list[int]] = [0] * len(shards)

    def read_tar(file: ShardFile) -> ShardFile:
        rows = np.flatnonzero(shards == number[file.name])
        for row, value in zip(rows.tolist(), _checksums(folder, file, table.take(rows)), strict=True):
            found[row] = value
        return file

    with ThreadPoolExecutor(threads, thread_name_prefix="checksums") as pool:
        try:
            for file in pool.map(read_tar, files):
                on_progress(file.bytes)
        finally:
            pool.shutdown(cancel_futures=True)
    (folder / ADDING).touch()
    sync(folder)
    tables = [CHUNKS, CLIPS] if chunked else [CLIPS]
    for name in tables:
        _rewrite(folder / name, found if name == stored else None)
    mapped = write_all_mapped(folder)
    hashes = {**manifest["tables"], **{name: file_sha256(folder / name) for name in tables}}
    put_manifest(folder, {**manifest, "format": FORMAT, "tables": hashes, "mapped": mapped})
    (folder / ADDING).unlink()
    return [*tables, *mapped]


def _checksums(folder: Path, file: ShardFile, rows: pa.Table) -> list[int | list[int]]:
    """Check a tar, and return the CRC-32 of each of its videos, or of each piece of them.

    `rows`: the rows of clips.parquet or chunks.parquet for that tar.
    """
    path = folder / file.name
    verify_shard(folder, file, full=True)
    lines = path.with_suffix(".idx").read_text(encoding="utf-8").splitlines()[1:]
    members = {name.removesuffix(".mp4"): (int(at), int(size)) for _, at, size, name, *_ in map(str.split, lines)}
    found: list[int | list[int]] = []
    with path.open("rb") as tar:
        for row in rows.to_pylist():
            key = row["chunk_id"] if "chunk_id" in row else row["clip_id"]
            if members.get(key) != (row["offset"], row["size"]):
                raise ShardSetError(f"{path}: {key!r} does not lie where the table says; copy tar and table again")
            data = os.pread(tar.fileno(), row["size"], row["offset"])
            found.append(piece_crc32(data, row["gop_offsets"]) if "gop_offsets" in row else zlib.crc32(data))
    return found


def _rewrite(table: Path, checksums: Sequence[int | list[int]] | None) -> None:
    """Write a table again with its column of checksums. None: the column has no values (clips in chunks)."""
    schema = schema_of(table.name, FORMAT)
    new = next(field for field in schema if field.name in CHECKSUMS)
    done = 0
    with (
        whole_path(table) as temporary,
        pq.ParquetFile(table) as source,
        pq.ParquetWriter(temporary, schema, compression="zstd") as out,
    ):
        for batch in source.iter_batches(batch_size=ROW_GROUP):
            values = [None] * len(batch) if checksums is None else checksums[done : done + len(batch)]
            columns = {name: batch.column(name) for name in batch.schema.names}
            columns[new.name] = pa.array(values, new.type)
            out.write_batch(pa.record_batch([columns[name] for name in schema.names], schema=schema))
            done += len(batch)
