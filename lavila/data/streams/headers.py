"""What the headers of coded pictures say about which of them others need. Nothing is decoded.

A `Reader` knows one codec. It says where decoding may begin, and which packets of a group of pictures its wanted ones
need. The names are those of the standards: ITU-T H.264 and H.265, ISO/IEC 14496-15, "AV1 Bitstream & Decoding Process
Specification" and "VP9 Bitstream & Decoding Process Specification".

What a reader does not recognise counts as needed. So a stream with something new in it costs time, and no picture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import chain, compress
from typing import Any, Protocol

import numpy as np

from lavila.data.host.colour import Bytes, compiled
from lavila.data.streams.av1 import Av1Reader, av1_pictures
from lavila.data.streams.mp4 import Groups, Packets


class Reader(Protocol):
    """Reads the headers of one codec."""

    def begins(self, packet: memoryview) -> bool:
        """Whether decoding may begin with this packet: no later frame refers to an earlier one."""
        ...

    def needed(self, packets: Packets, groups: Groups) -> list[int]:
        """The places, ascending, that a decoder needs for the wanted ones, with these."""
        ...


def reader_of(packets: Packets) -> Reader:
    """The reader for a video."""
    make = _READERS.get(packets.codec)
    return _Everything() if make is None else make(packets.config)


def pictures_in(packets: Packets) -> int:
    """The number of frames that a decoder decodes for the packets, with those that are never shown (VP9, AV1)."""
    every = map(packets.view, range(len(packets.sizes)))
    if packets.codec == "av1":
        return sum(map(av1_pictures, every))
    if packets.codec == "vp9":
        return sum(max(vp9_superframe(packet), 1) for packet in every)
    return len(packets.sizes)


class _Everything:
    """For codecs whose headers are not read: everything from the first packet on is needed."""

    def begins(self, packet: memoryview) -> bool:
        return False

    def needed(self, packets: Packets, groups: Groups) -> list[int]:
        return [place for start, wanted in groups.items() for place in range(start, wanted[-1] + 1)]


class Vp9Reader(_Everything):
    """VP9: decoding begins at keyframes, and a frame with refresh_frame_flags 0 can be left out if it is not wanted.

    That holds where every frame after the keyframe has error_resilient_mode 1, as ours have. Otherwise a frame from
    which no other takes pixels serves those after it with the probabilities that it adapts, with its motion vectors and
    its segmentation map. Then all frames are needed.
    """

    def begins(self, packet: memoryview) -> bool:
        """Whether the packet is a keyframe that is shown, and holds no other frame."""
        first = packet[0]
        # frame_marker (2 bits), profile_low_bit, profile_high_bit, for profile 3 a reserved bit, show_existing_frame,
        # frame_type (0 = KEY_FRAME), show_frame.
        if first >> 6 != 0b10 or first >> 4 & 0b11 == 0b11:
            return False
        return first & 0b1110 == 0b0010 and not vp9_superframe(packet)

    def needed(self, packets: Packets, groups: Groups) -> list[int]:
        """As `Reader.needed`."""
        data, starts, sizes = packets.data, packets.starts, packets.sizes
        places: list[int] = []
        for start, wanted in groups.items():
            later = range(start + 1, wanted[-1] + 1)
            alone = all(
                data[starts[place]] == VP9_ALONE and sizes[place] > 1 and not vp9_superframe(packets.view(place))
                for place in later
            )
            needed = {start, *wanted}
            # The second byte of such a frame is refresh_frame_flags.
            places += [place for place in later if not alone or data[starts[place] + 1] or place in needed]
            places.append(start)
        return sorted(places)


# The first byte of a frame that is decoded with its reference pictures alone: frame_marker 2, profile 0,
# show_existing_frame 0, frame_type 1 (not a keyframe), show_frame 1, error_resilient_mode 1.
VP9_ALONE = 0b10_00_0_1_1_1


def vp9_superframe(packet: bytes | memoryview) -> int:
    """The number of frames in a VP9 packet with a superframe index (annex B); 0 for a packet without one.

    All of its frames but the last are hidden.
    """
    marker = packet[-1]
    if marker >> 5 != 0b110:
        return 0
    frames, size_bytes = (marker & 0b111) + 1, (marker >> 3 & 0b11) + 1
    index = 2 + frames * size_bytes  # bytes; it begins with the marker, too
    return frames if len(packet) >= index and packet[-index] == marker else 0


@dataclass(frozen=True)
class NalReader:
    """H.264 and HEVC: a packet is a row of NAL units, each with its length before it.

    The first byte of a unit holds its type, and that of a coded slice whether other frames refer to its frame. Decoding
    begins at a packet whose first slice is of one of the types `starts`. A packet can be left out if its units
    are slices of frames that no other refers to, and perhaps others of types that decoders need not read.
    """

    length_size: int  # bytes of the length before each unit
    unit_type: Callable[[int], int]  # first byte of a unit -> nal_unit_type
    slices: range  # the types that are coded slices
    starts: tuple[int, ...]
    unreferenced: frozenset[int]  # the first bytes of slices to whose frames no other frame refers
    idle: frozenset[int]  # types without effect on other pictures: delimiters, supplemental information, filling

    def begins(self, packet: memoryview) -> bool:
        """Whether decoding may begin with this packet."""
        kinds = map(self.unit_type, self._units(packet))
        return next((kind in self.starts for kind in kinds if kind in self.slices), False)

    def needed(self, packets: Packets, groups: Groups) -> list[int]:
        """As `Reader.needed`."""
        places: list[int] = []
        starts: list[int] = []
        sizes: list[int] = []
        for start, inside in groups.items():
            stop = inside[-1] + 1
            places += range(start, stop)
            starts += packets.starts[start:stop]
            sizes += packets.sizes[start:stop]
        data = np.frombuffer(packets.data, np.uint8)
        keep = _not_left_out(data, np.array(starts), np.array(sizes), self.length_size, self._effects)
        return sorted({*compress(places, keep.tolist()), *chain.from_iterable(groups.values())})

    @cached_property
    def _effects(self) -> Bytes:
        """[256] what a unit does to other frames, by its first byte: NONE, IDLE or ANY."""
        effects = np.full(256, ANY, np.uint8)
        effects[[first for first in range(256) if self.unit_type(first) in self.idle]] = IDLE
        effects[list(self.unreferenced)] = NONE
        return effects

    def _units(self, packet: memoryview) -> Iterator[int]:
        """The first byte of each unit, up to what is not one."""
        at = 0
        while at < len(packet):
            stop = at + self.length_size + int.from_bytes(packet[at : at + self.length_size], "big")
            if not at + self.length_size < stop <= len(packet):
                return
            yield packet[at + self.length_size]
            at = stop


NONE, IDLE, ANY = 0, 1, 2  # a slice of a frame to which no other refers; a unit that decoders need not read; any other


@compiled
def _not_left_out(data: Bytes, starts: Any, sizes: Any, length_size: int, effects: Bytes) -> Any:
    """Whether each packet may serve another frame, [P] bool. So does one that is not a row of units."""
    keep = np.ones(starts.shape[0], np.bool_)
    for place in range(starts.shape[0]):
        at, stop, most, slices = starts[place], starts[place] + sizes[place], NONE, 0
        while at < stop and most < ANY:
            length = np.int64(0)
            for byte in range(length_size):
                length = (length << 8) | (np.int64(data[at + byte]) if at + byte < stop else 0)
            at += length_size
            effect = effects[data[at]] if 0 < length <= stop - at else ANY
            most, slices, at = max(most, effect), slices + (effect == NONE), at + length
        keep[place] = most == ANY or slices == 0
    return keep


_CONFIGURATION_VERSION = 1


@lru_cache
def _h264(avcc: bytes) -> Reader:
    """`avcc`: AVCDecoderConfigurationRecord (ISO/IEC 14496-15, 5.3.3); other bytes if units have no lengths.

    The first byte of a unit is forbidden_zero_bit (1 bit), nal_ref_idc (2), nal_unit_type (5); ITU-T H.264, 7.4.1.
    """
    if len(avcc) < 5 or avcc[0] != _CONFIGURATION_VERSION:
        return _Everything()
    length_size_minus_one = avcc[4] & 0b11
    return NalReader(
        length_size=length_size_minus_one + 1,
        unit_type=lambda first: first & 0b11111,
        slices=range(1, 6),
        starts=(_H264_IDR_SLICE,),
        unreferenced=frozenset({1, 2, 3, 4}),  # nal_ref_idc 0
        idle=frozenset({6, 9, 12}),  # SEI, access unit delimiter, filler data
    )


@lru_cache
def _hevc(hvcc: bytes) -> Reader:
    """`hvcc`: HEVCDecoderConfigurationRecord (ISO/IEC 14496-15, 8.3.3); other bytes if units have no lengths.

    The first byte of a unit is forbidden_zero_bit (1 bit), nal_unit_type (6) and a bit of nuh_layer_id; ITU-T H.265,
    7.3.1.2. An even type below 15 is a sub-layer non-reference picture (table 7-1): no frame of its sub-layer refers to
    it. With several sub-layers another may, so there no frame is left out.
    """
    if len(hvcc) < 22 or hvcc[0] != _CONFIGURATION_VERSION:
        return _Everything()
    num_temporal_layers, length_size_minus_one = hvcc[21] >> 3 & 0b111, hvcc[21] & 0b11
    return NalReader(
        length_size=length_size_minus_one + 1,
        unit_type=lambda first: first >> 1 & 0b111111,
        slices=range(32),
        starts=_HEVC_STARTS,
        unreferenced=frozenset(kind << 1 for kind in _HEVC_NON_REFERENCE) if num_temporal_layers == 1 else frozenset(),
        idle=frozenset({35, 38, 39, 40}),  # AUD_NUT, FD_NUT, PREFIX_SEI_NUT, SUFFIX_SEI_NUT
    )


_H264_IDR_SLICE = 5
_HEVC_STARTS = (16, 17, 18, 19, 20)  # BLA_W_LP, BLA_W_RADL, BLA_N_LP, IDR_W_RADL, IDR_N_LP; not CRA, 21
_HEVC_NON_REFERENCE = range(0, 15, 2)  # TRAIL_N, TSA_N, STSA_N, RADL_N, RASL_N and reserved ones
_READERS: dict[str, Callable[[bytes], Reader]] = {
    "h264": _h264,
    "hevc": _hevc,
    "vp9": lambda _: Vp9Reader(),
    "av1": lambda _: Av1Reader(),
}
