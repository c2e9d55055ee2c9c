"""What transport streams and FLV betray of damage. FFmpeg's demuxers pass over it to the next sound part."""

from __future__ import annotations

from pathlib import Path

from lavila.ingest.h264_headers import START_CODE

# Transport streams (ISO/IEC 13818-1): packets of 188 bytes, each with this first byte. On disks 4 bytes for a time may
# stand before each, and some tuners add 16 bytes for error correction.
SYNC = b"\x47"
PACKET_SIZES = (188, 192, 204)
TIME_BYTES = 4
# FLV (Adobe Flash Video File Format, E.4): sound, pictures and data. Each tag has a header, and its size follows it.
FLV_TAGS = (8, 9, 18)
FLV_PICTURE = 9
FLV_EXTENDED = 0x80  # the bit of tags in the enhanced form, which have a codec's name instead of its number
FLV_FRAME_TYPES = range(1, 6)
FLV_TYPE = 0b11111
FLV_HEADER, FLV_SIZE = 11, 4  # bytes
FLV_WITHOUT = (0, 1, FLV_HEADER)  # bytes that writers leave out of the size behind a tag
FLV_OFFSET, FLV_FIRST = 5, 9  # the bytes of the file's header that say how long it is
PREFIX = 1 << 16  # bytes that may stand before the first packet: a part of one, or what a recorder writes
UNIT_START, ADAPTATION, PID = 0x40, 0x20, 0x1FFF  # payload_unit_start_indicator, a bit of adaptation_field_control
PES_HEADER, PES_MARKER = 7, 0b10  # bytes up to that in which the marker stands (2.4.3.6)
IN_STEP = 5  # so many packets at one distance are packets
LOOKED_AT = PREFIX + IN_STEP * PACKET_SIZES[-1]
MOST = 1 << 26  # bytes of a beginning that are read


def begins_soundly(path: Path, stop: int, *, kind: str) -> bool:
    """Whether the parts of a file follow each other without a break up to byte `stop`, where a frame begins.

    kind: FFmpeg's name of the container; True for others. A recording of a transport stream may begin within a packet.
    """
    if kind == "flv":
        with path.open("rb") as file:
            head = file.read(FLV_FIRST)
        return _tags_follow(path, int.from_bytes(head[FLV_OFFSET:], "big") + FLV_SIZE, stop)
    if kind != "mpegts":
        return True
    with path.open("rb") as file:
        head = file.read(min(max(stop + TIME_BYTES + PACKET_SIZES[0], LOOKED_AT), MOST))
    return any(_is_in_step(head, size, stop) for size in PACKET_SIZES)


def _is_in_step(head: bytes, size: int, stop: int) -> bool:
    """Whether packets of `size` bytes follow each other up to byte `stop`, from the first place on where some do.

    Before it may lie the end of a packet, or what a recorder writes. A file that begins with a packet out of step, or
    with something as long as packets, has lost some.
    """
    stop += TIME_BYTES if size == PACKET_SIZES[1] else 0  # FFmpeg counts the time before a packet as a part of it
    runs = ((at, head[at : at + IN_STEP * size : size]) for at in range(min(PREFIX, stop + 1, len(head))))
    first = next((at for at, run in runs if run.count(SYNC) == len(run)), None)
    if first is None or (first >= size and (head[:1] == SYNC or first % size == 0)):
        return False
    places = range(first, min(stop + 1, len(head)), size)
    if not all(head[at] == SYNC[0] for at in places):
        return False
    known = places[-1] == stop and stop + PACKET_SIZES[0] <= len(head)
    pid = _pid(head, stop) if known else None
    return all(_unit_begins(head[at : at + PACKET_SIZES[0]]) for at in places if _pid(head, at) == pid)


def _pid(head: bytes, at: int) -> int:
    """Which part of the stream the packet at byte `at` belongs to."""
    return int.from_bytes(head[at + 1 : at + 3], "big") & PID


def _unit_begins(packet: bytes) -> bool:
    """Whether a packet is sound in which a unit of pictures begins (a PES packet); True for others."""
    if not packet[1] & UNIT_START:
        return True
    at = 4 + (1 + packet[4] if packet[3] & ADAPTATION else 0)
    header = packet[at : at + PES_HEADER]
    return len(header) == PES_HEADER and header.startswith(START_CODE) and header[-1] >> 6 == PES_MARKER


def flv_ends_soundly(path: Path, at: int) -> bool:
    """Whether sound tags follow each other from the tag at byte `at` to the end of an FLV.

    A recording that was stopped may end within a tag.
    """
    return _tags_follow(path, at, path.stat().st_size)


class FlvTags:
    """Whether the tags of an FLV follow each other; it has no checksums. See `decoded.Structure`."""

    skipped = False

    def __init__(self, path: Path) -> None:
        self._path = path

    def hold(self, at: int) -> bool:
        """True: nothing says it."""
        del at
        return True

    def breaks_behind(self, pos: int, size: int, *, before: int | None = None) -> bool:
        """Whether the tag at byte `pos`, or another one up to byte `before`, is not followed by a tag."""
        return not _tags_follow(self._path, pos, pos + FLV_HEADER + size if before is None else before)


def _tags_follow(path: Path, at: int, stop: int) -> bool:
    """Whether sound tags follow each other from byte `at` to byte `stop`. Reads their headers only."""
    with path.open("rb") as file:
        while at + FLV_HEADER <= stop:
            file.seek(at)
            head = file.read(FLV_HEADER)
            size = FLV_HEADER + int.from_bytes(head[1:4], "big")
            kind = file.read(min(size - FLV_HEADER, 1))  # of pictures: frame type and codec in half a byte each
            file.seek(at + size)
            stated = file.read(FLV_SIZE)
            if head[0] & FLV_TYPE not in FLV_TAGS or (head[0] & FLV_TYPE == FLV_PICTURE and not _is_picture(kind)):
                return False
            if len(stated) == FLV_SIZE and size - int.from_bytes(stated, "big") not in FLV_WITHOUT:
                return False
            at += size + FLV_SIZE
    return True


def _is_picture(kind: bytes) -> bool:
    """Whether a tag of pictures has this first byte; one without any content has none."""
    return not kind or bool(kind[0] & FLV_EXTENDED) or (kind[0] >> 4 in FLV_FRAME_TYPES and kind[0] & 0xF != 0)
