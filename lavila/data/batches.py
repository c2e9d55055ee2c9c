"""A batch on its way from plans to pictures, and how a clip that cannot be decoded leaves it.

Three steps can find a bad clip:

* reading, where the bytes are not those that were stored (`reading.ClipReader`),
* FFmpeg, where it cannot decode them (`host.decode.DecodeError`),
* DALI, where its decoder cannot (`dali_pipelines.errors.decode_problem`).

Each step gives one reason for each clip, None for a good one. The bad clips leave here: the clips after them move up,
and `bad` lists them with their reasons. Nothing replaces them, so a batch only becomes smaller. A batch without a good
clip is handed out without pictures, so that the number of steps stays the same. Every other error ends the run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from lavila.data.pictures import Payload
from lavila.records import ClipPlan

BadPlans = tuple[tuple[ClipPlan, str], ...]
"""Plans of bad clips, each with its reason in one line."""


@dataclass(frozen=True, kw_only=True)
class LoadedBatch:
    """The good clips of a step with their bytes (or decoded frames), and the bad ones."""

    plans: tuple[ClipPlan, ...]
    payloads: tuple[Payload, ...]
    bad: BadPlans = ()

    @classmethod
    def of(cls, plans: Sequence[ClipPlan], read: Sequence[Payload | str]) -> LoadedBatch:
        """`read`: the payload of each plan, or the reason why it has none."""
        good, bad = _sorted_out(plans, [one if isinstance(one, str) else None for one in read])
        return cls(
            plans=tuple(plans[place] for place in good),
            payloads=tuple(one for one in read if not isinstance(one, str)),
            bad=bad,
        )

    def without(self, reasons: Sequence[str | None]) -> LoadedBatch:
        """The same step without the clips that have a reason."""
        good, bad = _sorted_out(self.plans, reasons)
        return LoadedBatch(
            plans=tuple(self.plans[place] for place in good),
            payloads=tuple(self.payloads[place] for place in good),
            bad=(*self.bad, *bad),
        )

    def with_pictures(self, pictures: Any) -> PictureBatch:
        """The step as a runner hands it out. `pictures`: one for each good clip, in order; None without good clips."""
        return PictureBatch(plans=self.plans, pictures=pictures, bad=self.bad)


@dataclass(frozen=True, kw_only=True)
class PictureBatch:
    """The pictures that a runner makes from the plans of a step."""

    plans: tuple[ClipPlan, ...]  # the plans of the good clips
    pictures: Any  # DLPack, [B, K, S, T, 3, size, size], one for each of `plans`; None without good clips
    bad: BadPlans = ()

    @classmethod
    def of(cls, plans: Sequence[ClipPlan], pictures: npt.NDArray[Any], reasons: Sequence[str | None]) -> PictureBatch:
        """`pictures`: [B, K, S, T, 3, size, size], one place for each of `plans`. The places of bad clips are removed.

        Without a bad clip the pictures are not copied.
        """
        good, bad = _sorted_out(plans, reasons)
        if not good:
            return cls(plans=(), pictures=None, bad=bad)
        left = pictures if not bad else pictures[good]
        return cls(plans=tuple(plans[place] for place in good), pictures=left, bad=bad)


def _sorted_out(plans: Sequence[ClipPlan], reasons: Sequence[str | None]) -> tuple[list[int], BadPlans]:
    """The places of the good clips, and the bad clips. `reasons`: why each plan's clip is bad, or None."""
    good = [place for place, reason in enumerate(reasons) if reason is None]
    bad = tuple((plan, reason) for plan, reason in zip(plans, reasons, strict=True) if reason is not None)
    return good, bad
