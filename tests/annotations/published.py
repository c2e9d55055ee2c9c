"""Annotation files as their authors publish them, small, for all tests of the readers."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.golden_files import golden_json

GOLDEN: dict[str, Any] = golden_json("sampling_annotations")["annotation_parsing"]
COLUMNS: list[str] = GOLDEN["ek100"]["columns"]
TRAIN, VALIDATION = "EPIC_100_train.csv", "EPIC_100_validation.csv"


def row(**cells: object) -> list[object]:
    """A valid csv row, but for `cells`."""
    values: dict[str, object] = {
        "narration_id": "P01_01_0",
        "participant_id": "P01",
        "video_id": "P01_01",
        "narration_timestamp": "00:00:00.560",
        "start_timestamp": "00:00:00.00",
        "stop_timestamp": "00:00:01.89",
        "start_frame": 1,
        "stop_frame": 113,
        "narration": "take plate",
        "verb": "take",
        "verb_class": 0,
        "noun": "plate",
        "noun_class": 2,
        "all_nouns": "['plate']",
        "all_noun_classes": "[2]",
    }
    return [{**values, **cells}[name] for name in COLUMNS]


def write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]], *, line_end: str = "\n") -> None:
    with path.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream, lineterminator=line_end).writerows([header, *rows])


def write_set(
    folder: Path, train: Sequence[Sequence[object]], val: Sequence[Sequence[object]] = (), columns: list[str] = COLUMNS
) -> Path:
    folder.mkdir(exist_ok=True)
    write_csv(folder / TRAIN, columns, train)
    write_csv(folder / VALIDATION, columns, val)
    for kind, count in (("verb", 97), ("noun", 300)):
        keys = [[i, f"{kind}-{i}", "[]", "none"] for i in range(count)]
        write_csv(
            folder / f"EPIC_100_{kind}_classes.csv", ["id", "key", "instances", "category"], keys, line_end="\r\n"
        )
    return folder
