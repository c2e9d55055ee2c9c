"""The benchmark of what reaches a decoder runs, and its committed results reach their goals."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from benchmarks import streams as bench
from tests.data.streams.videos import FRAMES, source

ROOT = Path(__file__).resolve().parents[2]


def test_a_row_counts_what_is_given(tmp_path: Path) -> None:
    video = source(tmp_path)
    for use in (bench.Use(name="16 of 3 s", seconds=3), bench.USES[-1]):
        clip = bench.stored(video, "h264", use, {"short_side": 64})
        row = bench.measure(clip, "h264", use, plans=5, times=3)
        # In chunks, the last group has three frames, and is not read if none of them is wanted.
        assert FRAMES - 3 * use.chunks <= row["whole"]["packets"] == row["whole"]["pictures"] <= row["frames"] == FRAMES
        assert 0.2 < row["share"]["pictures"] < 0.5 and row["milliseconds"] > 0
        assert row["wanted"] <= 16
        if use.name == "16 of 3 s":
            assert row["reached"]
            assert "(at most 0.45)" in bench.table([row])


def test_views_cover_a_clip_and_training_takes_one_frame_of_each_part() -> None:
    random = np.random.default_rng(0)
    assert len(bench.training(900, random)) == 16
    frames = bench.views(90, random)
    assert frames == sorted(set(frames)) and 70 < len(frames) <= 90


def test_the_committed_counts_reach_their_goals() -> None:
    rows = json.loads((ROOT / "benchmarks/results/streams.json").read_text())["rows"]
    goals = [row for row in rows if "must" in row]
    assert len(goals) == 6 and all(row["reached"] for row in goals)
    assert [row["fast"] for row in rows if row["use"].endswith("3 s") or "chunks" in row["use"]] == [True] * 12
