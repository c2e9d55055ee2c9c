"""Where the parts of a Matroska or WebM file lie. Names are those of RFC 8794 (EBML) and RFC 9559."""

from __future__ import annotations

from pathlib import Path

# Names of the two elements with which a Matroska file begins: EBML and Segment.
MATROSKA_ELEMENTS = (b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67")
MATROSKA_HEAD = 4096  # bytes in which both begin
CLUSTER, BLOCK_GROUP = 0x1F43B675, 0xA0  # elements whose content is read
# What may follow a picture: other parts of its block and of its cluster, and other parts of the file.
PARTS = {0xA3, 0x9B, 0xFB, 0xA4, 0xA1, 0x75A1, 0x75A2, 0xE7, 0xA7, 0xAB, 0xBF, 0xEC}
PARTS |= {0x1C53BB6B, 0x1254C367, 0x114D9B74, 0x1549A966, 0x1654AE6B, 0x1941A469, 0x1043A770}
BLOCK_HEAD = 4  # bytes of a block before its frame: track, time, flags
ELEMENT_HEAD = 12  # bytes of the longest name and size


def matroska_end(path: Path) -> int | None:
    """The byte at which the first segment of a Matroska file ends by its header; None if the header does not say it."""
    with path.open("rb") as file:
        head = file.read(MATROSKA_HEAD)
    at = 0
    for name in MATROSKA_ELEMENTS:
        if head[at : at + len(name)] != name or at + len(name) >= len(head):
            return None
        at += len(name)
        length = 9 - head[at].bit_length()  # bytes of the size: one more than the zero bits that lead it
        size = int.from_bytes(head[at : at + length], "big") - (1 << 7 * length)
        at += length
        if length > 8 or size == (1 << 7 * length) - 1:  # all ones: not known
            return None
        if name == MATROSKA_ELEMENTS[-1]:
            return at + size
        at += size
    return None


def ends_soundly(path: Path, at: int) -> bool:
    """Whether known elements follow each other from byte `at` to the end of the file. Reads their headers only."""
    size = path.stat().st_size
    with path.open("rb") as file:
        while at < size:
            file.seek(at)
            head = file.read(ELEMENT_HEAD)
            name_length = 9 - head[0].bit_length()
            name = int.from_bytes(head[:name_length], "big")
            if name_length > 4 or name_length >= len(head) or name not in PARTS | {CLUSTER, BLOCK_GROUP}:
                return False
            length = 9 - head[name_length].bit_length()
            if length > 8:
                return False
            content = int.from_bytes(head[name_length : name_length + length], "big") - (1 << 7 * length)
            at += name_length + length + (0 if name in (CLUSTER, BLOCK_GROUP) else content)
    return at == size
