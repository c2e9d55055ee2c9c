"""EPIC-KITCHENS-100 (Damen et al., IJCV 2022), from the csv files of its annotation repository.

Times come from the timestamp columns, as in LaViLa: the frame columns count frames of a re-encoding.
"""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from lavila.annotations import AnnotationError, AnnotationSet
from lavila.records import Clip

SPLITS = {"train": "EPIC_100_train.csv", "val": "EPIC_100_validation.csv"}
VERB_CLASSES = "EPIC_100_verb_classes.csv"
NOUN_CLASSES = "EPIC_100_noun_classes.csv"
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
_TIMESTAMP = re.compile(r"([0-9]+):([0-5]?[0-9]):([0-5]?[0-9](?:\.[0-9]*)?)")
_CLIP_ID = re.compile(r"[^\s./\\]+")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Row:
    """A csv row that knows where it stands, so that a complaint can name the place."""

    file: Path
    line: int  # 1-based; of a row that spans lines, the last
    cells: dict[str, str]

    def error(self, column: str, problem: str) -> AnnotationError:
        return AnnotationError(f"{self.file}, line {self.line}, column {column!r}: {problem}")

    def seconds(self, column: str) -> float:
        try:
            return parse_timestamp(self.cells[column])
        except AnnotationError as error:
            raise self.error(column, str(error)) from None

    def class_index(self, column: str, count: int) -> int:
        text = self.cells[column].strip()
        if not (text.isascii() and text.isdigit() and int(text) < count):
            raise self.error(column, f"{text!r} is not a class; allowed are whole numbers from 0 to {count - 1}")
        return int(text)


def parse_timestamp(text: str) -> float:
    """`HH:MM:SS.ff` -> float64 seconds. Raises AnnotationError for any other form."""
    match = _TIMESTAMP.fullmatch(text.strip())
    if match is None:
        raise AnnotationError(f"{text!r} is not a time; it should look like 00:01:05.50 (hours:minutes:seconds)")
    hours, minutes, seconds = match.groups()
    return int(hours) * 3600 + int(minutes) * 60 + float(seconds)


def read_classification(path: Path, split: str) -> AnnotationSet:
    """Action recognition: verb, noun and action of every clip of one split.

    `path` is the folder of the csv files, or one csv file with the others beside it. An action's index is the place of
    its `"verb:noun"` among the distinct ones of training and validation, sorted as text ("10:4" before "2:5"): a
    published classifier's outputs are in this order.
    Raises AnnotationError, naming file, line and column. A row whose stop is not after its start, or whose video lies
    outside the video root, goes to `failures`.
    """
    folder, annotated = _locate(path, split)
    verb_keys = _read_keys(folder / VERB_CLASSES)
    noun_keys = _read_keys(folder / NOUN_CLASSES)

    tables = {file: _read_csv(file, USED_COLUMNS) for file in (folder / name for name in SPLITS.values())}
    pairs = {
        (row.class_index("verb_class", len(verb_keys)), row.class_index("noun_class", len(noun_keys)))
        for rows in tables.values()
        for row in rows
    }
    ordered = sorted(pairs, key=lambda pair: f"{pair[0]}:{pair[1]}")
    actions = {pair: index for index, pair in enumerate(ordered)}

    rows = tables[annotated] if annotated in tables else _read_csv(annotated, USED_COLUMNS)
    clips: list[Clip] = []
    failures: list[tuple[str, str, str]] = []
    first_line: dict[str, int] = {}
    for row in rows:
        clip_id = _clip_id(row, first_line)
        video_path = f"{row.cells['participant_id']}/{row.cells['video_id']}.MP4"
        start, stop = row.seconds("start_timestamp"), row.seconds("stop_timestamp")
        pair = row.class_index("verb_class", len(verb_keys)), row.class_index("noun_class", len(noun_keys))
        if pair not in actions:
            both = " and ".join(SPLITS.values())
            raise row.error("verb_class", f"action {pair[0]}:{pair[1]} is in neither {both}; allowed are their actions")
        reason = _why_not_a_clip(video_path, start, stop)
        if reason:
            failures.append((clip_id, video_path, f"{row.file.name}, line {row.line}: {reason}"))
            continue
        clips.append(
            Clip(
                clip_id=clip_id,
                video_id=row.cells["video_id"],
                video_path=video_path,
                start_second=start,
                stop_second=stop,
                narrations=(row.cells["narration"],) if row.cells["narration"].strip() else (),
                verb=pair[0],
                noun=pair[1],
                action=actions[pair],
                extra={name: cell for name, cell in row.cells.items() if name and name not in USED_COLUMNS},
            )
        )
    return AnnotationSet(
        clips=clips,
        classes={
            "verb": verb_keys,
            "noun": noun_keys,
            "action": [f"{verb_keys[verb]} {noun_keys[noun]}" for verb, noun in ordered],
        },
        files=[*dict.fromkeys([annotated, *tables]), folder / VERB_CLASSES, folder / NOUN_CLASSES],
        failures=failures,
    )


