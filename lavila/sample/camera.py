"""The camera of the sample dataset: its place at each moment, and the footage that it looks at.

A pose is four numbers: centre x, centre y (in picture heights of the footage, y down), log of the zoom-out (0 = the
usual window) and roll (radians, clockwise). A move changes exactly one of them, at constant speed:

    pose(t) = stand + offset + direction * RANGE * (t - 1/2),    t = 0 .. 1 over the clip

`offset` is uniform in +-RANGE/2 in every dimension that the move leaves alone and 0 in the one that it changes. At a
random t each dimension is thus uniform in +-RANGE/2 about the stand, for every move. So a single frame does not show
its move; only the order of several frames does.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal

import av
import numpy as np
import numpy.typing as npt

from lavila.errors import UserError
from lavila.libav import ANY_TAGS

WINDOW = 0.16  # height of the usual window, in picture heights
# Over a clip: shares of the usual window's width and height, factor, radians. Large enough for a model without any
# pretraining to learn them in minutes.
PAN, TILT, ZOOM, ROLL = 0.6, 0.8, 3.0, math.radians(90)
STRETCH = 160  # the largest number of footage frames that a video plays, which limits the memory

DIRECTIONS: dict[str, tuple[float, float, float, float]] = {
    "pan-left": (-1, 0, 0, 0),
    "pan-right": (1, 0, 0, 0),
    "tilt-up": (0, -1, 0, 0),
    "tilt-down": (0, 1, 0, 0),
    "zoom-in": (0, 0, -1, 0),
    "zoom-out": (0, 0, 1, 0),
    "rotate-clockwise": (0, 0, 0, 1),
    "rotate-counter-clockwise": (0, 0, 0, -1),
    "hold": (0, 0, 0, 0),
}
VERBS = tuple(DIRECTIONS)  # the place is the verb class

Between = Literal["glide", "cut"]
"""How a camera gets from one move to the next: without a break, or, as in edited videos, in the middle of the gap."""

Pose = npt.NDArray[np.float64]  # [4]: x, y in picture heights; log zoom-out; roll in radians, clockwise
Box = tuple[float, float, float, float]  # left, top, right, bottom as fractions of the picture


class SampleError(UserError):
    """Arguments or files from which no sample dataset can be made."""


def pose_range(aspect: float) -> Pose:
    """How far each dimension of the pose goes over a clip; `aspect` is width over height of picture and window."""
    return np.array([PAN * WINDOW * aspect, TILT * WINDOW, math.log(ZOOM), ROLL])


def standing_room(aspect: float) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Lowest and highest x, y (picture heights) of a stand from which every window stays inside the picture."""
    half_height = WINDOW * math.sqrt(ZOOM) / 2
    half_width = half_height * aspect
    # Sides of the upright box round a rectangle grow with its roll up to atan(their ratio), which may come before
    # the end of the range.
    rolls = np.linspace(0, ROLL / 2, 64)
    reach_x = (half_width * np.cos(rolls) + half_height * np.sin(rolls)).max()
    reach_y = (half_height * np.cos(rolls) + half_width * np.sin(rolls)).max()
    margin = np.array([reach_x, reach_y]) + pose_range(aspect)[:2] / 2
    low, high = margin, np.array([aspect, 1.0]) - margin
    if (low > high).any():
        raise SampleError(f"a picture {aspect:.2f} times as wide as high leaves the camera no room; 1:4 to 4:1 does")
    return low, high


@dataclass(frozen=True, kw_only=True)
class Move:
    """One annotated camera move."""

    verb: int
    scene: int  # number of the footage's scene
    start: int  # hundredths of a second from the start of the video, as the csv can say it
    stop: int
    middle: Pose  # the pose at the middle of the clip
    travel: Pose  # the change of the pose from start to stop

    def pose(self, second: float) -> Pose:
        """The pose at a time of the video, in seconds. It is constant before and after the move."""
        t = min(max((second * 100 - self.start) / (self.stop - self.start), 0.0), 1.0)
        return self.middle + self.travel * (t - 0.5)


def draw_pose(rng: np.random.Generator, *, verb: int, box: Box, aspect: float) -> tuple[Pose, Pose]:
    """Middle and travel of one move in a scene: the camera stands somewhere in the middle third of the scene's box."""
    low, high = standing_room(aspect)
    left, top, right, bottom = box
    corner, size = np.array([left * aspect, top]), np.array([(right - left) * aspect, bottom - top])
    stand = np.zeros(4)
    stand[:2] = np.clip(corner + size * rng.uniform(1 / 3, 2 / 3, 2), low, high)
    direction = np.array(DIRECTIONS[VERBS[verb]], dtype=np.float64)
    reach = pose_range(aspect)
    offset = rng.uniform(-0.5, 0.5, 4) * reach
    return stand + np.where(direction == 0, offset, 0.0), direction * reach


def pose_at(moves: list[Move], second: float, *, between: Between = "glide") -> Pose:
    """The pose of the camera. Between two moves it glides from the end of one to the start of the next, or cuts."""
    after = next((i for i, move in enumerate(moves) if move.stop / 100 >= second), len(moves) - 1)
    move = moves[after]
    if after == 0 or second >= move.start / 100:
        return move.pose(second)
    left, arrives = moves[after - 1].stop / 100, move.start / 100
    t = (second - left) / (arrives - left)
    if between == "cut":
        return moves[after - 1].pose(left) if t < 0.5 else move.pose(arrives)
    ease = t * t * (3 - 2 * t)
    return moves[after - 1].pose(left) * (1 - ease) + move.pose(arrives) * ease


