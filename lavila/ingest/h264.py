"""Which pictures of an H.264 stream are missing, by the numbers in the headers of their slices. Nothing is decoded.

A decoder makes up a picture that others refer to and that is missing, and flags neither it nor what follows. Names are
those of ITU-T H.264: 7.4.3 and 8.2.5.2 say what `frame_num` counts, and 8.2.1 what the picture order count is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from lavila.ingest.h264_headers import (
    NotUnderstood,
    Picture,
    Sequence,
    Slice,
    configuration,
    read_picture,
    read_sequence,
    read_slice,
    units,
)

SLICE, IDR_SLICE, SEQUENCE_SET, PICTURE_SET, DELIMITER = 1, 5, 7, 8, 9  # nal_unit_type
DELIMITER_BYTES, NEXT_START = 2, 16  # of a delimiter; in which the start code behind it ends
BEGINS = 0x80  # the first bit of a slice's header, if it begins with macroblock 0


@dataclass(kw_only=True, slots=True)  # not frozen, since one is made for each picture and that is slower
class Place:
    """The place of a picture in its stream."""

    missing: bool  # whether a picture is missing right before it to which others refer
    losses: int  # how often one was missing up to here
    second_field: bool  # whether it completes the frame of the picture before it
    group: int  # which run of pictures it belongs to: their numbers begin anew with each
    order: int | None  # its place in the order in which the pictures of a run are shown; None = not known
    shown: bool = True  # whether a decoder shows it
    merged: bool = False  # whether its packet holds the beginning of another picture, too, whose slices are lost
    step: int = 2  # by so much the order rises from frame to frame, or by less


class PictureCounter:
    """Follows the numbers of the pictures of one stream, packet by packet in decoding order.

    What is not understood counts as whole: a header of another form, or one without its parameter sets.
    """

    def __init__(self, extradata: bytes) -> None:
        """`extradata`: the decoder's configuration, as FFmpeg has it."""
        self._sequences: dict[int, Sequence] = {}
        self._pictures: dict[int, Picture] = {}
        self._last: Slice | None = None
        self._group, self._losses = 0, 0
        self._reference = 0  # frame_num of the last picture that others refer to
        self._msb, self._lsb = 0, 0  # of the order count of that picture
        self._length, sets = configuration(extradata)
        for unit in sets:
            self._read_set(unit)

    @property
    def may_have_fields(self) -> bool:
        """Whether a sequence that is known so far may have pictures of one field."""
        return any(not sequence.frames_only for sequence in self._sequences.values())

    def place(self, packet: bytes) -> Place | None:
        """The place of the first picture of a packet; None = not known. It may hold both fields of a frame."""
        found: Place | None = None
        begun = 0  # pictures: each may begin with one delimiter (7.4.1.2.3), or two where a muxer adds its own
        delimited = False  # whether the unit before is nothing but a delimiter
        for unit in units(packet, self._length):
            kind = unit[0] & 0b11111
            begun += kind == DELIMITER and not delimited
            rest = unit[DELIMITER_BYTES:NEXT_START].lstrip(b"\0")[:1]  # it lasts to the next start code
            delimited = kind == DELIMITER and (rest == b"\1" or len(unit) < NEXT_START)
            if kind in (SEQUENCE_SET, PICTURE_SET):
                self._read_set(unit)
            elif kind in (SLICE, IDR_SLICE) and len(unit) > 1 and unit[1] & BEGINS:
                try:
                    one = read_slice(unit, idr=kind == IDR_SLICE, pictures=self._pictures, sequences=self._sequences)
                except NotUnderstood:
                    self._last = None  # so nothing is known to be missing before the next one
                    return found
                place = self._place(one)
                found = found or (replace(place, merged=True) if begun > 1 else place)
                if not one.field:
                    break
        return found

    def _place(self, one: Slice) -> Place:
        last = self._last
        second = last is not None and _completes(one, last)
        missing = False
        if not second and (one.idr or last is None or last.restarts):
            self._group += 1
            self._msb = self._lsb = self._reference = 0
        if not second and not one.idr and last is not None:
            step = (one.frame_num - self._reference) % (1 << one.sequence.frame_num_bits)
            missing = (step > 1 or (step == 0 and one.referred)) and not one.sequence.gaps_allowed
            self._losses += missing
        order = self._order(one)
        self._last = one
        if one.referred:
            self._reference = one.frame_num
        return Place(missing=missing, losses=self._losses, second_field=second, group=self._group, order=order)

    def _order(self, one: Slice) -> int | None:
        """The picture order count (8.2.1.1); None for its types 1 and 2, in which pictures are seldom reordered."""
        if one.sequence.order_type:
            return None
        modulus = 1 << one.sequence.order_bits
        msb = self._msb
        if one.order_lsb < self._lsb and self._lsb - one.order_lsb >= modulus // 2:
            msb += modulus
        elif one.order_lsb > self._lsb and one.order_lsb - self._lsb > modulus // 2:
            msb -= modulus
        if one.referred:
            self._msb, self._lsb = msb, one.order_lsb
        return msb + one.order_lsb

    def _read_set(self, unit: bytes) -> None:
        try:
            if unit[0] & 0b11111 == SEQUENCE_SET:
                number, sequence = read_sequence(unit)
                self._sequences[number] = sequence
            elif unit[0] & 0b11111 == PICTURE_SET:
                number, picture = read_picture(unit)
                self._pictures[number] = picture
        except NotUnderstood:  # slices that need it are not understood either
            return


def _completes(one: Slice, last: Slice) -> bool:
    """Whether a picture is the second field of the frame that the picture before it began (7.4.1.2.4)."""
    return {one.field, last.field} == {1, 2} and one.frame_num == last.frame_num and last.idr >= one.idr
