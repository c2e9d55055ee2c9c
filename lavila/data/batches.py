"""A batch on its way from plans to pictures, and how a clip that cannot be decoded leaves it.

Three steps can find a clip bad. Reading does where the bytes are not those that were stored (`reading.ClipReader`).
FFmpeg does where it cannot decode them (`host.decode.DecodeError`). DALI does where its decoder cannot
(`dali_pipelines.errors.decode_problem`). Each step gives one reason for each clip, None for a good one, and the bad
clips leave here: those after them move up, and `bad` lists them with their reasons. Nothing is put in their place, so a
batch only gets smaller. A batch without a good clip is handed out too, without pictures: the steps of an epoch stay.
Every error that is not about one clip ends the run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from lavila.data.pictures import Payload
from lavila.records import ClipPlan

BadPlans = tuple[tuple[ClipPlan, str], ...]  # with the reasons, each in one line


@dataclass(frozen=True, kw_only=True)
class LoadedBatch:
    """The good clips of a step with their bytes (or decoded frames), and the bad ones."""

    plans: tuple[ClipPlan, ...]
    payloads: tuple[Payload, ...]
    bad: BadPlans = ()

    @classmethod
    def of(cls, plans: Sequence[ClipPlan], read: Sequence[Payload | str]) -> LoadedBatch:
        """`read`: for each plan its payload, or the reason why there is none."""
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
        """The step as a runner hands it out. `pictures`: of its good clips, in their order; None without one."""
        return PictureBatch(plans=self.plans, pictures=pictures, bad=self.bad)


@dataclass(frozen=True, kw_only=True)
class PictureBatch:
    """What a runner makes of the plans of a step."""

    plans: tuple[ClipPlan, ...]  # of the good clips
    pictures: Any  # DLPack, [B, K, S, T, 3, size, size], one for each of `plans`; None where no clip is left
    bad: BadPlans = ()

    @classmethod
    def of(cls, plans: Sequence[ClipPlan], pictures: npt.NDArray[Any], reasons: Sequence[str | None]) -> PictureBatch:
        """`pictures`: [B, K, S, T, 3, size, size] with a place for each of `plans`; the places of bad clips go.

        Without a bad clip the pictures are handed on as they are, without a copy.
        """
        good, bad = _sorted_out(plans, reasons)
        if not good:
            return cls(plans=(), pictures=None, bad=bad)
        left = pictures if not bad else pictures[good]
        return cls(plans=tuple(plans[place] for place in good), pictures=left, bad=bad)


def _sorted_out(plans: Sequence[ClipPlan], reasons: Sequence[str | None]) -> tuple[list[int], BadPlans]:
    """Places of the good clips, and the bad clips. `reasons`: for each plan why its clip is bad, or None."""
    good = [place for place, reason in enumerate(reasons) if reason is None]
    bad = tuple((plan, reason) for plan, reason in zip(plans, reasons, strict=True) if reason is not None)
    return good, bad
