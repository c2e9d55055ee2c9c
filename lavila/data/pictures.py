"""What every decoder is given. Imports without DALI."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from lavila.errors import UserError

DALI_CPU_CODECS = ("vp9", "vp8", "mjpeg")

DecoderName = Literal["nvdec", "dali_cpu", "host"]


@dataclass(frozen=True, kw_only=True)
class PictureSpec:
    """The settings that every clip of a pipeline shares."""

    frames: int  # T
    size: int  # side of the square pictures, pixels
    view_grid: tuple[int, int]  # K temporal clips, S spatial crops
    cuts_window: bool  # True: a window is cut before the resize (training); False: crops after it (evaluation)
    pads_black: bool  # whether short clips are padded with black frames
    mean: tuple[float, float, float]  # R, G, B on 0..255
    std: tuple[float, float, float]  # R, G, B on 0..255
    antialias: bool = False  # low-pass before shrinking
    half: bool = False  # float16 pictures


@dataclass(frozen=True, kw_only=True)
class Execution:
    """The device and resources of a pipeline."""

    decoder: DecoderName
    device_id: int | None  # None: everything on the CPU
    batch_size: int  # clips of the largest batch
    threads: int  # number of CPU threads
    prefetch: int  # number of batches in flight

    @property
    def draws_on_host(self) -> bool:
        """Whether CPU threads draw the pictures, without DALI. On a GPU machine they are copied to the GPU then."""
        return self.decoder == "host"


@dataclass(frozen=True, kw_only=True, slots=True)
class Payload:
    """A planned clip, as it was read."""

    data: npt.NDArray[np.uint8]  # [bytes] of an encoded video, or its decoded frames [U, H, W, 3]
    frames: npt.NDArray[np.int32]  # [U] the plan's distinct frames, as ascending numbers in that video


class LoaderError(UserError):
    """Data or settings with which a loader cannot work."""
