"""The part of a picture that a model sees: a random window in training, one or three squares in evaluation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from lavila.records import Frames

CropsName = Literal["center", "three", "center_repeated"]


@dataclass(frozen=True, kw_only=True)
class CropChoice:
    """One random window for all frames of a training clip."""

    size: int  # side of the resulting square, pixels
    scale: tuple[float, float] = (0.5, 1.0)  # share of the picture's area
    ratio: tuple[float, float] = (3 / 4, 4 / 3)  # width / height
    flip: float = 0.5  # chance that the pictures are mirrored


@dataclass(frozen=True, kw_only=True)
class ViewChoice:
    """The views of an evaluation: `clips` temporal clips, each with the pictures that `crops` names."""

    size: int  # side of the square crops, pixels; the picture's short side is resized to it
    clips: int = 1  # K
    crops: CropsName = "three"

    @property
    def grid(self) -> tuple[int, int]:
        """K temporal clips, S spatial crops that are computed."""
        return self.clips, 3 if self.crops == "three" else 1

    @property
    def computed(self) -> int:
        """Views of a clip that a model is asked about."""
        return self.grid[0] * self.grid[1]


def draw_window(height: int, width: int, choice: CropChoice, random: np.random.Generator) -> tuple[int, int, int, int]:
    """Top, left, height, width in pixels of a random-resized-crop window. After ten misses it is a centred one."""
    area = height * width
    for _ in range(10):
        share = random.uniform(*choice.scale)
        ratio = math.exp(random.uniform(math.log(choice.ratio[0]), math.log(choice.ratio[1])))
        wide, high = round(math.sqrt(area * share * ratio)), round(math.sqrt(area * share / ratio))
        if 0 < wide <= width and 0 < high <= height:
            top = int(random.integers(0, height - high, endpoint=True))
            return top, int(random.integers(0, width - wide, endpoint=True)), high, wide
    wide, high = width, height
    if width / height < choice.ratio[0]:
        high = min(height, round(width / choice.ratio[0]))
    elif width / height > choice.ratio[1]:
        wide = min(width, round(height * choice.ratio[1]))
    return (height - high) // 2, (width - wide) // 2, high, wide


def resized_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """Height and width after resizing the short side to `short_side`; the long side is rounded down, as published."""
    short, long = min(height, width), max(height, width)
    other = short_side * long // short
    return (short_side, other) if height <= width else (other, short_side)


def crop_offsets(height: int, width: int, size: int, crops: CropsName) -> Frames:
    """[S, 2] top and left, in pixels, of the square crops of a resized picture.

    "three": left, centre and right of a wide picture, top, centre and bottom of a tall one.
    "center": one square, rounded as torchvision's CenterCrop does.
    "center_repeated": the published fine-tuning protocol, whose three crops are the same square. One is enough, since
    neither the mean nor the maximum over equal views differs from one of them.
    """
    spare_h, spare_w = height - size, width - size
    if crops != "three":
        return np.array([[round(spare_h / 2), round(spare_w / 2)]], np.int32)  # halves to even
    middle_h, middle_w = math.ceil(spare_h / 2), math.ceil(spare_w / 2)
    if height > width:
        return np.array([[0, middle_w], [middle_h, middle_w], [spare_h, middle_w]], np.int32)
    return np.array([[middle_h, 0], [middle_h, middle_w], [middle_h, spare_w]], np.int32)
