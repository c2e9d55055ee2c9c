"""What the headers of coded pictures say about which of them others need. Nothing is decoded.

A `Reader` knows one codec. It says where decoding may begin, and which packets of a group of pictures its wanted ones
need. The names are those of the standards: ITU-T H.264 and H.265, ISO/IEC 14496-15, "AV1 Bitstream & Decoding Process
Specification" and "VP9 Bitstream & Decoding Process Specification".

What a reader does not recognise counts as needed. So a stream with something new in it costs time, and no picture.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Protocol

import numpy as np
import numpy.typing as npt

from lavila.data.streams.av1 import Av1Reader, av1_pictures
from lavila.data.streams.mp4 import Packets


class Reader(Protocol):
    """Reads the headers of one codec."""

    def begins(self, packet: bytes) -> bool:
        """Whether decoding may begin with this packet: no later frame refers to an earlier one."""
        ...

    def needed(self, packets: Packets, start: int, last: int, wanted: Collection[int]) -> list[int]:
        """The places, ascending, that a decoder needs for the `wanted` places from `start` to `last`, with these.

        Decoding may begin at `start`.
        """
        ...


def reader_of(packets: Packets) -> Reader:
    """The reader for a video."""
    make = _READERS.get(packets.codec)
    return _Everything() if make is None else make(packets.config)


def pictures_in(packets: Packets) -> int:
    """The number of frames that a decoder decodes for the packets, with those that are never shown (VP9, AV1)."""
    every = map(packets.packet, range(len(packets.sizes)))
    if packets.codec == "av1":
        return sum(map(av1_pictures, every))
    if packets.codec == "vp9":
        return sum(max(vp9_superframe(packet), 1) for packet in every)
    return len(packets.sizes)


class _Everything:
    """For codecs whose headers are not read: everything from the first packet on is needed."""

    def begins(self, packet: bytes) -> bool:
        return False

    def needed(self, packets: Packets, start: int, last: int, wanted: Collection[int]) -> list[int]:
        return list(range(start, last + 1))


class Vp9Reader(_Everything):
    """VP9: decoding begins at keyframes, and from there on every frame is needed.

    A frame with refresh_frame_flags 0 cannot be left out, though no frame takes pixels from it. The probabilities that
    it adapts (refresh_frame_context), its motion vectors and its segmentation map serve the frames after it.
    """

    def begins(self, packet: bytes) -> bool:
        """Whether the packet is a keyframe that is shown, and holds no other frame."""
        first = packet[0]
        # frame_marker (2 bits), profile_low_bit, profile_high_bit, for profile 3 a reserved bit, show_existing_frame,
        # frame_type (0 = KEY_FRAME), show_frame.
        if first >> 6 != 0b10 or first >> 4 & 0b11 == 0b11:
            return False
        return first & 0b1110 == 0b0010 and not vp9_superframe(packet)


def vp9_superframe(packet: bytes) -> int:
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
    begins at a packet whose first slice is of one of the types `starts`. A packet can be left out if all of its units
    are slices of frames that no other refers to, or of types that decoders need not read.
    """

    length_size: int  # bytes of the length before each unit
    unit_type: Callable[[int], int]  # first byte of a unit -> nal_unit_type
    slices: range  # the types that are coded slices
    starts: tuple[int, ...]
    unreferenced: frozenset[int]  # the first bytes of slices to whose frames no other frame refers
    idle: frozenset[int]  # types without effect on other pictures: delimiters, supplemental information, filling

    def begins(self, packet: bytes) -> bool:
        """Whether decoding may begin with this packet."""
        return next(
            (kind in self.starts for kind in map(self.unit_type, self._units(packet)) if kind in self.slices), False
        )

    def needed(self, packets: Packets, start: int, last: int, wanted: Collection[int]) -> list[int]:
        """As `Reader.needed`."""
        data = np.frombuffer(packets.data, np.uint8)
        at = np.array(packets.starts[start : last + 1])
        sizes = np.array(packets.sizes[start : last + 1])
        lengths = np.zeros(len(at), np.int64)
        for byte in range(self.length_size):
            lengths = lengths << 8 | data[np.minimum(at + byte, len(data) - 1)]
        # Nearly all packets have one unit, and these are looked at together.
        alone = (lengths + self.length_size == sizes) & (sizes > self.length_size)
        first = data[np.minimum(at + self.length_size, len(data) - 1)]
        needed = ~(alone & self._is_unreferenced[first])
        for place in np.flatnonzero(~alone).tolist():
            needed[place] = not self._idle(packets.packet(start + place))
        return [place for place, is_needed in enumerate(needed.tolist(), start) if is_needed or place in wanted]

    @cached_property
    def _is_unreferenced(self) -> npt.NDArray[np.bool_]:
        """[256], by the first byte of a slice."""
        return np.isin(np.arange(256), list(self.unreferenced))

    def _idle(self, packet: bytes) -> bool:
        return all(first in self.unreferenced or self.unit_type(first) in self.idle for first in self._units(packet))

    def _units(self, packet: bytes) -> list[int]:
        """The first byte of each unit; -1, which no unit begins with, for what is not a row of units."""
        found: list[int] = []
        at = 0
        while at < len(packet):
            stop = at + self.length_size + int.from_bytes(packet[at : at + self.length_size], "big")
            if not at + self.length_size < stop <= len(packet):
                return [*found, -1]
            found.append(packet[at + self.length_size])
            at = stop
        return found


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
