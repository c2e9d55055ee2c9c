"""Which pictures of an HEVC stream are missing, by the headers of their slices. Nothing is decoded.

Each picture lists the pictures to which it refers, and those that are kept for later ones, by their places in the order
of the screen. A decoder makes up one that is missing, and flags nothing. Names are those of ITU-T H.265: 7.3 has the
syntax, 8.3.1 the order count, and 8.3.2 the reference picture sets.
"""

from __future__ import annotations

from dataclasses import dataclass

from lavila.ingest.h264 import Place
from lavila.ingest.h264_headers import Bits, NotUnderstood, units

SEQUENCE_SET, PICTURE_SET, END_OF_SEQUENCE = 33, 34, 36  # nal_unit_type
BLA = (16, 17, 18)
IDR = (19, 20)
CRA = 21
START = range(16, 24)  # pictures at which decoding can begin
LEADING = range(6, 10)  # RADL and RASL pictures
SKIPPED = (8, 9)  # RASL pictures: they refer to pictures before the start that they lead
MOST_SLICES = 32  # numbers of slices' types below this; the others are no slices
NOT_REFERRED = range(0, 15, 2)  # SLNR pictures: none of the same temporal layer refers to them
BEGINS = 0x80  # the first bit of a slice's header, if it is the first slice of a picture
MOST_SETS = 64  # num_short_term_ref_pic_sets


@dataclass(frozen=True, slots=True)
class _Set:
    """A short-term reference picture set: distances in order count, and whether the picture itself refers to each."""

    before: tuple[tuple[int, bool], ...]
    after: tuple[tuple[int, bool], ...]

    @property
    def all(self) -> tuple[tuple[int, bool], ...]:
        return self.before + self.after


@dataclass(frozen=True, kw_only=True, slots=True)
class _Sequence:
    separate_planes: bool
    order_bits: int  # of slice_pic_order_cnt_lsb
    sets: tuple[_Set, ...]
    long_term: bool  # long_term_ref_pics_present_flag
    long_lsbs: tuple[int, ...]  # lt_ref_pic_poc_lsb_sps


@dataclass(frozen=True, kw_only=True, slots=True)
class _Picture:
    sequence: int  # id of its sequence parameter set
    output_flag: bool  # output_flag_present_flag
    extra_bits: int  # num_extra_slice_header_bits


