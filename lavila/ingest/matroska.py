"""Where the parts of a Matroska or WebM file lie, and their checksums.

Names are those of RFC 8794 (EBML) and RFC 9559.
"""

from __future__ import annotations

import zlib
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

# Names of the two elements with which a Matroska file begins: EBML and Segment.
MATROSKA_ELEMENTS = (b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67")
MATROSKA_HEAD = 4096  # bytes in which both begin
EBML, SEGMENT = (int.from_bytes(name, "big") for name in MATROSKA_ELEMENTS)
CLUSTER, BLOCK_GROUP = 0x1F43B675, 0xA0  # elements whose content is read
CRC_32 = b"\xbf\x84"  # name and size of a checksum, the first part of an element that has one
# What may follow a picture: other parts of its block and of its cluster, and other parts of the file.
PARTS = {0xA3, 0x9B, 0xFB, 0xA4, 0xA1, 0x75A1, 0x75A2, 0xE7, 0xA7, 0xAB, 0xBF, 0xEC}
PARTS |= {0xFA, 0x8E, 0xA2, 0xFD, 0xC8, 0xAF, 0x5854}  # reserved and old ones
PARTS |= {0x1C53BB6B, 0x1254C367, 0x114D9B74, 0x1549A966, 0x1654AE6B, 0x1941A469, 0x1043A770}
NUMBERS, NUMBER_BYTES = (0xE7, 0xA7, 0xAB, 0x9B, 0xFB, 0xFA), 8  # parts that hold one number, and its most bytes
BLOCK_IN_GROUP = 0xA1  # Block
BLOCKS = (0xA3, BLOCK_IN_GROUP)  # with SimpleBlock
BLOCK_HEAD = 4  # bytes of a block before its frame: track, time, flags
ELEMENT_HEAD = 12  # bytes of the longest name and size
BLOCK = 1 << 20  # bytes that are read at a time


class _Element(NamedTuple):
    name: int
    begin: int  # byte of its content
    size: int | None  # bytes of its content; None = not known


def _element(file: BinaryIO, at: int) -> _Element | None:
    """The element at byte `at`; None if there is none."""
    file.seek(at)
    head = file.read(ELEMENT_HEAD)
    name_length = 9 - head[0].bit_length() if head else 0
    if not 0 < name_length <= 4 or name_length >= len(head):
        return None
    length = 9 - head[name_length].bit_length()  # bytes of the size: one more than the zero bits that lead it
    if length > 8:
        return None
    size = int.from_bytes(head[name_length : name_length + length], "big") - (1 << 7 * length)
    unknown = size == (1 << 7 * length) - 1  # all ones
    name = int.from_bytes(head[:name_length], "big")
    return _Element(name, at + name_length + length, None if unknown else size)


def matroska_end(path: Path) -> int | None:
    """The byte at which the first segment of a Matroska file ends by its header; None if the header does not say it."""
    at = 0
    with path.open("rb") as file:
        for name in (EBML, SEGMENT):
            one = _element(file, at)
            if one is None or one.name != name or one.size is None or one.begin > MATROSKA_HEAD:
                return None
            at = one.begin + one.size
    return at


def ends_soundly(path: Path, pos: int, size: int) -> bool:
    """Whether known elements follow each other from a block to the end of the segment. Reads their headers only.

    pos: the byte at which the content of the block begins; size: of its frame, in bytes. A file that is cut short may
    end within an element.
    """
    end, stated = path.stat().st_size, matroska_end(path)
    cut = stated is None or stated > end
    end = end if stated is None else min(end, stated)
    with path.open("rb") as file:
        if not _is_plain(file, pos, size):
            return True
        at = _chain(file, pos + BLOCK_HEAD + size, end)
    return at is not None and (cut or at == end)


def _is_plain(file: BinaryIO, pos: int, size: int) -> bool:
    """Whether a block holds one frame as it is, by the header before byte `pos`. Others are laced or compressed."""
    file.seek(max(pos - ELEMENT_HEAD, 0))
    head, content = file.read(min(pos, ELEMENT_HEAD)), BLOCK_HEAD + size
    lengths = (length for length in range(1, 9) if content < (1 << 7 * length) - 1)
    sizes = ((content | 1 << 7 * length).to_bytes(length, "big") for length in lengths)
    return any(head.endswith(bytes([name]) + stated) for stated in sizes for name in BLOCKS)


def _chain(file: BinaryIO, at: int, stop: int) -> int | None:
    """Where the first element at or behind byte `stop` begins, by the elements from byte `at` on; None if unsound."""
    group = at  # where the group of a block ends
    while at < stop:
        one = _element(file, at)
        if (
            one is None
            or one.name not in PARTS | {CLUSTER, BLOCK_GROUP}
            or (one.name == BLOCK_IN_GROUP and at >= group)
            or (one.name in NUMBERS and (one.size is None or one.size > NUMBER_BYTES))
        ):
            return None
        if one.name == BLOCK_GROUP:
            group = one.begin + (one.size or 0)
        at = one.begin + (0 if one.name in (CLUSTER, BLOCK_GROUP) else one.size or 0)
    return at


class Checksums:
    """Compares the clusters of a file with their checksums (CRC-32), each when it is first asked for.

    FFmpeg's muxer writes them into Matroska, not into WebM. A cluster without one counts as whole.
    """

    def __init__(self, path: Path, clusters: Sequence[int]) -> None:
        """`clusters`: the bytes at which clusters begin, ascending, as far as an index lists them."""
        self._path, self._clusters = path, clusters
        self._stop = matroska_end(path)
        self._begin, self._end = 0, 0  # where the cluster lies that was asked for last
        self._whole = True
        self._any = False  # whether a cluster had a checksum
        self.skipped = False  # whether a cluster before it that nobody asked for was damaged

    def hold(self, at: int) -> bool:
        """Whether the cluster around byte `at` is as it was written."""
        if self._begin <= at < self._end:
            self.skipped = False
            return self._whole
        place = bisect_right(self._clusters, at) - 1
        listed = self._clusters[place] if place >= 0 else 0
        follows = self._end and self._end <= at
        self.skipped = False
        with self._path.open("rb") as file:
            if not follows and ((one := _element(file, listed)) is None or one.name != CLUSTER):
                listed = 0  # the index is damaged
            self._move(file, self._end if follows else listed, at, compare=bool(follows))
        return self._whole

    def breaks_behind(self, pos: int, size: int, *, before: int | None = None) -> bool:
        """Whether something unknown follows a block, up to byte `before` if that is given.

        The numbers are those of `ends_soundly`.
        """
        at = pos + BLOCK_HEAD + size
        with self._path.open("rb") as file:
            end = min(at + 1 if before is None else before, file.seek(0, 2))
            return _is_plain(file, pos, size) and _chain(file, at, end) is None

    def _move(self, file: BinaryIO, start: int, at: int, *, compare: bool) -> None:
        """Go from the element at byte `start` to the cluster around byte `at`. `compare`: also those between."""
        end = file.seek(0, 2)
        self._whole = True
        while start <= at:
            one = _element(file, start)
            if one is None or one.name not in PARTS | {CLUSTER, EBML, SEGMENT}:  # what lies here is not known
                place = bisect_right(self._clusters, start)
                following = self._clusters[place] if place < len(self._clusters) else end
                self._begin, self._end, self._whole = start, following, not self._any
                self.skipped |= compare and self._any and following <= at
                start = following
            elif one.name == SEGMENT:
                start = one.begin
            elif one.size is None or one.begin + one.size > end:  # written live, or cut short, or a false size
                sound = one.size is None or self._stop is None or self._stop > end
                self._begin, self._end, self._whole = one.begin, end, sound
                return
            else:
                start = one.begin + one.size
                if one.name == CLUSTER and (compare or start > at):
                    self._begin, self._end, self._whole = one.begin, start, self._holds(file, one.begin, one.size)
                    self.skipped |= not self._whole and start <= at

    def _holds(self, file: BinaryIO, begin: int, size: int) -> bool:
        """Whether the content of a cluster fits the checksum at its beginning."""
        file.seek(begin)
        head = file.read(len(CRC_32) + 4)
        if head[: len(CRC_32)] != CRC_32:
            return not self._any
        self._any = True
        left, crc = size - len(head), 0
        while left > 0:
            block = file.read(min(BLOCK, left))
            left -= len(block)
            crc = zlib.crc32(block, crc)
        return crc == int.from_bytes(head[len(CRC_32) :], "little")
