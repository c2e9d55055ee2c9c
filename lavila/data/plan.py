"""What every step of an epoch sees, decided here and nowhere else, in plain numpy.

A plan is a pure function of (seed, epoch, position): which clip, which frames, which crop window, mirrored or not.
`position` counts clips in the epoch's global order, so the same clips meet in the same step on any number of ranks,
and a run that stops goes on from two integers, (epoch, step).

Frame choice follows LaViLa (Zhao et al., CVPR 2023), frame numbers exactly; the crop window follows torchvision's
RandomResizedCrop; the spatial crops of an evaluation follow SlowFast (Feichtenhofer et al., ICCV 2019).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from lavila.annotations import SpanRule
from lavila.data.order import CLIP, EpochOrder, Shuffle, random_numbers
from lavila.records import BLACK_FRAME, ClipPlan

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Frames = npt.NDArray[np.int32]
SamplingName = Literal["segments", "strided"]
CropsName = Literal["center", "three", "center_repeated"]
DEFAULT_SHUFFLE = Shuffle()


class Sizes(Protocol):
    """What the plan asks about the clips that may be used, N in all: about those of a step, never about all."""

    def __len__(self) -> int: ...

    def span(self, index: int) -> Span:
        """How long clip `index` is."""
        ...

    def picture(self, index: int) -> tuple[int, int]:
        """Height and width of clip `index`, pixels."""
        ...

    def row(self, index: int) -> int:
        """Row of clips.parquet of clip `index`."""
        ...


@dataclass(frozen=True, kw_only=True)
class Span:
    """A clip's interval, in frames."""

    frames: float  # annotated
    after: int = 0  # stored frames that follow it and that a view may reach into

    def reach(self, choice: FrameChoice) -> float:
        """Frames to choose from: the interval, and where it has fewer than T (LaViLa's Ego4D rule), what follows."""
        if choice.sampling == "segments" and self.after:
            return max(self.frames, min(choice.frames, math.ceil(self.frames) + self.after))
        return self.frames


@dataclass(frozen=True, kw_only=True)
class FrameChoice:
    """T frames of a clip."""

    frames: int  # T
    sampling: SamplingName = "segments"  # one frame of each of T equal parts, or every stride-th frame
    stride: int = 2  # frames between two chosen ones, for "strided"


@dataclass(frozen=True, kw_only=True)
class CropChoice:
    """One random window for all frames of a training clip."""

    size: int  # side of the resulting square, pixels
    scale: tuple[float, float] = (0.5, 1.0)  # share of the picture's area
    ratio: tuple[float, float] = (3 / 4, 4 / 3)  # width / height
    flip: float = 0.5  # chance of mirroring


@dataclass(frozen=True, kw_only=True)
class ViewChoice:
    """The views of an evaluation: `clips` temporal clips, each with the pictures that `crops` names."""

    size: int  # side of the square crops, pixels; the picture's short side is resized to it
    clips: int = 1  # K
    crops: CropsName = "three"


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """This process among the processes of a run."""

    rank: int = 0
    world: int = 1
    local_world: int = 1  # ranks of this machine, whose numbers follow each other


class PlanError(ValueError):
    """A plan that cannot be made, told in one line."""


class Plan(Protocol):
    """What the loader asks of a plan."""

    frames: int  # T
    size: int  # side of the square pictures, pixels
    view_grid: tuple[int, int]  # K temporal clips, S spatial crops that are computed
    pads_black: bool  # whether BLACK_FRAME can occur
    cuts_window: bool  # whether windows are cut before the resize (training) or crops after it (evaluation)

    @property
    def steps(self) -> int:
        """Batches of this rank in an epoch."""
        ...

    @property
    def largest_batch(self) -> int:
        """Clips of this rank in its largest batch."""
        ...

    def batch(self, epoch: int, step: int) -> list[ClipPlan]:
        """This rank's clips of a step."""
        ...

    def ahead(self, epoch: int, step: int) -> list[tuple[int, int]]:
        """First and last rows of stretches of the table that this rank shall read for its machine, during a step."""
        ...


