"""A malformed time costs its row, as a stop before its start does, and never the whole file."""

from __future__ import annotations

import math
import pickle
from pathlib import Path
from typing import Any

import pytest

from lavila.annotations import read_annotations
from lavila.annotations.base import AnnotationSet
from lavila.annotations.ego4d import read_narrations
from tests.annotations import test_charades_ego, test_egomcq, test_epic_retrieval
from tests.annotations.published import row, write_set

GOOD = row(narration_id="P01_01_1")


def check(found: AnnotationSet, *, clips: int, clip_id: str, words: list[str]) -> None:
    assert len(found.clips) == clips
    (failure,) = found.failures
    assert failure[0] == clip_id
    assert all(word in failure[2] for word in words), failure
    assert "\n" not in failure[2]


@pytest.mark.parametrize("column", ["start_timestamp", "stop_timestamp"])
@pytest.mark.parametrize("text", ["1.5", "00:61:00.0", "", "nan", "00:00:01,50", f"{10**400}:00:00", "-00:00:01.00"])
def test_epic_kitchens(column: str, text: str, tmp_path: Path) -> None:
    folder = write_set(tmp_path, [row(**{column: text}), GOOD])
    found = read_annotations("ek100_cls", folder, split="train")
    check(found, clips=1, clip_id="P01_01_0", words=["line 2", column, "00:01:05.50"])


def test_epic_kitchens_retrieval(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    test_epic_retrieval.write(folder)
    whole = read_annotations("ek100_mir", folder, split="val")
    file = folder / test_epic_retrieval.CLIPS["val"]
    first = whole.clips[0].clip_id
    lines = file.read_text().splitlines()
    at = next(n for n, line in enumerate(lines) if line.startswith(f"{first},"))
    cells = lines[at].split(",")
    place = lines[0].split(",").index("stop_timestamp")
    cells[place] = "later"
    lines[at] = ",".join(cells)
    file.write_text("\n".join(lines) + "\n")
    found = read_annotations("ek100_mir", folder, split="val")
    check(found, clips=len(whole.clips) - 1, clip_id=first, words=["stop_timestamp", "'later'"])
    assert found.tables["sentences"] == whole.tables["sentences"]  # what is said of the others stays


@pytest.mark.parametrize(
    ("times", "word"),
    [
        (("0", 1.0), "start second"),
        ((True, 1.0), "start second"),
        ((math.nan, 1.0), "start second"),
        ((None, None), "start second"),
        ((0.0, math.inf), "end second"),
        ((0.0, None), "end second"),
        ((0.0, 10**400), "end second"),
    ],
)
def test_ego4d(times: tuple[Any, Any], word: str, tmp_path: Path) -> None:
    file = tmp_path / "ego4d_train.pkl"
    file.write_bytes(pickle.dumps([("v", *times, "a"), ("v", 1.0, 2.0, "b")]))
    found = read_annotations("ego4d", tmp_path, split="train")
    check(found, clips=1, clip_id=found.failures[0][0], words=["entry 0", word])
    assert found.failures[0][0] != found.clips[0].clip_id
    assert [narrations for _, narrations, _ in read_narrations(file)] == [("b",)]


@pytest.mark.parametrize("name", ["clip_start", "clip_end"])
@pytest.mark.parametrize("value", [None, "soon", math.nan, [1], "1:30", True])
def test_questions_of_egomcq(name: str, value: object, tmp_path: Path) -> None:
    """It costs its question."""
    choices = test_egomcq.five()
    choices[4] = {**choices[4], name: value}
    questions = {"0": test_egomcq.question(*choices), "1": test_egomcq.question(*test_egomcq.five("w"))}
    test_egomcq.save(tmp_path, questions)
    found = read_annotations("egomcq", tmp_path, split="val")
    assert [question["question_id"] for question in found.tables["questions"]] == ["1"]
    check(found, clips=5, clip_id=found.failures[0][0], words=["question 0, choice 4", name])


@pytest.mark.parametrize("text", ["c000 1.0", "c000 1.0 2.0 3.0", "c000 one 2.0", "c000 1.0 inf", "c000"])
def test_charades_ego_intervals(text: str, tmp_path: Path) -> None:
    cells = test_charades_ego.row(actions=f"{text};c001 1.00 2.00")
    found = test_charades_ego.read(tmp_path, cells, split="train")
    check(found, clips=1, clip_id=found.failures[0][0], words=["line 2", text, "c019 11.90 21.20"])


@pytest.mark.parametrize(
    ("column", "text"), [("length", ""), ("length", "nan"), ("length", "1:30"), ("actions", "c000 one 2.0")]
)
def test_charades_ego_whole_videos(column: str, text: str, tmp_path: Path) -> None:
    rows = [test_charades_ego.row(**{column: text}), test_charades_ego.row(id="OTHEREGO")]
    found = test_charades_ego.read(tmp_path, *rows)
    check(found, clips=1, clip_id=str(test_charades_ego.row()[0]), words=["line 2", repr(text)])
