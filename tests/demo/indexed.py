"""Videos whose frames show their numbers, and an encoder that reads them: the index of such a video is known."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from lavila.demo.footage import Look
from tests.footage import Coding, read_number, write_numbered_video

SLOW = Coding(fps=Fraction(10), gop=10)
DIMENSIONS = 4
STEP = 0.02  # radians from a number to the next


def vector_of(number: float) -> npt.NDArray[np.float32]:
    """Of unit length; neighbouring numbers are alike."""
    return np.array([np.cos(number * STEP), np.sin(number * STEP), 0, 0], np.float32)


class NumberEncoder:
    """In the place of an `OpenEncoder`. The sentence "40" is what fits pictures around the number 40."""

    name, dimensions = "numbers", DIMENSIONS
    look = Look(frames=4, size=112, mean=(0.0, 0.0, 0.0), std=(255.0, 255.0, 255.0))

    def __init__(self, *, stop_after: int = 10**9, sha256: str = "a") -> None:
        self.facts: dict[str, Any] = {"sha256": sha256, "dimensions": DIMENSIONS}
        self.embedded = 0  # windows
        self._stop_after = stop_after  # windows, after which it is interrupted

    def embed(self, video_BCTYX: Tensor) -> npt.NDArray[np.float16]:
        if self.embedded >= self._stop_after:
            raise KeyboardInterrupt
        self.embedded += len(video_BCTYX)
        found = [vector_of(np.mean([_number(picture) for picture in one])) for one in video_BCTYX.transpose(1, 2)]
        return np.stack(found).astype(np.float16)

    def text(self, sentence: str) -> npt.NDArray[np.float32]:
        return vector_of(float(sentence))


def _number(picture_CYX: Tensor) -> int:
    """As it was before the middle square was cut out."""
    levels = (picture_CYX.permute(1, 2, 0).numpy() * 255).clip(0, 255).astype(np.uint8)
    edge = len(levels) // 6
    return read_number(np.pad(levels, ((0, 0), (edge, edge), (0, 0)), mode="edge"))


def write_numbered(path: Path, seconds: int) -> Path:
    """Ten frames a second, from number 0 on."""
    return write_numbered_video(path, 10 * seconds, SLOW)
