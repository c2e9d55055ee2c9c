"""The loader benchmark: its rows can be made, a small run of it writes what it should, and all sides load the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

from benchmarks import common
from benchmarks.loader import (
    report,
    rows,
    sides,
)
from benchmarks.loader import run as benchmark
from benchmarks.loader.footage import FILM, VIDEOS, Material, video_path
from benchmarks.loader.limits import decode_needed
from benchmarks.loader.peers import decord_chunks, pyav_clips, torchcodec_clips, webdataset_clips
from benchmarks.loader.peers.common import Job
from lavila.ingest.encode import EncodeSettings, Interval, encode_clip
from lavila.shards.reader import ShardSet
from tests import forks

ROOT = Path(__file__).resolve().parents[2]

LEVELS = max(rows.PICTURES.std)  # of 0..255 that one unit of a normalised picture is
SAME = 0.255  # levels; as in tests/data/test_pictures.py, where it is explained
CODED_TWICE = 6.0  # levels, mean: the same frames, resized and coded by others


def job(material: Material, what: str, codec: str = "h264") -> Job:
    row = rows.Row(what=what, codec=codec, seconds=2, workers=1, size=112)  # type: ignore[arg-type]
    return rows.job_of(row, material)


def test_every_row_and_the_graphs_of_a_gpu_can_be_made(material: Material, capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark.main(["--dry-run", "--material", str(material.folder)]) == 0
    said = capsys.readouterr().out
    for row in rows.core_rows(2):
        assert f"{row.name}: " in said
    assert "gpu train vp9 336px 16f 3s: graphs made" in said
    assert len(rows.full_rows()) == len({row.name for row in rows.full_rows()})


def test_a_tiny_run_writes_json_and_tables(material: Material, tmp_path: Path) -> None:
    command = ["-m", "benchmarks.loader", "--tiny", "--material", material.folder, "--out", tmp_path, "--rounds", "1"]
    result = forks.run(*command, "--workers", "1", "--only", "train h264 224px")
    assert result.returncode == 0, result.stderr
    found = json.loads((tmp_path / "loader.json").read_text())
    assert found["machine"]["cores"] and found["machine"]["torch"]
    assert {entry["rounds"] for entry in found["rows"]} == {1}
    entries = {entry["side"]: entry for entry in found["rows"]}
    assert {"ours", "pyav", "decode", "work", "ideal"} <= set(entries)
    assert "on a GPU only" in entries["dali"]["absent"]
    for name, entry in entries.items():
        if "absent" not in entry:
            assert 0 < entry["clips_per_second"]["lowest"] <= entry["clips_per_second"]["highest"], name
    assert entries["ours"]["ours_is_times"] == 1.0 and entries["ours"]["overhead"] < 1
    text = (tmp_path / "PERFORMANCE_TABLES.md").read_text()
    assert "<!-- loader: begin -->" in text and "train h264 224px 16f 3s w1" in text


def test_an_unknown_row_and_tiny_figures_for_the_docs_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="train vp9 224px"):
        benchmark.main(["--only", "nothing"])
    with pytest.raises(SystemExit):
        benchmark.main(["--tiny"])
    assert "must not replace those of the docs" in capsys.readouterr().err


def test_only_the_text_between_the_markers_is_replaced(tmp_path: Path) -> None:
    docs = tmp_path / "docs.md"
    before = "# Performance\n\n## Model\n\nkept\n\n<!-- loader: begin -->\nold\n<!-- loader: end -->\n\nkept, too\n"
    docs.write_text(before)
    common.fill_docs("loader", "new", docs)
    assert docs.read_text() == before.replace("old", "new")
    docs.write_text("<!-- loader: begin -->")
    with pytest.raises(AssertionError, match="loader"):
        common.fill_docs("loader", "new", docs)


@pytest.mark.parametrize("what", ["train", "multi", "sparse"])
@pytest.mark.parametrize("codec", ["h264", "vp9"])
def test_ours_equals_pyav_and_torch_on_the_same_plan(material: Material, what: str, codec: str) -> None:
    one = job(material, what, codec)
    plans = one.plan.batch(1, 0)
    wanted = torch.stack([pyav_clips.load(one, plan) for plan in plans]).transpose(2, 3)
    got = next(iter(sides.ours(one, decoder="auto")[0](1)))
    assert got.shape == wanted.shape and got.dtype == wanted.dtype
    # FFmpeg takes H.264's chroma to lie a quarter of its pixel farther left than DALI, and so we, do.
    same = (got - wanted).abs().max() < SAME / LEVELS if codec == "vp9" else (got - wanted).abs().mean() < 1 / LEVELS
    assert same


def test_a_chunk_is_coded_as_the_reference_codes_it(material: Material) -> None:
    material.make_sources()
    chunk = video_path(material.chunks, VIDEOS[0])
    with av.open(str(chunk)) as coded, av.open(str(video_path(material.folder / "videos", VIDEOS[0]))) as video:
        stream, source = coded.streams.video[0], video.streams.video[0]
        assert (stream.height, stream.average_rate) == (288, source.average_rate)
        assert stream.codec_context.colorspace == source.codec_context.colorspace
        assert stream.frames == source.frames == material.video_seconds * 30
    settings = chunk.read_bytes().partition(b"x264 - core")[2].partition(b"\0")[0].decode()  # x264 writes them down
    for setting in ("rc=crf", "crf=23.0", "keyint=250", "bframes=3", "subme=7", "sliced_threads=0"):
        assert f" {setting} " in f" {settings} "


@pytest.mark.parametrize("what", ["train", "multi"])
def test_the_reference_way_loads_the_same_frames(material: Material, what: str) -> None:
    """Its chunk was coded apart from the shards: near for the same frames, and farther for those beside them."""
    if os.environ.get("LAVILA_REQUIRE_PEERS") != "1":
        pytest.importorskip("decord", reason="decord is not installed; LAVILA_REQUIRE_PEERS=1 makes this a failure")
    one = job(material, what)
    for plan in one.plan.batch(0, 0):
        ours = pyav_clips.load(one, plan)
        apart = [
            float((decord_chunks.load(one, replace(plan, frames=np.maximum(plan.frames + by, 0))) - ours).abs().mean())
            for by in (-1, 0, 1)
        ]
        assert apart[1] * LEVELS < CODED_TWICE and apart[1] < min(apart[0], apart[2]), apart


def test_torchcodec_loads_the_same_frames(material: Material) -> None:
    one = job(material, "multi")
    reason = torchcodec_clips.needs(one)
    if reason:
        pytest.skip(reason)
    plan = one.plan.batch(0, 0)[0]
    wanted = pyav_clips.load(one, plan)
    for seek in torchcodec_clips.VARIANTS:
        # Its conversion to RGB rounds and upsamples chroma in another way.
        assert (torchcodec_clips.load(one, plan, seek=seek) - wanted).abs().mean() * LEVELS < 1.5


@pytest.mark.parametrize("what", ["train", "multi"])
def test_webdataset_draws_views_of_the_same_form(material: Material, what: str) -> None:
    one = job(material, what)
    plan = one.plan.batch(0, 0)[0]
    sample = one.shards.read_video(plan.row), json.dumps(one.shards.clips.slice(plan.row, 1).to_pylist()[0]).encode()
    got = webdataset_clips.views(sample, job=one, decoder="PyAV")
    wanted = pyav_clips.load(one, plan)
    assert got.shape == wanted.shape and got.dtype == wanted.dtype
    assert what == "train" or (got - wanted).abs().max() == 0  # an evaluation leaves nothing to chance


def test_a_peer_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch, material: Material) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert decord_chunks.needs(job(material, "train")) == "not installed: decord; pip install lavila[bench]"


def test_the_limit_decodes_no_more_than_it_must(vp9_shards: ShardSet) -> None:
    assert decode_needed(vp9_shards.read_video(0), np.array([2, 7], np.int32)) == 8
    settings = EncodeSettings(codec="h264", gop=12, short_side=96)
    clip = encode_clip(FILM, interval=Interval(start_second=0.0, stop_second=2.0), settings=settings)
    # Groups of 12 frames: 3 and 4 of the first need five frames, 26 of the third three, and the second none; a decoder
    # that holds B-frames back gives a few more at once.
    decoded = decode_needed(clip.data, np.array([3, 4, 26], np.int32))
    assert 5 + 3 <= decoded <= 5 + 3 + 4


@pytest.mark.parametrize(("value", "reached"), [(0.9, "no"), (1.3, "must"), (2.0, "aim")])
def test_grades(value: float, reached: str) -> None:
    assert sides.grade(value, (1.3, 2.0)) == reached


def test_entries_of_a_row() -> None:
    seconds: dict[str, Any] = {"ours": [1.0, 2.0, 4.0], "decord": [3.0, 4.0, 16.0], "decode": [0.5, 1.0, 2.0]}
    seconds |= {"work": [0.8, 1.5, 3.2]}
    spent = {side: [sides.Spent(each, 2 * each) for each in values] for side, values in seconds.items()}
    row = rows.Row(what="train", codec="vp9")
    ours, decord = (sides.result(row, 8, side, spent) for side in ("ours", "decord"))
    assert decord["ours_is_times"] == 3.0 and decord["reached"] == "must"
    assert ours["overhead"] == pytest.approx(0.2) and ours["reached"] == "no"
    assert ours["share_of_limit"] == 0.5 and ours["clips_per_second"]["median"] == 4.0
    assert ours["core_ms_per_clip"] == 500.0


def test_core_seconds_count_the_processes_below() -> None:
    before = sides.core_seconds()
    burn = (
        "import time; t = time.process_time()\nwhile time.process_time() < t + 0.3: pass\nprint(1, flush=True); input()"
    )
    with subprocess.Popen([sys.executable, "-c", burn], stdout=subprocess.PIPE, stdin=subprocess.PIPE) as below:
        assert below.stdout is not None and below.stdout.readline()
        assert 0.25 < sides.core_seconds() - before < 3
        below.communicate(b"\n")


def test_rows_measured_before_on_the_same_machine_are_kept() -> None:
    old = {"machine": {"cpu": "a"}, "rows": [{"row": "1", "side": "ours"}, {"row": "2", "side": "ours"}]}
    new = {"machine": {"cpu": "a"}, "rows": [{"row": "2", "side": "decord"}]}
    assert [(entry["row"], entry["side"]) for entry in report.merged(old, new)["rows"]] == [
        ("1", "ours"),
        ("2", "decord"),
    ]
    assert report.merged(old, {**new, "machine": {"cpu": "b"}})["rows"] == new["rows"]


def test_the_rows_of_a_gpu_have_a_table_of_their_own() -> None:
    rates = {"clips_per_second": {"median": 9.0}, "gpu_bytes": 3 << 20, "rounds": 5, "row": "gpu train vp9"}
    entries = [{**rates, "side": "ours (nvdec)", "data_wait": 0.004}, {**rates, "side": "nvdec alone"}]
    where = dict.fromkeys(("processor", "cores", "gpu"), "x")
    text = report.section({"machine": where, "rows": entries})
    assert "| gpu train vp9 | ours (nvdec) | 9.0 | 3 MiB | 0.4 % |" in text and "limit" not in text
