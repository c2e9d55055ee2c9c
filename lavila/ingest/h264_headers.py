"""The headers of H.264: units, parameter sets, and the numbers at the start of a slice. Nothing is decoded.

Names are those of ITU-T H.264; 7.3 has the syntax.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

START_CODE = b"\0\0\1"
HEADER_BYTES = 1024  # of a unit, that hold all that is read of it: tables of weights and scaling lists are long
SLICE_BYTES = 64  # that hold most headers of slices
CONFIGURATION_VERSION = 1  # the first byte of AVCDecoderConfigurationRecord (ISO/IEC 14496-15, 5.3.3)
# profile_idc of sequence parameter sets that state their chroma format and scaling lists.
WITH_CHROMA = {44, 83, 86, 100, 110, 118, 122, 128, 134, 135, 138, 139, 244}
P, B, I, SP, SI = range(5)  # slice_type, modulo 5


class NotUnderstood(Exception):
    """A header that ends before its fields, or one of a form that nobody uses."""


class PlainBits:
    """Reads the bits of some bytes."""

    def __init__(self, content: bytes) -> None:
        self._bits, self._left = int.from_bytes(content, "big"), 8 * len(content)

    def read(self, count: int) -> int:
        """The next `count` bits as a number, u(n)."""
        self._left -= count
        if self._left < 0:
            raise NotUnderstood
        return self._bits >> self._left & (1 << count) - 1

    def flag(self) -> bool:
        """The next bit."""
        return bool(self.read(1))


class Bits(PlainBits):
    """Reads the bits of a unit, without the bytes that keep start codes from its content (7.4.1)."""

    def __init__(self, unit: bytes) -> None:
        super().__init__(unit.replace(b"\0\0\3", b"\0\0"))

    def golomb(self) -> int:
        """The next number in Exp-Golomb code, ue(v) and se(v) (9.1); a signed one is not converted."""
        ahead = self._bits & (1 << self._left) - 1
        zeros = self._left - ahead.bit_length()
        self._left -= 2 * zeros + 1
        if self._left < 0 or not ahead:
            raise NotUnderstood
        return (ahead >> self._left) - 1

    def skip_golomb(self, count: int) -> None:
        """Leave out some numbers in Exp-Golomb code."""
        for _ in range(count):
            self.golomb()


@dataclass(frozen=True, kw_only=True, slots=True)
class Sequence:
    """What a sequence parameter set says of the headers of its slices."""

    separate_planes: bool
    has_chroma: bool  # ChromaArrayType is not 0
    frame_num_bits: int
    gaps_allowed: bool  # gaps_in_frame_num_value_allowed_flag
    order_type: int  # pic_order_cnt_type
    order_bits: int  # of pic_order_cnt_lsb; type 0 only
    has_deltas: bool  # not delta_pic_order_always_zero_flag; type 1 only
    frames_only: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """What a picture parameter set says of the headers of its slices."""

    sequence: int  # id of its sequence parameter set
    order_of_bottom: bool  # bottom_field_pic_order_in_frame_present_flag
    references: tuple[int, int]  # default length of both lists of reference pictures
    weights: tuple[bool, bool]  # whether slices of type P, and of type B, have tables of weights
    redundant: bool  # redundant_pic_cnt_present_flag


@dataclass(kw_only=True, slots=True)  # not frozen: see `Place`
class Slice:
    """The numbers of a picture, from the header of its first slice."""

    idr: bool
    referred: bool  # whether others may refer to the picture
    frame_num: int
    order_lsb: int  # pic_order_cnt_lsb
    field: int  # 0 = a frame, 1 = a top field, 2 = a bottom field
    restarts: bool  # whether the numbers begin anew behind it (memory_management_control_operation 5)
    sequence: Sequence


def units(data: bytes, length: int) -> Iterator[bytes]:
    """The units of a packet. `length`: bytes of the length before each; 0 = start codes. Of long ones the beginning."""
    if length:
        at = 0
        while at + length < len(data):
            size = int.from_bytes(data[at : at + length], "big")
            if size:
                yield data[at + length : at + length + min(size, HEADER_BYTES)]
            at += length + size
        return
    at = data.find(START_CODE)
    while at >= 0:
        at += len(START_CODE)
        if at < len(data):
            yield data[at : at + HEADER_BYTES]
        at = data.find(START_CODE, at)


def configuration(extradata: bytes) -> tuple[int, list[bytes]]:
    """The length of lengths (as for `units`) and the parameter sets, from what FFmpeg gives its decoder."""
    if extradata[:1] != bytes([CONFIGURATION_VERSION]) or len(extradata) < 7:
        return 0, list(units(extradata, 0))
    found, at = [], 5
    for mask in (0b11111, 0xFF):  # numOfSequenceParameterSets has 5 bits
        for _ in range(extradata[at] & mask if at < len(extradata) else 0):
            size = int.from_bytes(extradata[at + 1 : at + 3], "big")
            found.append(extradata[at + 3 : at + 3 + size])
            at += 2 + size
        at += 1
    return (extradata[4] & 0b11) + 1, [unit for unit in found if unit]


def read_sequence(unit: bytes) -> tuple[int, Sequence]:
    """The id of a sequence parameter set, and what it says (7.3.2.1.1)."""
    bits = Bits(unit[1:])
    profile = bits.read(8)
    bits.read(16)  # constraint flags, level_idc
    number, chroma, separate = bits.golomb(), 1, False
    if profile in WITH_CHROMA:
        chroma = bits.golomb()
        separate = chroma == 3 and bits.flag()
        bits.skip_golomb(2)  # bit depths
        bits.read(1)  # qpprime_y_zero_transform_bypass_flag
        if bits.flag():  # seq_scaling_matrix_present_flag
            for place in range(12 if chroma == 3 else 8):
                if bits.flag():
                    _skip_scaling_list(bits, 16 if place < 6 else 64)
    frame_num_bits, order_type = bits.golomb() + 4, bits.golomb()
    order_bits, has_deltas = 0, False
    if order_type == 0:
        order_bits = bits.golomb() + 4
    elif order_type == 1:
        has_deltas = not bits.flag()
        bits.skip_golomb(2)
        bits.skip_golomb(bits.golomb())
    bits.golomb()  # max_num_ref_frames
    gaps_allowed = bits.flag()
    bits.skip_golomb(2)  # width and height
    return number, Sequence(
        separate_planes=separate,
        has_chroma=chroma != 0 and not separate,
        frame_num_bits=frame_num_bits,
        gaps_allowed=gaps_allowed,
        order_type=order_type,
        order_bits=order_bits,
        has_deltas=has_deltas,
        frames_only=bits.flag(),
    )


def _skip_scaling_list(bits: Bits, size: int) -> None:
    last = following = 8
    for _ in range(size):
        if following:
            code = bits.golomb()  # delta_scale, se(v)
            following = (last + ((code + 1) // 2 if code % 2 else -code // 2)) % 256
        last = following or last


def read_picture(unit: bytes) -> tuple[int, Picture]:
    """The id of a picture parameter set, and what it says (7.3.2.2)."""
    bits = Bits(unit[1:])
    number, sequence = bits.golomb(), bits.golomb()
    bits.read(1)  # entropy_coding_mode_flag
    order_of_bottom = bits.flag()
    if bits.golomb():  # num_slice_groups_minus1
        raise NotUnderstood
    references = bits.golomb() + 1, bits.golomb() + 1
    weights = bits.flag(), bits.read(2) == 1
    bits.skip_golomb(3)  # quantisers
    bits.read(2)  # deblocking_filter_control_present_flag, constrained_intra_pred_flag
    return number, Picture(
        sequence=sequence,
        order_of_bottom=order_of_bottom,
        references=references,
        weights=weights,
        redundant=bits.flag(),
    )


def read_slice(unit: bytes, *, idr: bool, pictures: dict[int, Picture], sequences: dict[int, Sequence]) -> Slice:
    """The numbers in the header of a slice (7.3.3). NotUnderstood without its parameter sets, too."""
    try:
        return _read_slice(unit[:SLICE_BYTES], idr=idr, pictures=pictures, sequences=sequences)
    except NotUnderstood:
        if len(unit) <= SLICE_BYTES:
            raise
        return _read_slice(unit, idr=idr, pictures=pictures, sequences=sequences)


def _read_slice(unit: bytes, *, idr: bool, pictures: dict[int, Picture], sequences: dict[int, Sequence]) -> Slice:
    bits = Bits(unit[1:])
    bits.golomb()  # first_mb_in_slice
    kind = bits.golomb() % 5
    picture = pictures.get(bits.golomb())
    sequence = None if picture is None else sequences.get(picture.sequence)
    if picture is None or sequence is None:
        raise NotUnderstood
    if sequence.separate_planes:
        bits.read(2)  # colour_plane_id
    frame_num, field = bits.read(sequence.frame_num_bits), 0
    if not sequence.frames_only and bits.flag():
        field = 1 + bits.read(1)
    if idr:
        bits.golomb()  # idr_pic_id
    order_lsb = bits.read(sequence.order_bits) if sequence.order_type == 0 else 0
    referred = unit[0] >> 5 & 0b11 > 0
    return Slice(
        idr=idr,
        referred=referred,
        frame_num=frame_num,
        order_lsb=order_lsb,
        field=field,
        restarts=referred and not idr and _restarts(bits, kind, field, picture, sequence),
        sequence=sequence,
    )


def _restarts(bits: Bits, kind: int, field: int, picture: Picture, sequence: Sequence) -> bool:
    """Whether a slice of a picture to which others refer holds operation 5. `bits` stand behind pic_order_cnt_lsb."""
    deltas = sequence.has_deltas or sequence.order_type == 0
    if sequence.has_deltas:
        bits.golomb()
    if deltas and picture.order_of_bottom and not field:
        bits.golomb()
    if picture.redundant:
        bits.golomb()
    if kind == B:
        bits.read(1)  # direct_spatial_mv_pred_flag
    lengths = [*picture.references][: {P: 1, SP: 1, B: 2}.get(kind, 0)]
    if lengths and bits.flag():  # num_ref_idx_active_override_flag
        lengths = [bits.golomb() + 1 for _ in lengths]
    for _ in lengths:
        if bits.flag():  # ref_pic_list_modification_flag
            while bits.golomb() != 3:
                bits.golomb()
    if lengths and picture.weights[kind == B]:
        _skip_weights(bits, lengths, has_chroma=sequence.has_chroma)
    if not bits.flag():  # adaptive_ref_pic_marking_mode_flag
        return False
    while operation := bits.golomb():
        if operation == 5:
            return True
        bits.skip_golomb(2 if operation == 3 else 1)
    return False


def _skip_weights(bits: Bits, lengths: list[int], *, has_chroma: bool) -> None:
    bits.skip_golomb(1 + has_chroma)
    for length in lengths:
        for _ in range(length):
            if bits.flag():
                bits.skip_golomb(2)
            if has_chroma and bits.flag():
                bits.skip_golomb(4)
