"""The sample dataset as EPIC-KITCHENS-100: its csv files, with the published names, headers and line ends."""

from __future__ import annotations

import csv
import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from lavila.sample.camera import VERBS, Video, picture_width
from lavila.sample.files import Sample, VideoFile

SENTENCES = (
    "pans left over",
    "pans right over",
    "tilts up over",
    "tilts down over",
    "zooms in on",
    "zooms out from",
    "rotates clockwise over",
    "rotates counter-clockwise over",
    "holds still on",
)
CLIP_COLUMNS = [
    "narration_id",
    "participant_id",
    "video_id",
    "narration_timestamp",
    "start_timestamp",
    "stop_timestamp",
    "start_frame",
    "stop_frame",
    "narration",
    "verb",
    "verb_class",
    "noun",
    "noun_class",
    "all_nouns",
    "all_noun_classes",
]


def write(sample: Sample, out: Path) -> None:
    """Write the csv files into the folder `annotations`."""
    write_annotations(sample.videos, out / "annotations")


def files(sample: Sample) -> Iterator[tuple[Video, VideoFile]]:
    """Each whole video, at its own frame rate."""
    for video in sample.videos:
        yield video, VideoFile(path=video.file, first=0, stop=video.frames)


def write_relevancy(sample: Sample, out: Path) -> None:
    """How well each sentence fits each clip: float64 [clips, sentences] in 0..1, pickled, for both splits.

    Half for the same verb, half for the same nouns; a clip has one noun here, so that it is 0, 1/2 or 1.
    """
    folder = out / "annotations/relevancy"
    folder.mkdir(parents=True)
    for split, name in (("train", "train"), ("val", "test")):
        clips = [
            (move.verb, list(video.source.scenes)[move.scene])
            for video in sample.videos
            if video.split == split
            for move in video.moves
        ]
        sentences = list(dict.fromkeys(clips))  # equal words, equal classes: in the order of the sentence csv
        relevancy = np.array([[((v == w) + (n == m)) / 2 for w, m in sentences] for v, n in clips])
        file = folder / f"caption_relevancy_EPIC_100_retrieval_{name}.pkl"
        file.write_bytes(pickle.dumps(relevancy, protocol=4))


def write_annotations(videos: list[Video], folder: Path) -> None:
    """Write the csv files with the headers and line ends of the published ones."""
    folder.mkdir(parents=True)
    sources = list({video.source.path: video.source for video in videos}.values())
    nouns = [noun for source in sources for noun in source.scenes]
    rows = {split: _clip_rows([v for v in videos if v.split == split], nouns) for split in ("train", "val")}
    for name, split in (
        ("train", "train"),
        ("validation", "val"),
        ("retrieval_train", "train"),
        ("retrieval_test", "val"),
    ):
        _write(folder / f"EPIC_100_{name}.csv", CLIP_COLUMNS, [[row[c] for c in CLIP_COLUMNS] for row in rows[split]])
    for kind, keys in (("verb", VERBS), ("noun", nouns)):
        category = "camera" if kind == "verb" else "scene"
        lines = [[i, key, str([key.replace("-", " ")]), category] for i, key in enumerate(keys)]
        _write(folder / f"EPIC_100_{kind}_classes.csv", ["id", "key", "instances", "category"], lines, line_end="\r\n")
    # One line for each distinct sentence, with the id of the first clip that it describes.
    first: dict[str, dict[str, dict[str, object]]] = {"train": {}, "val": {}}
    for split, described in first.items():
        for row in rows[split]:
            described.setdefault(str(row["narration"]), row)
    columns = ["narration_id", "narration", "verb_class", "all_noun_classes", "verb", "all_nouns"]
    header = ["narration_id", "narration", "verb_class", "noun_classes", "verb", "nouns"]
    for name, split, width in (("train", "train", 6), ("test", "val", 2)):
        chosen = [[row[c] for c in columns[:width]] for row in first[split].values()]
        _write(folder / f"EPIC_100_retrieval_{name}_sentence.csv", header[:width], chosen)
    info = [
        [
            v.video_id,
            f"{float(v.frames / v.fps):.6f}",
            f"{float(v.fps):.14g}",
            f"{picture_width(v.height, v.source.aspect)}x{v.height}",
        ]
        for v in videos
    ]
    _write(folder / "EPIC_100_video_info.csv", ["video_id", "duration", "fps", "resolution"], info)


def _clip_rows(videos: list[Video], nouns: list[str]) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for video in videos:
        for number, move in enumerate(video.moves):
            verb, noun = VERBS[move.verb], list(video.source.scenes)[move.scene]
            rows.append(
                {
                    "narration_id": f"{video.video_id}_{number}",
                    "participant_id": video.participant,
                    "video_id": video.video_id,
                    "narration_timestamp": f"{_timestamp(move.start)}0",
                    "start_timestamp": _timestamp(move.start),
                    "stop_timestamp": _timestamp(move.stop),
                    "start_frame": max(1, int(move.start * video.fps / 100)),
                    "stop_frame": int(move.stop * video.fps / 100),
                    "narration": f"the camera {SENTENCES[move.verb]} the {noun}",
                    "verb": verb,
                    "verb_class": move.verb,
                    "noun": noun,
                    "noun_class": nouns.index(noun),
                    "all_nouns": str([noun]),
                    "all_noun_classes": str([nouns.index(noun)]),
                }
            )
    return rows


def _timestamp(hundredths: int) -> str:
    minutes, rest = divmod(hundredths, 6000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{rest // 100:02}.{rest % 100:02}"


def _write(file: Path, header: Sequence[str], rows: Sequence[Sequence[object]], *, line_end: str = "\n") -> None:
    with file.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream, lineterminator=line_end).writerows([header, *rows])
