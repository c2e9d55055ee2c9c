#!/usr/bin/env bash
# PyAV's libsvtav1 encoder makes the calling thread real-time when root opens it, and leaves it so.
#
# Versions: PyAV 18.1.0 (its wheel holds FFmpeg 8.1 and SVT-AV1 4.1.0), Linux, root or CAP_SYS_NICE with user id 0.
# A good guess: an encoder may raise the priority of its threads. The caller's thread stays as it was, at the
#   latest once the container is closed.
# What happens: the caller's thread runs under SCHED_FIFO with priority 99 from the opening of the encoder on. Closing
#   the container does not undo it. Every process that this thread starts inherits it (data workers, for example).
#   Containers often run as root, so a job that encodes there can starve its neighbours.
# Source: svt_av1_enc_init_handle() of SVT-AV1 calls pthread_setschedparam() on the calling thread when geteuid() is 0.
#   A debugger's stack at that call: avcodec_open2 -> (libsvtav1 wrapper) -> svt_av1_enc_init_handle.
#   The policy argument was 1 (SCHED_FIFO). Nothing in the library sets the old policy again.
# Remedy: save os.sched_getscheduler(0) and os.sched_getparam(0) before, set them again after the opening.
#
# Output seen (as root):
#   before                       SCHED_OTHER 0
#   encoder open                 SCHED_FIFO 99
#   container closed             SCHED_FIFO 99
#   a child process              SCHED_FIFO 99
#   as described

set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check av==18.1.0 numpy==2.4.6
SVT_LOG=1 "$work/venv/bin/python" - "$work" <<'EOF'
import os
import subprocess
import sys

import av
import numpy as np

NAMES = {os.SCHED_OTHER: "SCHED_OTHER", os.SCHED_FIFO: "SCHED_FIFO", os.SCHED_RR: "SCHED_RR"}
ASK = "import os; print(os.sched_getscheduler(0), os.sched_getparam(0).sched_priority)"


def own() -> tuple[int, int]:
    return os.sched_getscheduler(0), os.sched_getparam(0).sched_priority


def say(when: str, policy: int, priority: int) -> None:
    print(f"{when:<28} {NAMES.get(policy, policy)} {priority}")


before = own()
restore = (0, before[0], os.sched_param(before[1]))
try:
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    os.sched_setscheduler(*restore)
    allowed = os.geteuid() == 0
except PermissionError:
    allowed = False
if not allowed or before[0] != os.SCHED_OTHER:
    print("not applicable: this needs user id 0, CAP_SYS_NICE and an ordinary policy to begin with")
    sys.exit(0)

say("before", *before)
try:
    with av.open(f"{sys.argv[1]}/a.mp4", "w") as container:
        stream = container.add_stream("libsvtav1", rate=10, options={"preset": "12"})
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        stream.codec_context.open()
        opened = own()
        for level in (0, 128):
            picture = np.full((64, 64, 3), level, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    closed = own()
    child = tuple(map(int, subprocess.check_output([sys.executable, "-c", ASK], text=True).split()))
finally:
    os.sched_setscheduler(*restore)
say("encoder open", *opened)
say("container closed", *closed)
say("a child process", *child)
as_described = opened == closed == child == (os.SCHED_FIFO, 99)
print("as described" if as_described else "CHANGED")
sys.exit(not as_described)
EOF
