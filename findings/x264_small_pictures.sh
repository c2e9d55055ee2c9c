#!/usr/bin/env bash
# x264 gives other bytes for the same small pictures from one run to the next, on one thread.
#
# Versions: PyAV 18.1.0 (its wheel holds FFmpeg 8.1 and libx264), on a processor with AVX-512. Others were not tried.
# A good guess: with one thread libx264 is deterministic: the same pictures and options give the same bytes. Caches,
#   checksums and tests of training sets stand on that.
# What happens: in pictures less than 256 pixels wide, preset medium gives two to six different streams over ten runs in
#   one process, where memory was used in between. From 256 pixels on there was one stream in every try. mbtree=0 (the
#   macroblock tree, which spreads quality between pictures) or asm=0 gives one stream. So does preset superfast, which
#   has no macroblock tree.
# Source: the assembly of the macroblock tree in x264's lookahead; it works on rows of half-size macroblocks, of which
#   such a picture has fewer than 16. The line was not traced.
# Remedy: x264-params mbtree=0 for small pictures.
#
# Output seen:
#   160x96   defaults  streams 2
#   160x96   mbtree=0  streams 1
#   256x144  defaults  streams 1
#   as described

set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if ! grep -qw avx512bw /proc/cpuinfo; then
  echo "not applicable: this processor has no AVX-512"
  exit 0
fi
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check av==18.1.0 numpy==2.4.6
"$work/venv/bin/python" - <<'EOF'
import hashlib
import sys
from fractions import Fraction

import av
import numpy as np

PICTURES, RUNS = 60, 12
random = np.random.default_rng(0)


def texture(rows: int, columns: int) -> np.ndarray:
    """Noise of several sizes, smoothed: uint8 [rows, columns, 3]."""
    total = np.zeros((rows, columns, 3), np.float32)
    for size in (100, 50, 25, 12, 6):
        grid = random.normal(0, 1, (rows // size + 2, columns // size + 2, 3)).astype(np.float32)
        y, x = np.arange(rows) / size, np.arange(columns) / size
        top, left = y.astype(int), x.astype(int)
        down, across = (y - top)[:, None, None], (x - left)[None, :, None]
        upper = grid[top][:, left] * (1 - across) + grid[top][:, left + 1] * across
        lower = grid[top + 1][:, left] * (1 - across) + grid[top + 1][:, left + 1] * across
        total += (upper * (1 - down) + lower * down) * size**0.6
    low, high = total.min(), total.max()
    return ((total - low) / (high - low) * 255).astype(np.uint8)


scene = texture(400, 600)
tops = [100 + int(20 * np.sin(number / 9)) for number in range(PICTURES)]
film = [np.ascontiguousarray(scene[top : top + 96, 3 * i : 3 * i + 160]) for i, top in enumerate(tops)]


def streams(width: int, height: int, params: str) -> int:
    """How many different streams come of the same pictures."""
    found = set()
    for run in range(RUNS):
        used = [np.random.default_rng(1000 * run + i).bytes(1000 + 777 * i) for i in range(300)]  # other memory each time
        del used
        coder = av.CodecContext.create("libx264", "w")
        coder.width, coder.height, coder.pix_fmt = width, height, "yuv420p"
        coder.time_base, coder.framerate = Fraction(1, 25), Fraction(25)
        coder.thread_count, coder.thread_type = 1, "FRAME"
        coder.options = {"preset": "medium", "x264-params": params}
        data = b""
        for number, picture in enumerate(film):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(width, height, "yuv420p")
            frame.pts = number
            data += b"".join(map(bytes, coder.encode(frame)))
        data += b"".join(map(bytes, coder.encode(None)))
        found.add(hashlib.sha256(data).digest())
    return len(found)


small = streams(160, 96, "keyint=250")
print(f"160x96   defaults  streams {small}")
steady = streams(160, 96, "mbtree=0")
print(f"160x96   mbtree=0  streams {steady}")
wide = streams(256, 144, "keyint=250")
print(f"256x144  defaults  streams {wide}")
as_described = small > 1 == steady == wide
print("as described" if as_described else "CHANGED")
sys.exit(not as_described)
EOF
