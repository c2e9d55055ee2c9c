"""Losses and gradients that are not finite: all ranks skip the update, name the clips, and stop after some in a row.

A rank learns of the others' losses at each update, because their gradients are in its own. The weights stay as they
were, so a run survives a batch that its numbers cannot hold. A checkpoint of that moment is kept for a look at it.

A finite loss may have a gradient that is not, such as that of a root at 0. All ranks find it in the gradient that they
share, where nobody can see whose it is. Then each rank makes its passes again, alone: this happens seldom, and so no
update that goes well pays for it.
"""

from __future__ import annotations

import functools
import json
import logging
import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from lavila.engine.distributed import ask_ranks, gather_to_all
from lavila.engine.signals import Wish
from lavila.files import whole_file
from lavila.records import VideoBatch

log = logging.getLogger(__name__)

FOLDER = "nonfinite"  # in a run folder: checkpoints of such moments
PASSES = "passes.json"  # in such a checkpoint
SHOWN_CLIPS = 4  # clips of a rank that a message names

Again = Callable[[VideoBatch, int], list[str]]  # makes a pass of this rank alone again, gives the bad gradients


@dataclass(frozen=True, kw_only=True)
class BadPass:
    """A pass whose loss or gradient is not finite. With the checkpoint, its seed and rows make the pass again."""

    rank: int
    loss: str  # nan, inf, -inf, or a number
    gradient: list[str]  # parameters whose gradient is not finite, where the loss is
    part: int  # number of the pass in its update, from 0
    seed: int  # seed of PyTorch's generator before the pass
    clip_ids: list[str]
    rows: list[int]  # in clips.parquet

    def __str__(self) -> str:
        more = len(self.clip_ids) - SHOWN_CLIPS
        clips = ", ".join(self.clip_ids[:SHOWN_CLIPS]) + (f" and {more} more" if more > 0 else "")
        return f"rank {self.rank}: {self._what()} for {clips or 'no clip'}"

    def _what(self) -> str:
        if not math.isfinite(float(self.loss)):
            return self.loss
        more = len(self.gradient) - 1
        others = f" and {more} more" if more > 0 else ""
        return f"gradient of {self.gradient[0]}{others}" if self.gradient else "finite alone"


@dataclass(frozen=True, kw_only=True)
class _Pass:
    loss: torch.Tensor  # scalar, on the device
    batch: VideoBatch
    seed: int


class PassWatch:
    """The passes of one update after another, on this rank. It holds their batches until the update ends."""

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self._passes: list[_Pass] = []
        self.in_a_row = 0  # updates that were skipped, up to now
        self.wish = Wish.NOTHING  # what any rank wished at the last update

    def add(self, loss: torch.Tensor, batch: VideoBatch, *, seed: int) -> None:
        """Take the loss of a pass. It is left on the device, and so is not waited for."""
        self._passes.append(_Pass(loss=loss.detach(), batch=batch, seed=seed))

    def ask(self, wish: Wish = Wish.NOTHING) -> Callable[[], list[BadPass]]:
        """After the last loss of an update; every rank calls this. The function that is returned gives the passes of
        all ranks whose loss is not finite.

        That function is called by every rank, too, after the backward pass was begun. What this rank wishes travels
        with its losses; afterwards `wish` has the wishes of all ranks.
        """
        finite = torch.stack([one.loss.isfinite().all() for one in self._passes]).all()
        answer = ask_ranks((~finite).to(torch.uint8) + 2 * int(wish))

        def bad_losses() -> list[BadPass]:
            numbers = answer()
            self.wish = functools.reduce(operator.or_, (Wish(number >> 1) for number in numbers))
            if not any(number & 1 for number in numbers):
                return []
            return _of_all_ranks([one for one in self._described() if not math.isfinite(float(one.loss))])

        return bad_losses

    def whose_gradient(self, again: Again) -> list[BadPass]:
        """The passes of all ranks whose gradient is not finite; every rank calls this.

        All passes, where each gradient is finite when it is made again alone: then their sum is not.
        """
        gradients = [again(one.batch, one.seed) for one in self._passes]
        passes = _of_all_ranks(self._described(gradients))
        return [one for one in passes if one.gradient] or passes

    def end(self, *, skipped: bool) -> None:
        """The update has ended."""
        self._passes = []
        self.in_a_row = self.in_a_row + 1 if skipped else 0

    def _described(self, gradients: Sequence[list[str]] = ()) -> list[BadPass]:
        """All passes of this rank."""
        gradients = gradients or [[]] * len(self._passes)
        return [
            BadPass(
                rank=self._rank,
                loss=str(float(one.loss)),
                gradient=gradient,
                part=part,
                seed=one.seed,
                clip_ids=list(one.batch.clip_ids),
                rows=one.batch.rows.tolist(),
            )
            for part, (one, gradient) in enumerate(zip(self._passes, gradients, strict=True))
        ]


def _of_all_ranks(passes: Sequence[BadPass]) -> list[BadPass]:
    return [one for rank in gather_to_all(passes) for one in rank]


def listed(passes: Sequence[BadPass]) -> str:
    """What is not finite, and the ranks and clips, in one line."""
    what = "gradient" if all(math.isfinite(float(one.loss)) for one in passes) else "loss"
    return f"the {what} is not finite ({'; '.join(map(str, passes))})"


def write_passes(checkpoint: Path, passes: Sequence[BadPass]) -> None:
    """Keep all of it beside a checkpoint."""
    with whole_file(checkpoint / PASSES) as file:
        file.write((json.dumps([asdict(one) for one in passes], indent=1) + "\n").encode())