def _locate(path: Path, split: str) -> tuple[Path, Path]:
    """The folder of the class files and the csv that holds the split."""
    if split not in SPLITS:
        raise AnnotationError(f"split {split!r} is not known: one of {', '.join(SPLITS)}")
    if path.is_dir():
        return path, path / SPLITS[split]
    for other, name in SPLITS.items():
        if path.name == name and other != split:
            raise AnnotationError(f"{path}: holds split {other!r} but {split!r} was asked for; give {SPLITS[split]}")
    return path.parent, path


def _clip_id(row: _Row, first_line: dict[str, int]) -> str:
    """A row's narration_id, checked: it names a tar member, whose key ends at the first dot."""
    clip_id = row.cells["narration_id"]
    if not _CLIP_ID.fullmatch(clip_id):
        raise row.error("narration_id", f"{clip_id!r} must be a name without dots, slashes and spaces; rename it")
    earlier = first_line.setdefault(clip_id, row.line)
    if earlier != row.line:
        raise row.error("narration_id", f"{clip_id!r} was already on line {earlier}; ids must be unique, remove one")
    return clip_id


def _why_not_a_clip(video_path: str, start: float, stop: float) -> str:
    """Empty when it can be one."""
    video = PurePosixPath(video_path.replace("\\", "/"))
    if video.is_absolute() or ".." in video.parts:
        return f"video path {video_path!r} leaves the video root; correct participant_id or video_id"
    if stop <= start:
        return f"stop {stop:g} s is not after start {start:g} s; correct stop_timestamp"
    return ""


def _read_keys(file: Path) -> list[str]:
    """Class names by class index. The ids must be 0, 1, 2 ... in any order."""
    rows = _read_csv(file, ("id", "key"))
    keys: dict[int, str] = {}
    for row in rows:
        index = row.class_index("id", len(rows))
        if index in keys:
            raise row.error("id", f"{index} was already given to {keys[index]!r}; each class needs its own number")
        keys[index] = row.cells["key"]
    if not keys:
        raise AnnotationError(f"{file}: holds no classes; get the file again from the dataset's authors")
    return [keys[index] for index in range(len(keys))]


def _read_csv(file: Path, columns: tuple[str, ...]) -> list[_Row]:
    """All rows of a comma-separated file with a header. Line ends, a byte-order mark and further columns are free."""
    if not file.is_file():
        beside = sorted(path.name for path in file.parent.glob("*.csv")) if file.parent.is_dir() else []
        raise AnnotationError(f"{file}: not found; csv files there: {', '.join(beside) or 'none'}; add {file.name}")
    rows: list[_Row] = []
    with file.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.reader(stream, strict=True)
        try:
            header = [name.strip() for name in next(reader, [])]
            missing = [name for name in columns if name not in header]
            if missing:
                raise AnnotationError(
                    f"{file}, line 1: no column {', '.join(map(repr, missing))}; "
                    f"found {', '.join(header) or 'nothing'}; needed are {', '.join(columns)}"
                )
            for cells in reader:
                if cells and len(cells) != len(header):
                    raise AnnotationError(
                        f"{file}, line {reader.line_num}: {len(cells)} cells, but the header has {len(header)}; "
                        "put quotes round cells that hold a comma"
                    )
                if cells:
                    row = _Row(file=file, line=reader.line_num, cells=dict(zip(header, cells, strict=True)))
                    rows.append(row)
        except csv.Error as error:
            raise AnnotationError(
                f"{file}, line {reader.line_num}: not valid csv ({error}); correct the line"
            ) from None
        except UnicodeDecodeError as error:
            raise AnnotationError(f"{file}: not UTF-8 text ({error.reason}); save the file as UTF-8") from None
    return rows
