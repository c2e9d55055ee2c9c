#!/usr/bin/env bash
# PyAV loses the number that a packet hands to its frame, when two packets hand on the same object.
#
# Versions: PyAV 18.1.0 (its wheel holds FFmpeg 8.1).
# A good guess: with codec_context.copy_opaque, frame.opaque is what was put into packet.opaque, as its documentation
#   says. Any value may be put there, such as the number of the packet.
# What happens: some frames have None instead. CPython keeps one object for each small whole number (-5 to 256), and for
#   many strings. As soon as two packets, of one file or of two, hand on the same object, the first one that FFmpeg
#   releases takes it away from the other. Tests with one file and its packets numbered once see nothing.
# Source: av/opaque.py, OpaqueContainer: objects are kept in a dict by id(object), without a count; key_free removes the
#   entry when FFmpeg frees any of the buffers that name it.
# Remedy: give each packet an object for itself, such as a list or an instance of a class.
#
# Output seen (the frames of one file are kept while another file is read; each packet hands on its number):
#   numbers:  24 of 24 frames have lost theirs
#   objects:  0 of 24 frames have lost theirs
#   as described

set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check av==18.1.0 numpy==2.4.6
"$work/venv/bin/python" - "$work" <<'EOF'
import sys
from collections.abc import Callable
from typing import Any

import av
import numpy as np

FRAMES = 24
PATHS = [f"{sys.argv[1]}/{name}.mp4" for name in "ab"]


def write(path: str) -> None:
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"bf": "2"})
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        for number in range(FRAMES):
            picture = np.full((96, 128, 3), 10 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


class Tag:
    def __init__(self, number: int) -> None:
        self.number = number


def frames(path: str, make: Callable[[int], Any]) -> list[Any]:
    """All frames of a file."""
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.thread_count = 1
        stream.codec_context.copy_opaque = True
        found: list[Any] = []
        for number, packet in enumerate(container.demux(stream)):
            packet.opaque = make(number)
            found += packet.decode()
    return found


for path in PATHS:
    write(path)
lost = {}
for name, make in (("numbers", int), ("objects", Tag)):
    first = frames(PATHS[0], make)
    frames(PATHS[1], make)  # these are released at once
    lost[name] = sum(frame.opaque is None for frame in first)
    print(f"{name + ':':<9} {lost[name]} of {len(first)} frames have lost theirs")
as_described = lost["numbers"] > 0 == lost["objects"]
print("as described" if as_described else "CHANGED")
sys.exit(not as_described)
EOF
