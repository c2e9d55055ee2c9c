"""How many of the first five hits of a sentence are right, in the videos of `make demo`.

    python -m benchmarks.demo.precision        # after `make demo`, whose model, videos and index it uses

The sentences are those of the sample dataset: a camera's move and a scene, 36 of them, with the seconds at which each
is to be seen in videos of moments that the encoder has not seen. A hit is right if its middle lies in such a stretch.
Sentences with fewer than five stretches are left out. Between two moves there is a cut, as in edited videos, and a
window over it shows parts of both.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch

from benchmarks import common
from benchmarks.common import fill_docs, machine
from lavila.demo.encoders import open_encoder
from lavila.demo.index import open_index
from lavila.demo.search import Hit, Searcher
from lavila.files import user_path

FIRST, MUST = 5, 0.8

Stretches = dict[str, list[tuple[str, float, float]]]
"""Sentence -> video, start and stop in seconds, of all moments of which it is true."""


def read_stretches(file: Path) -> Stretches:
    """From an annotation file of the sample dataset, in the form of EPIC-KITCHENS-100."""
    found: Stretches = defaultdict(list)
    with file.open(encoding="utf-8", newline="") as opened:
        for row in csv.DictReader(opened):
            start, stop = (_seconds(row[f"{name}_timestamp"]) for name in ("start", "stop"))
            found[row["narration"]].append((f"{row['video_id']}.MP4", start, stop))
    return {sentence: stretches for sentence, stretches in found.items() if len(stretches) >= FIRST}


def _seconds(stamp: str) -> float:
    hours, minutes, seconds = stamp.split(":")
    return 3600 * int(hours) + 60 * int(minutes) + float(seconds)


def is_right(hit: Hit, stretches: list[tuple[str, float, float]]) -> bool:
    """Whether the middle of a hit lies in one of the stretches."""
    middle = (hit.start + hit.stop) / 2
    return any(hit.video == video and start <= middle <= stop for video, start, stop in stretches)


def measure(searcher: Searcher, stretches: Stretches) -> dict[str, Any]:
    """The share of right hits over all sentences, and the number of each."""
    each = {
        sentence: sum(is_right(hit, true) for hit in searcher.find(sentence, limit=FIRST))
        for sentence, true in stretches.items()
    }
    return {"sentences": len(each), "precision": sum(each.values()) / (FIRST * len(each)), "right_of_five": each}


def table(found: dict[str, Any]) -> str:
    """The Markdown of docs/SEARCH.md."""
    return (
        f"`python -m benchmarks.demo.precision`, after `make demo`: **{found['precision']:.2f}** of the first {FIRST} "
        f"hits are right, over {found['sentences']} sentences of a move and a scene (must {MUST})."
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", default="runs/learn/seed-0/pretraining/checkpoints", metavar="PATH", help="%(default)s")
    add("--index", type=user_path, default="data/demo/features", metavar="DIR", help="%(default)s")
    add("--annotations", type=user_path, default="data/demo/source/annotations/EPIC_100_validation.csv", metavar="FILE")
    args = parser.parse_args()
    encoder = open_encoder(args.model, vocabulary="", device=torch.device("cpu"))
    searcher = Searcher(open_index(args.index), encoder.text)
    found = {"machine": machine("torch"), **measure(searcher, read_stretches(Path(args.annotations)))}
    print(json.dumps(found, indent=1))
    (common.RESULTS / "demo_precision.json").write_text(json.dumps(found, indent=1) + "\n")
    fill_docs("demo-precision", table(found), common.ROOT / "docs/SEARCH.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
