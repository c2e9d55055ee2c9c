"""Plans: what every step of an epoch sees. Plain numpy decides it here and nowhere else.

A plan is a pure function of (seed, epoch, position). It says which clip, which frames, which crop window, mirrored or
not. `position` counts clips in the epoch's global order, so the same clips meet in the same step on any number of
ranks. A run that was stopped needs only two integers to continue: (epoch, step).

The choice of frames follows LaViLa (Zhao et al., CVPR 2023) to the exact frame number. The crop window follows
torchvision's RandomResizedCrop. The spatial crops of an evaluation follow SlowFast (Feichtenhofer et al., ICCV 2019).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from lavila.errors import UserError
from lavila.plan.crops import CropChoice, ViewChoice, crop_offsets, draw_window, resized_size
from lavila.plan.frames import FrameChoice, Span, choose_frames, draw_frames
from lavila.plan.order import CLIP, EpochOrder, Shuffle, random_numbers
from lavila.records import ClipPlan

DEFAULT_SHUFFLE = Shuffle()
SUBSTITUTES = 8  # clips that are tried in place of a bad one; if all are bad, so is the set


class Sizes(Protocol):
    """The lengths and sizes of the N clips that a plan may use. A plan asks for the clips of a step, never for all."""

    def __len__(self) -> int: ...

    def span(self, index: int) -> Span:
        """The frames of clip `index` that views may use."""
        ...

    def picture(self, index: int) -> tuple[int, int]:
        """Height and width of clip `index` in pixels."""
        ...

    def row(self, index: int) -> int:
        """The row of clip `index` in clips.parquet."""
        ...


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """This process among the processes of a run."""

    rank: int = 0
    world: int = 1
    local_world: int = 1  # number of ranks on this machine; their numbers follow each other


class PlanError(UserError):
    """Settings from which no plan can be made."""


class Plan(Protocol):
    """A plan as the loader sees it."""

    frames: int  # T
    size: int  # side of the square pictures, pixels
    view_grid: tuple[int, int]  # K temporal clips, S spatial crops that are computed
    pads_black: bool  # whether BLACK_FRAME can occur
    cuts_window: bool  # True: a window is cut before the resize (training); False: crops after it (evaluation)
    substitutes: int | None  # clips that may take the place of a bad one; None: its place stays empty (evaluation)

    @property
    def steps(self) -> int:
        """The number of this rank's batches in an epoch."""
        ...

    @property
    def largest_batch(self) -> int:
        """The number of clips in this rank's largest batch."""
        ...

    def batch(self, epoch: int, step: int) -> list[ClipPlan]:
        """This rank's clips of a step."""
        ...

    def instead(self, bad: ClipPlan) -> ClipPlan | None:
        """The clip that takes the place of a bad one; None after the last of `substitutes`. Safe in many threads."""
        ...

    def ahead(self, epoch: int, step: int) -> list[tuple[int, int]]:
        """First and last row of each stretch of the table that this rank reads for its machine during a step."""
        ...


