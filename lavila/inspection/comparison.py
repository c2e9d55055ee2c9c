"""A second pass over a verified shard set: does NVDEC make the same pictures as the CPU?

A difference is no fault of the set, so no clip is put into quarantine. It means that this GPU, its driver or DALI
decodes these clips wrongly, and that runs here need data.decoder=host.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from lavila.data.host.decode import DecodeError
from lavila.data.nvdec.chip import chip_of, nvdec_problem
from lavila.data.pictures import DecoderName
from lavila.errors import UserError
from lavila.inspection.facts import SHOWN
from lavila.inspection.videos import readable_frames
from lavila.shards.format import DamagedClip
from lavila.shards.pictures import StoredPictures
from lavila.shards.reader import ShardSet

MOST_FRAMES = 64  # frames of a clip that are compared: evenly spread, with the first and the last


class NoNvdecError(UserError):
    """NVDEC cannot decode the set here."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Differing:
    """A clip whose pictures differ by more than the tolerance."""

    clip_id: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The result of a comparison."""

    decoder: DecoderName
    clips: int  # number of clips that were compared
    mean: float  # the largest mean difference of a clip within the tolerance, levels of 0..255
    most: float  # the largest difference of a value in such a clip
    differing: tuple[Differing, ...]

    def as_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)

    @property
    def text(self) -> str:
        """The result as lines, with at most SHOWN clips."""
        sound = f"{self.decoder} against the CPU: {self.clips - len(self.differing)} of {self.clips} clips have the "
        sound += f"same pictures (mean difference up to {self.mean:.2f}, largest {self.most:.0f} levels)"
        lines = [f"differs: {one.clip_id}: {one.reason}" for one in self.differing[:SHOWN]]
        lines += [f"differs: and {len(self.differing) - SHOWN:,} more"] if len(self.differing) > SHOWN else []
        advice = ["train here with data.decoder=host, and report this"] if self.differing else []
        return "\n".join([*lines, sound, *advice])


def check_nvdec(shard_set: ShardSet) -> None:
    """Raise NoNvdecError if NVDEC cannot decode the set here."""
    problem = nvdec_problem(chip_of(0), StoredPictures.of(shard_set))
    if problem:
        raise NoNvdecError(f"{shard_set.path}: cannot be decoded with NVDEC here: {problem}; leave --nvdec out")


def compare(
    shard_set: ShardSet, decoder: DecoderName, *, clips: int, on_clip: Callable[[int], object] = lambda count: None
) -> Comparison:
    """Decode `clips` usable clips, spread over the set, with `decoder` and on the CPU. `on_clip(1)` follows each."""
    from lavila.data.dali_pipelines.check import PictureCheck  # imported here, since the modules need DALI
    from lavila.data.dali_pipelines.probe import picture_tolerance

    check = PictureCheck(decoder, device_id=0 if decoder == "nvdec" else None)
    rows, allowed = shard_set.usable_rows(), picture_tolerance(decoder, "host")
    chosen = rows[np.unique(np.linspace(0, len(rows) - 1, min(clips, len(rows))).round().astype(int))]
    means, mosts, differing = [0.0], [0.0], []
    for row in chosen.tolist():
        facts = shard_set.clips.slice(row, 1).to_pylist()[0]
        frames = readable_frames(facts, shard_set.manifest)
        frames = frames[np.unique(np.linspace(0, len(frames) - 1, min(MOST_FRAMES, len(frames))).round().astype(int))]
        try:
            difference = check.difference(*shard_set.read_frames(row, frames))
            reason = (
                "" if difference.within(allowed) else f"mean {difference.mean:.1f}, most {difference.most:.0f} levels"
            )
        except (DecodeError, DamagedClip) as error:
            reason = str(error)
        if reason:
            differing.append(Differing(clip_id=facts["clip_id"], reason=reason))
        else:
            means.append(difference.mean)
            mosts.append(difference.most)
        on_clip(1)
    return Comparison(decoder=decoder, clips=len(chosen), mean=max(means), most=max(mosts), differing=tuple(differing))
