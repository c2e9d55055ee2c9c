"""The sample dataset as EGTEA Gaze+: a file for each trimmed clip, and lists of the clips."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

from lavila.sample.camera import VERBS, Move, Video
from lavila.sample.files import Sample, VideoFile

FOLDER = "egtea"
CLIPS = f"{FOLDER}/cropped_clips"
FPS = Fraction(24)
LISTS = {"train": "train_split1.txt", "val": "test_split1.txt"}


def write(sample: Sample, out: Path) -> None:
    """Write action_idx.txt, and a list of clips for each split: name, action, verb, noun, counted from 1."""
    folder = out / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    sources = {video.source.path: video.source for video in sample.videos}.values()
    nouns = [scene for source in sources for scene in source.scenes]
    names = [_action_name(verb, noun) for verb in VERBS for noun in nouns]
    lines = [f"{name} {number}" for number, name in enumerate(names, start=1)]
    _write_lines(folder / "action_idx.txt", lines)
    for split, name in LISTS.items():
        lines = []
        for video in sample.videos:
            for move in video.moves if video.split == split else ():
                noun = nouns.index(list(video.source.scenes)[move.scene])
                action = move.verb * len(nouns) + noun
                lines.append(f"{clip_name(video, move)} {action + 1} {move.verb + 1} {noun + 1}")
        _write_lines(folder / name, lines)


def _write_lines(file: Path, lines: list[str]) -> None:
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _action_name(verb: str, noun: str) -> str:
    """An action such as `Pan_Left hillside`: a verb and a noun, each in one word."""
    return f"{'_'.join(word.capitalize() for word in verb.split('-'))} {'_'.join(noun.split())}"


def session(video: Video) -> str:
    """The name of a whole session: participant, recipe and dish."""
    participant, number = video.video_id.split("_")
    dish = re.sub(r"[^A-Za-z0-9]", "", video.source.path.stem.title()) or "Footage"
    return f"{participant}-R{number}-{dish}"


def clip_name(video: Video, move: Move) -> str:
    """The session, then the clip's start and stop in it, in milliseconds and in frames."""
    first, stop = _frames(move)
    return f"{session(video)}-{move.start * 10}-{move.stop * 10}-F{first:06}-F{stop:06}"


def _frames(move: Move) -> tuple[int, int]:
    return round(move.start * FPS / 100), round(move.stop * FPS / 100)


def files(sample: Sample) -> Iterator[tuple[Video, VideoFile]]:
    """One file for each clip, in the folder of its session."""
    for video in sample.videos:
        for move in video.moves:
            first, stop = _frames(move)
            path = f"{CLIPS}/{session(video)}/{clip_name(video, move)}.mp4"
            yield replace(video, fps=FPS), VideoFile(path=path, first=first, stop=stop)
