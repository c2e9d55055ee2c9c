"""The sample dataset as Ego4D: LaViLa's pickles of narrated clips, and EgoMCQ's questions about the same videos."""

from __future__ import annotations

import hashlib
import json
import pickle
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import numpy as np

from lavila.sample.annotations import SENTENCES
from lavila.sample.camera import VERBS, Move, SampleError, Video
from lavila.sample.files import Sample, VideoFile

FOLDER = "ego4d"
WHOLE, CHUNKS = f"{FOLDER}/videos", f"{FOLDER}/video_chunks"
FPS = Fraction(30)
TRAIN, VAL, QUESTIONS = "ego4d_train.pkl", "ego4d_val.pkl", "egomcq.json"
REPHRASED = "ego4d_train.rephraser.no_punkt_top3.pkl"
NARRATED = "ego4d_train.narrator_63690737.return_10.pkl"
MACHINE_NARRATIONS = 10  # number of machine narrations of each clip
CHOICES = 5
INTER, INTRA = 1, 2  # types of a question: choices from different videos, from one video
OTHER_WORDS = (
    ("sweeps left across", "swings the view to the left over"),
    ("sweeps right across", "swings the view to the right over"),
    ("looks up along", "raises the view over"),
    ("looks down along", "lowers the view over"),
    ("moves closer to", "enlarges"),
    ("moves away from", "shows more of what is around"),
    ("turns clockwise above", "rolls to the right over"),
    ("turns counter-clockwise above", "rolls to the left over"),
    ("looks at", "keeps the view on"),
)


@dataclass(frozen=True, kw_only=True)
class Narrated:
    """A narrated interval of a video."""

    video: Video
    move: Move
    start: float  # seconds
    stop: float

    @property
    def text(self) -> str:
        return f"#C C {SENTENCES[self.move.verb]} the {self.scene}"

    @property
    def scene(self) -> str:
        return list(self.video.source.scenes)[self.move.scene]


def uid(video: Video, seed: int) -> str:
    """The name of a video in the form of Ego4D's names."""
    digest = hashlib.sha256(f"{seed} {video.source.sha256} {video.video_id}".encode()).digest()
    return str(uuid.UUID(bytes=digest[:16], version=4))


def narrated(sample: Sample, split: str) -> list[Narrated]:
    """The clips of a split. In turn they begin just before their move, at the end of the last one, and within it."""
    found: list[Narrated] = []
    for place, video in enumerate(sample.videos):
        if video.split != split:
            continue
        rng = np.random.default_rng([sample.seed, place, 30])
        stop = 0.0
        for number, move in enumerate(video.moves):
            before, after = rng.uniform(0.02, 0.14, 2)  # two moves are 0.3 s apart, or more
            starts = (max(0.0, move.start / 100 - before), stop, stop - 0.2)
            start, stop = float(starts[number % 3]), float(move.stop / 100 + after)
            found.append(Narrated(video=video, move=move, start=start, stop=stop))
    return found


def write(sample: Sample, out: Path) -> None:
    """Write the pickles: human narrations of both splits, rephrased and machine narrations of the training clips."""
    folder = out / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for name, split in ((TRAIN, "train"), (VAL, "val")):
        _dump(folder / name, [(*_place(clip, sample), clip.text) for clip in narrated(sample, split)])
    clips = narrated(sample, "train")
    rng = np.random.default_rng([sample.seed, 31])
    _dump(folder / REPHRASED, [(*_place(clip, sample), _rephrase(clip, rng)) for clip in clips])
    _dump(folder / NARRATED, [(*_place(clip, sample), *_by_machine(clip, rng)) for clip in clips])


def _place(clip: Narrated, sample: Sample) -> tuple[str, float, float]:
    return uid(clip.video, sample.seed), clip.start, clip.stop


def _rephrase(clip: Narrated, rng: np.random.Generator) -> list[str]:
    """The narration, then none to two others."""
    others = [f"#C C {words} the {clip.scene}" for words in OTHER_WORDS[clip.move.verb]]
    return [clip.text, *others[: int(rng.integers(len(others) + 1))]]


