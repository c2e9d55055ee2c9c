"""tools/narrate.py in a SLURM job array: elements that know nothing of each other make one table."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lavila.shards.captions import read_captions
from lavila.shards.reader import ShardSet
from tests.narrators import save_tiny_narrator

ROOT = Path(__file__).parents[2]


@pytest.mark.usefixtures("slurm")
def test_an_array_labels_each_clip_once(vp9_shards: ShardSet, tmp_path: Path) -> None:
    checkpoint, vocabulary = save_tiny_narrator(tmp_path)
    out = tmp_path / "machine.parquet"
    command = ["narrate.py", "--shards", str(vp9_shards.path), "--out", str(out)]
    command += ["--checkpoint", str(checkpoint), "--vocabulary", str(vocabulary), "--device", "cpu"]
    command += ["--num-return-sequences", "2", "--max-length", "8", "--batch-size", "2"]
    array = [sys.executable, "tools/submit.py", "--minutes", "60", "--array", "2", "--logs", str(tmp_path), "--follow"]
    done = subprocess.run(
        [*array, *command],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    logs = {number: next(tmp_path.glob(f"*_{number}_0_log.out")).read_text() for number in (0, 1)}
    assert done.returncode == 0, (done.stderr, logs)
    assert "process 1 of 2" in logs[0] and "process 2 of 2" in logs[1]
    assert all(line in done.stdout for log in logs.values() for line in log.splitlines())
    assert sorted(read_captions(out)["clip_id"].to_pylist()) == sorted(vp9_shards.clips["clip_id"].to_pylist())
    ends = ["24 texts of 12 clips" in log for log in logs.values()]
    assert any(ends), logs  # the one that finished last has joined the parts
