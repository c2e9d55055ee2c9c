"""Whether an mp4's own tables fit its bytes and what a shard set says of it. Nothing is decoded.

A decoder that trusts the tables gives pictures for packets that are not there: DALI does, without an error. Sets with
checksums need no such question; those without one are asked it for every clip that is read.
"""

from __future__ import annotations

import io
from collections.abc import Iterator

import av

from lavila.libav import DAMAGE, reason

UNREADABLE = (*DAMAGE, UnicodeError)  # what reading damaged bytes raises; the last for text in the header
# On opening, FFmpeg decodes a frame to learn what is not asked here. It need not with H.264: a third of the time.
OPTIONS = {"probesize": "32", "skip_frame": "all", "threads": "1"}  # PyAV hands them to the container and all streams
WAY_TO_ENTRY = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd")
ENTRY_SIZE = slice(40, 44)  # height follows width, 16 bits each, from the start of what stsd holds (ISO/IEC 14496-12)

Span = tuple[int, int]  # first byte and the one past the last


def packet_problem(data: bytes, *, frames: int, height: int, width: int) -> str | None:
    """Why `data` is not an mp4 of so many frames of that size in pixels, in one line; None where it seems to be one.

    The demuxer must give one packet a frame, none of them hidden, and all of them together must be the media data. What
    this cannot notice is damage inside the packets, and in the few bytes of the header that set the decoder up.
    """
    try:
        with av.open(io.BytesIO(data), options=OPTIONS) as container:
            if not container.streams.video:
                return "no video stream"
            packets = [packet for packet in container.demux(container.streams.video[0]) if packet.size]
            places = [(packet.pos or 0, packet.size) for packet in packets]
            hidden = sum(packet.is_discard for packet in packets)
    except (*UNREADABLE, ValueError) as error:  # ValueError: not the one stream that there are options for
        return reason(error)
    if len(packets) != frames:
        return f"packets for {len(packets)} frames, the table says {frames}"
    if hidden:
        return f"{hidden} of its {frames} frames are hidden by the header"
    if _joined(places) != [span for kind, span in _boxes(data, (0, len(data))) if kind == b"mdat"]:
        return "the packets in its header are not those in its media data"
    found = _entry_size(data)
    if found != (width, height):
        return f"pictures of {found[0]}x{found[1]}, the table says {width}x{height}"
    return None


def _joined(places: list[tuple[int, int]]) -> list[Span]:
    """Packets, given by position and size in bytes, as stretches without a gap."""
    spans: list[Span] = []
    for position, size in sorted(places):
        if spans and spans[-1][1] == position:
            spans[-1] = (spans[-1][0], position + size)
        else:
            spans.append((position, position + size))
    return spans


def _boxes(data: bytes, span: Span) -> Iterator[tuple[bytes, Span]]:
    """Kind and content of each box of an mp4 that lies in a span of its bytes."""
    at, stop = span
    while at + 8 <= stop:
        size = int.from_bytes(data[at : at + 4], "big")
        if size < 8:  # neither a whole box nor one that our encoder writes
            return
        yield data[at + 4 : at + 8], (at + 8, min(at + size, stop))
        at += size


def _entry_size(data: bytes) -> Span:
    """Width and height in pixels as the header states them, where decoders take them from; (0, 0) without one."""
    span = (0, len(data))
    for kind in WAY_TO_ENTRY:
        span = next((inside for found, inside in _boxes(data, span) if found == kind), (0, 0))
    entry = data[slice(*span)][ENTRY_SIZE]
    return int.from_bytes(entry[:2], "big"), int.from_bytes(entry[2:], "big")
