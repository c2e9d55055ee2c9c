"""Captions tables: narrations for the clips of a shard set, apart from its pixels.

A captions table is a Parquet file with one row per clip:

    clip_id     string          as in the shard set's clips.parquet
    narrations  list<string>    any number
    scores      list<double>    one for each narration; may be null, and the column may be missing
    source      string          "human" = written by a person; any other word ("rephrased", "machine") = not

A set can be loaded with any number of tables, with or without its own narrations, and no tar changes. Each table that
lavila writes has a mapped form beside it (see `mapped`), which is read in place: a batch looks up the words that it
needs, and all processes of a machine share what was read. A table without a mapped form is read and checked as a whole.
Rows are found by bisection of the sorted clip ids, so nothing is built for each clip of a set.
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pyarrow.types as kinds

from lavila.errors import UserError, one_line
from lavila.records import HUMAN
from lavila.shards.format import ShardSetError
from lavila.shards.mapped import Column, current_mapped, filled, mapped_path, read_rows, sorted_rows, write_mapped
from lavila.shards.reader import ShardSet
from lavila.shards.writer import write_table

log = logging.getLogger(__name__)

OWN = "own"
"""The name of the shard set's own narrations in a list of tables."""

CAPTIONS_SCHEMA = pa.schema(
    [
        pa.field("clip_id", pa.string(), nullable=False),
        pa.field("narrations", pa.list_(pa.string()), nullable=False),
        pa.field("scores", pa.list_(pa.float64())),  # one for each narration, or null
        pa.field("source", pa.string(), nullable=False),
    ]
)
ALLOWED = (
    "clip_id (string), narrations (list of strings), source (string) and, if there are any, scores (list of numbers)"
)

Words = tuple[str, Sequence[str], Sequence[float] | None]
"""A clip's id, its narrations, and their scores if there are any."""


class CaptionError(UserError):
    """A captions table that cannot be read or written, or that does not fit a shard set."""


def write_captions(path: Path | str, rows: Iterable[Words], *, source: str) -> int:
    """Write a captions table and its mapped form, row by row. Returns the number of rows; an error leaves no file.

    Args:
        path: the Parquet file, which may exist.
        rows: clip id, narrations, and scores or None; each clip once.
        source: the origin of the words: "human", "rephrased", "machine" ...

    Raises:
        CaptionError: names a clip whose id comes twice, whose scores and narrations differ in number, or whose words
            are not text.
    """
    if not source:
        raise CaptionError(f"{path}: source is empty; give for example {HUMAN}, rephrased or machine")
    count = write_table(Path(path), _checked(Path(path), rows, source), CAPTIONS_SCHEMA)
    write_mapped(Path(path), sort_by="clip_id")
    return count


def _checked(path: Path, rows: Iterable[Words], source: str) -> Iterator[dict[str, Any]]:
    seen: set[str] = set()
    for clip_id, narrations, scores in rows:
        if clip_id in seen:
            raise CaptionError(f"{path}: clip id {clip_id!r} comes twice; put all narrations of a clip in one row")
        seen.add(clip_id)
        if scores is not None and len(scores) != len(narrations):
            raise CaptionError(
                f"{path}: clip {clip_id!r} has {len(scores)} scores for {len(narrations)} narrations; "
                "give one for each narration, or none at all"
            )
        for text in (clip_id, *narrations):
            if not isinstance(text, str) or not _is_unicode(text):
                raise CaptionError(f"{path}: clip {clip_id!r}: {text!r} is not Unicode text; correct or remove it")
        yield {"clip_id": clip_id, "narrations": list(narrations), "scores": scores, "source": source}


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    return True


