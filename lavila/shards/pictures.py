"""The codec and the picture sizes of a shard set, and which chips decode them. No chip is asked here."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import pyarrow.compute as pc

from lavila.shards.reader import ShardSet

# The least width and height that NVDEC takes, as NVIDIA's table of its Video Codec SDK and reports of other projects
# have it for Turing to Hopper. A chip's driver knows its own: see `lavila.data.nvdec.chip`.
LEAST_SIZES = {"vp9": (128, 128), "hevc": (144, 144), "h264": (48, 16), "av1": (128, 128)}
WITHOUT_AV1 = "A100 and H100 have no AV1 decoder, and DALI cannot count the frames of AV1 on any GPU"


@dataclass(frozen=True, kw_only=True)
class StoredPictures:
    """The codec, and the range of picture sizes in pixels."""

    codec: str  # vp9, h264, hevc or av1
    least_width: int
    least_height: int
    most_width: int
    most_height: int

    @classmethod
    def of(cls, shard_set: ShardSet) -> StoredPictures:
        """Those of a set. Reads two columns of its table."""
        height, width = (pc.min_max(shard_set.clips.column(name)).as_py() for name in ("height", "width"))
        return cls(
            codec=shard_set.codec,
            least_width=width["min"] or 0,
            least_height=height["min"] or 0,
            most_width=width["max"] or 0,
            most_height=height["max"] or 0,
        )

    @classmethod
    def of_sizes(cls, codec: str, sizes: Iterable[tuple[int, int]]) -> StoredPictures:
        """Those of some pictures, each (width, height). There is at least one."""
        widths, heights = zip(*sizes, strict=True)
        return cls(
            codec=codec,
            least_width=min(widths),
            least_height=min(heights),
            most_width=max(widths),
            most_height=max(heights),
        )


def not_on_common_chips(pictures: StoredPictures) -> str | None:
    """Why NVDEC of common GPUs cannot decode such a set, in one line with a cure; None if it can."""
    if pictures.codec == "av1":
        return f"{WITHOUT_AV1}: GPU machines will decode on their CPUs; --codec hevc or h264 decode on both"
    width, height = LEAST_SIZES[pictures.codec]
    if pictures.least_width >= width and pictures.least_height >= height:
        return None
    return (
        f"NVDEC decodes {pictures.codec} from {width}x{height} pixels on, and the smallest pictures here are "
        f"{pictures.least_width}x{pictures.least_height}: GPU machines will decode on their CPUs; use --codec h264, or "
        f"a --short-side of at least {max(width, height)}"
    )