def _by_machine(clip: Narrated, rng: np.random.Generator) -> tuple[list[str], list[float]]:
    """Narrations with scores. Some narrations are wrong, and lower scores are better."""
    texts, scores = [], []
    for _ in range(MACHINE_NARRATIONS):
        right = rng.uniform() < 0.7
        verb = clip.move.verb if right else int(rng.integers(len(VERBS)))
        words = (SENTENCES[verb], *OTHER_WORDS[verb])[int(rng.integers(3))]
        texts.append(f"#C C {words} the {clip.scene}")
        scores.append(float(np.exp(rng.uniform(0.2, 1.0) + (not right))))
    return texts, scores


def _dump(file: Path, clips: list[tuple[object, ...]]) -> None:
    file.write_bytes(pickle.dumps(clips, protocol=4))


def write_questions(sample: Sample, out: Path) -> None:
    """Write egomcq.json: two questions on each validation clip, the first one with choices from other videos.

    Raises SampleError where the validation clips are too few, or too much alike, to choose from.
    """
    clips = narrated(sample, "val")
    questions: dict[str, dict[str, object]] = {}
    for number, clip in enumerate([clip for clip in clips for _ in range(2)]):
        kind = (INTER, INTRA)[number % 2]
        rng = np.random.default_rng([sample.seed, number, 32])
        choices = _wrong_choices(clip, clips, kind, rng)
        answer = int(rng.integers(CHOICES))
        choices.insert(answer, clip)
        questions[str(number)] = {
            "answer": answer,
            "types": kind,
            "query": {"clip_text": clip.text},
            # As in the published file, some times are numbers and some are text.
            "choices": {str(k): _choice(c, sample, text=number % 3 == 1) for k, c in enumerate(choices)},
        }
    folder = out / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    (folder / QUESTIONS).write_text(json.dumps(questions), encoding="utf-8")


def _wrong_choices(clip: Narrated, clips: list[Narrated], kind: int, rng: np.random.Generator) -> list[Narrated]:
    """Clips whose texts differ; from one video each as far as there are enough videos, or all from `clip`'s."""
    own = clip.video.video_id
    chosen = [clip]
    pool = [c for c in clips if (c.video.video_id == own) == (kind == INTRA)]
    shuffled = [pool[int(k)] for k in rng.permutation(len(pool))]
    while len(chosen) < CHOICES:
        texts, seen = {c.text for c in chosen}, [c.video.video_id for c in chosen]
        left = [c for c in shuffled if c.text not in texts]
        if not left:
            where = "in its own video" if kind == INTRA else "in other videos"
            raise SampleError(
                f"egomcq: a question on a clip of {own} needs {CHOICES - 1} clips with other narrations {where}, "
                f"there are {len(chosen) - 1}; give more --val-clips, or other --videos"
            )
        chosen.append(min(left, key=lambda c: seen.count(c.video.video_id)))
    return chosen[1:]


def _choice(clip: Narrated, sample: Sample, *, text: bool) -> dict[str, object]:
    video_uid, start, stop = _place(clip, sample)
    times = (str(start), str(stop)) if text else (start, stop)
    return {"video_uid": video_uid, "clip_start": times[0], "clip_end": times[1], "clip_text": clip.text}


def files(sample: Sample) -> Iterator[tuple[Video, VideoFile]]:
    """Each whole video, and the same in files of `chunk_seconds`, whose name is the second at which they begin."""
    for original in sample.videos:
        video, name = replace(original, fps=FPS), f"{uid(original, sample.seed)}.mp4"
        yield video, VideoFile(path=f"{WHOLE}/{name}", first=0, stop=video.frames)
        length = int(sample.chunk_seconds * FPS)
        for first in range(0, video.frames, length):
            path = f"{CHUNKS}/{name}/{first // int(FPS)}.mp4"
            yield video, VideoFile(path=path, first=first, stop=min(first + length, video.frames))
