#!/usr/bin/env bash
# A frame whose side data was looked at stays in memory until Python's cycle collector runs, which it seldom does.
#
# Versions: PyAV 18.1.0 (its wheel holds FFmpeg 8.1), CPython 3.11.
# A good guess: a decoded frame is freed with the last name for it, as every other object without cycles. Looking for a
#   display matrix, with `"DISPLAYMATRIX" in frame.side_data`, only reads.
# What happens: the first look leaves the picture's memory behind when the frame goes. The collector counts Python
#   objects, not their bytes. A frame is three of them, so hundreds of pictures (1.4 MB each in 720p, 12 MB in 2160p)
#   wait for it, and every new picture lies in memory that no cache holds. Frames without any side data do so, too.
# Source: av/frame.py, Frame.side_data keeps a SideDataContainer; av/sidedata/sidedata.py, _SideDataContainer keeps the
#   frame. So each refers to the other.
# Remedy: av.sidedata.sidedata.SideDataContainer(frame) has the same content and is not kept by the frame.
#
# Output seen (100 frames of 1280x720, each dropped before the next; memory of the process above that at the start):
#   not looked at:       2 frames are there, 4 MB
#   frame.side_data:     101 frames are there, 127 MB
#   SideDataContainer:   2 frames are there, 0 MB
#   as described

set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check av==18.1.0 numpy==2.4.6
"$work/venv/bin/python" - "$work" <<'EOF'
import gc
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.sidedata.sidedata import SideDataContainer

FRAMES = 100
PATH = f"{sys.argv[1]}/a.mp4"


def write() -> None:
    with av.open(PATH, "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 1280, 720, "yuv420p"
        for number in range(FRAMES):
            picture = np.full((720, 1280, 3), number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


def megabytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() // 2**20


def kept(look: Callable[[Any], Any]) -> int:
    """How many frames are there when all but the last have been dropped; the loop holds that one twice at most."""
    gc.collect()
    before = megabytes()
    with av.open(PATH) as container:
        container.streams.video[0].thread_count = 1
        for frame in container.decode(video=0):
            look(frame)
        found = sum(type(one) is av.VideoFrame for one in gc.get_objects())
        print(f"{NAMES[look] + ':':<20} {found} frames are there, {megabytes() - before} MB")
    return found


NAMES = {
    (lambda frame: None): "not looked at",
    (lambda frame: "DISPLAYMATRIX" in frame.side_data): "frame.side_data",
    (lambda frame: "DISPLAYMATRIX" in SideDataContainer(frame)): "SideDataContainer",
}
write()
gc.disable()  # so that the count does not depend on when it runs
counts = [kept(look) for look in NAMES]
as_described = counts[0] == counts[2] < 10 and counts[1] >= FRAMES
print("as described" if as_described else "CHANGED")
sys.exit(not as_described)
EOF
