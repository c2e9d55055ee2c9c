"""README and docs hold the numbers of the result files, and the chart can be drawn from them."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import summary
from benchmarks.loader.report import SIDES

FOUND = summary.results()


@pytest.mark.parametrize(
    ("document", "marker", "text"), summary.generated(FOUND), ids=[marker for _, marker, _ in summary.generated(FOUND)]
)
def test_a_document_holds_the_numbers_of_its_results(document: Path, marker: str, text: str) -> None:
    begin, end = f"<!-- {marker}: begin -->", f"<!-- {marker}: end -->"
    written = document.read_text(encoding="utf-8").partition(begin)[2].partition(end)[0]
    assert written.strip() == text


def test_the_chart_is_drawn_with_sides_that_are_absent(tmp_path: Path) -> None:
    rows = FOUND["loader"]["rows"]
    assert any("absent" in entry for entry in rows if entry["side"] in SIDES)
    summary.draw(rows, tmp_path / "chart.png")
    chart = (tmp_path / "chart.png").read_bytes()
    assert chart[:4] == b"\x89PNG" and len(chart) < 100_000


def test_a_faster_side_changes_the_numbers() -> None:
    found = summary.results()
    before = summary.five_numbers(found)
    row = next(iter(summary.PANELS.values())).format(codec="h264")
    for entry in found["loader"]["rows"]:
        if entry["row"] == row and entry["side"] == "decord":
            entry["ours_is_times"] = 2.04
    assert "2.0x" in summary.five_numbers(found) and "2.0x" not in before
