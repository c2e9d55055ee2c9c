"""The sample dataset as Charades-Ego: short videos with several labelled actions each, or none."""

from __future__ import annotations

import csv
import itertools
import pickle
import string
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

from lavila.sample.annotations import SENTENCES
from lavila.sample.camera import VERBS, Move, SampleError, Video
from lavila.sample.files import Sample, VideoFile

FOLDER = "charades_ego"
ANNOTATIONS, VIDEOS = f"{FOLDER}/CharadesEgo", f"{FOLDER}/CharadesEgo_v1_480"
FPS = Fraction(30)
CSVS = {"train": "CharadesEgo_v1_train_only1st.csv", "val": "CharadesEgo_v1_test_only1st.csv"}
PICKLES = {"train": "metadata_filtered_train.pkl", "val": "metadata_filtered_val.pkl"}
COLUMNS = [
    "id",
    "subject",
    "scene",
    "quality",
    "relevance",
    "verified",
    "script",
    "objects",
    "descriptions",
    "actions",
    "length",
    "egocentric",
    "charades_video",
]
MOVES = 3  # the largest number of moves of a video
LETTERS = string.digits + string.ascii_uppercase


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A stretch of a video that becomes a separate video."""

    name: str
    video: Video  # the video at 30 frames per second
    moves: list[Move]
    first: int  # first frame of `video`
    stop: int

    @property
    def scenes(self) -> list[str]:
        """The names of the scenes of its moves."""
        return [list(self.video.source.scenes)[move.scene] for move in self.moves]

    def second(self, hundredths: int) -> float:
        """A time of `video` in seconds of the piece, exact to a hundredth."""
        return round(hundredths / 100 - float(self.first / FPS), 2)


def pieces(sample: Sample) -> list[Piece]:
    """Up to three moves each, cut between two moves; and for each split the longest glide between two, unlabelled."""
    found: list[Piece] = []

    def add(video: Video, moves: list[Move], first: int, stop: int) -> None:
        name = f"{_five_letters(len(found), sample.seed)}EGO"
        found.append(Piece(name=name, video=video, moves=moves, first=first, stop=stop))

    for split in CSVS:
        videos = [replace(video, fps=FPS) for video in sample.videos if video.split == split]
        for video in videos:
            cuts = [_cut(*pair) for pair in itertools.pairwise(video.moves)]
            edges = [0, *cuts[MOVES - 1 :: MOVES], video.frames]
            for number, (first, stop) in enumerate(itertools.pairwise(edges)):
                add(video, video.moves[number * MOVES : (number + 1) * MOVES], first, stop)
        glides = [(video, a.stop, b.start) for video in videos for a, b in itertools.pairwise(video.moves)]
        if glides:
            video, left, arrives = max(glides, key=lambda glide: glide[2] - glide[1])
            add(video, [], -(-left * 30 // 100), arrives * 30 // 100)
    return found


def _cut(left: Move, right: Move) -> int:
    """A frame between two moves, at a whole tenth of a second so that times in the piece stay exact."""
    return (left.stop + right.start) // 20 * 3


def _five_letters(number: int, seed: int) -> str:
    """A different name for each number, in an order that looks random."""
    value = (number * 12_345_677 + zlib.crc32(str(seed).encode())) % 36**5
    return "".join(LETTERS[value // 36**place % 36] for place in range(5))


def write(sample: Sample, out: Path) -> None:
    """Write the classes, and for each split the table of videos and the pickle of single actions."""
    folder = out / ANNOTATIONS
    folder.mkdir(parents=True, exist_ok=True)
    sources = {video.source.path: video.source for video in sample.videos}.values()
    scenes = [scene for source in sources for scene in source.scenes]
    texts = [f"{SENTENCES[verb].capitalize()} the {scene}" for verb in range(len(VERBS)) for scene in scenes]
    if len(texts) > 1000:
        raise SampleError(f"charades_ego: {len(texts)} classes, but its codes end at c999; give fewer scenes")
    lines = [f"c{number:03} {text}\n" for number, text in enumerate(texts)]
    (folder / "Charades_v1_classes.txt").write_text("".join(lines), encoding="utf-8")
    every = pieces(sample)
    for split in CSVS:
        own = [piece for piece in every if piece.video.split == split]
        with (folder / CSVS[split]).open("w", encoding="utf-8", newline="") as stream:
            csv.writer(stream, lineterminator="\n").writerows([COLUMNS, *(_row(piece, scenes) for piece in own)])
        clips = [
            (piece.name, piece.second(move.start), piece.second(move.stop), f"{SENTENCES[move.verb]} the {scene}")
            for piece in own
            for move, scene in zip(piece.moves, piece.scenes, strict=True)
        ]
        (folder / PICKLES[split]).write_bytes(pickle.dumps(clips, protocol=4))


def _row(piece: Piece, scenes: list[str]) -> list[object]:
    sentences = [f"{SENTENCES[move.verb]} the {scene}" for move, scene in zip(piece.moves, piece.scenes, strict=True)]
    script = f'A person says "look", then {", then ".join(sentences)}.' if sentences else "A person looks about."
    actions = [
        f"c{move.verb * len(scenes) + scenes.index(scene):03} "
        f"{piece.second(move.start):.2f} {piece.second(move.stop):.2f}"
        for move, scene in zip(piece.moves, piece.scenes, strict=True)
    ]
    return [
        piece.name,
        piece.video.participant,
        "Outdoors",
        7,
        7,
        "Yes",
        script,
        ";".join(dict.fromkeys(piece.scenes)),
        ";".join(f"The camera {sentence}." for sentence in sentences),
        ";".join(actions),
        f"{(piece.stop - piece.first) * 100 // 30 / 100:.2f}",  # rounded down: no longer than the file
        "Yes",
        piece.name.removesuffix("EGO"),
    ]


def files(sample: Sample) -> Iterator[tuple[Video, VideoFile]]:
    """One file for each piece."""
    for piece in pieces(sample):
        yield piece.video, VideoFile(path=f"{VIDEOS}/{piece.name}.mp4", first=piece.first, stop=piece.stop)
