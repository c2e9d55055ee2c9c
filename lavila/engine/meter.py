"""What is summed up between two lines of the log of training."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch


@dataclass
class Meter:
    """Sums between two lines of the log."""

    since: float  # on the clock of time.perf_counter, seconds
    logs: list[dict[str, torch.Tensor]] = field(default_factory=list)
    clips: int = 0
    skipped: int = 0  # updates, for a loss that was not finite
    wait: float = 0.0  # for batches, seconds

    def add(self, logs: dict[str, torch.Tensor], clips: int) -> None:
        """Take what a pass logs of so many clips."""
        self.logs.append(logs)  # left on the device: looking at a number would make the host wait for it
        self.clips += clips

    def means(self) -> dict[str, float]:
        """Mean of each number that is finite, the same keys on every rank; NaN where no batch has one."""
        stacked = {name: torch.stack([log[name] for log in self.logs]).double() for name in self.logs[0]}
        return {name: float(v.where(v.isfinite(), math.nan).nanmean()) for name, v in stacked.items()}


def clock(seconds: float) -> str:
    """A duration as h:mm:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
