"""A dataset of damaged videos through tools/shard_videos.py: every clip is stored, or named with its reason.

LAVILA_FUZZ=2000 sets how many videos are mutated.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from lavila.shards.reader import open_shard_set
from tests.footage import write_numbered_video
from tests.ingest.test_encode_fuzz import SEEDS, write_mutant
from tests.tools.test_shard_videos import command, csv_line, write_annotations

COUNT = int(os.environ.get("LAVILA_FUZZ", "150"))


def test_every_damaged_video_is_stored_or_named(tmp_path: Path) -> None:
    seeds, root = tmp_path / "seeds", tmp_path / "videos"
    seeds.mkdir()
    for name, coding in SEEDS.items():
        write_numbered_video(seeds / name, 40, coding, height=48, width=64)
    (root / "P01").mkdir(parents=True)
    for number in range(COUNT):
        write_mutant(seeds, number).rename(root / f"P01/P01_{number:04}.MP4")
    annotations = write_annotations(
        tmp_path / "annotations", [csv_line(0, f"P01_{number:04}", 0.2, 1.0) for number in range(COUNT)]
    )
    out = tmp_path / "set"
    tool = command(annotations, root, out, "--split", "val", "--max-failures", str(COUNT), "--clip-seconds", "10")
    done = subprocess.run(tool, capture_output=True, text=True, check=False, timeout=30 + COUNT)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    shards = open_shard_set(out)
    stored = shards.clips.column("clip_id").to_pylist()
    failures = [json.loads(line) for line in (out / "failures.jsonl").read_text(encoding="utf-8").splitlines()]
    named = [failure["clip_id"] for failure in failures]
    assert sorted(stored + named) == [f"P01_{number:04}_0" for number in range(COUNT)]
    assert len(stored) > COUNT / 8 and len(named) > COUNT / 4
    for failure in failures:
        assert failure["video"] == f"P01/{failure['clip_id'][:-2]}.MP4"
        assert failure["reason"] and "\n" not in failure["reason"] and str(tmp_path) not in failure["reason"]
    assert shards.verify(full=True) == []
    kinds = {"crashed" if "crashed" in f["reason"] else "refused" for f in failures}
    print(f"{COUNT} videos: {len(stored)} stored, {len(named)} named ({', '.join(sorted(kinds))})")
