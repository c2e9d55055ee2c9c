"""EPIC-KITCHENS-100 (Damen et al., IJCV 2022) action recognition, from the csv files of its annotation repository.

Times come from the timestamp columns, as in LaViLa, since the frame columns count frames of a re-encoded video.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from lavila.annotations.base import AnnotationError, AnnotationSet, Failure
from lavila.annotations.checks import clip_id_problem, interval_problem, locate, video_path_problem
from lavila.annotations.tables import Row, read_csv
from lavila.errors import shown
from lavila.records import Clip

SPLITS = {"train": "EPIC_100_train.csv", "val": "EPIC_100_validation.csv"}
VERB_CLASSES = "EPIC_100_verb_classes.csv"
NOUN_CLASSES = "EPIC_100_noun_classes.csv"
GROUPS = (  # file, its column, name of the group
    ("EPIC_100_unseen_participant_ids_validation.csv", "participant_id", "unseen_participants"),
    ("EPIC_100_tail_verbs.csv", "verb", "tail_verbs"),
    ("EPIC_100_tail_nouns.csv", "noun", "tail_nouns"),
)
LAYOUTS = (  # of the downloader, of EPIC-KITCHENS-55's archive, and of flat copies
    "{folder}/videos/{name}",
    "EPIC-KITCHENS/{folder}/videos/{name}",
    "EPIC-KITCHENS/{folder}/{name}",
    "videos/train/{folder}/{name}",
    "videos/test/{folder}/{name}",
    "{name}",
)
USED_COLUMNS = (
    "narration_id",
    "participant_id",
    "video_id",
    "start_timestamp",
    "stop_timestamp",
    "narration",
    "verb_class",
    "noun_class",
)
_TIMESTAMP = re.compile(r"([0-9]{1,3}):([0-5]?[0-9]):([0-5]?[0-9](?:\.[0-9]*)?)")


def parse_timestamp(text: str) -> float:
    """`HH:MM:SS.ff` -> float64 seconds. Raises AnnotationError for any other form."""
    match = _TIMESTAMP.fullmatch(text.strip())
    if match is None:
        raise AnnotationError(f"{shown(text)} is not a time; it should look like 00:01:05.50 (hours:minutes:seconds)")
    hours, minutes, seconds = match.groups()
    return int(hours) * 3600 + int(minutes) * 60 + float(seconds)


def read_classification(path: Path, split: str) -> AnnotationSet:
    """Action recognition: verb, noun and action of every clip of one split.

    `path` is the folder of the csv files, or one csv file with the others beside it. An action's index is the place of
    its `"verb:noun"` among the distinct ones of training and validation, sorted as text ("10:4" before "2:5"): a
    published classifier's outputs are in this order. An action's texts are all its narrations in both splits.
    Where the lists of unseen participants and of tail classes lie there, `tables["groups"]` of split val has them:
    group str ("unseen_participants", "tail_verbs", "tail_nouns"), entry str (a participant, or a class's number).
    Raises AnnotationError, which names file, line and column. `failures` gets each row whose times are malformed, whose
    stop is not after its start, or whose video lies outside the video root.
    """
    annotated = locate(path, split, SPLITS)
    folder = annotated.parent
    verb_keys, noun_keys = read_keys(folder / VERB_CLASSES), read_keys(folder / NOUN_CLASSES)

    tables = {file: read_csv(file, USED_COLUMNS) for file in (folder / name for name in SPLITS.values())}
    said: dict[tuple[int, int], set[str]] = {}
    for row in (row for rows in tables.values() for row in rows):
        pair = row.class_index("verb_class", len(verb_keys)), row.class_index("noun_class", len(noun_keys))
        said.setdefault(pair, set()).update(_narrations(row))
    ordered = sorted(said, key=lambda pair: f"{pair[0]}:{pair[1]}")
    actions = {pair: index for index, pair in enumerate(ordered)}

    def action(row: Row, verb: int, noun: int) -> dict[str, Any]:
        if (verb, noun) not in actions:
            both = " and ".join(SPLITS.values())
            raise row.error("verb_class", f"action {verb}:{noun} is in neither {both}; allowed are their actions")
        return {"action": actions[verb, noun]}

    rows = tables[annotated] if annotated in tables else read_csv(annotated, USED_COLUMNS)
    clips, failures = read_clips(rows, verbs=len(verb_keys), nouns=len(noun_keys), used=USED_COLUMNS, more=action)
    groups, group_files = _read_groups(folder, split)
    action_names = [f"{verb_keys[verb]} {noun_keys[noun]}" for verb, noun in ordered]
    return AnnotationSet(
        clips=clips,
        classes={"verb": verb_keys, "noun": noun_keys, "action": action_names},
        class_texts={
            "verb": [[key] for key in verb_keys],
            "noun": [[key] for key in noun_keys],
            "action": [sorted(said[pair]) for pair in ordered],
        },
        files=[*dict.fromkeys([annotated, *tables]), folder / VERB_CLASSES, folder / NOUN_CLASSES, *group_files],
        failures=failures,
        tables={"groups": groups} if groups else {},
        layouts=LAYOUTS,
    )


def _read_groups(folder: Path, split: str) -> tuple[list[dict[str, Any]], list[Path]]:
    """The groups whose accuracies the challenge reports: rows of group and entry, and the files that were there."""
    files = [folder / name for name, _, _ in GROUPS] if split == "val" else []
    there = [(file, *about[1:]) for file, about in zip(files, GROUPS, strict=False) if file.is_file()]
    entries = [
        {"group": group, "entry": row.cells[column].strip()}
        for file, column, group in there
        for row in read_csv(file, (column,))
    ]
    return entries, [file for file, _, _ in there]


def read_clips(
    rows: Sequence[Row],
    *,
    verbs: int,
    nouns: int,
    used: Collection[str],
    more: Callable[[Row, int, int], Mapping[str, Any]],
) -> tuple[list[Clip], list[Failure]]:
    """The clips of rows with `USED_COLUMNS`, and the rows that cannot be clips.

    `verbs`, `nouns`: the numbers of classes. `more(row, verb, noun)` returns further fields of the clip. Columns that
    are not in `used` become its `extra`.
    """
    clips: list[Clip] = []
    failures: list[Failure] = []
    first_line: dict[str, int] = {}
    for row in rows:
        clip_id = _clip_id(row, first_line)
        video_path = f"{row.cells['participant_id']}/{row.cells['video_id']}.MP4"
        verb, noun = row.class_index("verb_class", verbs), row.class_index("noun_class", nouns)
        fields = more(row, verb, noun)
        try:
            start, stop = _interval(row, video_path)
        except AnnotationError as error:
            failures.append((clip_id, video_path, f"{row.file.name}, line {row.line}: {error}"))
            continue
        clips.append(
            Clip(
                clip_id=clip_id,
                video_id=row.cells["video_id"],
                video_path=video_path,
                start_second=start,
                stop_second=stop,
                narrations=_narrations(row),
                verb=verb,
                noun=noun,
                extra={name: cell for name, cell in row.cells.items() if name and name not in used},
                **fields,
            )
        )
    return clips, failures


def read_keys(file: Path) -> list[str]:
    """Class names by class index. The ids must be 0, 1, 2 ... in any order."""
    rows = read_csv(file, ("id", "key"))
    keys: dict[int, str] = {}
    for row in rows:
        index = row.class_index("id", len(rows))
        if index in keys:
            raise row.error("id", f"{index} was already given to {keys[index]!r}; each class needs its own number")
        keys[index] = row.cells["key"]
    if not keys:
        raise AnnotationError(f"{file}: holds no classes; get the file again from the dataset's authors")
    return [keys[index] for index in range(len(keys))]


def _narrations(row: Row) -> tuple[str, ...]:
    return (row.cells["narration"],) if row.cells["narration"].strip() else ()


def _clip_id(row: Row, first_line: dict[str, int]) -> str:
    """A row's narration_id, which names it in the shard set."""
    clip_id = row.cells["narration_id"]
    problem = clip_id_problem(clip_id)
    if problem:
        raise row.error("narration_id", f"{problem}; rename it")
    earlier = first_line.setdefault(clip_id, row.line)
    if earlier != row.line:
        raise row.error("narration_id", f"{clip_id!r} was already on line {earlier}; ids must be unique, remove one")
    return clip_id


def _interval(row: Row, video_path: str) -> tuple[float, float]:
    """Start and stop second of a row. AnnotationError gives the reason why it cannot be a clip."""
    problem = video_path_problem(video_path)
    if problem:
        raise AnnotationError(f"{problem}; correct participant_id or video_id")
    seconds = []
    for column in ("start_timestamp", "stop_timestamp"):
        try:
            seconds.append(parse_timestamp(row.cells[column]))
        except AnnotationError as error:
            raise AnnotationError(f"{column} {error}") from None
    problem = interval_problem(seconds[0], seconds[1])
    if problem:
        raise AnnotationError(f"{problem}; correct stop_timestamp")
    return seconds[0], seconds[1]
