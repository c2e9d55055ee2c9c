#!/usr/bin/env bash
# A VP9 frame that updates no reference picture cannot be left out of a stream, unless the stream is error-resilient.
#
# Versions: PyAV 18.1.0 (its wheel holds FFmpeg 8.1 and libvpx), Linux.
# A good guess: a frame whose header says refresh_frame_flags 0 serves no other frame, so a reader may skip it: what
#   H.264 (nal_ref_idc 0) and HEVC (sub-layer non-reference pictures) allow. libvpx makes such frames on request, with
#   the flags VP8_EFLAG_NO_UPD_LAST, _GF, _ARF; with _NO_UPD_ENTROPY it does not save adapted probabilities either.
# What happens: without such a frame the ones after it come out as other pictures, or as an error, though no picture of
#   it is used. With the encoder's option error-resilient=default the same frames can be left out, and all others come
#   out bit for bit. FFmpeg takes the flags for VP9, too, from a frame's metadata "vp8-flags" (its manual has none).
# Source: VP9 Bitstream & Decoding Process Specification: UsePrevFrameMvs takes the motion vectors of the frame decoded
#   before, whatever was saved of it; it is 0 only with error_resilient_mode 1 (or another size, or intra frames).
#   setup_past_independence() resets probabilities, segmentation map and filter deltas in that mode.
#   libavcodec/libvpxenc.c, vpx_encode(): av_dict_get(frame->metadata, "vp8-flags").
# Remedy: code with error-resilient=default (3 % more bytes here), and leave out a frame only where the frame after it
#   has error_resilient_mode 1.
#
# Output seen:
#   without error-resilient    second frames update no picture: True    15 frames without them: 1 equal
#   error-resilient=default    second frames update no picture: True    15 frames without them: 15 equal
#   as described

set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check av==18.1.0 numpy==2.4.6
"$work/venv/bin/python" - <<'EOF'
import io
import sys
from fractions import Fraction

import av
import av.filter
import numpy as np

FRAMES, WIDTH, HEIGHT, RATE = 30, 160, 96, Fraction(25)
NO_UPDATE = 1 << 18 | 1 << 20 | 1 << 22 | 1 << 23  # last, entropy, golden, alternate
noise = np.random.default_rng(0).integers(16, 235, (HEIGHT // 4, WIDTH), np.uint8)
wide = np.kron(noise, np.ones((4, 4), np.uint8))


def coded(options: dict[str, str]) -> list[bytes]:
    """Packets of a picture that moves; every second frame has the flags."""
    graph = av.filter.Graph()
    source = graph.add_buffer(width=WIDTH, height=HEIGHT, format="yuv420p", time_base=1 / RATE)
    mark = graph.add("metadata", mode="add", key="vp8-flags", value=str(NO_UPDATE), enable="mod(n,2)")
    graph.link_nodes(source, mark, graph.add("buffersink")).configure()
    packets = []
    with av.open(io.BytesIO(), "w", format="webm") as output:
        more = {"deadline": "good", "cpu-used": "5", "crf": "36", "b": "0", "lag-in-frames": "0", **options}
        stream = output.add_stream("libvpx-vp9", rate=RATE, options=more)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.gop_size, stream.codec_context.thread_count = FRAMES, 1
        for number in range(FRAMES):
            planes = np.full((HEIGHT * 3 // 2, WIDTH), 128, np.uint8)
            planes[:HEIGHT] = wide[:, 3 * number : 3 * number + WIDTH]
            graph.push(av.VideoFrame.from_ndarray(planes, format="yuv420p"))
            frame = graph.pull()
            frame.pts, frame.time_base, frame.pict_type = number, 1 / RATE, 0
            packets += stream.encode(frame)
        packets += stream.encode(None)
    return [bytes(packet) for packet in packets]


def decoded(packets: list[bytes], places: list[int]) -> dict[int, bytes]:
    """Number of a frame -> its planes, as far as the decoder comes."""
    decoder, found = av.CodecContext.create("vp9", "r"), {}
    decoder.thread_count = 1
    for place in places:
        packet = av.Packet(packets[place])
        packet.pts = place
        try:
            for frame in decoder.decode(packet):
                found[frame.pts] = frame.to_ndarray().tobytes()
        except av.error.InvalidDataError:
            pass
    return found


def refresh_frame_flags(packet: bytes) -> int:
    """Of a frame that is shown and not a keyframe, profile 0."""
    resilient = packet[0] & 1  # else reset_frame_context (2 bits) comes first
    return packet[1] if resilient else (packet[1] << 2 | packet[2] >> 6) & 0xFF


as_described = True
for name, options, equal_frames in [
    ("without error-resilient", {}, range(1, FRAMES // 2)),
    ("error-resilient=default", {"error-resilient": "default"}, [FRAMES // 2]),
]:
    packets = coded(options)
    assert len(packets) == FRAMES
    idle = not any(refresh_frame_flags(packet) for packet in packets[1::2])
    kept = list(range(0, FRAMES, 2))
    whole, part = decoded(packets, list(range(FRAMES))), decoded(packets, kept)
    equal = sum(part.get(number) == whole[number] for number in kept)
    print(f"{name:<26} second frames update no picture: {idle}    {len(kept)} frames without them: {equal} equal")
    as_described &= idle and equal in equal_frames
print("as described" if as_described else "CHANGED")
sys.exit(not as_described)
EOF
