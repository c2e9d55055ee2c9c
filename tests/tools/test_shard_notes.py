"""What a user learns of stored clips: which of them their video's end shortens, and which rates are estimated."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import inspect_shards
import numpy as np
import pytest
import shard_videos

from lavila.shards.reader import open_shard_set
from tests.commands import run_here
from tests.footage import Coding, write_numbered_video
from tests.ingest.hdr_video import HLG, columns, signal_of, write_hdr
from tests.ingest.test_times import without_rate

FAST = ["--codec", "h264", "--speed", "ultrafast", "--short-side", "48", "--workers", "1"]
LAYOUTS = pytest.mark.parametrize("layout", ["clips", "chunks"])
ANOTHER_EDITION = "another edition"


def made(folder: Path, entries: list[tuple[str, float, float, str]], *more: str) -> tuple[Path, str]:
    """The set of these clips of folder/videos, and what the tool printed."""
    (folder / "a.pkl").write_bytes(pickle.dumps(entries))
    out = folder / "set"
    words = ["--dataset", "ego4d", "--annotations", str(folder / "a.pkl"), "--videos", str(folder / "videos")]
    done = run_here(shard_videos.main, [*words, "--out", str(out), "--split", "val", *FAST, *more])
    assert done.returncode == 0, done.stderr
    return out, done.stdout


def notes(out: Path) -> list[dict[str, Any]]:
    path = out / "notes.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@LAYOUTS
@pytest.mark.parametrize("kind", ["file", "folder", "margin", "10 fps"])
def test_a_shortened_clip_is_counted_and_listed_with_both_times(tmp_path: Path, layout: str, kind: str) -> None:
    """Six seconds of video. The last clip ends half a frame late, which is no shortening but rounding."""
    where = tmp_path / "videos/v.mp4"
    write_numbered_video(where / "0.mp4" if kind == "folder" else where, 150, Coding(gop=25), height=48, width=64)
    more = {"margin": ["--margin", "1"], "10 fps": ["--fps", "10"]}.get(kind, [])
    entries = [("v", 5.0, 16.0, "long"), ("v", 1.0, 2.0, "a"), ("v", 2.0, 3.0, "b"), ("v", 5.0, 6.02, "edge")]
    out, printed = made(tmp_path, entries, "--layout", layout, *more)
    rows = {row["narrations"][0]: row for row in open_shard_set(out).clips.to_pylist()}
    long = rows["long"]
    assert long["num_frames"] / long["fps"] == pytest.approx(1.0, abs=0.11)
    (note,) = notes(out)
    assert note["clip_id"] == long["clip_id"] and note["video_id"] == "v"
    assert (long["stop_second"], note["stop_second"]) == (16.0, 16.0)
    stored = float(dict(long["extra"])["stored_stop_second"])
    assert stored == note["stored_stop_second"] == pytest.approx(6.0, abs=0.11)
    assert note["missing_seconds"] == pytest.approx(16.0 - stored)
    assert not any(dict(row["extra"]) for name, row in rows.items() if name != "long")
    manifest = open_shard_set(out).manifest
    assert (manifest["shortened"], manifest["estimated_rates"]) == (1, 0)
    assert "1 of 4 clips" in printed and ANOTHER_EDITION not in printed
    shown = run_here(inspect_shards.main, [str(out)])
    assert "1 of 4 clips" in shown.stdout and ANOTHER_EDITION not in shown.stdout


@LAYOUTS
def test_a_set_of_which_most_clips_are_shortened_may_be_of_other_videos(tmp_path: Path, layout: str) -> None:
    write_numbered_video(tmp_path / "videos/v.mp4", 100, Coding(gop=25), height=48, width=64)
    entries = [("v", 3.0, 9.0, "a"), ("v", 3.5, 7.0, "b"), ("v", 0.0, 1.0, "c")]
    out, printed = made(tmp_path, entries, "--layout", layout)
    assert ANOTHER_EDITION in printed and len(notes(out)) == 2
    assert ANOTHER_EDITION in run_here(inspect_shards.main, [str(out)]).stdout


def test_a_set_without_anything_to_note_has_no_notes(tmp_path: Path) -> None:
    write_numbered_video(tmp_path / "videos/v.mp4", 100, Coding(gop=25), height=48, width=64)
    out, printed = made(tmp_path, [("v", 1.0, 2.0, "a"), ("v", 3.0, 4.0, "to the end")])
    assert notes(out) == [] and not (out / "notes.jsonl").exists() and "note:" not in printed


@LAYOUTS
def test_an_estimated_rate_is_stated_and_recorded(tmp_path: Path, layout: str) -> None:
    shown = tuple(41 * n + 7 * (n % 3) for n in range(60))
    (tmp_path / "videos").mkdir()
    webm = write_numbered_video(
        tmp_path / "v.webm", 60, Coding(codec="libvpx", milliseconds=shown, b_frames=0), height=48, width=64
    )
    without_rate(webm).rename(tmp_path / "videos/v.mp4")
    out, printed = made(tmp_path, [("v", 0.4, 1.0, "a"), ("v", 1.0, 1.6, "b")], "--layout", layout)
    (note,) = notes(out)
    assert note["fps"] == pytest.approx(1000 / 41, rel=0.01) and note["video_id"] == "v"
    rows = open_shard_set(out).clips.to_pylist()
    assert {row["source_fps"] for row in rows} == {note["fps"]} == {row["fps"] for row in rows}
    assert open_shard_set(out).manifest["estimated_rates"] == 1 and "1 videos" in printed


@LAYOUTS
def test_hdr_video_is_counted_and_named(tmp_path: Path, layout: str) -> None:
    picture = columns(signal_of(np.array([5.0, 50.0, 500.0]), HLG), height=64)
    (tmp_path / "videos").mkdir()
    write_hdr(tmp_path / "videos/h.mp4", picture, HLG, frames=30)
    write_numbered_video(tmp_path / "videos/v.mp4", 30, Coding(gop=25), height=48, width=64)
    entries = [("h", 0.0, 0.4, "a"), ("h", 0.4, 0.8, "b"), ("v", 0.0, 0.4, "c")]
    out, printed = made(tmp_path, entries, "--layout", layout)
    (note,) = notes(out)
    assert (note["video_id"], note["hdr"]) == ("h", "HLG")
    manifest = open_shard_set(out).manifest
    assert (manifest["hdr_videos"], manifest["spherical_videos"]) == (1, 0)
    assert "1 videos are HDR" in printed and "1 videos are HDR" in run_here(inspect_shards.main, [str(out)]).stdout
    assert run_here(inspect_shards.main, [str(out), "--verify"]).returncode == 0
