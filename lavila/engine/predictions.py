"""Predictions of any number of clips on the disk: every rank writes parts, the main rank reads them one by one.

Memory holds one part at a time on every rank. The folder must be one that all ranks share, as a run's folder is.

Parts are Parquet files. Other programs read them as they are, texts and numbers have one form, and every column has its
name: `clip_id`, `row` (of clips.parquet), and those of the task. A vector is a list of fixed length.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from lavila.engine.distributed import Process, on_main
from lavila.errors import UserError
from lavila.tasks import Predictions, concatenate

PART_BYTES = 32 << 20  # size at which a rank's predictions go to the disk
KEPT = "predictions"  # the folder in an evaluation's output
CLIP_ID, ROW = "clip_id", "row"  # columns of every part, beside those of the task
NUMBERS = "biuf"  # kinds of numpy arrays that a column may be, beside texts


class PredictionsError(UserError):
    """Predictions that cannot be written or read, or that are of other clips."""


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        why = error.strerror or " ".join(str(error).split())
        raise PredictionsError(
            f"{path}: cannot be written ({why}); make room or change the permissions, and the same command makes the "
            "evaluation again"
        ) from None


@contextmanager
def predictions_folder(output: Path, process: Process, *, kept: bool = False) -> Iterator[Path]:
    """A temporary folder in `output` for the parts of all ranks. Every rank calls this.

    It is gone afterwards. With `kept`, unless an error came, it is then `output`/predictions, in place of what an
    earlier evaluation left there.
    """

    def make() -> Path:
        with _writing(output):
            output.mkdir(parents=True, exist_ok=True)
            return Path(tempfile.mkdtemp(prefix=f".{KEPT}-", dir=output))

    folder = on_main(make)
    try:
        yield folder
        if kept and process.is_main:
            shutil.rmtree(output / KEPT, ignore_errors=True)
            folder.chmod(output.stat().st_mode & 0o777)  # temporary folders are for their owner alone
            folder.rename(output / KEPT)
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

    def add(self, predictions: Predictions, clip_ids: Sequence[str]) -> None:
        """Take the predictions of some clips. clip_ids: one for each row."""
        named = Predictions(rows=predictions.rows, columns={CLIP_ID: np.array(clip_ids), **predictions.columns})
        self._waiting.append(named)
        self.clips += len(predictions.rows)
        self._bytes += sum(column.nbytes for column in predictions.columns.values())
        if self._bytes >= self._part_bytes:
            self.flush()

    def flush(self) -> None:
        """Write what waits, as at the end."""
        if not self._waiting:
            return
        part = concatenate(self._waiting)
        columns = {name: _to_arrow(values) for name, values in part.columns.items()}
        table = pa.table({CLIP_ID: columns.pop(CLIP_ID), ROW: pa.array(part.rows), **columns})
        # Dictionaries help texts alone; scores hardly ever repeat.
        texts = [name for name in table.column_names if pa.types.is_string(table.schema.field(name).type)]
        file = self._folder / f"{self._name}-{self._parts:06d}.parquet"
        with _writing(file):
            pq.write_table(table, file, compression="zstd", use_dictionary=texts or False)
        self._parts += 1
        self._waiting, self._bytes = [], 0


class PredictionParts:
    """The parts that all ranks wrote under a kind of name, read anew each time that they are gone through.

    PredictionsError for a file that is damaged.
    """

    def __init__(self, folder: Path, kind: str) -> None:
        self._files = sorted(folder.glob(f"{kind}-*.parquet"))
        rows = [np.asarray(_read(file, [ROW])[ROW], np.int64) for file in self._files]
        self.clips = sum(map(len, rows))
        assert self.clips == (len(np.unique(np.concatenate(rows))) if rows else 0), "a clip was predicted twice"

    def __iter__(self) -> Iterator[Predictions]:
        for file in self._files:
            table = _read(file)
            names = [name for name in table.column_names if name not in (CLIP_ID, ROW)]
            columns = {name: _to_numpy(table[name].combine_chunks()) for name in names}
            yield Predictions(rows=np.asarray(table[ROW], np.int64), columns=columns)

    def clip_ids(self) -> Iterator[tuple[int, str]]:
        """Row and id of each clip."""
        for file in self._files:
            table = _read(file, [ROW, CLIP_ID])
            yield from zip(table[ROW].to_pylist(), table[CLIP_ID].to_pylist(), strict=True)


def _read(file: Path, columns: list[str] | None = None) -> pa.Table:
    try:
        return pq.ParquetFile(file).read(columns)
    except (pa.ArrowException, OSError) as error:
        why = " ".join(str(error).split())
        raise PredictionsError(f"{file}: not a whole part of saved predictions ({why}); evaluate again") from error


def _to_arrow(values: npt.NDArray[Any]) -> pa.Array:
    """[N, ...] numbers or [N] texts. TypeError for other things, such as Python objects."""
    if values.dtype.kind == "U" and values.ndim == 1:
        return pa.array(values.tolist(), pa.string())
    if values.dtype.kind not in NUMBERS:
        raise TypeError(f"a column of predictions has type {values.dtype}: expected numbers, or one text for each clip")
    array = pa.array(values.reshape(-1))
    for size in reversed(values.shape[1:]):
        array = pa.FixedSizeListArray.from_arrays(array, size)
    return array


def _to_numpy(array: pa.Array) -> npt.NDArray[Any]:
    """The inverse of `_to_arrow`."""
    if pa.types.is_string(array.type):
        return np.array(array.to_pylist(), np.str_)
    shape = [len(array)]
    while pa.types.is_fixed_size_list(array.type):
        shape.append(array.type.list_size)
        array = array.flatten()
    values: npt.NDArray[Any] = array.to_numpy(zero_copy_only=False)
    return values.reshape(shape)
