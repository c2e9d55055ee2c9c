"""Predictions go to the disk in parts, and each clip comes back once."""

from __future__ import annotations

import resource
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from lavila.engine.distributed import Process
from lavila.engine.predictions import PredictionParts, PredictionsError, PredictionWriter, predictions_folder
from lavila.tasks import Predictions, concatenate

ALONE = Process(rank=0, world=1, local_world=1, device=torch.device("cpu"))


def ids(predictions: Predictions) -> list[str]:
    return [f"clip {row}" for row in predictions.rows]


def batch(*rows: int) -> Predictions:
    places = np.array(rows)
    columns = {"vector": np.stack([places, places]).T.astype(np.float32), "text": np.array([f"say {r}" for r in rows])}
    return Predictions(rows=places, columns=columns)


def test_parts_of_all_ranks_come_back_as_they_were(tmp_path: Path) -> None:
    """Numbers, vectors and texts of any length; parts in files of a bounded size; other kinds stay apart."""
    for rank in (0, 1):
        writer = PredictionWriter(tmp_path, f"predicted-{rank}", part_bytes=100)
        for row in range(rank, 20, 2):
            writer.add(two := batch(row, row + 100 * (row + 1)), ids(two))
        writer.flush()
        assert writer.clips == 20
    other = PredictionWriter(tmp_path, "frozen-0")
    other.add(batch(0), ["clip 0"])
    other.flush()
    parts = PredictionParts(tmp_path, "predicted")
    assert parts.clips == 40 and len(list(parts)) > 4 and max(len(part.rows) for part in parts) < 20
    whole = concatenate(parts)
    assert whole.rows.tolist() == sorted(r for row in range(20) for r in (row, row + 100 * (row + 1)))
    assert whole.columns["text"].tolist() == [f"say {row}" for row in whole.rows]
    assert (whole.columns["vector"][:, 1] == whole.rows).all() and whole.columns["vector"].dtype == np.float32
    assert dict(parts.clip_ids()) == {int(row): f"clip {row}" for row in whole.rows}
    assert PredictionParts(tmp_path, "nothing").clips == 0


def test_a_clip_that_two_ranks_predicted_is_noticed(tmp_path: Path) -> None:
    for rank in (0, 1):
        writer = PredictionWriter(tmp_path, f"predicted-{rank}")
        writer.add(batch(3), ["clip 3"])
        writer.flush()
    with pytest.raises(AssertionError, match="twice"):
        PredictionParts(tmp_path, "predicted")


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64, np.int8, np.int64, np.bool_])
def test_numbers_come_back_bit_by_bit(tmp_path: Path, kind: type) -> None:
    values = np.random.default_rng(0).normal(0, 9, (3, 2, 4)).astype(kind)
    if np.issubdtype(kind, np.floating):
        values[0, 0] = (np.nan, np.inf, -0.0, -np.inf)
    writer = PredictionWriter(tmp_path, "predicted-0")
    writer.add(Predictions(rows=np.arange(3), columns={"scores.verb": values}), ["a", "b", "c"])
    writer.flush()
    (part,) = PredictionParts(tmp_path, "predicted")
    back = part.columns["scores.verb"]
    assert (back.dtype, back.shape, back.tobytes()) == (values.dtype, values.shape, values.tobytes())


def test_other_programs_find_named_columns(tmp_path: Path) -> None:
    writer = PredictionWriter(tmp_path, "predicted-0")
    writer.add(batch(2, 1), ["clip 2", "clip 1"])
    writer.flush()
    table = pq.read_table(tmp_path)
    assert table.column_names == ["clip_id", "row", "vector", "text"]
    assert table.to_pylist()[1] == {"clip_id": "clip 2", "row": 2, "vector": [2.0, 2.0], "text": "say 2"}


def test_python_objects_are_refused(tmp_path: Path) -> None:
    writer = PredictionWriter(tmp_path, "predicted-0")
    writer.add(Predictions(rows=np.arange(1), columns={"text": np.array(["a"], dtype=object)}), ["a"])
    with pytest.raises(TypeError, match="object"):
        writer.flush()


def test_a_damaged_part_is_named(tmp_path: Path) -> None:
    writer = PredictionWriter(tmp_path, "predicted-0")
    writer.add(batch(1), ["clip 1"])
    writer.flush()
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(PredictionsError, match=file.name):
        PredictionParts(tmp_path, "predicted")


def test_the_folder_lies_in_the_output_and_goes(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), predictions_folder(tmp_path / "run", ALONE) as folder:
        assert folder.parent == tmp_path / "run" and folder.is_dir()
        raise KeyboardInterrupt
    assert list((tmp_path / "run").iterdir()) == []


def test_a_kept_folder_takes_the_place_of_an_older_one(tmp_path: Path) -> None:
    for name in ("one", "two"):
        with predictions_folder(tmp_path, ALONE, kept=True) as folder:
            (folder / name).touch()
    assert [path.name for path in tmp_path.iterdir()] == ["predictions"]
    assert [path.name for path in (tmp_path / "predictions").iterdir()] == ["two"]
    with pytest.raises(ValueError), predictions_folder(tmp_path, ALONE, kept=True) as folder:
        raise ValueError
    assert [path.name for path in (tmp_path / "predictions").iterdir()] == ["two"]


def test_a_disk_that_takes_no_more_is_named(tmp_path: Path) -> None:
    """A limit on the size of files stands for a full disk."""
    writer = PredictionWriter(tmp_path, "predicted-0")
    random = np.random.default_rng(0)
    writer.add(
        Predictions(rows=np.arange(99), columns={"vector": random.random((99, 999))}), [str(n) for n in range(99)]
    )
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with pytest.raises(PredictionsError, match=r"predicted-0-000000\.parquet: cannot be written .*make room"):
            writer.flush()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    (tmp_path / "file").touch()
    with (
        pytest.raises(PredictionsError, match="file: cannot be written"),
        predictions_folder(tmp_path / "file", ALONE),
    ):
        pass
