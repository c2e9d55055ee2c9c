"""The short answer to "how fast is it": five numbers and one chart, from the results of the other benchmarks.

    python -m benchmarks.summary

Reads benchmarks/results/*.json and measures nothing. Writes docs/performance.png, and the tables between the markers of
README.md, docs/PERFORMANCE.md, docs/PERFORMANCE_TABLES.md and docs/SHARDS.md. Run it after a benchmark, or after a
change to a table.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

from benchmarks import codecs, common, encoding, model, narrator
from benchmarks.loader.report import SIDES, TITLES, by_row, markdown, section

matplotlib.use("Agg")
import matplotlib.pyplot as plt

README, CHART = common.ROOT / "README.md", common.ROOT / "docs/performance.png"
PANELS = {  # title -> the row of the loader benchmark, {codec} to be filled in
    "training: one random crop of 16 frames,\nclips of 3 s": "train {codec} 224px 16f 3s w2",
    "evaluation: 10 clips x 3 crops,\nclips of 3 s": "multi {codec} 224px 16f 3s w2",
    "one view of 16 frames,\nclips of 30 s": "sparse {codec} 224px 16f 30s w2",
}
CODECS = {"h264": "H.264", "vp9": "VP9"}
OURS, OTHERS = ("#0b7a75", "#7cc4bf"), ("#66717b", "#c3cad0")  # one colour for each of CODECS
REFERENCE = "decord on 300 s chunks and a DataLoader, as LaViLa loads"
Json = dict[str, Any]


def results() -> dict[str, Json]:
    """The result files by their names without .json."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in common.RESULTS.glob("*.json")}


def loader_ratios(found: Mapping[str, Json], row: str) -> str:
    """How many times as many clips a second our loader gives as the reference way, for each codec."""
    sides = by_row(found["loader"]["rows"])
    times = (sides[row.format(codec=codec)]["decord"]["ours_is_times"] for codec in CODECS)
    return " / ".join(f"{each:.1f}x" for each in times)


def five_numbers(found: Mapping[str, Json]) -> str:
    """The table of README.md: what, how many times as fast, as what."""
    training, evaluation, sparse = PANELS.values()
    start = {row["what"]: row for row in found["scale"]["start_up"]}
    ours, dali = start["lavila"], start["DALI webdataset reader, with .idx"]
    texts = next(row for row in found["narrator"]["rows"] if row["model"] == "base")
    clips = found["scale"]["about"]["clips"]
    memory = " MB instead of ".join(f"{each['resident_mib'] * 1.048576:,.0f}" for each in (ours, dali))
    return markdown(
        ["what", "times as fast", "compared with"],
        [
            ["loading training clips (H.264 / VP9)", f"**{loader_ratios(found, training)}**", REFERENCE],
            ["loading an evaluation of 10 clips x 3 crops", f"**{loader_ratios(found, evaluation)}**", "the same"],
            ["loading 16 frames of 30 s", f"**{loader_ratios(found, sparse)}**", "the same"],
            [
                f"starting a rank on {clips:,} clips",
                f"**{dali['seconds'] / ours['seconds']:.0f}x**",
                f"DALI's webdataset reader with index files; {memory}",
            ],
            [
                f"writing {texts['sequences']} narrations of a clip",
                f"**{texts['times_as_fast']:.0f}x**",
                "the decoder without a cache, which reads the whole prefix again for each token",
            ],
        ],
    )


def answer(found: Mapping[str, Json]) -> str:
    """The table of docs/PERFORMANCE.md: clips a second of each side and of the limit, for the rows of the chart."""
    sides = by_row(found["loader"]["rows"])
    shown = (*SIDES, "decode")

    def cell(entry: Json, ours: Json) -> str:
        if "absent" in entry:
            return "-"
        rate = f"{entry['clips_per_second']['median']:.1f}"
        return f"**{rate}**" if entry is ours else f"{rate} ({entry['ours_is_times']:.1f}x)"

    rows = []
    for row in PANELS.values():
        for codec in CODECS:
            each = sides[row.format(codec=codec)]
            cells = [cell(each[side], each["ours"]) for side in shown]
            rows.append([f"`{row.format(codec=codec)}`", *cells])
    return markdown(["clips/s (ours: times as many)", *(TITLES[side] for side in shown)], rows)


def draw(entries: Iterable[Json], path: Path) -> None:
    """A panel of bars for each of PANELS: clips a second of each side."""
    rows, sides = by_row(entries), (*SIDES, "decode")
    figure, panels = plt.subplots(1, len(PANELS), figsize=(11.5, 4.3), sharey=True)
    for panel, (title, row) in zip(panels, PANELS.items(), strict=True):
        draw_panel(panel, [rows[row.format(codec=codec)] for codec in CODECS], sides)
        panel.set_title(title, fontsize=9.5, loc="left")
        panel.set_xlabel("clips/s", fontsize=8.5)
        panel.tick_params(labelsize=8.5, length=0)
        for spine in ("top", "right", "left"):
            panel.spines[spine].set_visible(False)
    panels[0].set_yticks(range(len(sides)), ["lavila", *(TITLES[side] for side in sides[1:])])
    panels[0].get_yticklabels()[0].set_fontweight("bold")
    panels[0].invert_yaxis()
    panels[-1].legend(fontsize=8, frameon=False, loc="lower right")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90, metadata={"Software": None})
    plt.close(figure)


def draw_panel(panel: Any, found: Sequence[Mapping[str, Json]], sides: Sequence[str]) -> None:
    """Two bars for each side, H.264 and VP9. The axis ends a little beyond our bar; a longer limit is cut there."""
    end = 1.35 * max(each["ours"]["clips_per_second"]["median"] for each in found)
    for shift, (each, codec) in enumerate(zip(found, CODECS.values(), strict=True)):
        for place, side in enumerate(sides):
            entry, at = each[side], place + 0.4 * shift - 0.2
            if "absent" in entry:
                panel.text(end * 0.01, at, "GPU only", va="center", fontsize=7, color="0.5")
                continue
            rate = entry["clips_per_second"]["median"]
            colour = (OURS if side == "ours" else OTHERS)[shift]
            look: Json = {"color": "none", "edgecolor": colour} if side == "decode" else {"color": colour}
            panel.barh(at, min(rate, end), 0.36, label=codec if side == "ours" else None, **look)
            text = f"{rate:.0f}" if rate >= 10 else f"{rate:.1f}"
            text += " \N{RIGHTWARDS ARROW}" if rate > end else ""
            panel.text(min(rate, end * 0.85) + end * 0.01, at, text, va="center", fontsize=8, color="0.2")
    panel.set_xlim(0, end)


def generated(found: Mapping[str, Json]) -> list[tuple[Path, str, str]]:
    """Document, marker and text of each table that this script writes."""
    return [
        (README, "summary", five_numbers(found)),
        (common.DOCS, "answer", answer(found)),
        (common.DOCS, "narrator", narrator.table(found["narrator"]["rows"])),
        (common.TABLES, "loader", section(found["loader"])),
        (common.TABLES, "model", model.table(found["model"]["rows"])),
        (encoding.DOCS, "codecs", codecs.table(found["encoding"], found["streams"])),
    ]


def main(argv: list[str] | None = None) -> int:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args(argv)
    found = results()
    tables = generated(found)
    for document, marker, text in tables:
        common.fill_docs(marker, text, document)
    draw(found["loader"]["rows"], CHART)
    written = dict.fromkeys([*(document for document, _, _ in tables), CHART])
    print(f"written: {', '.join(str(path.relative_to(common.ROOT)) for path in written)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