def read_captions(path: Path | str) -> pa.Table:
    """A checked captions table with the columns of CAPTIONS_SCHEMA, sorted by clip id.

    Strings and lists may be of Arrow's large, fixed-size and dictionary-coded kinds, and scores of any number type.

    Raises:
        CaptionError: names file, column and clip. The file is not Parquet, or has other columns or types, nulls, a clip
            id twice, or scores that differ in number from the narrations.
    """
    path = Path(path)
    if not path.is_file():
        raise CaptionError(f"{path}: no such file; make a captions table with tools/make_captions.py --out {path}")
    try:
        mapped = current_mapped(path, CAPTIONS_SCHEMA)
    except ShardSetError as error:
        raise CaptionError(f"{error}, or remove it: then {path.name} is read") from None
    if mapped is not None:  # it was checked when it was written
        return mapped
    log.info("%s: has no %s made from it, so each process reads all of it into memory", path, mapped_path(path).name)
    try:
        schema = pq.read_schema(path)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise CaptionError(f"{path}: not a Parquet file ({one_line(error)}); make one with make_captions.py") from None
    _check_columns(path, schema)
    try:
        with pq.ParquetFile(path) as source:
            table = read_rows(source)
        table.validate(full=True)  # Parquet does not promise that text is UTF-8
        if "scores" not in schema.names:
            table = table.append_column("scores", pa.nulls(len(table), pa.list_(pa.float64())))
        table = table.select(CAPTIONS_SCHEMA.names)
        columns = [_plain(column).cast(kind) for column, kind in zip(table.columns, CAPTIONS_SCHEMA.types, strict=True)]
    except (pa.ArrowException, OSError, ValueError) as error:
        raise CaptionError(f"{path}: cannot be read ({one_line(error)}); copy or make the file again") from None
    table = pa.table(columns, names=CAPTIONS_SCHEMA.names)
    _check_rows(path, table)
    return sorted_rows(table.cast(CAPTIONS_SCHEMA), "clip_id")


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Dictionary-coded text as plain text; any other column unchanged."""
    return column.cast(column.type.value_type) if kinds.is_dictionary(column.type) else column


def _check_columns(path: Path, schema: pa.Schema) -> None:
    found = ", ".join(schema.names) or "nothing"
    missing = [name for name in CAPTIONS_SCHEMA.names if name not in schema.names and name != "scores"]
    other = [name for name in schema.names if name not in CAPTIONS_SCHEMA.names]
    twice = len(set(schema.names)) < len(schema.names)
    if missing or other or twice:
        what = f"no column {', '.join(missing)}" if missing else f"{'a column twice' if twice else 'unknown columns'}"
        raise CaptionError(f"{path}: {what}: found {found}; needed are {ALLOWED}; rename or remove columns")
    for name, right, allowed in (
        ("clip_id", _is_text, "strings"),
        ("narrations", _is_texts, "lists of strings"),
        ("scores", _is_numbers, "lists of numbers, or null"),
        ("source", _is_text, "strings"),
    ):
        if name in schema.names and not right(schema.field(name).type):
            raise CaptionError(f"{path}: column {name} holds {schema.field(name).type}; allowed are {allowed}")


def _is_text(kind: pa.DataType) -> bool:
    if kinds.is_dictionary(kind):
        return _is_text(kind.value_type)
    return bool(kinds.is_string(kind) or kinds.is_large_string(kind) or kinds.is_string_view(kind))


def _is_list(kind: pa.DataType) -> bool:
    return bool(kinds.is_list(kind) or kinds.is_large_list(kind) or kinds.is_fixed_size_list(kind))


def _is_texts(kind: pa.DataType) -> bool:
    # Arrow gives lists that are all empty the type of lists of nulls.
    return _is_list(kind) and (_is_text(kind.value_type) or bool(kinds.is_null(kind.value_type)))


def _is_numbers(kind: pa.DataType) -> bool:
    if kinds.is_null(kind):
        return True
    value = kind.value_type if _is_list(kind) else None
    return value is not None and bool(kinds.is_floating(value) or kinds.is_integer(value) or kinds.is_null(value))


def _check_rows(path: Path, table: pa.Table) -> None:
    """Check the values: no nulls, no clip twice, one score for each narration."""
    for name in ("clip_id", "narrations", "source"):
        nulls = table.column(name).null_count
        if nulls:
            raise CaptionError(f"{path}: column {name} is null in {nulls} of {len(table)} rows; give each row a value")
    ids, narrations = table.column("clip_id"), table.column("narrations")
    if pc.list_flatten(narrations).null_count:
        raise CaptionError(f"{path}: column narrations holds null instead of text; remove such narrations")
    if pc.count_distinct(ids).as_py() < len(table):
        counts = pc.value_counts(ids.combine_chunks())
        name = counts.field("values")[pc.index(pc.greater(counts.field("counts"), 1), True).as_py()].as_py()
        raise CaptionError(f"{path}: clip id {name!r} comes twice; put all narrations of a clip in one row")
    wanted, found = pc.list_value_length(narrations), pc.list_value_length(table.column("scores"))
    wrong = np.flatnonzero(np.asarray(pc.fill_null(pc.not_equal(wanted, found), False)))
    if len(wrong):
        row = int(wrong[0])
        raise CaptionError(
            f"{path}: clip {ids[row].as_py()!r} has {found[row]} scores for {wanted[row]} narrations; "
            "give one for each narration, or null"
        )


def choose(count: int, caption: float) -> int:
    """The place of the narration that `ClipPlan.caption` in [0, 1) picks out of `count`; each is equally likely.

    -1 of 0.
    """
    assert 0.0 <= caption < 1.0, caption
    return min(int(caption * count), count - 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Layer:
    """The narrations of one table."""

    table: pa.Table
    narrations: Column  # its column, lists of strings
    source: Column | str  # the source of each row, or of all
    ids: Column | None = None  # sorted clip ids; None: a row for each clip of the set, in the same order

    def row(self, clip: int, clip_id: str) -> int:
        """The table's row for the clip in a row of the set; -1 if it has none."""
        if self.ids is None:
            return clip
        row = bisect_left(self.ids, clip_id)
        return row if row < len(self.ids) and self.ids[row] == clip_id else -1

    def worded(self, clip_ids: pa.ChunkedArray) -> npt.NDArray[np.bool_]:
        """Whether the table has words for each of these clips, those of the set in their order."""
        own = filled(self.table, "narrations")
        if self.ids is None:
            return own
        rows = pc.fill_null(pc.index_in(clip_ids, self.table.column("clip_id").cast(clip_ids.type)), -1).to_numpy()
        found: npt.NDArray[np.bool_] = np.zeros(len(rows), np.bool_)
        found[rows >= 0] = own[rows[rows >= 0]]
        return found

    def of(self, clip: int, clip_id: str) -> tuple[list[str], str]:
        row = self.row(clip, clip_id)
        if row < 0:
            return [], ""
        return self.narrations[row], self.source if isinstance(self.source, str) else self.source[row]


