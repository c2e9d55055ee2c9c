"""What the headers of AV1 frames say about the frames they need.

AV1 keeps up to eight frames in slots. A frame's header names the slots that it may refer to, and those that it fills.
All that passes from one frame to another passes through slots: pixels, motion vectors, probabilities, segmentation,
loop filter and film grain. So a frame needs the frames in the slots that it names, and no others. Names and order of
the fields are those of the "AV1 Bitstream & Decoding Process Specification", 5.3 to 5.9.

A packet is a temporal unit. Exactly one of its frames is shown; hidden ones before it serve later frames.

The headers of all frames of a group are read, which in Python would take longer than all else here. So that part is
compiled.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Row
from functools import lru_cache
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from lavila.data.host.colour import compiled
from lavila.data.streams.mp4 import Groups, Packets

OBU_SEQUENCE_HEADER, OBU_FRAME_HEADER, OBU_FRAME, OBU_TILE_LIST = 1, 3, 6, 8
KEY_FRAME, INTER_FRAME, INTRA_ONLY_FRAME, SWITCH_FRAME = 0, 1, 2, 3
SELECT = 2  # SELECT_SCREEN_CONTENT_TOOLS, SELECT_INTEGER_MV
SLOTS, ALL_SLOTS = 8, 0xFF  # NUM_REF_FRAMES
Bytes = npt.NDArray[np.uint8]
Span = tuple[int, int]
# The fields of a sequence header on which the layout of frame headers depends: seq_force_screen_content_tools,
# seq_force_integer_mv, and OrderHintBits (0 without enable_order_hint).
Sequence = tuple[int, int, int]


class Av1Reader:
    """Reads the headers of AV1 packets.

    The sequence header is the one in the packets. SVT-AV1 sets up the decoder in the mp4's header with another one.
    """

    def begins(self, packet: memoryview) -> bool:
        """Whether the packet has a sequence header, and after it a keyframe that is shown."""
        headed = False
        for kind, (start, _) in _obus(packet):
            headed |= kind == OBU_SEQUENCE_HEADER
            if kind in (OBU_FRAME, OBU_FRAME_HEADER):
                # show_existing_frame (1 bit), frame_type (2; KEY_FRAME), show_frame
                return headed and packet[start] >> 4 == 0b0001
        return False

    def needed(self, packets: Packets, groups: Groups) -> list[int]:
        """The places, ascending, that a decoder needs for the wanted ones, with these."""
        each = (self._needed_of_group(packets, start, wanted) for start, wanted in groups.items())
        return list(chain.from_iterable(each))

    def _needed_of_group(self, packets: Packets, start: int, wanted: Row[int]) -> list[int]:
        first, last = packets.view(start), wanted[-1]
        headers = [bytes(first[slice(*span)]) for kind, span in _obus(first) if kind == OBU_SEQUENCE_HEADER]
        sequence = _sequence(headers[0]) if len(headers) == 1 else None
        if sequence is None:
            return list(range(start, last + 1))
        keep = np.zeros(last + 1 - start, np.bool_)
        keep[np.array(wanted) - start] = True
        keep[0] = True
        starts, sizes = np.array(packets.starts[start : last + 1]), np.array(packets.sizes[start : last + 1])
        if not _keep_needed(np.frombuffer(packets.data, np.uint8), starts, sizes, sequence, keep):
            return list(range(start, last + 1))
        needed: list[int] = (start + np.flatnonzero(keep)).tolist()
        return needed


def av1_pictures(packet: memoryview) -> int:
    """The number of frames that a decoder decodes for a packet, the hidden ones with them."""
    starts = [start for kind, (start, _) in _obus(packet) if kind in (OBU_FRAME, OBU_FRAME_HEADER)]
    return sum(packet[start] >> 7 == 0 for start in starts)  # show_existing_frame 0


def _obus(packet: memoryview) -> Iterator[tuple[int, Span]]:
    """Type and payload of each OBU; nothing more from the first one on that does not fit the packet."""
    at = 0
    while at < len(packet):
        # obu_forbidden_bit, obu_type (4 bits), obu_extension_flag, obu_has_size_field, obu_reserved_1bit
        kind, extended, sized = packet[at] >> 3 & 0b1111, packet[at] >> 2 & 1, packet[at] >> 1 & 1
        at += 1 + extended
        size, shift = len(packet) - at, 0
        if sized:  # obu_size, leb128
            size = 0
            while at < len(packet) and shift < 35:
                size |= (packet[at] & 0x7F) << shift
                at, shift = at + 1, shift + 7
                if packet[at - 1] < 0x80:
                    break
        if not 0 <= size <= len(packet) - at:
            return
        if size:
            yield kind, (at, at + size)
        at += size


class _Bits:
    """Reads the fields of a header, the most significant bit first. Beyond the end come zeros."""

    def __init__(self, data: bytes) -> None:
        self._value, self._left = int.from_bytes(data, "big") << 512, 8 * len(data) + 512

    def take(self, bits: int) -> int:
        self._left -= bits
        return self._value >> max(self._left, 0) & (1 << bits) - 1


@lru_cache
def _sequence(obu: bytes) -> Sequence | None:
    """The fields of sequence_header_obu(); None for what video encoders do not write."""
    bits = _Bits(obu)
    bits.take(3)  # seq_profile
    # still_picture, reduced_still_picture_header, timing_info_present_flag. With timing, frame headers may hold times.
    if bits.take(3):
        return None
    display_delays = bits.take(1)  # initial_display_delay_present_flag
    for _ in range(bits.take(5) + 1):  # operating_points_cnt_minus_1
        bits.take(12)  # operating_point_idc
        if bits.take(5) > 7:  # seq_level_idx
            bits.take(1)  # seq_tier
        if display_delays and bits.take(1):
            bits.take(4)  # initial_display_delay_minus_1
    width_bits, height_bits = bits.take(4) + 1, bits.take(4) + 1
    bits.take(width_bits + height_bits)  # max_frame_width_minus_1, max_frame_height_minus_1
    if bits.take(1):  # frame_id_numbers_present_flag
        return None
    bits.take(7)  # from use_128x128_superblock to enable_dual_filter
    order_hints = bits.take(1)  # enable_order_hint
    bits.take(2 * order_hints)  # enable_jnt_comp, enable_ref_frame_mvs
    tools = SELECT if bits.take(1) else bits.take(1)  # seq_choose_screen_content_tools, or the choice
    integer_mv = SELECT
    if tools:
        integer_mv = SELECT if bits.take(1) else bits.take(1)  # seq_choose_integer_mv, or the choice
    return tools, integer_mv, bits.take(3) + 1 if order_hints else 0


@compiled
def _keep_needed(data: Bytes, starts: Any, sizes: Any, sequence: Sequence, keep: Any) -> bool:
    """Add to `keep` the packets that hold the frames to which those in `keep` may refer.

    `starts`, `sizes`: [P] first byte and bytes of each packet; decoding may begin at the first. Returns False for a
    packet that is not recognised, one with layers, and one whose last frame is not the only one that is shown.
    """
    count = starts.shape[0]
    needs = np.full((count, SLOTS), -1, np.int64)  # the packets before it that each packet needs, by slot
    holder = np.zeros(SLOTS, np.int64)  # the packet that holds the frame in each slot
    types = np.zeros(SLOTS, np.int64)  # its frame_type
    for place in range(count):
        at, stop, shown = starts[place], starts[place] + sizes[place], False
        while at < stop:
            kind, size = (data[at] >> 3) & 15, stop - at - 1
            if data[at] & 0b10000100:  # obu_forbidden_bit, obu_extension_flag
                return False
            at += 1
            if data[at - 1] & 0b10:  # obu_has_size_field
                size, shift, more = 0, 0, True
                while more:  # obu_size, leb128
                    if at >= stop or shift > 28:
                        return False
                    size |= (np.int64(data[at]) & 0x7F) << shift
                    more = data[at] >= 0x80
                    shift += 7
                    at += 1
            if at + size > stop or kind == OBU_TILE_LIST or (kind == OBU_SEQUENCE_HEADER and place > 0):
                return False
            if kind in (OBU_FRAME, OBU_FRAME_HEADER):
                header = np.uint64(0)
                for byte in range(8):
                    header = (header << np.uint64(8)) | np.uint64(data[at + byte] if byte < size else 0)
                shows, frame_type, shown_now, refresh, refers = _frame(header, sequence)
                if shown or frame_type < 0:
                    return False
                shown = shown_now == 1
                if shows >= 0:
                    refers, frame_type = 1 << shows, types[shows]
                    refresh = ALL_SLOTS if frame_type == KEY_FRAME else 0  # a keyframe shown again fills all slots
                for slot in range(SLOTS):
                    if (refers >> slot) & 1 and holder[slot] != place:
                        needs[place, slot] = holder[slot]
                for slot in range(SLOTS):
                    if (refresh >> slot) & 1:
                        holder[slot], types[slot] = place, frame_type
            at += size
        if not shown:
            return False
    for place in range(count - 1, -1, -1):
        for slot in range(SLOTS):
            if keep[place] and needs[place, slot] >= 0:
                keep[needs[place, slot]] = True
    return True


@compiled
def _field(header: Any, at: int, bits: int) -> Any:
    """`bits` bits from bit `at` of 64, the most significant first."""
    return np.int64((header >> np.uint64(64 - at - bits)) & np.uint64((1 << bits) - 1))


@compiled
def _frame(header: Any, sequence: Sequence) -> tuple[int, int, int, int, int]:
    """uncompressed_header(), up to the slots, from its first 64 bits.

    Returns frame_to_show_map_idx (-1 for a new frame), frame_type, show_frame, refresh_frame_flags (bit i: it fills
    slot i), and a number whose bit i says that it may refer to slot i. frame_type is -1 for what is not read here.
    """
    tools, integer_mv, hint_bits = sequence
    if _field(header, 0, 1):  # show_existing_frame
        return _field(header, 1, 3), INTER_FRAME, 1, 0, 0
    frame_type, shown = _field(header, 1, 2), _field(header, 3, 1)
    at = 4 if shown else 5  # showable_frame
    if frame_type == SWITCH_FRAME:
        return -1, -1, 0, 0, 0
    intra, whole = frame_type != INTER_FRAME, frame_type == KEY_FRAME and shown == 1
    if whole:  # it fills all slots, and refers to none
        return -1, frame_type, shown, ALL_SLOTS, 0
    resilient = _field(header, at, 1)  # error_resilient_mode
    at += 2  # disable_cdf_update
    if tools == SELECT:
        tools = _field(header, at, 1)  # allow_screen_content_tools
        at += 1
    if tools and integer_mv == SELECT:
        at += 1  # force_integer_mv
    at += 1 + hint_bits  # frame_size_override_flag, order_hint
    if not (intra or resilient):
        at += 3  # primary_ref_frame, one of those below
    refresh = _field(header, at, 8)
    at += 8
    if intra:
        return -1, frame_type, shown, refresh, 0
    if hint_bits:
        # With error_resilient_mode, ref_order_hint comes before the references, and does not fit in 64 bits. With
        # frame_refs_short_signaling, the references are computed from the frames in all slots.
        if resilient or _field(header, at, 1):
            return -1, frame_type, shown, refresh, ALL_SLOTS
        at += 1
    refers = 0
    for number in range(7):  # ref_frame_idx
        refers |= 1 << _field(header, at + 3 * number, 3)
    return -1, frame_type, shown, refresh, refers
