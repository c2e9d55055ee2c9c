"""Predictions go to the disk in parts, and each clip comes back once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from lavila.engine.distributed import Process
from lavila.engine.predictions import PredictionParts, PredictionWriter, predictions_folder
from lavila.tasks import Predictions, concatenate

ALONE = Process(rank=0, world=1, local_world=1, device=torch.device("cpu"))


def batch(*rows: int) -> Predictions:
    places = np.array(rows)
    columns = {"vector": np.stack([places, places]).T.astype(np.float32), "text": np.array([f"say {r}" for r in rows])}
    return Predictions(rows=places, columns=columns)


def test_parts_of_all_ranks_come_back_as_they_were(tmp_path: Path) -> None:
    """Numbers, vectors and texts of any length; parts in files of a bounded size; other kinds stay apart."""
    for rank in (0, 1):
        writer = PredictionWriter(tmp_path, f"predicted-{rank}", part_bytes=100)
        for row in range(rank, 20, 2):
            writer.add(batch(row, row + 100 * (row + 1)))
        writer.flush()
        assert writer.clips == 20
    other = PredictionWriter(tmp_path, "frozen-0")
    other.add(batch(0))
    other.flush()
    parts = PredictionParts(tmp_path, "predicted")
    assert parts.clips == 40 and len(list(parts)) > 4 and max(len(part.rows) for part in parts) < 20
    whole = concatenate(parts)
    assert whole.rows.tolist() == sorted(r for row in range(20) for r in (row, row + 100 * (row + 1)))
    assert whole.columns["text"].tolist() == [f"say {row}" for row in whole.rows]
    assert (whole.columns["vector"][:, 1] == whole.rows).all() and whole.columns["vector"].dtype == np.float32
    assert PredictionParts(tmp_path, "nothing").clips == 0


def test_a_clip_that_two_ranks_predicted_is_noticed(tmp_path: Path) -> None:
    for rank in (0, 1):
        writer = PredictionWriter(tmp_path, f"predicted-{rank}")
        writer.add(batch(3))
        writer.flush()
    with pytest.raises(AssertionError, match="twice"):
        PredictionParts(tmp_path, "predicted")


def test_python_objects_are_refused(tmp_path: Path) -> None:
    writer = PredictionWriter(tmp_path, "predicted-0")
    writer.add(Predictions(rows=np.arange(1), columns={"text": np.array(["a"], dtype=object)}))
    with pytest.raises(ValueError, match="allow_pickle"):
        writer.flush()


def test_the_folder_lies_in_the_output_and_goes(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), predictions_folder(tmp_path / "run", ALONE) as folder:
        assert folder.parent == tmp_path / "run" and folder.is_dir()
        raise KeyboardInterrupt
    assert list((tmp_path / "run").iterdir()) == []
