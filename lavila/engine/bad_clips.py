"""Bad clips of a training: all ranks learn of them at the same update, list them in the run folder, and stop together.

Other clips take their places (`lavila.data.batches`), so a run survives some. It ends where an epoch has more of them
than `data.max_bad_clips`, or where no clip that was tried for a place is good: then the set is broken.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from lavila.data.loader import BadClip, ClipLoader
from lavila.engine.checkpoint import Progress
from lavila.engine.distributed import Process, gather_to_all
from lavila.errors import UserError
from lavila.report.files import MetricsLog

log = logging.getLogger(__name__)

FILE = "bad_clips.jsonl"  # in a run folder
NAMED_SHARDS = 3  # shards that a summary names


class BadClipsError(UserError):
    """More bad clips than a training may meet."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """A bad clip of some rank."""

    rank: int
    clip: BadClip


class BadClips:
    """The bad clips of the current epoch over all ranks. `most`: how many there may be in one epoch."""

    def __init__(self, loader: ClipLoader, *, process: Process, progress: Progress, most: int) -> None:
        self._loader, self._process, self._progress, self._most = loader, process, progress, most
        self._shared = 0  # clips of the loader that all ranks know of
        self._shards: Counter[str] = Counter()  # shard -> its bad clips of this epoch, since this process started
        self._path: Path | None = None  # of the list, on the main rank

    def open(self, run_dir: Path) -> None:
        """On the main rank: list them in the run folder from now on. Lines of updates that come again are dropped."""
        self._path = run_dir / FILE
        if self._path.exists():
            with MetricsLog(self._path) as lines:
                lines.truncate_after(self._progress.updates)

    @property
    def unshared(self) -> bool:
        """Whether other ranks do not yet know of a bad clip of this one."""
        return len(self._loader.bad_clips) > self._shared

    def share(self, *, update: int) -> None:
        """Report to all ranks the bad clips of an update; every rank calls this. BadClipsError on all, or on none."""
        own = self._loader.bad_clips[self._shared :]
        self._shared += len(own)
        mine = [Found(rank=self._process.rank, clip=clip) for clip in own]
        found = [one for rank in gather_to_all(mine) for one in rank]
        self._progress.bad_clips += len(found)
        self._shards.update(one.clip.shard for one in found)
        if self._path is not None:
            with MetricsLog(self._path) as lines:
                for one in found:
                    lines.log(step=update, epoch=self._progress.epoch + 1, rank=one.rank, **asdict(one.clip))
        self._check(found)

    def next_epoch(self) -> None:
        """Every epoch counts anew."""
        self._shared = self._progress.bad_clips = 0
        self._shards.clear()

    def _check(self, found: Sequence[Found]) -> None:
        tried = self._loader.plan.substitutes
        assert tried is not None, "an evaluation counts by itself"
        last = next((one.clip for one in reversed(found) if one.clip.attempt == tried), None)
        count, path = self._progress.bad_clips, self._loader.shard_set.path
        if last is not None:
            what = f"{tried + 1} clips in a row are bad, so the set or its storage is broken"
        elif count > self._most:
            last = found[-1].clip
            what = f"{count} clips of this epoch are bad, and data.max_bad_clips={self._most} allows no more"
        else:
            return
        raise BadClipsError(
            f"{path}: {what}: {self._summary()}, the last being {last.clip_id} ({last.reason}). {ADVICE}"
        )

    def _summary(self) -> str:
        worst = self._shards.most_common(NAMED_SHARDS)
        others = self._shards.total() - sum(count for _, count in worst)
        return ", ".join(f"{count} in {shard}" for shard, count in worst) + (f", {others} elsewhere" if others else "")


ADVICE = (
    f"{FILE} in the run folder lists them; tools/inspect_shards.py --verify --quarantine finds all bad clips of the "
    "set, and data.quarantine leaves them out"
)
