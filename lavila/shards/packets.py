"""Checks that an mp4's header fits its bytes, and that both fit the tables of a shard set. Nothing is decoded.

A decoder that trusts the header gives pictures even for packets that are missing. DALI does so without an error. Sets
with checksums do not need this check. In sets without them, every clip that is read goes through it.
"""

from __future__ import annotations

import io
from collections.abc import Iterator

import av

from lavila.libav import DAMAGE, reason

UNREADABLE = (*DAMAGE, UnicodeError)  # the errors of reading damaged bytes; UnicodeError comes from text in the header
# When FFmpeg opens a file, it decodes a frame, which is not needed here. For H.264 these options avoid it, which saves
# a third of the time.
OPTIONS = {
    "probesize": "32",
    "skip_frame": "all",
    "threads": "1",
}  # PyAV gives them to the container and to all streams
# Names and sizes of ISO/IEC 14496-12. A box is its size (32 bits, with these 8 bytes), its type (32 bits) and a
# content.
BOX_HEADER_BYTES = 8
SAMPLE_DESCRIPTION_PATH = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd")
# The content of stsd is version and flags (4 bytes), entry_count (4), then a VisualSampleEntry: box header (8),
# reserved and data_reference_index (8), pre_defined and reserved (16), width (2), height (2).
SAMPLE_WIDTH, SAMPLE_HEIGHT = slice(40, 42), slice(42, 44)

ByteSpan = tuple[int, int]
"""First byte, and the byte after the last."""


def packet_problem(data: bytes, *, frames: int, height: int, width: int) -> str | None:
    """Why `data` is not an mp4 with that number of frames of that size in pixels, in one line; None if it seems to be.

    The demuxer must find one packet for each frame and no hidden one. Together the packets must be the media data. This
    cannot find damage inside the packets, or in the few bytes of the header that set up the decoder.
    """
    try:
        with av.open(io.BytesIO(data), options=OPTIONS) as container:
            if not container.streams.video:
                return "no video stream"
            packets = [packet for packet in container.demux(container.streams.video[0]) if packet.size]
            places = [(packet.pos or 0, packet.size) for packet in packets]
            hidden = sum(packet.is_discard for packet in packets)
    except (*UNREADABLE, ValueError) as error:  # ValueError: there is not exactly one stream to take the options
        return reason(error)
    if len(packets) != frames:
        return f"packets for {len(packets)} frames, the table says {frames}"
    if hidden:
        return f"{hidden} of its {frames} frames are hidden by the header"
    if _joined(places) != [span for kind, span in _boxes(data, (0, len(data))) if kind == b"mdat"]:
        return "the packets in its header are not those in its media data"
    found = _stated_size(data)
    if found != (width, height):
        return f"pictures of {found[0]}x{found[1]}, the table says {width}x{height}"
    return None


def _joined(places: list[tuple[int, int]]) -> list[ByteSpan]:
    """The stretches without a gap that packets form. `places`: position and size of each packet, in bytes."""
    spans: list[ByteSpan] = []
    for position, size in sorted(places):
        if spans and spans[-1][1] == position:
            spans[-1] = (spans[-1][0], position + size)
        else:
            spans.append((position, position + size))
    return spans


def _boxes(data: bytes, span: ByteSpan) -> Iterator[tuple[bytes, ByteSpan]]:
    """Type and content of each box in a span of an mp4's bytes."""
    at, stop = span
    while at + BOX_HEADER_BYTES <= stop:
        size = int.from_bytes(data[at : at + 4], "big")
        if size < BOX_HEADER_BYTES:  # sizes 0 and 1 have other meanings, but our encoder does not write them
            return
        yield data[at + 4 : at + 8], (at + BOX_HEADER_BYTES, min(at + size, stop))
        at += size


def _stated_size(data: bytes) -> tuple[int, int]:
    """Width and height in pixels as the header states them for decoders; (0, 0) if it does not."""
    span = (0, len(data))
    for kind in SAMPLE_DESCRIPTION_PATH:
        span = next((inside for found, inside in _boxes(data, span) if found == kind), (0, 0))
    content = data[slice(*span)]
    return int.from_bytes(content[SAMPLE_WIDTH], "big"), int.from_bytes(content[SAMPLE_HEIGHT], "big")
