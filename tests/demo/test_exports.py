"""Hits as files that others can read."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import shard_videos

from lavila.demo.exports import to_annotations, to_csv, to_json
from lavila.demo.search import Hit
from lavila.shards.reader import open_shard_set
from tests.demo.indexed import write_numbered

HITS = [
    Hit(video="a, b.mp4", start=1.0, stop=2.0, score=0.5),
    Hit(video="day 1/GX01.MP4", start=0.0, stop=1.5, score=0.25),
    Hit(video="c.mkv", start=1.0, stop=2.0, score=-0.125),
]


def test_tables_and_objects_hold_all_fields() -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv(HITS))))
    assert [(row["video"], float(row["start"]), float(row["stop"]), float(row["score"])) for row in rows] == [
        (hit.video, hit.start, hit.stop, hit.score) for hit in HITS
    ]
    assert [Hit(**entry) for entry in json.loads(to_json(HITS))] == HITS


def test_hits_become_a_shard_set(tmp_path: Path) -> None:
    """Whatever the ending of a video's name is, also in capitals, as cameras write it."""
    for hit in HITS:
        write_numbered(tmp_path / "videos" / hit.video, 3)
    (tmp_path / "hits.pkl").write_bytes(to_annotations(HITS, "forty"))
    given = ["--dataset", "ego4d", "--split", "train", "--annotations", str(tmp_path / "hits.pkl")]
    given += ["--videos", str(tmp_path / "videos"), "--out", str(tmp_path / "shards"), "--codec", "h264"]
    assert shard_videos.main([*given, "--workers", "1"]) == 0
    clips = open_shard_set(tmp_path / "shards").clips.to_pylist()
    found = {(clip["start_second"], clip["stop_second"], clip["video_id"]) for clip in clips}
    assert found == {(hit.start, hit.stop, hit.video.removesuffix(".mp4")) for hit in HITS}
    assert {tuple(clip["narrations"]) for clip in clips} == {("forty",)}
