"""The rows of the loader benchmark: what is loaded, from which shard set, and what has to be reached."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Literal

import numpy as np

from benchmarks.loader.footage import CLIPS_PER_TAR, Material, SetSpec
from benchmarks.loader.peers.common import Job
from lavila.data.loader import Pictures, clip_sizes
from lavila.data.sizes import ChosenSizes
from lavila.plan.crops import CropChoice, ViewChoice
from lavila.plan.frames import FrameChoice
from lavila.plan.plans import Plan, Ranks, Sizes, TrainingPlan, ViewPlan
from lavila.shards.format import shard_name
from lavila.shards.reader import ShardSet

What = Literal["train", "multi", "sparse"]
PICTURES = Pictures(mean=(108.3272985, 116.7460125, 104.09373615), std=(68.5005327, 66.6321579, 70.32316305))
TARS = {"train": 8, "multi": 2, "sparse": 2}  # tars that an epoch reads, with CLIPS_PER_TAR clips each
BATCH = {"train": 4, "multi": 2, "sparse": 4}
# what -> side -> least and hoped-for ratio of our clips/s to the side's
GOALS = {
    "train": {"decord": (3.0, 6.0), "torchcodec": (1.3, 2.0), "pyav": (1.3, 2.0)},
    "multi": {"decord": (5.0, 15.0)},
    "sparse": {"decord": (3.0, 10.0)},
}
OVERHEAD_GOAL = (0.15, 0.05)  # largest share of the loop that is not decoding, resizing, normalising


@dataclass(frozen=True, kw_only=True)
class Row:
    """One thing to load."""

    what: What  # random-resized crops; 10 clips x 3 crops at stride 2; one centre view of segments
    codec: str
    size: int = 224  # pixels
    frames: int = 16
    seconds: int = 3  # length of a clip
    kind: str = "normal"  # kind of the shard set, see SetSpec
    workers: int = 2

    @property
    def name(self) -> str:
        """The name in --only and in the tables; docs/PERFORMANCE.md explains its parts."""
        kind = "" if self.kind == "normal" else f" {self.kind}"
        return f"{self.what} {self.codec} {self.size}px {self.frames}f {self.seconds}s{kind} w{self.workers}"

    @property
    def spec(self) -> SetSpec:
        """The shard set that the row reads."""
        return SetSpec(seconds=self.seconds, codec=self.codec, kind=self.kind)

    def goal(self, side: str) -> tuple[float, float] | None:
        """The required and the hoped-for ratio to `side`, or None for a row without goals."""
        exact = self.workers == 2 and self.frames == 16 and self.seconds == (30 if self.what == "sparse" else 3)
        return GOALS[self.what].get(side) if exact else None


def core_rows(workers: int) -> list[Row]:
    """The rows that have goals, and their variants."""
    codecs, kinds = ("vp9", "h264"), ("normal", "gop", "frames-for")
    rows = [Row(what="train", codec=c, size=size, workers=workers) for size in (224, 336) for c in codecs]
    rows += [Row(what="multi", codec=c, workers=workers) for c in codecs]
    return rows + [Row(what="sparse", codec=c, seconds=30, kind=k, workers=workers) for c in codecs for k in kinds]


def full_rows() -> list[Row]:
    """The whole grid."""
    rows = core_rows(2)
    for workers, codec, size in itertools.product((1, 2), ("vp9", "h264"), (224, 336)):
        same = {"codec": codec, "size": size, "workers": workers}
        for frames in (4, 16):
            rows += [Row(what="train", frames=frames, seconds=s, **same) for s in (2, 3, 8, 30)]  # type: ignore[arg-type]
            rows += [Row(what="multi", frames=frames, seconds=s, **same) for s in (2, 3, 8, 30)]  # type: ignore[arg-type]
        rows += [Row(what="sparse", seconds=30, kind=k, **same) for k in ("normal", "gop", "frames-for")]  # type: ignore[arg-type]
    return list(dict.fromkeys(rows))


def job_of(row: Row, material: Material) -> Job:
    """The job of every side of a row. Makes missing footage."""
    shards = material.shard_set(row.spec)
    count = min(TARS[row.what], len(shards.shards))
    sizes = _clips_in(shards, count)
    batch_size = BATCH[row.what]
    frames = FrameChoice(frames=row.frames, sampling="strided" if row.what == "multi" else "segments", stride=2)
    crop, views = None, None
    if row.what == "train":
        crop = CropChoice(size=row.size, flip=0.0)
        plan: Plan = TrainingPlan(sizes, frames=frames, crop=crop, batch_size=batch_size, seed=0, ranks=Ranks())
    else:
        several = row.what == "multi"
        views = ViewChoice(size=row.size, clips=10 if several else 1, crops="three" if several else "center")
        plan = ViewPlan(sizes, frames=frames, views=views, batch_size=batch_size, ranks=Ranks())
    return Job(
        shards=shards,
        plan=plan,
        frames=frames,
        crop=crop,
        views=views,
        batch_size=batch_size,
        workers=row.workers,
        pictures=PICTURES,
        chunks=material.chunks,
        tars=tuple(shards.path / shard_name(number) for number in range(count)),
    )


def _clips_in(shards: ShardSet, tars: int) -> Sizes:
    """Sizes of the clips that lie in the first tars."""
    sizes = clip_sizes(shards)
    shard = np.asarray(shards.clips.column("shard").to_numpy())
    inside = np.array([index for index in range(len(sizes)) if shard[sizes.row(index)] < tars], np.int64)
    assert len(inside) == tars * CLIPS_PER_TAR, (len(inside), tars)
    return ChosenSizes(of=sizes, indices=inside)
