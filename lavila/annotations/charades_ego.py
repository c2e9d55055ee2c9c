"""Charades-Ego (Sigurdsson et al., 2018), the egocentric videos: trimmed clips to train on, whole videos to evaluate.

Three forms: the csv read for training gives one clip per action interval; the csv read for evaluation gives one clip
per video with all its actions; a pickle as LaViLa publishes it gives clips with a narration each.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from lavila.annotations.base import AnnotationError, AnnotationSet, Failure
from lavila.annotations.checks import ClipNames, clip_id_problem, interval_problem, locate, video_path_problem
from lavila.annotations.ego4d import read_narrated
from lavila.annotations.tables import Row, decimal_seconds, read_cells, read_csv
from lavila.errors import shown
from lavila.records import Clip

TABLES = {"train": "CharadesEgo_v1_train_only1st.csv", "val": "CharadesEgo_v1_test_only1st.csv"}
PICKLES = {"train": "metadata_filtered_train.pkl", "val": "metadata_filtered_val.pkl"}
CLASSES = "Charades_v1_classes.txt"
LAYOUTS = tuple(f"{folder}/{{name}}" for folder in ("CharadesEgo_v1_480", "CharadesEgo_v1", "Charades_v1_480"))
USED_COLUMNS = ("id", "actions", "length")
_CODE_LENGTH = 4  # "c019"


def read_clips(path: Path, split: str) -> AnnotationSet:
    """The clips of one split.

    `path` is a csv with Charades_v1_classes.txt beside it, a pickle, or the folder of these. In a folder, train is the
    pickle if there is one, else the csv; val is the csv. The text of a class ends at its first comma, as in LaViLa's
    published texts. Raises AnnotationError, which names file, line and column, or entry. `failures` gets each row whose
    video lies outside the video root or is not egocentric, and each interval without length or with malformed times.
    """
    file = locate(path, split, TABLES)
    if path.is_dir() and split == "train" and (path / PICKLES["train"]).exists():
        file = path / PICKLES["train"]
    if file.suffix == ".pkl":
        return _read_pickle(locate(file, split, PICKLES))
    if file.suffix != ".csv":
        raise AnnotationError(f"{file}: neither a .csv nor a .pkl file; give {TABLES[split]} or {PICKLES[split]}")
    codes = _read_classes(file.parent / CLASSES)
    places = {code: index for index, code in enumerate(codes)}
    rows = read_csv(file, USED_COLUMNS if split == "val" else USED_COLUMNS[:2])
    usable, failures = _usable(rows)
    clips, more_failures = _whole_videos(usable, places) if split == "val" else _intervals(usable, places)
    return AnnotationSet(
        clips=clips,
        classes={"labels": list(codes.values())},
        class_texts={"labels": [[text] for text in codes.values()]},
        files=[file, file.parent / CLASSES],
        failures=failures + more_failures,
        layouts=LAYOUTS,
        span_rule="fractional" if split == "val" else "edges",
    )


def _read_pickle(file: Path) -> AnnotationSet:
    found = replace(read_narrated(file), layouts=LAYOUTS)
    class_file = file.parent / CLASSES
    if not class_file.exists():  # training on narrations needs no classes
        return found
    texts = list(_read_classes(class_file).values())
    return replace(
        found,
        classes={"labels": texts},
        class_texts={"labels": [[text] for text in texts]},
        files=[file, class_file],
    )


def _read_classes(file: Path) -> dict[str, str]:
    """Code -> text, in the order of the classes: lines "c000 Holding some clothes", read as csv."""
    texts: dict[str, str] = {}
    for line, cells in read_cells(file):
        code, text = cells[0][:_CODE_LENGTH], cells[0][_CODE_LENGTH + 1 :]
        if not _is_code(code) or not text.strip() or code in texts:
            problem = f"{code} comes twice" if code in texts else f"{shown(cells[0])} is not a class"
            raise AnnotationError(f"{file}, line {line}: {problem}; it should look like: c000 Holding some clothes")
        texts[code] = text
    if not texts:
        raise AnnotationError(f"{file}: holds no classes; get the file again from the dataset's authors")
    return texts


def _is_code(text: str) -> bool:
    return len(text) == _CODE_LENGTH and text.startswith("c") and text.isascii() and text[1:].isdigit()


def _usable(rows: list[Row]) -> tuple[list[Row], list[Failure]]:
    """The rows of egocentric videos below the video root. Two rows of one id are an error."""
    usable: list[Row] = []
    failures: list[Failure] = []
    first_line: dict[str, int] = {}
    for row in rows:
        name = row.cells["id"]
        problem = video_path_problem(_video_path(row))
        if problem:
            problem = f"{problem}; correct id"
        else:
            if id_problem := clip_id_problem(name):
                raise row.error("id", f"{id_problem}; rename it")
            if first_line.setdefault(name, row.line) != row.line:
                raise row.error("id", f"{name!r} was already on line {first_line[name]}; remove one")
            if row.cells.get("egocentric", "").strip().lower() == "no":
                problem = "not an egocentric video; give the csv whose name ends in _only1st"
        if problem:
            failures.append(_failure(row, name, problem))
        else:
            usable.append(row)
    return usable, failures


def _whole_videos(rows: list[Row], places: Mapping[str, int]) -> tuple[list[Clip], list[Failure]]:
    """One clip per row, from 0 to its length, labelled with its classes in the order of the row."""
    clips: list[Clip] = []
    failures: list[Failure] = []
    for row in rows:
        name, length = row.cells["id"], decimal_seconds(row.cells["length"])
        actions = _actions(row, places)
        labels = tuple(dict.fromkeys(action.label for action in actions))
        problem = next((action.problem for action in actions if action.problem), "")
        if length is None:
            problem = f"length {shown(row.cells['length'])} is not a number of seconds"
        if problem or length is None:
            failures.append(_failure(row, name, f"{problem}; correct the row"))
        elif problem := interval_problem(0.0, length):
            failures.append(_failure(row, name, f"{problem}; correct length"))
        else:
            clips.append(_clip(row, name, (0.0, length), labels))
    return clips, failures


def _intervals(rows: list[Row], places: Mapping[str, int]) -> tuple[list[Clip], list[Failure]]:
    """One clip per action of each row."""
    clips: list[Clip] = []
    failures: list[Failure] = []
    names = ClipNames()
    codes = list(places)
    for row in rows:
        for action in _actions(row, places):
            clip_id = names.make(f"{row.cells['id']}_{codes[action.label]}", action.start, action.stop)
            problem = action.problem or interval_problem(action.start, action.stop)
            if problem:
                failures.append(_failure(row, clip_id, f"{problem}; correct actions"))
            else:
                clips.append(_clip(row, clip_id, (action.start, action.stop), (action.label,)))
    return clips, failures


class _Action(NamedTuple):
    label: int  # class index
    start: float  # seconds; 0 if malformed
    stop: float
    problem: str  # what is wrong with its times; empty if nothing is


def _actions(row: Row, places: Mapping[str, int]) -> list[_Action]:
    """The actions in "c019 11.90 21.20;c092 0.00 5.00". AnnotationError for a class that is not in the list."""
    actions = []
    for text in row.cells["actions"].split(";"):
        words = text.split()
        if not words:
            continue
        if words[0] not in places:
            raise row.error("actions", f"class {shown(words[0])} is not in {CLASSES}; correct the one or the other")
        times = [decimal_seconds(word) for word in words[1:]]
        known = [0.0 if time is None else time for time in (*times, None, None)[:2]]
        wrong = len(times) != 2 or None in times
        problem = f"{shown(text)} is not an action; it should look like c019 11.90 21.20" if wrong else ""
        actions.append(_Action(places[words[0]], known[0], known[1], problem))
    return actions


def _clip(row: Row, clip_id: str, interval: tuple[float, float], labels: tuple[int, ...]) -> Clip:
    return Clip(
        clip_id=clip_id,
        video_id=row.cells["id"],
        video_path=_video_path(row),
        start_second=interval[0],
        stop_second=interval[1],
        labels=labels,
        extra={name: cell for name, cell in row.cells.items() if name and name not in USED_COLUMNS},
    )


def _failure(row: Row, clip_id: str, problem: str) -> Failure:
    return clip_id, _video_path(row), f"{row.file.name}, line {row.line}: {problem}"


def _video_path(row: Row) -> str:
    return f"{row.cells['id']}.mp4"