class HevcCounter:
    """Follows the pictures of one stream, packet by packet in decoding order, as `PictureCounter` does for H.264.

    What is not understood counts as whole: a header of another form, or one without its parameter sets.
    """

    def __init__(self, extradata: bytes) -> None:
        """`extradata`: the decoder's configuration, as FFmpeg has it."""
        self._sequences: dict[int, _Sequence] = {}
        self._pictures: dict[int, _Picture] = {}
        self._kept: set[int] = set()  # order counts of the pictures that the decoder has
        self._group, self._losses = 0, 0
        self._fresh = True  # whether the next start begins a stream
        self._skips = False  # whether pictures that lead the last start refer to what is not there
        self._anchor = 0  # order count of the last picture of temporal layer 0 to which others refer
        self._length, sets = _configuration(extradata)
        for unit in sets:
            self._read_set(unit)

    def place(self, packet: bytes) -> Place | None:
        """The place of the picture of a packet; None = not known."""
        found: Place | None = None
        for unit in units(packet, self._length):
            if len(unit) < 3:
                continue
            kind, layer = unit[0] >> 1 & 0b111111, (unit[0] & 1) << 5 | unit[1] >> 3
            if layer:
                continue
            if kind in (SEQUENCE_SET, PICTURE_SET):
                self._read_set(unit)
            elif kind == END_OF_SEQUENCE:
                self._fresh = True
            elif kind < MOST_SLICES and unit[2] & BEGINS and found is None:
                try:
                    found = self._read_slice(unit, kind)
                except NotUnderstood:
                    return None
        return found

    def _read_slice(self, unit: bytes, kind: int) -> Place:
        bits = Bits(unit[2:])
        bits.flag()  # first_slice_segment_in_pic_flag
        if kind in START:
            bits.flag()  # no_output_of_prior_pics_flag
        picture = self._pictures.get(bits.golomb())
        sequence = None if picture is None else self._sequences.get(picture.sequence)
        if picture is None or sequence is None:
            raise NotUnderstood
        bits.read(picture.extra_bits)
        bits.golomb()  # slice_type
        shown = bits.flag() if picture.output_flag else True
        if sequence.separate_planes:
            bits.read(2)  # colour_plane_id
        begins = kind in IDR or kind in BLA or (kind == CRA and self._fresh)
        if begins:
            self._group += 1
            self._fresh, self._skips = False, kind not in IDR
            self._anchor = 0
        order, lacks = 0, False
        if kind in IDR:
            self._kept = set()
        else:
            modulus = 1 << sequence.order_bits
            lsb = bits.read(sequence.order_bits)
            order = lsb if begins else _nearest(lsb, self._anchor, modulus)
            needed, kept = self._references(bits, sequence, order)
            if kind in SKIPPED and self._skips:
                return Place(
                    missing=False,
                    losses=self._losses,
                    second_field=False,
                    group=self._group,
                    order=order,
                    shown=False,
                    step=1,
                )
            lacks = not begins and not needed <= self._kept
            self._kept = set() if begins else self._kept & kept
        self._losses += lacks
        self._kept.add(order)
        if unit[1] & 0b111 == 1 and kind not in NOT_REFERRED and kind not in LEADING:
            self._anchor = order
        return Place(
            missing=lacks, losses=self._losses, second_field=False, group=self._group, order=order, shown=shown, step=1
        )

    def _references(self, bits: Bits, sequence: _Sequence, order: int) -> tuple[set[int], set[int]]:
        """The order counts of the pictures to which a picture refers, and of all that are kept."""
        if not bits.flag():  # short_term_ref_pic_set_sps_flag
            one = _read_set(bits, sequence.sets, slice_header=True)
        else:
            place = bits.read((len(sequence.sets) - 1).bit_length()) if len(sequence.sets) > 1 else 0
            if place >= len(sequence.sets):
                raise NotUnderstood
            one = sequence.sets[place]
        needed = {order + distance for distance, used in one.all if used}
        kept = {order + distance for distance, _ in one.all}
        if sequence.long_term:
            # Most name only the last bits of a place. Such a picture counts as there.
            lsbs = self._long_terms(bits, sequence)
            modulus = 1 << sequence.order_bits
            kept |= {other for other in self._kept if other % modulus in lsbs}
        return needed, kept

    @staticmethod
    def _long_terms(bits: Bits, sequence: _Sequence) -> set[int]:
        listed = bits.golomb() if sequence.long_lsbs else 0
        count = listed + bits.golomb()
        if count > MOST_SETS:
            raise NotUnderstood
        lsbs = set()
        for place in range(count):
            if place < listed:
                which = bits.read((len(sequence.long_lsbs) - 1).bit_length())
                if which >= len(sequence.long_lsbs):
                    raise NotUnderstood
                lsbs.add(sequence.long_lsbs[which])
            else:
                lsbs.add(bits.read(sequence.order_bits))
                bits.flag()  # used_by_curr_pic_lt_flag
            if bits.flag():  # delta_poc_msb_present_flag
                bits.golomb()
        return lsbs

    def _read_set(self, unit: bytes) -> None:
        try:
            if unit[0] >> 1 & 0b111111 == SEQUENCE_SET:
                number, sequence = _read_sequence(unit)
                self._sequences[number] = sequence
            elif unit[0] >> 1 & 0b111111 == PICTURE_SET:
                number, picture = _read_picture(unit)
                self._pictures[number] = picture
        except NotUnderstood:  # slices that need it are not understood either
            return


def _nearest(lsb: int, anchor: int, modulus: int) -> int:
    """The order count with these last bits (8.3.1)."""
    before = anchor % modulus
    msb = anchor - before
    if lsb < before and before - lsb >= modulus // 2:
        msb += modulus
    elif lsb > before and lsb - before > modulus // 2:
        msb -= modulus
    return msb + lsb


def _configuration(extradata: bytes) -> tuple[int, list[bytes]]:
    """The bytes of the length before each unit, and the parameter sets (HEVCDecoderConfigurationRecord)."""
    if extradata[:1] != b"\1" or len(extradata) < 23:
        return 0, list(units(extradata, 0))
    found, at = [], 23
    for _ in range(extradata[22]):
        count, at = int.from_bytes(extradata[at + 1 : at + 3], "big"), at + 3
        for _ in range(count):
            size = int.from_bytes(extradata[at : at + 2], "big")
            found.append(extradata[at + 2 : at + 2 + size])
            at += 2 + size
            if at > len(extradata):
                break
    return (extradata[21] & 0b11) + 1, [unit for unit in found if len(unit) > 2]


