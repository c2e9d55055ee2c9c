#!/usr/bin/env bash
# FFmpeg's filter haldclut exchanges the channels of planar RGB.
#
# Versions: PyAV 18.1.0 (its wheel holds FFmpeg 8.1).
# A good guess: haldclut looks every colour up in a table, and takes interleaved and planar RGB alike. A table in which
#   every colour stands for itself changes no picture, whatever the pixel format.
# What happens: so it is for rgb24 and rgb48. For gbrp, gbrp12, gbrp16 ... the result has the green channel as red, the
#   blue one as green and the red one as blue. FFmpeg chooses a planar format by itself where the filter before hands
#   one on, such as `scale` behind a 10-bit source: then a colour table gives wrong hues without an error.
# Source: libavfilter/vf_lut3d.c, which holds haldclut and lut3d. The cause in it was not traced.
# Remedy: the filter format=rgb24 or format=rgb48 before haldclut, on the picture's side.
#
# Output seen (red, green, blue of a pixel that was 10, 100, 200):
#   rgb24  [10, 100, 200]
#   gbrp   [100, 200, 10]
#   as described

set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check av==18.1.0 numpy==2.4.6
"$work/venv/bin/python" - <<'EOF'
import sys
from fractions import Fraction

import av
import av.filter
import numpy as np

LEVEL, PIXEL = 4, [10, 100, 200]
levels = np.arange(LEVEL**2) / (LEVEL**2 - 1)
blue, green, red = np.meshgrid(levels, levels, levels, indexing="ij")
table = np.rint(np.stack([red, green, blue], -1) * 255).astype(np.uint8).reshape(LEVEL**3, LEVEL**3, 3)
picture = np.full((32, 32, 3), PIXEL, np.uint8)


def looked_up(form: str) -> list[int]:
    """The pixel behind haldclut with a table that changes nothing, in a pixel format."""
    graph = av.filter.Graph()
    sources = [
        graph.add_buffer(width=side, height=side, format=av.VideoFormat("rgb24", side, side), time_base=Fraction(1))
        for side in (len(picture), len(table))
    ]
    form_in, clut = graph.add("format", pix_fmts=form), graph.add("haldclut")
    form_out, sink = graph.add("format", pix_fmts="rgb24"), graph.add("buffersink")
    sources[0].link_to(form_in)
    form_in.link_to(clut, 0, 0)
    sources[1].link_to(clut, 0, 1)
    clut.link_to(form_out)
    form_out.link_to(sink)
    graph.configure()
    for source, pixels in zip(reversed(sources), (table, picture), strict=True):
        frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
        frame.pts, frame.time_base = 0, Fraction(1)
        source.push(frame)
        source.push(None)
    return sink.pull().to_ndarray()[0, 0].tolist()


found = {form: looked_up(form) for form in ("rgb24", "gbrp")}
for form, pixel in found.items():
    print(f"{form:<6} {pixel}")
as_described = found["rgb24"] == PIXEL and found["gbrp"] == [*PIXEL[1:], PIXEL[0]]
print("as described" if as_described else "CHANGED")
sys.exit(not as_described)
EOF
