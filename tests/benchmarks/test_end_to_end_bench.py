"""The end-to-end benchmark: both sides see the same pictures' worth of work and score what they should."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import common
from benchmarks.evaluation import end_to_end
from benchmarks.loader.footage import Material
from benchmarks.loader.peers import decord_chunks


@pytest.mark.parametrize("protocol", list(end_to_end.PROTOCOLS))
def test_both_sides_evaluate_every_clip(material: Material, protocol: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their pictures differ a little, by coding; so do their scores, but both have all of them. Small pictures do."""
    monkeypatch.setattr(end_to_end, "SIZE", 64)
    monkeypatch.setattr(end_to_end, "TOWER", replace(end_to_end.TOWER, image_size=64))
    what = end_to_end.setup(protocol, material, codec="vp9", workers=1)
    found = end_to_end.ours(what)()
    wanted = {"egtea": {"action_top1", "action_mean_class"}, "mir": {"map", "ndcg"}}[protocol]
    assert wanted <= set(found)
    if decord_chunks.needs(None):  # type: ignore[arg-type]
        pytest.skip("decord is not installed")
    theirs = end_to_end.reference(what)()
    assert set(theirs) <= set(found)
    assert all(0 <= value <= 100 for value in theirs.values())


def test_a_row_says_how_many_times_as_fast(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = {
        "protocol": "egtea", "codec": "vp9", "views": 30, "goal": (8.0, 15.0), "rounds": 5, "workers": 2,
        "seconds_a_clip": {name: {"wall": 0.5, "cores": 0.75} for name in ("ours", "reference", "model")},
        "times_as_fast": {"wall": 9.25, "cores": 8.5},
    }  # fmt: skip
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    monkeypatch.setattr(end_to_end, "setup", lambda *_, **__: None)
    monkeypatch.setattr(end_to_end, "measure", lambda *_, **__: row)
    monkeypatch.setattr(decord_chunks, "needs", lambda _: None)
    docs = tmp_path / "docs.md"
    docs.write_text("<!-- evaluation-end-to-end: begin -->\n<!-- evaluation-end-to-end: end -->\n")
    monkeypatch.setattr(end_to_end, "fill_docs", lambda section, text: common.fill_docs(section, text, docs))
    assert end_to_end.main(["--codecs", "vp9"]) == 0
    assert len(json.loads((tmp_path / "evaluation_end_to_end.json").read_text())["rows"]) == 2
    assert "| egtea, 30 views | vp9 |" in docs.read_text() and "9.2x" in docs.read_text()


def test_without_decord_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(decord_chunks, "needs", lambda _: "not installed: decord")
    with pytest.raises(SystemExit):
        end_to_end.main([])
    assert "decord" in capsys.readouterr().err