def _read_sequence(unit: bytes) -> tuple[int, _Sequence]:
    """The id of a sequence parameter set, and what it says (7.3.2.2)."""
    bits = Bits(unit[2:])
    bits.read(4)  # sps_video_parameter_set_id
    sub_layers = bits.read(3)  # sps_max_sub_layers_minus1
    bits.read(1)
    _skip_levels(bits, sub_layers)
    number = bits.golomb()
    separate = bits.golomb() == 3 and bits.flag()
    bits.skip_golomb(2)  # width and height
    if bits.flag():  # conformance_window_flag
        bits.skip_golomb(4)
    bits.skip_golomb(2)  # depths
    order_bits = bits.golomb() + 4
    bits.skip_golomb(3 * (sub_layers + 1 if bits.flag() else 1))  # sub_layer_ordering_info_present_flag
    bits.skip_golomb(6)  # sizes of blocks
    if bits.flag() and bits.flag():  # scaling_list_enabled_flag, sps_scaling_list_data_present_flag
        _skip_scaling_lists(bits)
    bits.read(2)  # amp_enabled_flag, sample_adaptive_offset_enabled_flag
    if bits.flag():  # pcm_enabled_flag
        bits.read(8)
        bits.skip_golomb(2)
        bits.read(1)
    count = bits.golomb()
    if count > MOST_SETS or order_bits > 16:
        raise NotUnderstood
    sets: list[_Set] = []
    for _ in range(count):
        sets.append(_read_set(bits, sets, slice_header=False))
    long_term = bits.flag()
    long_lsbs: list[int] = []
    if long_term:
        for _ in range(min(bits.golomb(), MOST_SETS)):
            long_lsbs.append(bits.read(order_bits))
            bits.read(1)
    return number, _Sequence(
        separate_planes=separate,
        order_bits=order_bits,
        sets=tuple(sets),
        long_term=long_term,
        long_lsbs=tuple(long_lsbs),
    )


def _skip_levels(bits: Bits, sub_layers: int) -> None:
    """profile_tier_level (7.3.3)."""
    bits.read(96)
    present = [(bits.flag(), bits.flag()) for _ in range(sub_layers)]
    if sub_layers:
        bits.read(2 * (8 - sub_layers))
    for profile, level in present:
        bits.read(88 * profile + 8 * level)


def _skip_scaling_lists(bits: Bits) -> None:
    for size in range(4):
        for _ in range(2 if size == 3 else 6):
            if not bits.flag():  # scaling_list_pred_mode_flag
                bits.golomb()
            else:
                bits.skip_golomb((size > 1) + min(64, 1 << (4 + 2 * size)))


def _read_set(bits: Bits, sets: list[_Set] | tuple[_Set, ...], *, slice_header: bool) -> _Set:
    """st_ref_pic_set (7.3.7), and what follows from it (7.4.8). `sets`: those before it."""
    if not sets or not bits.flag():  # inter_ref_pic_set_prediction_flag
        counts = bits.golomb(), bits.golomb()
        if max(counts) > MOST_SETS:
            raise NotUnderstood
        sides = []
        for count, sign in zip(counts, (-1, 1), strict=True):
            distance, side = 0, []
            for _ in range(count):
                distance += sign * (bits.golomb() + 1)
                side.append((distance, bits.flag()))
            sides.append(tuple(side))
        return _Set(*sides)
    back = bits.golomb() + 1 if slice_header else 1
    if back > len(sets):
        raise NotUnderstood
    model = sets[-back].all
    negative = bits.flag()
    step = (bits.golomb() + 1) * (-1 if negative else 1)
    found: list[tuple[int, bool]] = []
    for distance, _ in (*model, (0, True)):
        used = bits.flag()
        if used or bits.flag():  # use_delta_flag
            found.append((distance + step, used))
    before = sorted((one for one in found if one[0] < 0), reverse=True)
    return _Set(tuple(before), tuple(sorted(one for one in found if one[0] > 0)))


def _read_picture(unit: bytes) -> tuple[int, _Picture]:
    """The id of a picture parameter set, and what it says (7.3.2.3)."""
    bits = Bits(unit[2:])
    number, sequence = bits.golomb(), bits.golomb()
    bits.read(1)  # dependent_slice_segments_enabled_flag
    return number, _Picture(sequence=sequence, output_flag=bits.flag(), extra_bits=bits.read(3))