class TrainingPlan:
    """Epochs of random clips. A step's global batch is the same on any number of ranks.

    Each of the `world` ranks takes an equal, contiguous share of the step. It takes the share in `passes` equal parts
    (gradient accumulation): `batch(epoch, i)` is part i % passes of step i // passes. An epoch leaves out the clips
    that do not fill a last batch; another epoch's order may bring them.
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
        self.substitutes: int | None = min(SUBSTITUTES, len(sizes) - 1)

    @property
    def steps(self) -> int:
        return len(self._sizes) // self._batch_size * self._passes

    @property
    def largest_batch(self) -> int:
        return self._batch_size // (self._ranks.world * self._passes)

    @property
    def order(self) -> dict[str, int]:
        """The settings that decide which clips come in which step of an epoch. Ranks and passes do not."""
        facts = {"data.batch_size": self._batch_size, "seed": self._seed, "clips": len(self._sizes)}
        if self._order_of(0).windows == 1:  # one window mixes all clips, whatever its size
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
        kept = self._order  # read once: threads ask for substitutes of an epoch while the next one begins
        if kept is None or kept[0] != epoch:
            kept = epoch, EpochOrder(len(self._sizes), seed=self._seed, epoch=epoch, shuffle=self._shuffle)
            self._order = kept
        return kept[1]

    def instead(self, bad: ClipPlan) -> ClipPlan | None:
        """A function of seed, epoch, position, and of which clips were bad. So it is the same after a resume."""
        assert self.substitutes is not None
        return None if bad.attempt >= self.substitutes else self.clip(bad.epoch, bad.position, attempt=bad.attempt + 1)

    def _shift(self, attempt: int) -> int:
        """How far behind a place its n-th substitute lies: n steps, and each clip comes once before one comes twice.

        So a step gets no clip twice, unless nearly all clips of the set are in it.
        """
        clips = len(self._sizes)
        rounds = attempt // (clips // math.gcd(clips, self._batch_size))  # times that whole steps came back to a place
        return attempt * self._batch_size + rounds

    def clip(self, epoch: int, position: int, *, attempt: int = 0) -> ClipPlan:
        """The clip at a place of an epoch's global order, or the n-th in its stead."""
        index = self._order_of(epoch)[(position + self._shift(attempt)) % len(self._sizes)]
        random = random_numbers(self._seed, CLIP, epoch, position, attempt=attempt)
        return ClipPlan(
            position=position,
            row=self._sizes.row(index),
            frames=draw_frames(self._sizes.span(index).reach(self._frame_choice), self._frame_choice, random),
            window=draw_window(*self._sizes.picture(index), self._crop, random),
            resized=(self._crop.size, self._crop.size),
            crops=np.zeros((1, 2), np.int32),
            flip=bool(random.random() < self._crop.flip),
            caption=float(random.random()),
            attempt=attempt,
            epoch=epoch,
        )


class ViewPlan:
    """Every clip once, in storage order, each with all its views.


    Portions of `portion` neighbouring clips are what a model gets at once, and rank r takes portions r, r + world, ...
    So the same clips meet in a forward pass on any number of ranks and with any batch size. A batch is as many whole
    portions as a rank's share of `batch_size` clips holds, and one at least.
    """

    def __init__(
        self,
        sizes: Sizes,
        *,
        frames: FrameChoice,
        views: ViewChoice,
        batch_size: int,
        ranks: Ranks,
        portion: int = 1,
    ):
        self._sizes, self._frame_choice, self._views, self._ranks = sizes, frames, views, ranks
        self.portion = portion
        self._portions = range(ranks.rank, math.ceil(len(sizes) / portion), ranks.world)  # those of this rank
        self._at_once = max(1, batch_size // ranks.world // portion)  # portions of a batch
        self.largest_batch = self._at_once * portion
        self.frames, self.size = frames.frames, views.size
        self.view_grid = views.grid
        self.pads_black, self.cuts_window = frames.sampling == "strided", False
        self.substitutes: int | None = None

    @property
    def steps(self) -> int:
        return math.ceil(len(self._portions) / self._at_once)

    def batch(self, epoch: int, step: int) -> list[ClipPlan]:
        del epoch  # every pass over an evaluation set is the same
        portions = self._portions[step * self._at_once : (step + 1) * self._at_once]
        firsts = (number * self.portion for number in portions)
        ends = ((first, min(first + self.portion, len(self._sizes))) for first in firsts)
        return [self.clip(position) for first, stop in ends for position in range(first, stop)]

    def instead(self, bad: ClipPlan) -> ClipPlan | None:
        del bad
        return None  # a score is one of the clips that were seen

    def ahead(self, epoch: int, step: int) -> list[tuple[int, int]]:
        del epoch, step  # clips come in storage order, which the system reads ahead by itself
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
