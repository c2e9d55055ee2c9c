"""What is summed up between two lines of the log of training."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass
class Meter:
    """Sums between two lines of the log."""

    since: float = field(default_factory=lambda: time.perf_counter())  # on that clock, seconds
    logs: list[dict[str, torch.Tensor]] = field(default_factory=list)
    clips: int = 0
    skipped: int = 0  # updates, for a loss or a gradient that was not finite
    overflows: int = 0  # updates that fp16's loss scaler left out, see `Outcome.OVERFLOW`
    wait: float = 0.0  # for batches, seconds

    def add(self, logs: dict[str, torch.Tensor], clips: int) -> None:
        """Take what a pass logs of so many clips."""
        self.logs.append(logs)  # left on the device: looking at a number would make the host wait for it
        self.clips += clips

    def means(self) -> dict[str, float]:
        """Mean of each number that is finite, the same keys on every rank; NaN where no batch has one."""
        stacked = {name: torch.stack([log[name] for log in self.logs]).double() for name in self.logs[0]}
        return {name: float(v.where(v.isfinite(), math.nan).nanmean()) for name, v in stacked.items()}

    def state(self) -> dict[str, Any]:
        """The sums as numbers, with `seconds` so far: a resumed run logs the same means as one without a break."""
        logs = [{name: float(value) for name, value in log.items()} for log in self.logs]
        seconds = time.perf_counter() - self.since
        counted = {"clips": self.clips, "skipped": self.skipped, "overflows": self.overflows, "wait": self.wait}
        return {"logs": logs, "seconds": seconds, **counted}

    @classmethod
    def resumed(cls, state: dict[str, Any], *, device: torch.device) -> Meter:
        """The meter whose `state` this was; an empty one for {}."""
        if not state:
            return cls()
        logs = [
            {name: torch.tensor(value, dtype=torch.float64, device=device) for name, value in log.items()}
            for log in state["logs"]
        ]
        since = time.perf_counter() - state["seconds"]
        # Checkpoints of older versions have no overflows.
        counted = {name: state.get(name, 0) for name in ("clips", "skipped", "overflows", "wait")}
        return cls(since=since, logs=logs, **counted)


def clock(seconds: float) -> str:
    """A duration as h:mm:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
