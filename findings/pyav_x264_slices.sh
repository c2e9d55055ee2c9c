#!/usr/bin/env bash
# PyAV's libx264 cuts every picture into slices by default, and the files grow.
#
# Versions: PyAV 18.1.0 (its wheel holds FFmpeg 8.1 and libx264).
# A good guess: add_stream("libx264") encodes as `ffmpeg -c:v libx264` does: frame threads, one slice a picture. A
#   binding's default for threads changes speed and not what is coded.
# What happens: PyAV sets thread_type to SLICE for every codec. For x264 that means sliced threads: each picture falls
#   into as many slices as there are threads (within limits). Prediction and entropy coding start anew at each slice,
#   so files are larger at the same quality, and they depend on the number of cores of the machine that encoded.
# Source: av/codec/context.py, CodecContext initialisation: thread_count = 0 and thread_type = 0x02 (slice);
#   FFmpeg's libavcodec/libx264.c sets x264's b_sliced_threads when thread_type is exactly FF_THREAD_SLICE. FFmpeg's
#   own default is FRAME and SLICE together, which switches it off.
# Remedy: stream.thread_type = "FRAME" or "AUTO" before the first frame.
#
# Output seen (thread_count is set to 4 so that the result does not depend on the machine):
#   default  slices a picture 4.0  bytes 158478 (+8.0 %)  error 116.3
#   FRAME    slices a picture 1.0  bytes 146676 (+0.0 %)  error 115.4
#   AUTO     slices a picture 1.0  bytes 146676 (+0.0 %)  error 115.4
#   as described

set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check av==18.1.0 numpy==2.4.6
"$work/venv/bin/python" - "$work" <<'EOF'
import sys

import av
import numpy as np

WIDTH, HEIGHT, PICTURES = 640, 360, 60
SLICE_UNITS = (1, 5)  # types of the NAL units that hold a slice: of an ordinary and of an IDR picture
random = np.random.default_rng(0)
coarse = random.integers(0, 256, (20, 40, 3)).astype(np.float32).repeat(32, 0).repeat(32, 1)
scene = np.clip(coarse + random.normal(0, 6, coarse.shape), 0, 255).astype(np.uint8)
pictures = [np.ascontiguousarray(scene[2 * i : 2 * i + HEIGHT, 5 * i : 5 * i + WIDTH]) for i in range(PICTURES)]


def encode(name: str, thread_type: str | None) -> tuple[int, int, float]:
    """The slices, the bytes and the mean squared error of the coded pictures."""
    path = f"{sys.argv[1]}/{name}.mp4"
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt, stream.thread_count = WIDTH, HEIGHT, "yuv420p", 4
        if thread_type:
            stream.thread_type = thread_type
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    slices = size = 0
    with av.open(path) as container:
        for data in (bytes(packet) for packet in container.demux(video=0)):
            size, at = size + len(data), 0
            while at < len(data):
                slices += data[at + 4] & 31 in SLICE_UNITS
                at += 4 + int.from_bytes(data[at : at + 4], "big")
    with av.open(path) as container:
        decoded = [frame.to_ndarray(format="rgb24").astype(float) for frame in container.decode(video=0)]
    error = float(np.mean([(a - b) ** 2 for a, b in zip(pictures, decoded, strict=True)]))
    return slices, size, error


results = {name: encode(name, kind) for name, kind in [("default", None), ("FRAME", "FRAME"), ("AUTO", "AUTO")]}
for name, (slices, size, error) in results.items():
    more = 100 * (size / results["FRAME"][1] - 1)
    print(f"{name:<8} slices a picture {slices / PICTURES:.1f}  bytes {size} ({more:+.1f} %)  error {error:.1f}")
default, frame, auto = results["default"], results["FRAME"], results["AUTO"]
as_described = default[0] > PICTURES == frame[0] == auto[0] and default[1] > frame[1]
print("as described" if as_described else "CHANGED")
sys.exit(not as_described)
EOF
