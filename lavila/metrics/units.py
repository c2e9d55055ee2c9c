"""A number that is reported carries its unit, so that a CIDEr of 0.833 prints as 0.833 and a top-1 as 91.7 %."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Unit(Enum):
    """How a number is meant, and so how it is written."""

    percent = "percent"  # 0..100
    fraction = "fraction"  # a score on a scale of about 0..1, such as CIDEr or nDCG
    count = "count"  # a number of things
    number = "number"  # anything else, such as a perplexity


@dataclass(frozen=True)
class Metric:
    """A number with its unit. `str` gives what people read."""

    value: float
    unit: Unit
    lower_is_better: bool = False  # as a perplexity's

    def __str__(self) -> str:
        if self.unit is Unit.percent:
            return f"{self.value:.1f} %"
        if self.unit is Unit.fraction:
            return f"{self.value:.3f}"
        return f"{self.value:.0f}" if self.unit is Unit.count else f"{self.value:.4g}"


Metrics = dict[str, Metric]
