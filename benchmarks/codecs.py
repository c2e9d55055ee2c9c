"""What each codec costs in each use, from the results of `benchmarks.encoding` and `benchmarks.streams`.

NVDEC's part is reckoning: pictures to decode, divided by how fast the chip decodes a codec's pictures. `benchmarks.gpu`
measures it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.encoding import markdown

CODECS = ("vp9", "h264", "hevc", "av1")
USES = {"16 of 3 s": "training", "16 of 30 s": "16 of 30 s", "10 x 3 views of 3 s": "10 x 3 views"}
EQUAL_TO = "h264 crf 23"  # its SSIM is the one at which bytes are compared
# Pictures a second, H.264 = 1. HEVC on Hopper by a published measurement: 1,795 against 1,002 pictures of 1600x900.
# That VP9 is as fast as H.264 is an assumption.
NVDEC_RATE = {"vp9": 1.0, "h264": 1.0, "hevc": 1795 / 1002}


def bytes_at(rows: Sequence[dict[str, Any]], codec: str, ssim: float) -> float:
    """Bytes of a second at an SSIM: between the rows `<codec> crf N`, along the logarithm of the bytes."""
    points = sorted(
        (row["ssim"], math.log(row["bytes_per_second"])) for row in rows if plain_name(row).startswith(f"{codec} crf")
    )
    values, logs = zip(*points, strict=True)
    return math.exp(float(np.interp(ssim, values, logs)))


def plain_name(row: dict[str, Any]) -> str:
    """A row's name without the marks of a default."""
    return str(row["name"]).replace("*", "").removesuffix(" (default)")


def nvdec_time(codec: str, pictures: float, unit: float) -> str:
    """The time of NVDEC's engines for a clip, in units of `unit` pictures of H.264."""
    return f"{pictures / NVDEC_RATE[codec] / unit:.2f}" if codec in NVDEC_RATE else "-"


def table(encoding: dict[str, Any], streams: dict[str, Any]) -> str:
    """The table of docs/SHARDS.md."""
    rows = {plain_name(row): row for row in encoding["rows"]}
    default = {row["codec"]: row for row in encoding["rows"] if row["name"].startswith("**")}
    given = {(row["codec"], row["use"]): row["reduced"]["pictures"] for row in streams["rows"]}
    ssim, unit = rows[EQUAL_TO]["ssim"], given["h264", "16 of 3 s"]
    h264 = bytes_at(encoding["rows"], "h264", ssim)
    header = [f"codec, SSIM {ssim:.3f}", "bytes", "CPU, 16 of 5 s", "CPU, all frames of 1 s"]
    header += [f"NVDEC, {name}" for name in USES.values()]
    lines = []
    for codec in CODECS:
        cost = [f"{bytes_at(encoding['rows'], codec, ssim) / h264:.2f}"]
        cost += [f"{default[codec][name]:.0f} ms" for name in ("decode_sixteen_ms", "decode_ms_per_second")]
        cost += [nvdec_time(codec, given[codec, use], unit) for use in USES]
        lines.append([codec, *cost])
    return markdown(header, lines)
