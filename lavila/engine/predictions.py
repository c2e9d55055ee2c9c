"""Predictions of any number of clips on the disk: every rank writes parts, the main rank reads them one by one.

Memory holds one part at a time on every rank. The folder must be one that all ranks share, as a run's folder is.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from lavila.engine.distributed import Process, on_main
from lavila.tasks import Predictions, concatenate

PART_BYTES = 32 << 20  # of one rank's predictions, before they go to the disk
ROWS = "rows"  # the entry of a part's file beside its columns, which are `column.<name>`


@contextmanager
def predictions_folder(output: Path, process: Process) -> Iterator[Path]:
    """A temporary folder in `output` for the parts of all ranks, gone afterwards. Every rank calls this."""

    def make() -> Path:
        output.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=".predictions-", dir=output))

    folder = on_main(make)
    try:
        yield folder
    finally:
        if process.is_main:
            shutil.rmtree(folder, ignore_errors=True)


class PredictionWriter:
    """One rank's predictions, written in parts of about `part_bytes`; `name` is that of the rank and the kind."""

    def __init__(self, folder: Path, name: str, *, part_bytes: int = PART_BYTES) -> None:
        self._folder, self._name, self._part_bytes = folder, name, part_bytes
        self._waiting: list[Predictions] = []
        self._bytes, self._parts = 0, 0
        self.clips = 0

    def add(self, predictions: Predictions) -> None:
        """Take the predictions of a batch."""
        self._waiting.append(predictions)
        self.clips += len(predictions.rows)
        self._bytes += sum(column.nbytes for column in predictions.columns.values())
        if self._bytes >= self._part_bytes:
            self.flush()

    def flush(self) -> None:
        """Write what waits, as at the end."""
        if not self._waiting:
            return
        part = concatenate(self._waiting)
        columns = {f"column.{name}": values for name, values in part.columns.items()}
        np.savez(
            self._folder / f"{self._name}-{self._parts:06d}.npz", allow_pickle=False, **{ROWS: part.rows}, **columns
        )
        self._parts += 1
        self._waiting, self._bytes = [], 0


class PredictionParts:
    """The parts that all ranks wrote under a kind of name, read anew each time that they are gone through."""

    def __init__(self, folder: Path, kind: str) -> None:
        self._files = sorted(folder.glob(f"{kind}-*.npz"))
        rows = [self._read(file, rows_only=True).rows for file in self._files]
        self.clips = sum(map(len, rows))
        assert self.clips == (len(np.unique(np.concatenate(rows))) if rows else 0), "a clip was predicted twice"

    def __iter__(self) -> Iterator[Predictions]:
        return (self._read(file) for file in self._files)

    def _read(self, file: Path, *, rows_only: bool = False) -> Predictions:
        with np.load(file, allow_pickle=False) as arrays:
            names = [] if rows_only else [name for name in arrays.files if name != ROWS]
            return Predictions(
                rows=arrays[ROWS], columns={name.removeprefix("column."): arrays[name] for name in names}
            )
