"""A batch on its way from plans to pictures, and what becomes of the place of a clip that cannot be read or decoded.

Three steps can find a bad clip:

* reading, where the bytes are not there, or not those that were stored (`reading.ClipReader`),
* FFmpeg, where it cannot decode them (`host.decode.DecodeError`),
* DALI, where its decoder cannot (`dali_pipelines.errors.decode_problem`).

The plan names the clip that is tried in its place, and the next one if that is bad, too. `bad` lists all of them with
their reasons. In training, a batch so keeps its size. Where the plan names none, as in an evaluation, the place is
removed: the clips after it move up. A batch without a good clip is handed out without pictures, so that the number of
steps stays the same. Every other error ends the run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy.typing as npt

from lavila.data.host.decode import DecodeError
from lavila.data.pictures import Payload
from lavila.records import ClipPlan

T = TypeVar("T")
BadPlans = tuple[tuple[ClipPlan, str], ...]
"""Plans of bad clips, each with its reason in one line."""
Instead = Callable[[ClipPlan], ClipPlan | None]
"""Plan of a bad clip -> the plan that is tried in its place; None = the place stays empty. Any thread may call it."""


def nothing_instead(bad: ClipPlan) -> ClipPlan | None:
    """The places of bad clips stay empty."""
    del bad
    return None


@dataclass(frozen=True, kw_only=True)
class Place(Generic[T]):
    """A place of a batch: its clip and what was made of it. Both are None where no clip was good."""

    plan: ClipPlan | None
    made: T | None
    bad: BadPlans = ()  # the clips that were tried before, in their order


def left_empty(bad: ClipPlan, reason: str) -> Place[Any]:
    """The place of a bad clip that no other clip takes."""
    return Place(plan=None, made=None, bad=((bad, reason),))


def fill(plan: ClipPlan | None, make: Callable[[ClipPlan], T], instead: Instead, *, bad: BadPlans = ()) -> Place[T]:
    """What `make` gives for a clip, or for the first of its substitutes for which it raises no DecodeError."""
    while plan is not None:
        try:
            return Place(plan=plan, made=make(plan), bad=bad)
        except DecodeError as error:
            bad = (*bad, (plan, str(error)))
            plan = instead(plan)
    return Place(plan=None, made=None, bad=bad)


@dataclass(frozen=True, kw_only=True)
class LoadedBatch:
    """The good clips of a step with their bytes (or decoded frames), and the bad ones."""

    plans: tuple[ClipPlan, ...]
    payloads: tuple[Payload, ...]
    bad: BadPlans = ()

    @classmethod
    def of(cls, places: Sequence[Place[Payload]], *, bad: BadPlans = ()) -> LoadedBatch:
        """The step of some places, in order. `bad`: clips that were found to be bad before."""
        return cls(
            plans=tuple(place.plan for place in places if place.plan is not None),
            payloads=tuple(place.made for place in places if place.made is not None),
            bad=(*bad, *(one for place in places for one in place.bad)),
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
    def of(cls, places: Sequence[Place[Any]], pictures: npt.NDArray[Any]) -> PictureBatch:
        """`pictures`: [B, K, S, T, 3, size, size], one for each place. Those of empty places are removed.

        Without an empty place the pictures are not copied.
        """
        good = [number for number, place in enumerate(places) if place.plan is not None]
        assert len(places) == len(pictures), (len(places), len(pictures))
        bad = tuple(one for place in places for one in place.bad)
        if not good:
            return cls(plans=(), pictures=None, bad=bad)
        left = pictures if len(good) == len(places) else pictures[good]
        return cls(plans=tuple(place.plan for place in places if place.plan is not None), pictures=left, bad=bad)
