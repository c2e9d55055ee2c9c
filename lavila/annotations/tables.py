"""Text tables of annotation files. Each row knows its file and line, so that an error can name them."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lavila.annotations.base import AnnotationError
from lavila.annotations.checks import as_seconds
from lavila.errors import listed, one_line, shown
from lavila.pickles.errors import PickleError
from lavila.pickles.plain import read_pickle

_MOST_DIGITS = 9


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A row of a csv file with a header."""

    file: Path
    line: int  # line number from 1; the last one where a row spans several lines
    cells: dict[str, str]  # column -> text

    def error(self, column: str, problem: str) -> AnnotationError:
        """An error that names the cell, to be raised."""
        return AnnotationError(f"{self.file}, line {self.line}, column {column!r}: {problem}")

    def class_index(self, column: str, count: int) -> int:
        """A cell that holds one of `count` class numbers."""
        index = whole_number(self.cells[column])
        if index is None or index >= count:
            text = shown(self.cells[column].strip())
            raise self.error(column, f"{text} is not a class; allowed are whole numbers from 0 to {count - 1}")
        return index


def whole_number(text: str) -> int | None:
    """A whole number >= 0 in plain digits, or None."""
    text = text.strip()
    return int(text) if text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS else None


def decimal_seconds(text: str) -> float | None:
    """Text such as "31.25" as float64 seconds, or None."""
    try:
        return as_seconds(float(text))
    except ValueError:
        return None


def need_file(file: Path) -> None:
    """Raises AnnotationError for a missing file, and lists the files of its kind that are there."""
    if file.is_file():
        return
    kind = file.suffix.lstrip(".")
    beside = sorted(path.name for path in file.parent.glob(f"*{file.suffix}")) if file.parent.is_dir() else []
    raise AnnotationError(f"{file}: not found; {kind} files there: {listed(beside) or 'none'}; add {file.name}")


def read_plain_pickle(file: Path) -> object:
    """The object in a pickle of plain data; see `lavila.pickles.plain`. AnnotationError for any other."""
    try:
        need_file(file)
        return read_pickle(file)
    except PickleError as error:
        raise AnnotationError(str(error)) from None
    except OSError as error:
        raise AnnotationError(f"{file}: cannot be read ({error.strerror}); check the disk and the rights") from None


def read_text(file: Path) -> str:
    """The text of a UTF-8 file, with or without byte-order mark. Line ends stay as they are."""
    try:
        need_file(file)
        return file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise AnnotationError(f"{file}: not UTF-8 text ({error.reason}); save the file as UTF-8") from None
    except OSError as error:
        raise AnnotationError(f"{file}: cannot be read ({error.strerror}); check the disk and the rights") from None


def read_words(file: Path) -> Iterator[tuple[int, list[str]]]:
    """The lines of a file without header that are not blank: line number from 1, words between white space."""
    for number, line in enumerate(read_text(file).splitlines(), 1):
        if line.split():
            yield number, line.split()


def read_cells(file: Path) -> Iterator[tuple[int, list[str]]]:
    """The rows of a comma-separated file that are not blank: line number from 1 (the row's last line), cells."""
    reader = csv.reader(io.StringIO(read_text(file), newline=""), strict=True)
    try:
        for cells in reader:
            if cells:
                yield reader.line_num, cells
    except csv.Error as error:
        raise AnnotationError(f"{file}, line {reader.line_num}: not valid csv ({error}); correct the line") from None


def read_csv(file: Path, columns: tuple[str, ...]) -> list[Row]:
    """All rows of a comma-separated file. Its first row names its columns; `columns` must be among them."""
    lines = read_cells(file)
    header = [name.strip() for name in next(lines, (1, []))[1]]
    missing = [name for name in columns if name not in header]
    if missing:
        found = one_line(", ".join(header)) or "nothing"
        raise AnnotationError(
            f"{file}, line 1: no column {', '.join(map(repr, missing))}; found {found}; needed are {', '.join(columns)}"
        )
    twice = [name for name in columns if header.count(name) > 1]
    if twice:
        raise AnnotationError(f"{file}, line 1: column {twice[0]!r} comes twice; remove the one that is not meant")
    rows = []
    for line, cells in lines:
        if len(cells) != len(header):
            raise AnnotationError(
                f"{file}, line {line}: {len(cells)} cells, but the header has {len(header)}; "
                "put quotes round cells that hold a comma"
            )
        rows.append(Row(file=file, line=line, cells=dict(zip(header, cells, strict=True))))
    return rows
