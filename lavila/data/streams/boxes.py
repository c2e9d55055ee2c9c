"""The boxes of an mp4 (ISO/IEC 14496-12), and the errors of reading them."""

from __future__ import annotations

import struct

from lavila.errors import UserError

Span = tuple[int, int]
"""First byte, and the byte after the last."""

BOX_HEADER = 8  # bytes: the size with these bytes, and the type


class TableError(UserError):
    """A video whose tables do not fit its bytes, with the reason in one line."""


class OtherForm(UserError):
    """A video of another form than our encoder's. The message says what is not as expected."""


_box_header = struct.Struct(">I4s").unpack_from  # size and type


def boxes_in(data: bytes, span: Span) -> list[tuple[bytes, Span]]:
    """Type and place of each box in a span of bytes, its header with it. Raises TableError unless they fill it."""
    found: list[tuple[bytes, Span]] = []
    at, stop = span
    while at < stop:
        size, kind = _box_header(data, at)
        if size == 1:
            raise OtherForm("a box of more than 4 GiB")
        if size < BOX_HEADER or at + size > stop:
            raise TableError(f"a part of the mp4 that begins at byte {at} does not end where its header says")
        found.append((kind, (at, at + size)))
        at += size
    return found


def children(data: bytes, span: Span) -> dict[bytes, Span]:
    """The boxes in a box, by type. Raises OtherForm if there are two of one type."""
    inside = boxes_in(data, (span[0] + BOX_HEADER, span[1]))
    found = dict(inside)
    if len(found) != len(inside):
        raise OtherForm("two tracks, or two tables of one kind")
    return found
