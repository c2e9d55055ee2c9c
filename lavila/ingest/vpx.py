"""The sizes of pictures that the headers of VP8 and VP9 state, so that a limit counts before a decoder takes memory.

libvpx has no limit for itself. RFC 6386 (9.1) and the "VP9 Bitstream & Decoding Process Specification" (6.2, annex B)
have the syntax.
"""

from __future__ import annotations

from collections.abc import Iterator

from lavila.ingest.h264_headers import NotUnderstood, PlainBits

VP8_START = b"\x9d\x01\x2a"
VP9_HEADER = 40  # bytes in which the size lies
RGB = 7  # color_space
REFERENCES = 3


def stated_sizes(codec: str, packet: bytes) -> Iterator[tuple[int, int]]:
    """Width and height of each picture of a packet that states them. codec: one whose name has vp8 or vp9 in it."""
    if codec in ("vp8", "libvpx"):
        if len(packet) >= 10 and not packet[0] & 1 and packet[3:6] == VP8_START:
            yield (
                int.from_bytes(packet[6:8], "little") & 0x3FFF,
                int.from_bytes(packet[8:10], "little") & 0x3FFF,
            )
        return
    for frame in _frames(packet):
        try:
            size = _size(PlainBits(frame[:VP9_HEADER]))
        except NotUnderstood:
            continue
        if size is not None:
            yield size


def _frames(packet: bytes) -> Iterator[bytes]:
    """The frames of a superframe, or the only one."""
    last = packet[-1] if packet else 0
    count, length = (last & 0b111) + 1, (last >> 3 & 0b11) + 1
    index = 2 + count * length
    if last >> 5 != 0b110 or len(packet) < index or packet[-index] != last:
        yield packet
        return
    at = 0
    for place in range(count):
        begin = len(packet) - index + 1 + place * length
        size = int.from_bytes(packet[begin : begin + length], "little")
        yield packet[at : at + size]
        at += size


def _size(bits: PlainBits) -> tuple[int, int] | None:
    """What an uncompressed header says; None if it takes over the size of another picture."""
    if bits.read(2) != 0b10:
        raise NotUnderstood
    profile = bits.read(1) | bits.read(1) << 1
    if profile == 3:
        bits.read(1)
    if bits.flag():  # show_existing_frame
        return None
    inter, shown, resilient = bits.flag(), bits.flag(), bits.flag()
    if not inter:
        bits.read(24)  # frame_sync_code
        _skip_colours(bits, profile)
    else:
        intra = not shown and bits.flag()
        if not resilient:
            bits.read(2)  # reset_frame_context
        if intra:
            bits.read(24)
            if profile > 0:
                _skip_colours(bits, profile)
        bits.read(8)  # refresh_frame_flags
        if not intra:
            bits.read(4 * REFERENCES)
            if any(bits.flag() for _ in range(REFERENCES)):  # found_ref
                return None
    return bits.read(16) + 1, bits.read(16) + 1


def _skip_colours(bits: PlainBits, profile: int) -> None:
    if profile >= 2:
        bits.read(1)  # ten_or_twelve_bit
    if bits.read(3) != RGB:
        bits.read(3 + 1 if profile in (1, 3) else 1)  # color_range, and how chroma is sampled
    elif profile in (1, 3):
        bits.read(1)


def without_modes(codec: str, packet: bytes) -> bytes:
    """A packet without what may hold long runs of zeros: in VP8, the first partition, with the modes of its blocks.

    RFC 6386, 9.1, has its size. codec: as FFmpeg names it.
    """
    if codec != "vp8":
        return packet
    first_part_size = int.from_bytes(packet[:3], "little") >> 5
    return packet[(3 if packet[0] & 1 else 10) + first_part_size :]
