#!/usr/bin/env bash
# The mp4 header of an AV1 file that PyAV's libsvtav1 wrote holds another sequence header than the stream itself.
#
# Versions: PyAV 18.1.0 (its wheel holds FFmpeg 8.1 and SVT-AV1 4.1.0).
# A good guess: the sequence header in the mp4's av1C box is a copy of the one at the head of the first keyframe, so
#   either may be read to know how the frames are coded.
# What happens: the two differ. The box is filled from what the encoder says before its first frame; the encoder then
#   writes another header into the stream. FFmpeg's decoders read both and show the right pictures, since the header in
#   the stream comes later. A parser of frame headers that trusts av1C reads fields at the wrong bits.
# Source: FFmpeg's libsvtav1 wrapper asks svt_av1_enc_stream_header() when it opens; later keyframes bring their own.
# Remedy: parse the sequence header of the first keyframe, and ignore the one in av1C.
#
# Output seen:
#   in av1C         0000000337fbe017c002
#   in the stream   0000000337fbe257c802
#   as described

set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check av==18.1.0 numpy==2.4.6
SVT_LOG=1 "$work/venv/bin/python" - "$work/a.mp4" <<'EOF'
import os
import sys
from collections.abc import Iterator

import av
import numpy as np

SEQUENCE_HEADER = 1  # obu_type of the AV1 specification
AV1C_HEAD = 4  # bytes of the av1C box before its units


def units(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Type and payload of each open bitstream unit; all of them say their size here."""
    place = 0
    while place < len(data):
        head = data[place]
        place += 1 + (head >> 2 & 1)
        size = shift = 0
        while True:
            byte = data[place]
            place += 1
            size |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                break
        yield head >> 3 & 15, data[place : place + size]
        place += size


policy = os.sched_getscheduler(0), os.sched_getparam(0)  # this encoder changes them for root
with av.open(sys.argv[1], "w") as container:
    stream = container.add_stream("libsvtav1", rate=30, options={"preset": "10", "svtav1-params": "keyint=30"})
    stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
    for number in range(45):
        picture = np.full((96, 128, 3), 4 * number, np.uint8)
        picture[20:40, number : number + 20] = 200
        container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
    container.mux(stream.encode(None))
os.sched_setscheduler(0, *policy)
with av.open(sys.argv[1]) as container:
    stream = container.streams.video[0]
    packet = bytes(next(container.demux(stream)))
    box = bytes(stream.codec_context.extradata)[AV1C_HEAD:]
found = [next(payload for kind, payload in units(data) if kind == SEQUENCE_HEADER) for data in (box, packet)]
print("in av1C        ", found[0].hex())
print("in the stream  ", found[1].hex())
as_described = found[0] != found[1]
print("as described" if as_described else "CHANGED")
sys.exit(not as_described)
EOF
