"""Losses that are not finite: all ranks agree to skip the update, name the clips, and stop after some in a row.

A rank learns of the others' losses at each update, because their gradients are in its own. The weights stay as they
were, so a run survives a batch that its numbers cannot hold. A checkpoint of that moment is kept for a look at it.
"""

from __future__ import annotations

import functools
import json
import logging
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
LOSSES = "losses.json"  # in such a checkpoint
SHOWN_CLIPS = 4  # clips of a rank that a message names


@dataclass(frozen=True, kw_only=True)
class BadLoss:
    """A pass whose loss is not finite. With the checkpoint, its seed and rows make the pass again."""

    rank: int
    loss: str  # nan, inf or -inf
    part: int  # number of the pass in its update, from 0
    seed: int  # seed of PyTorch's generator before the pass
    clip_ids: list[str]
    rows: list[int]  # in clips.parquet

    def __str__(self) -> str:
        more = len(self.clip_ids) - SHOWN_CLIPS
        clips = ", ".join(self.clip_ids[:SHOWN_CLIPS]) + (f" and {more} more" if more > 0 else "")
        return f"rank {self.rank}: {self.loss} for {clips or 'no clip'}"


@dataclass(frozen=True, kw_only=True)
class _Pass:
    loss: torch.Tensor  # scalar, on the device
    seed: int
    clip_ids: tuple[str, ...]
    rows: list[int]


class LossWatch:
    """The losses of one update after another, on this rank."""

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self._passes: list[_Pass] = []
        self.in_a_row = 0  # updates that were skipped, up to now
        self.wish = Wish.NOTHING  # what any rank wished at the last update

    def add(self, loss: torch.Tensor, batch: VideoBatch, *, seed: int) -> None:
        """Take the loss of a pass. It is left on the device, and so is not waited for."""
        rows = batch.rows.tolist()
        self._passes.append(_Pass(loss=loss.detach(), seed=seed, clip_ids=batch.clip_ids, rows=rows))

    def ask(self, wish: Wish = Wish.NOTHING) -> Callable[[], list[BadLoss]]:
        """Ends an update; every rank calls this. The function that is returned gives the bad losses of all ranks.

        That function is called by every rank, too, after the backward pass was begun. What this rank wishes travels
        with its losses; afterwards `wish` has the wishes of all ranks.
        """
        passes, self._passes = self._passes, []
        finite = torch.stack([one.loss.isfinite().all() for one in passes]).all()
        answer = ask_ranks((~finite).to(torch.uint8) + 2 * int(wish))

        def bad_losses() -> list[BadLoss]:
            numbers = answer()
            self.wish = functools.reduce(operator.or_, (Wish(number >> 1) for number in numbers))
            if not any(number & 1 for number in numbers):
                self.in_a_row = 0
                return []
            self.in_a_row += 1
            return [bad for rank in gather_to_all(self._bad(passes)) for bad in rank]

        return bad_losses

    def _bad(self, passes: Sequence[_Pass]) -> list[BadLoss]:
        return [
            BadLoss(
                rank=self._rank,
                loss=str(float(one.loss)),
                part=part,
                seed=one.seed,
                clip_ids=list(one.clip_ids),
                rows=one.rows,
            )
            for part, one in enumerate(passes)
            if not bool(one.loss.isfinite())
        ]


def listed_losses(losses: Sequence[BadLoss]) -> str:
    """Ranks and clips in one line."""
    return "; ".join(map(str, losses))


def write_losses(checkpoint: Path, losses: Sequence[BadLoss]) -> None:
    """Keep all of it beside a checkpoint."""
    with whole_file(checkpoint / LOSSES) as file:
        file.write((json.dumps([asdict(one) for one in losses], indent=1) + "\n").encode())
