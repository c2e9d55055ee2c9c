"""The commands of the quickstart, one after another, on a smaller sample: from footage to a report.

Training is started from nothing, as users do; the other commands are forked.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from lavila.report.files import append_stage
from lavila.shards.reader import open_shard_set
from lavila.walkthroughs import quickstart
from tests import forks

ROOT = Path(__file__).resolve().parents[2]


def test_from_footage_to_report(tmp_path: Path) -> None:
    fewer = {"train.py": ["optim.epochs=1"], "evaluate.py": []}
    for name, _, command in quickstart.steps():
        moved = [part.replace("data/sample", str(tmp_path)) for part in command]
        if name == "sample_dataset":
            moved += ["--train-clips", "36", "--val-clips", "18", "--videos", "4", "--height", "64"]
        if command[0] in fewer:
            moved += [f"data.train={tmp_path}/shards/train", f"data.val={tmp_path}/shards/val"]
            moved += [f"run_dir={tmp_path}/run", *fewer[command[0]]]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        if name == "train":
            words = [sys.executable, *moved]
            result = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        else:
            result = forks.run(*moved, environment=environment)
        assert result.returncode == 0, f"{name}: {result.stderr}"
        append_stage(tmp_path / "run", name, 1.0) if name.startswith(("sample", "shard")) else None
    assert (len(open_shard_set(tmp_path / "shards/train")), len(open_shard_set(tmp_path / "shards/val"))) == (36, 18)
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert {"verb_top1", "noun_top1", "action_top1"} <= set(report["metrics"])
    assert report["views"]["total"] == 6 and report["clips"]["evaluated"] == 18
    assert set(report["seconds"]) == {"sample_dataset", "shard_train", "shard_val", "train", "evaluate"}
    page = (tmp_path / "run" / "report.html").read_text()
    assert "the camera" in page and "data:image/jpeg;base64" in page