def draw_moves(rng: np.random.Generator, pairs: list[tuple[int, int]], source: Source) -> list[Move]:
    """Moves of 1 to 3 s (1.5 s on average) with gaps of 0.3 to 1 s, mostly short: the gaps teach nothing."""
    moves: list[Move] = []
    boxes = list(source.scenes.values())
    now = 0
    for verb, scene in pairs:
        start = now + 30 + round(70 * rng.uniform() ** 3)
        now = start + 100 + round(200 * rng.uniform() ** 3)
        middle, travel = draw_pose(rng, verb=verb, box=boxes[scene], aspect=source.aspect)
        moves.append(Move(verb=verb, scene=scene, start=start, stop=now, middle=middle, travel=travel))
    return moves


@dataclass(frozen=True, kw_only=True)
class Source:
    """A piece of footage with its facts."""

    path: Path
    sha256: str
    frames: int
    fps: float
    width: int
    height: int
    scenes: dict[str, Box]

    @property
    def aspect(self) -> float:
        return self.width / self.height


def read_source(path: Path) -> Source:
    """Footage, its hash and its scenes. Raises SampleError naming what is wrong with either."""
    if not path.is_file():
        raise SampleError(f"{path}: no such file; give a video file as --footage")
    frames, fps, width, height = _probe(path)
    if frames < 20:
        raise SampleError(f"{path}: has {frames} frames, but training and validation need at least 20 to share")
    sha256 = _sha256(path)
    sidecar = path.with_name(f"{path.stem}.scenes.json")
    if sidecar.exists():
        scenes = read_scenes(sidecar)
    else:
        sides = ("upper left", (0.0, 0.0)), ("upper right", (0.5, 0.0)), ("lower left", (0.0, 0.5))
        scenes = {
            f"{path.stem} {name}": (left, top, left + 0.5, top + 0.5)
            for name, (left, top) in (*sides, ("lower right", (0.5, 0.5)))
        }
    return Source(path=path, sha256=sha256, frames=frames, fps=fps, width=width, height=height, scenes=scenes)


def read_sources(paths: Sequence[Path]) -> list[Source]:
    """Several footages. Raises SampleError as well where two of their scenes have one name."""
    sources = [read_source(path) for path in paths]
    names = [name for source in sources for name in source.scenes]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise SampleError(f"--footage: scene {twice[0]!r} is named twice; rename it in a .scenes.json")
    return sources


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_scenes(sidecar: Path) -> dict[str, Box]:
    """Named boxes of the picture."""
    shape = 'it should look like {"meadow": [0.0, 0.5, 0.5, 1.0]} (left, top, right, bottom)'
    try:
        content = json.loads(sidecar.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SampleError(f"{sidecar}: cannot be read as JSON ({error}); {shape}") from None
    if not isinstance(content, dict) or not content:
        raise SampleError(f"{sidecar}: names no scenes; {shape}")
    scenes: dict[str, Box] = {}
    for name, box in content.items():
        numbers = isinstance(box, list) and len(box) == 4 and all(isinstance(side, int | float) for side in box)
        if not numbers or not (0 <= box[0] < box[2] <= 1 and 0 <= box[1] < box[3] <= 1):
            raise SampleError(f"{sidecar}: scene {name!r} is {box}, not a box within 0 to 1; {shape}")
        scenes[name] = (box[0], box[1], box[2], box[3])
    return scenes


def _probe(path: Path) -> tuple[int, float, int, int]:
    """Frames, frames per second, width, height of a piece of footage. Raises SampleError if it cannot be played."""
    try:
        with av.open(str(path), **ANY_TAGS) as container:
            if not container.streams.video:
                raise SampleError(f"{path}: holds no video; give a video file as --footage")
            stream = container.streams.video[0]
            rate = float(stream.average_rate or 0)
            width, height = next(container.decode(stream)).to_ndarray(format="gray").shape[::-1]
            container.seek(0)
            frames = sum(1 for packet in container.demux(stream) if packet.size)
    except (av.error.FFmpegError, OSError, StopIteration) as error:
        reason = getattr(error, "strerror", "") or str(error) or "no pictures in it"
        raise SampleError(f"{path}: cannot be played ({reason}); give a readable video file as --footage") from None
    if rate <= 0:
        raise SampleError(f"{path}: says no frame rate; remux it, or give another file as --footage")
    standing_room(width / height)
    return frames, rate, width, height


@dataclass(frozen=True, kw_only=True)
class Video:
    """A video to make. It holds everything that rendering needs."""

    split: str  # "train" or "val"
    participant: str
    video_id: str
    source: Source
    fps: Fraction
    height: int
    first: int  # frames of the footage that it plays, to and fro: first .. stop - 1
    stop: int
    phase: int  # how far into the playing it begins, in frames of the footage
    moves: list[Move]
    between: Between = "glide"

    def pose(self, second: float) -> Pose:
        """Where the camera is at a time of the video."""
        return pose_at(self.moves, second, between=self.between)

    @property
    def frames(self) -> int:
        return int((self.moves[-1].stop / 100 + 0.5) * self.fps)

    @property
    def file(self) -> str:
        return f"videos/{self.participant}/{self.video_id}.MP4"

    def footage_frame(self, frame: int) -> int:
        """The frame of the stretch (0-based) that plays at a frame of the video."""
        count = self.stop - self.first
        place = (int(frame / self.fps * self.source.fps) + self.phase) % (2 * count)
        return min(place, 2 * count - 1 - place)


def picture_width(height: int, aspect: float) -> int:
    """The even width that keeps the shape of the picture."""
    return round(height * aspect / 2) * 2
