"""Tables that are read in place: an Arrow file beside a Parquet file, with the same rows, mapped into memory.

A Parquet file has to be decoded as a whole. Of a mapped file only the pages that are used are read, and all processes
of a machine share them. Opening one reads a page for each of its batches, for any number of rows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pyarrow.types as kinds

from lavila.errors import one_line
from lavila.files import whole_path
from lavila.shards.format import ROW_GROUP, ShardSetError, file_sha256

# Keys of an Arrow file's metadata. The size shows most changes of the Parquet file without reading it.
MADE_FROM = b"sha256 of the Parquet file"
MADE_FROM_BYTES = b"bytes of the Parquet file"


class Column:
    """The values of a table's column by row. Each is looked up when needed, so memory does not grow with the table.

    A lookup takes about half a microsecond. `ChunkedArray.take` would first join all batches.
    """

    def __init__(self, table: pa.Table, name: str, *, null: Any = None) -> None:
        """`null`: the value for rows that have none."""
        self._values: pa.ChunkedArray = table.column(name)
        self._null = null

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, row: int) -> Any:
        value = self._values[row].as_py()
        return self._null if value is None else value


def filled(table: pa.Table, name: str) -> npt.NDArray[np.bool_]:
    """Whether each row's list in a column has entries, [rows] bool. Looks at the lengths alone."""
    lengths = pc.fill_null(pc.list_value_length(table.column(name)), 0)
    return np.asarray(pc.greater(lengths, 0).to_numpy())


def mapped_path(table: Path) -> Path:
    """The Arrow file that goes with a Parquet file."""
    return table.with_suffix(".arrow")


def write_mapped(table: Path, *, sort_by: str | None = None) -> None:
    """Write the Arrow file of a Parquet file: batch by batch, or all rows at once, sorted by a column."""
    made_from = {MADE_FROM: file_sha256(table), MADE_FROM_BYTES: str(table.stat().st_size)}
    plain = pa.ipc.IpcWriteOptions(compression=None)  # compressed values cannot be read in place
    with (
        whole_path(mapped_path(table)) as temporary,
        pq.ParquetFile(table) as source,
        pa.OSFile(str(temporary), "wb") as sink,
        pa.ipc.new_file(sink, source.schema_arrow.with_metadata(made_from), options=plain) as out,
    ):
        if sort_by is not None:
            out.write_table(sorted_rows(read_rows(source), sort_by))
            return
        for batch in source.iter_batches(batch_size=ROW_GROUP):
            out.write_batch(batch)


def read_rows(source: pq.ParquetFile) -> pa.Table:
    """All rows of a Parquet file. Arrow can read more than 2 GiB of text in lists only in batches."""
    return pa.Table.from_batches(source.iter_batches(batch_size=ROW_GROUP), source.schema_arrow)


def sorted_rows(table: pa.Table, column: str) -> pa.Table:
    """The rows in the order of a column's values, in batches. Their text may be more than 2 GiB."""
    wide = table.cast(pa.schema([field.with_type(_wide(field.type)) for field in table.schema])).combine_chunks()
    order = pc.sort_indices(wide.column(column))
    pieces = (wide.take(order[first : first + ROW_GROUP]) for first in range(0, len(order), ROW_GROUP))
    return pa.concat_tables([table.slice(0, 0), *(piece.cast(table.schema) for piece in pieces)])


def _wide(kind: pa.DataType) -> pa.DataType:
    """The same type with 64-bit offsets, so that one array can hold all rows."""
    if kinds.is_list(kind):
        return pa.large_list(_wide(kind.value_type))
    return pa.large_string() if kinds.is_string(kind) else kind


def open_mapped(path: Path, schema: pa.Schema) -> pa.Table:
    """An Arrow file as a table whose columns lie in the file.

    Raises ShardSetError for a file that is not whole, or not of this schema.
    """
    try:
        with pa.memory_map(str(path)) as source:  # the table keeps the mapping, not the descriptor
            table = pa.ipc.open_file(source).read_all()
    except (pa.ArrowException, OSError) as error:
        raise ShardSetError(f"{path}: not readable ({one_line(error)}); copy it again") from error
    if not table.schema.equals(schema):
        raise ShardSetError(f"{path}: not the table the manifest was written for; copy both again")
    return table


def check_unchanged(mapped: pa.Table, table: Path) -> None:
    """Raise ShardSetError if a Parquet file has changed its size since its Arrow file was made: that is outdated."""
    recorded = (mapped.schema.metadata or {}).get(MADE_FROM_BYTES)
    if recorded is not None and table.stat().st_size != int(recorded):
        raise ShardSetError(
            f"{table}: not the file that {mapped_path(table).name} was made from ({table.stat().st_size} bytes, it had "
            f"{int(recorded)}); if it was changed on purpose, run tools/inspect_shards.py {table.parent} --add-mapped"
        )


def current_mapped(table: Path, schema: pa.Schema) -> pa.Table | None:
    """The Arrow file of a Parquet file, if it was made from the file as it is now; else None. Hashes the Parquet file.

    Raises ShardSetError as in `open_mapped`.
    """
    path = mapped_path(table)
    if not path.is_file():
        return None
    mapped = open_mapped(path, schema)
    made_from = (mapped.schema.metadata or {}).get(MADE_FROM, b"").decode()
    return mapped if made_from == file_sha256(table) else None


def mapped_problem(table: Path) -> str | None:
    """How an Arrow file differs from its Parquet file, in one line; None if both have the same rows."""
    path = mapped_path(table)
    try:
        with pq.ParquetFile(table) as source:
            mapped = open_mapped(path, source.schema_arrow)
            mapped.validate(full=True)
            done = 0
            for batch in source.iter_batches(batch_size=ROW_GROUP):
                if not pa.Table.from_batches([batch]).equals(mapped.slice(done, len(batch))):
                    return f"{path}: rows from {done} on are not those of {table.name}; copy both again"
                done += len(batch)
    except ShardSetError as error:
        return str(error)
    except (pa.ArrowException, OSError) as error:
        return f"{path}: cannot be compared with {table.name} ({one_line(error)}); copy both again"
    return None if done == mapped.num_rows else f"{path}: {mapped.num_rows} rows, {table.name} has {done}"