class Captions:
    """The narrations of a shard set's clips, from any number of tables. Safe to use from many threads.

    Args:
        shard_set: the set of the clips.
        tables: paths of captions tables, and "own" for the set's own narrations. Empty = ("own",). A clip's narrations
            come in this order.

    Raises:
        CaptionError: a table that cannot be read, comes twice or has no clip of the set.
    """

    def __init__(self, shard_set: ShardSet, tables: Sequence[Path | str] = ()):
        names = [str(table) for table in tables] or [OWN]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise CaptionError(f"data.captions names {twice} twice; every table gives its narrations once")
        self._path, self._ids = shard_set.path, shard_set.clips.column("clip_id")
        source = str(shard_set.manifest.get("narrations_source", HUMAN))
        own = _Layer(table=shard_set.clips, narrations=Column(shard_set.clips, "narrations", null=[]), source=source)
        layers = {name: own if name == OWN else _read_layer(name) for name in names}
        self._layers = list(layers.values())
        if names != [OWN]:
            self._check_use(layers)

    def of(self, row: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The narrations of the clip in a row of the set, and the source of each one."""
        narrations: list[str] = []
        sources: list[str] = []
        clip_id = self._ids[row].as_py()
        for layer in self._layers:
            words, source = layer.of(row, clip_id)
            narrations += words
            sources += [source] * len(words)
        return tuple(narrations), tuple(sources)

    def worded_rows(self) -> npt.NDArray[np.bool_]:
        """Whether each clip of the set has a narration, [rows] bool."""
        found = np.zeros(len(self._ids), np.bool_)
        for layer in self._layers:
            found |= layer.worded(self._ids)
        return found

    def _check_use(self, layers: Mapping[str, _Layer]) -> None:
        """Refuse a table without clips of the set."""
        for name, layer in layers.items():
            if not any(layer.row(row, clip_id.as_py()) >= 0 for row, clip_id in enumerate(self._ids)):
                raise CaptionError(self._no_common_clip(name))

    def _no_common_clip(self, name: str) -> str:
        """The message for a table without clips of the set, with an example of both kinds of clip ids."""
        ids = read_captions(name).column("clip_id")
        some = f"none of its {len(ids)} clips, such as {ids[0].as_py()!r}, is" if len(ids) else ""
        like = some or "holds no rows: none of its clips is"
        return (
            f"{name}: {like} in {self._path}, whose clips are named like {self._ids[0].as_py()!r}; "
            f"give a table for the clips of this set, or list {OWN!r} in its place for the set's own narrations"
        )


def _read_layer(name: str) -> _Layer:
    table = read_captions(name)
    return _Layer(
        table=table,
        narrations=Column(table, "narrations", null=[]),
        source=Column(table, "source"),
        ids=Column(table, "clip_id"),
    )
