"""EGTEA Gaze+ (Li et al., ECCV 2018): trimmed clips of one action each, from its text files."""

from __future__ import annotations

from pathlib import Path

from lavila.annotations.base import AnnotationError, AnnotationSet, Failure
from lavila.annotations.checks import clip_id_problem, locate, video_path_problem
from lavila.annotations.tables import read_words, whole_number
from lavila.errors import shown
from lavila.records import Clip

SPLITS = {"train": "train_split1.txt", "val": "test_split1.txt"}
ACTIONS = "action_idx.txt"
LAYOUTS = (
    "cropped_clips/{folder}/{name}",
    "cropped_clips/cropped_clips/{folder}/{name}",
    "videos/cropped_clips/{folder}/{name}",
    "{name}",
    "cropped_clips/{name}",
)
WHOLE = ("{folder}.mp4", "{folder}.avi", "videos/{folder}.mp4", "Videos/{folder}.mp4")
_SESSION_FIELDS = 3  # the fields of a clip's name that name its folder: person, recording, recipe


def read_clips(path: Path, split: str) -> AnnotationSet:
    """The clips of one split; each covers its whole video file, and its narration is the text of its action.

    `path` is the folder of the text files, or one split file with action_idx.txt beside it. Raises AnnotationError,
    which names file and line. A clip whose video lies outside the video root goes to `failures`.
    """
    file = locate(path, split, SPLITS)
    texts = _read_actions(file.parent / ACTIONS)
    clips: list[Clip] = []
    failures: list[Failure] = []
    first_line: dict[str, int] = {}
    for line, words in read_words(file):
        where = f"{file}, line {line}"
        name, action = words[0], _class_index(words[1] if len(words) > 1 else "", len(texts), where)
        fields = name.split("-")
        video_path = f"{'-'.join(fields[:_SESSION_FIELDS])}/{name}.mp4"
        problem = video_path_problem(video_path)
        if problem:
            failures.append((name, video_path, f"{file.name}, line {line}: {problem}; correct the clip's name"))
            continue
        problem = clip_id_problem(name)
        if problem or len(fields) <= _SESSION_FIELDS:
            problem = problem or f"{shown(name)} should look like OP01-R01-PastaSalad-1002316-1004005-F024051-F024101"
            raise AnnotationError(f"{where}: {problem}; correct the clip's name")
        if first_line.setdefault(name, line) != line:
            raise AnnotationError(f"{where}: {name!r} was already on line {first_line[name]}; remove one")
        clips.append(
            Clip(
                clip_id=name,
                video_id=name,
                video_path=video_path,
                start_second=0.0,
                stop_second=None,
                narrations=(texts[action],),
                action=action,
                extra={"further_columns": " ".join(words[2:])},
            )
        )
    return AnnotationSet(
        clips=clips,
        classes={"action": texts},
        class_texts={"action": [[text] for text in texts]},
        files=[file, file.parent / ACTIONS],
        failures=failures,
        layouts=LAYOUTS,
        whole=WHOLE,
    )


def _read_actions(file: Path) -> list[str]:
    """The text of each action: lines "Cut tomato_cherry 3", numbers from 1 in any order."""
    lines = list(read_words(file))
    texts: dict[int, str] = {}
    for line, words in lines:
        index = _class_index(words[-1], len(lines), f"{file}, line {line}")
        if len(words) < 2 or index in texts:
            problem = f"{index + 1} was already given to {texts[index]!r}" if index in texts else "has no name"
            raise AnnotationError(f"{file}, line {line}: action {problem}; each needs a name and its own number")
        texts[index] = " ".join(words[:-1]).replace("_", " ").lower()
    if not texts:
        raise AnnotationError(f"{file}: holds no actions; get the file again from the dataset's authors")
    return [texts[index] for index in range(len(texts))]


def _class_index(text: str, count: int, where: str) -> int:
    """Class index from 0 of an action's number from 1."""
    number = whole_number(text)
    if number is None or not 1 <= number <= count:
        raise AnnotationError(f"{where}: {shown(text)} is not an action; allowed are whole numbers from 1 to {count}")
    return number - 1