def interval_span(rule: SpanRule, *, stored: int, after: int, fps: float, seconds: float) -> Span:
    """What views of a clip choose from: frames of its interval, and frames past it that a short clip may use.

    `stored`, `after`: frames of the interval and past it that are stored; `seconds`: the interval's stated length.
    The rules are those of `lavila.annotations.frame_span`.
    """
    # A video that ends before its stated length has fewer frames than that.
    frames = min(stored, fps * seconds) if rule == "fractional" else stored
    return Span(frames=float(frames), after=after if rule == "duration" else 0)


def segment_bounds(start: int, stop: float, frames: int) -> tuple[Ints, Ints]:
    """First and last candidate frame, both inclusive, of each of `frames` equal parts of [start, stop)."""
    edges = np.round(np.arange(frames + 1) * ((stop - start - 1) / frames)).astype(np.int64) + start
    return edges[:-1], np.minimum(edges[1:], math.ceil(stop))


def choose_frames(num_frames: float, choice: FrameChoice, *, clips: int) -> Frames:
    """The frames of an evaluation among `num_frames`, [clips, T]; BLACK_FRAME where a short clip is padded.

    segments: temporal clip k of K takes each part at the fraction (2k+1)/2K; K=1 is the centre, as published.
    strided: starts are spread evenly; a clip shorter than T*stride is padded at its end and repeated K times.
    A clip shorter than one frame (a fractional length) is its first frame.
    """
    num_frames = max(num_frames, 1)
    if choice.sampling == "segments":
        low, high = segment_bounds(0, num_frames, choice.frames)
        k = np.arange(clips, dtype=np.int64)[:, None]
        return ((low * (2 * clips - 2 * k - 1) + high * (2 * k + 1)) // (2 * clips)).astype(np.int32)
    span = choice.frames * choice.stride
    last_start = max(num_frames - span, 0)
    starts = np.linspace(0, last_start, clips).astype(np.int64) if clips > 1 else np.zeros(1, np.int64)
    return _strided(starts, num_frames, choice)


def protocol_frames(span: Span, choice: FrameChoice, *, clips: int) -> Frames:
    """Every frame of a clip that an evaluation asks for: ascending, each once."""
    frames = np.unique(choose_frames(span.reach(choice), choice, clips=clips))
    stored: Frames = frames[frames != BLACK_FRAME].astype(np.int32)
    return stored


def chosen_frames(
    protocol: Mapping[str, Any], rule: SpanRule, *, stored: int, after: int, fps: float, seconds: float
) -> Frames:
    """The frames of one clip that a shard set made for an evaluation holds: ascending, each once.

    `protocol`: the fields of a `FrameChoice`, and "clips", as the set's manifest tells them under "frames_for"; the
    rest as in `interval_span`.
    """
    settings = dict(protocol)
    clips = settings.pop("clips")
    span = interval_span(rule, stored=stored, after=after, fps=fps, seconds=seconds)
    return protocol_frames(span, FrameChoice(**settings), clips=clips)


def draw_frames(num_frames: float, choice: FrameChoice, random: np.random.Generator) -> Frames:
    """The frames of a training clip, [1, T]: one anywhere in each part, or a random start of a fixed stride.

    As in `choose_frames`, a clip shorter than one frame is its first frame.
    """
    num_frames = max(num_frames, 1)
    if choice.sampling == "segments":
        low, high = segment_bounds(0, num_frames, choice.frames)
        return random.integers(low, high, endpoint=True).astype(np.int32)[None]
    last_start = int(max(num_frames - choice.frames * choice.stride, 0))
    return _strided(random.integers(0, last_start, size=1, endpoint=True), num_frames, choice)


def _strided(starts: Ints, num_frames: float, choice: FrameChoice) -> Frames:
    frames = starts[:, None] + np.arange(choice.frames) * choice.stride
    return np.where(frames < num_frames, frames, BLACK_FRAME).astype(np.int32)


def draw_window(height: int, width: int, choice: CropChoice, random: np.random.Generator) -> tuple[int, int, int, int]:
    """Top, left, height, width in pixels of one random-resized-crop window; after ten misses, a centred one."""
    area = height * width
    for _ in range(10):
        share = random.uniform(*choice.scale)
        ratio = math.exp(random.uniform(math.log(choice.ratio[0]), math.log(choice.ratio[1])))
        wide, high = round(math.sqrt(area * share * ratio)), round(math.sqrt(area * share / ratio))
        if 0 < wide <= width and 0 < high <= height:
            top = int(random.integers(0, height - high, endpoint=True))
            return top, int(random.integers(0, width - wide, endpoint=True)), high, wide
    wide, high = width, height
    if width / height < choice.ratio[0]:
        high = min(height, round(width / choice.ratio[0]))
    elif width / height > choice.ratio[1]:
        wide = min(width, round(height * choice.ratio[1]))
    return (height - high) // 2, (width - wide) // 2, high, wide


def resized_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """Height and width after resizing the short side to `short_side`; the long side is rounded down, as published."""
    short, long = min(height, width), max(height, width)
    other = short_side * long // short
    return (short_side, other) if height <= width else (other, short_side)


def crop_offsets(height: int, width: int, size: int, crops: CropsName) -> Frames:
    """[S, 2] top and left, in pixels, of the square crops of a resized picture.

    "three": left, centre and right of a wide picture, top, centre and bottom of a tall one. "center" rounds
    as torchvision's CenterCrop does. "center_repeated" is the published fine-tuning protocol, whose three crops are one
    and the same square: it is computed once, since neither mean nor maximum over equal views changes anything.
    """
    spare_h, spare_w = height - size, width - size
    if crops != "three":
        return np.array([[_center(spare_h), _center(spare_w)]], np.int32)
    middle_h, middle_w = math.ceil(spare_h / 2), math.ceil(spare_w / 2)
    if height > width:
        return np.array([[0, middle_w], [middle_h, middle_w], [spare_h, middle_w]], np.int32)
    return np.array([[middle_h, 0], [middle_h, middle_w], [middle_h, spare_w]], np.int32)


def _center(spare: int) -> int:
    return round(spare / 2)  # half to even, like torchvision


class TrainingPlan:
    """Epochs of random clips. A step's global batch is the same on any number of ranks.

    Each of the `world` ranks takes an equal, contiguous share of the step, in `passes` equal parts (gradient
    accumulation): `batch(epoch, i)` is part i % passes of step i // passes. The clips left over at the end of an epoch
    wait for another epoch's order.
    """

    def __init__(
        self,
        sizes: Sizes,
        *,
        frames: FrameChoice,
        crop: CropChoice,
        batch_size: int,
        seed: int,
        ranks: Ranks,
        passes: int = 1,
        shuffle: Shuffle = DEFAULT_SHUFFLE,
    ):
        if batch_size % (ranks.world * passes):
            fitting = batch_size // (ranks.world * passes) * ranks.world * passes or ranks.world * passes
            raise PlanError(
                f"data.batch_size={batch_size} clips cannot be shared equally by {ranks.world} rank(s) in {passes} "
                f"pass(es) each; try data.batch_size={fitting}"
            )
        if batch_size > len(sizes):
            raise PlanError(
                f"data.batch_size={batch_size} is more than the {len(sizes)} clip(s) of the training shard set: "
                "not one step can be made; make it smaller"
            )
        self._sizes, self._frame_choice, self._crop, self._seed = sizes, frames, crop, seed
        self._ranks, self._passes, self._batch_size, self._shuffle = ranks, passes, batch_size, shuffle
        self._order: tuple[int, EpochOrder] | None = None
        self.frames, self.size, self.view_grid = frames.frames, crop.size, (1, 1)
        self.pads_black, self.cuts_window = frames.sampling == "strided", True

    @property
    def steps(self) -> int:
        return len(self._sizes) // self._batch_size * self._passes

    @property
    def largest_batch(self) -> int:
        return self._batch_size // (self._ranks.world * self._passes)

    @property
    def order(self) -> dict[str, int]:
        """All that decides which clips come in which step of an epoch; ranks and passes do not."""
        facts = {"data.batch_size": self._batch_size, "seed": self._seed, "clips": len(self._sizes)}
        if self._order_of(0).windows == 1:  # mixed fully, whatever the window
            return facts
        return facts | {"data.shuffle_window": self._shuffle.window, "stretch": self._shuffle.stretch}

    def batch(self, epoch: int, step: int) -> list[ClipPlan]:
        assert 0 <= step < self.steps, (step, self.steps)
        whole, part = divmod(step, self._passes)
        share = self._batch_size // self._ranks.world
        start = whole * self._batch_size + self._ranks.rank * share + part * self.largest_batch
        return [self.clip(epoch, position) for position in range(start, start + self.largest_batch)]

    def ahead(self, epoch: int, step: int) -> list[tuple[int, int]]:
        whole, part = divmod(step, self._passes)
        if part or not self._shuffle.read_ahead:
            return []
        start, local = whole * self._batch_size, self._ranks.local_world
        coming = self._order_of(epoch).coming(
            start, start + self._batch_size, part=self._ranks.rank % local, parts=local
        )
        return [(self._sizes.row(first), self._sizes.row(last)) for first, last in coming]

    def _order_of(self, epoch: int) -> EpochOrder:
        if self._order is None or self._order[0] != epoch:
            order = EpochOrder(len(self._sizes), seed=self._seed, epoch=epoch, shuffle=self._shuffle)
            self._order = (epoch, order)
        return self._order[1]

    def clip(self, epoch: int, position: int) -> ClipPlan:
        """The clip at a place of an epoch's global order."""
        index = self._order_of(epoch)[position]
        random = random_numbers(self._seed, CLIP, epoch, position)
        return ClipPlan(
            position=position,
            row=self._sizes.row(index),
            frames=draw_frames(self._sizes.span(index).reach(self._frame_choice), self._frame_choice, random),
            window=draw_window(*self._sizes.picture(index), self._crop, random),
            resized=(self._crop.size, self._crop.size),
            crops=np.zeros((1, 2), np.int32),
            flip=bool(random.random() < self._crop.flip),
            caption=float(random.random()),
        )


class ViewPlan:
    """Every clip exactly once, in storage order, each with all its views. Rank r takes clips r, r + world, ..."""

    def __init__(self, sizes: Sizes, *, frames: FrameChoice, views: ViewChoice, batch_size: int, ranks: Ranks):
        self._sizes, self._frame_choice, self._views, self._ranks = sizes, frames, views, ranks
        self.largest_batch = max(1, batch_size // ranks.world)
        self._mine = range(ranks.rank, len(sizes), ranks.world)
        self.frames, self.size = frames.frames, views.size
        self.view_grid = (views.clips, 3 if views.crops == "three" else 1)
        self.pads_black, self.cuts_window = frames.sampling == "strided", False

    @property
    def steps(self) -> int:
        return math.ceil(len(self._mine) / self.largest_batch)

    def batch(self, epoch: int, step: int) -> list[ClipPlan]:
        del epoch  # every pass over an evaluation set is the same
        mine = self._mine[step * self.largest_batch : (step + 1) * self.largest_batch]
        return [self.clip(position) for position in mine]

    def ahead(self, epoch: int, step: int) -> list[tuple[int, int]]:
        del epoch, step  # storage order is read through as it is
        return []

    def clip(self, position: int) -> ClipPlan:
        """The views of the clip at a place of the set."""
        height, width = self._sizes.picture(position)
        resized = resized_size(height, width, self._views.size)
        frames = self._sizes.span(position).reach(self._frame_choice)
        return ClipPlan(
            position=position,
            row=self._sizes.row(position),
            frames=choose_frames(frames, self._frame_choice, clips=self._views.clips),
            window=(0, 0, height, width),
            resized=resized,
            crops=crop_offsets(*resized, self._views.size, self._views.crops),
            flip=False,
            caption=0.0,
        )
