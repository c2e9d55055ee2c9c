#!/usr/bin/env bash
# DALI's CPU video decoder returns pictures of another clip for frames that an edit list hides, without an error.
#
# Versions: DALI 2.4.0 (nvidia-dali-cuda130) on the CPU, PyAV 18.1.0 (FFmpeg 8.1), VP9 in MP4. No GPU is needed.
# A good guess: a video trimmed without re-encoding (its edit list hides the start; editors and phones write such files)
#   has as many frames as play. A frame number beyond them raises, or is padded as pad_mode says.
# What happens: DALI counts 60 frames, the demuxer and decoder give 30. For numbers 30 to 59 the output has the right
#   shape and holds what was in that memory before: black, or whole pictures of an earlier clip of the same pipeline.
#   No error and no warning, so a trainer learns the label of one clip from the pictures of another. pad_mode="none"
#   gives no error either; the fill colour (green here) never appears.
# Source (read near 2.4): dali/operators/video/frames_decoder_base.cc: NumFrames() trusts nb_frames,
#   which FFmpeg fills from the sample table of the MP4 file, and the hidden samples are in that table;
#   decoder/video_decoder_base.h (SetupImpl) sizes the output by the numbers asked for. What was seen shows that the
#   number of pictures in fact written is not compared.
# Remedy: count the frames that a demuxer with edit lists gives, and ask for no others; or re-encode clips when cut.
#
# Output seen (mean red, green, blue of pictures 0, 12, 24, 36, 48 of a grey clip that follows a red one, four times;
#   from the fourth on they are undefined and may differ from run to run):
#   the trimmed clip: its table lists 60 frames, PyAV decodes 30
#   pad_mode=constant  60 pictures (120, 120, 120) (168, 168, 168) (217, 217, 217) (0, 0, 0) (0, 0, 0)
#   pad_mode=constant  60 pictures (120, 120, 120) (168, 168, 168) (217, 217, 217) (200, 29, 30) (200, 29, 30)
#   pad_mode=none      60 pictures (120, 120, 120) (168, 168, 168) (217, 217, 217) (0, 0, 0) (0, 0, 0)
#   pad_mode=none      60 pictures (120, 120, 120) (168, 168, 168) (217, 217, 217) (0, 0, 0) (0, 0, 0)
#   as described

set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check nvidia-dali-cuda130==2.4.0 \
    av==18.1.0 numpy==2.4.6
"$work/venv/bin/python" - "$work" <<'EOF'
import sys
from pathlib import Path

import av
import numpy as np
from nvidia.dali import fn, types
from nvidia.dali.pipeline import Pipeline

FRAMES, RATE, SHAPE = 60, 30, (96, 128, 3)
NUMBERS, GREEN = list(range(FRAMES)), [0, 255, 0]  # what padding would look like
RED, WHOLE, TRIMMED = (Path(sys.argv[1], name) for name in ("red.mp4", "whole.mp4", "trimmed.mp4"))


def write(path: Path, colours: list[tuple[int, int, int]]) -> None:
    with av.open(str(path), "w") as container:
        options = {"lag-in-frames": "0", "deadline": "realtime", "cpu-used": "8", "crf": "10"}
        stream = container.add_stream("libvpx-vp9", rate=RATE, options=options)
        stream.width, stream.height, stream.pix_fmt = SHAPE[1], SHAPE[0], "yuv420p"
        for colour in colours:
            picture = np.full(SHAPE, colour, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


def hide_first_second(source: Path, target: Path) -> None:
    """The same packets with times that begin at -1 s: FFmpeg's MP4 writer adds an edit list that starts at 0."""
    options = {"avoid_negative_ts": "disabled"}
    with av.open(str(source)) as old, av.open(str(target), "w", container_options=options) as new:
        copy = new.add_stream_from_template(old.streams.video[0])
        for packet in (packet for packet in old.demux(video=0) if packet.size):
            second = round(1 / packet.time_base)
            packet.pts, packet.dts, packet.stream = packet.pts - second, packet.dts - second, copy
            new.mux(packet)


write(RED, [(200, 30, 30)] * FRAMES)
write(WHOLE, [(4 * i, 4 * i, 4 * i) for i in range(FRAMES)])
hide_first_second(WHOLE, TRIMMED)
with av.open(str(TRIMMED)) as container:
    promised, played = container.streams.video[0].frames, sum(1 for _ in container.decode(video=0))
print(f"the trimmed clip: its table lists {promised} frames, PyAV decodes {played}")

as_described = (promised, played) == (FRAMES, FRAMES // 2)
for pad_mode in ("constant", "none"):
    order = [RED, TRIMMED] * 2
    pipeline = Pipeline(batch_size=1, num_threads=1, device_id=None, prefetch_queue_depth=1)
    with pipeline:
        clip = fn.external_source(name="clip", dtype=types.UINT8)
        pipeline.set_outputs(fn.decoders.video(clip, device="cpu", frames=NUMBERS, pad_mode=pad_mode, fill_value=GREEN))
    for path in order:
        pipeline.feed_input("clip", [np.fromfile(path, np.uint8)])
        pictures = pipeline.run()[0].at(0)
        means = [tuple(int(value) for value in picture.mean((0, 1))) for picture in pictures[::12]]
        if path == TRIMMED:
            print(f"pad_mode={pad_mode:<9} {len(pictures)} pictures", *means)
        as_described &= len(pictures) == FRAMES
        as_described &= path == RED or not (pictures[played:] == GREEN).all()
print("as described" if as_described else "CHANGED")
sys.exit(not as_described)
EOF
