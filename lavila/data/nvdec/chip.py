"""What the GPU at hand decodes: asked once for each GPU and process, and compared with the videos of a shard set."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Mapping
from dataclasses import dataclass, field

from lavila.data.nvdec.driver import CodecCaps, DriverError, Load, decode_caps, device_of
from lavila.shards.pictures import StoredPictures

load_library: Load = ctypes.CDLL
"""Loads a library of the driver. Tests put another one in its place."""

HIDDEN_FRAMES = (
    "AV1 streams hold hidden frames, which DALI counts as shown on a GPU, so that all frames after them would be others"
)


@dataclass(frozen=True, kw_only=True)
class Chip:
    """A GPU's video decoders."""

    name: str = ""
    uuid: str = ""  # see `driver.Device`
    codecs: Mapping[str, CodecCaps] = field(default_factory=dict)  # codec -> how it is decoded
    problem: str = ""  # why NVDEC cannot be used at all, in one line

    def engines(self, codec: str) -> int:
        """The number of engines that decode a codec; at least 1, since some drivers do not say."""
        caps = self.codecs.get(codec)
        return max(caps.engines, 1) if caps else 1


@functools.cache
def chip_of(device_id: int) -> Chip:
    """GPU number `device_id`. A driver that cannot be asked is a `problem` of the chip, and no error."""
    load: Load = lambda name: load_library(name)  # noqa: E731 (looked up at each call, for tests)
    try:
        device = device_of(load, device=device_id)
        return Chip(name=device.name, uuid=device.uuid, codecs=decode_caps(load, device=device_id))
    except OSError as error:
        return Chip(problem=f"the driver's library for video cannot be loaded ({error})")
    except (DriverError, AttributeError) as error:  # AttributeError: a driver without one of the calls
        return Chip(problem=f"the driver cannot be asked what it decodes ({error})")


def nvdec_problem(chip: Chip, videos: StoredPictures) -> str | None:
    """Why NVDEC through DALI cannot decode a shard set on this chip, in one line; None if it can."""
    if videos.codec == "av1":
        return HIDDEN_FRAMES
    if chip.problem:
        return chip.problem
    caps = chip.codecs.get(videos.codec)
    if caps is None or not caps.supported:
        return f"{chip.name} has no decoder for {videos.codec}"
    if videos.least_width < caps.min_width or videos.least_height < caps.min_height:
        return (
            f"{chip.name} decodes {videos.codec} from {caps.min_width}x{caps.min_height} pixels on, and the shards "
            f"hold pictures down to {videos.least_width}x{videos.least_height}"
        )
    if videos.most_width > caps.max_width or videos.most_height > caps.max_height:
        return (
            f"{chip.name} decodes {videos.codec} up to {caps.max_width}x{caps.max_height} pixels, and the shards "
            f"hold pictures up to {videos.most_width}x{videos.most_height}"
        )
    return None
