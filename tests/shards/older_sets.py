"""Shard sets as earlier versions made them."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq

from lavila.shards.format import CHUNKS, CLIPS, WITHOUT_CHECKSUMS, file_sha256, schema_of
from lavila.shards.writer import put_manifest, write_all_mapped


def as_format_2(folder: Path) -> Path:
    """Make of a shard set one without checksums."""
    manifest = json.loads((folder / "shard_set.json").read_text())
    for name in (CLIPS, CHUNKS):
        if (folder / name).exists():
            columns = schema_of(name, WITHOUT_CHECKSUMS)
            pq.write_table(pq.read_table(folder / name, columns=columns.names).cast(columns), folder / name)
            manifest["tables"][name] = file_sha256(folder / name)
    put_manifest(folder, {**manifest, "format": WITHOUT_CHECKSUMS, "mapped": write_all_mapped(folder)})
    return folder
