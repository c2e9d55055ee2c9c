"""What is unusual in a picture beyond its colours and orientation: HDR, Dolby Vision, and spherical projections."""

from __future__ import annotations

import struct
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

from lavila.ingest.hdr import HDR_TRANSFERS
from lavila.ingest.video_files import EncodeError
from lavila.libav import side_data

SPHERICAL, DOLBY = "SPHERICAL", "DOVI_METADATA"  # PyAV's names of FFmpeg's side data
PROJECTIONS = {0: "equirectangular", 1: "cubemap", 2: "equirectangular tile", 3: "half equirectangular", 5: "fisheye"}
# The kinds of sample entries whose base layer no ordinary decoder shows rightly: profiles 5 and 10.0 have them.
DOLBY_TAGS = ("dvhe", "dvh1", "dvav", "dva1", "dav1")
# AVDOVIMetadata of FFmpeg begins with the place of AVDOVIRpuDataHeader, as a size_t. In that, vdr_rpu_profile and
# bl_video_full_range_flag are bytes at these places.
DOLBY_PROFILE, DOLBY_FULL_RANGE = 4, 10


@dataclass(frozen=True, kw_only=True)
class PictureHeader:
    """The form of the pictures as the container states it. Frames may state another."""

    pixel_aspect: Fraction | None  # width / height of a pixel
    colorspace: int  # number of the colour matrix (AVCOL_SPC of FFmpeg)
    color_range: int  # number of the range (AVCOL_RANGE of FFmpeg)
    transfer: int  # number of the transfer characteristics (AVCOL_TRC)
    primaries: int  # number of the primaries (AVCOL_PRI)
    codec_tag: str  # kind of its sample entry in an mp4


@dataclass(frozen=True, kw_only=True)
class PictureKind:
    """What a user should know of the pictures of a video; None where they are ordinary."""

    hdr: str | None = None  # PQ or HLG
    projection: str | None = None  # of spherical video

    def row(self) -> dict[str, str]:
        """What is not ordinary, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def kind_of(frame: Any, *, transfer: int, codec_tag: str) -> PictureKind:
    """The kind of a decoded frame. Raises EncodeError for colours that cannot be brought into ordinary ones.

    transfer: the number of its transfer characteristics; codec_tag: the kind of its sample entry in an mp4.
    """
    found = side_data(frame)
    present = len(found) > 0
    dolby = bytes(found[DOLBY]) if present and DOLBY in found else None
    if codec_tag in DOLBY_TAGS if dolby is None else _has_own_colours(dolby):
        raise EncodeError(
            "Dolby Vision of profile 5, whose colours (IPTPQc2) only Dolby's own processing shows; give another "
            "version of the video, such as one in HDR10, HLG or SDR"
        )
    projection = None
    if present and SPHERICAL in found:
        (number,) = struct.unpack_from("i", bytes(found[SPHERICAL]))
        projection = PROJECTIONS.get(number)
    return PictureKind(hdr=HDR_TRANSFERS.get(transfer), projection=projection)


def _has_own_colours(metadata: bytes) -> bool:
    """Whether the base layer is IPTPQc2. FFmpeg recognises profile 5 the same way: by RPU profile and range."""
    header: int = struct.unpack_from("N", metadata)[0]
    return metadata[header + DOLBY_PROFILE] == 0 and metadata[header + DOLBY_FULL_RANGE] == 1
