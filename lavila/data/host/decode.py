"""PyAV on the CPU: encoded bytes and frame numbers -> the frames with these numbers, with as little work as possible.

Three kinds of frames are not decoded: groups of pictures without a wanted frame, frames after the last wanted one of a
group, and frames that no other refers to (half to three quarters of H.264 with B-frames, none of VP9). The wanted
frames are bit for bit the same as if everything were decoded.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from av.video.reformatter import Interpolation

from lavila.data.host.colour import Planes, rgb_picture
from lavila.errors import UserError
from lavila.libav import reason, strictness
from lavila.shards.packets import UNREADABLE, packet_problem

SPARE_BYTES = 64 << 20  # a process that cannot allocate so many bytes is short of memory


class DecodeError(UserError):
    """A clip that cannot be decoded, with the reason in one line."""


def decode_frames(
    data: bytes | npt.NDArray[np.uint8], frames: Sequence[int] | npt.NDArray[np.int32]
) -> npt.NDArray[np.uint8]:
    """The frames with the given numbers.

    Args:
        data: a whole encoded clip (mp4, webm, ...) with one video stream.
        frames: ascending, distinct, 0-based numbers in display order, [U].

    Returns:
        uint8 RGB, [U, H, W, 3].

    Raises:
        DecodeError: nothing to decode, a damaged stream, or a frame beyond the end.
        MemoryError: the machine is short of memory.
    """
    pictures: list[npt.NDArray[np.uint8]] = []
    for planes in decode_planes(data, frames):
        pictures.append(np.empty((len(planes.luma), planes.width, 3), np.uint8))
        rgb_picture(planes, pictures[-1])
    return np.stack(pictures)


def decode_planes(
    data: bytes | npt.NDArray[np.uint8], frames: Sequence[int] | npt.NDArray[np.int32]
) -> Iterator[Planes]:
    """The same frames one after another, before conversion to RGB. Raises as `decode_frames` does."""
    for frame in _wanted_frames(data, frames):
        yield planes_of(frame if frame.format.name == "yuv420p" else _to_yuv420p(frame))


def planes_of(frame: av.VideoFrame) -> Planes:
    """The planes of a yuv420p frame. They lie in the frame's memory, so keep the frame as long as them."""
    lines = [np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size) for plane in frame.planes]
    return Planes(lines[0], lines[1], lines[2], frame.width)


def _to_yuv420p(frame: av.VideoFrame) -> av.VideoFrame:
    return frame.reformat(format="yuv420p", interpolation=Interpolation.BILINEAR | Interpolation.ACCURATE_RND)


def video_problem(data: bytes | npt.NDArray[np.uint8], *, frames: int, height: int, width: int) -> str | None:
    """Why `data` is not an mp4 with that number of frames of that size in pixels, in one line; None if it is one.

    The header is compared with the bytes, and every frame is decoded. Only one frame is in memory at a time.
    """
    found = 0
    try:
        for number, frame in enumerate(_every_frame(data)):
            found = number + 1
            if (frame.height, frame.width) != (height, width):
                return f"pictures of {frame.width}x{frame.height}, the table says {width}x{height}"
    except DecodeError as error:
        return str(error)
    if found != frames:
        more = "more than" if found > frames else f"{found} frames, not"
        return f"{more} the {frames} frames that the table says"
    return packet_problem(bytes(data), frames=frames, height=height, width=width)


def _every_frame(data: bytes | npt.NDArray[np.uint8]) -> Iterator[av.VideoFrame]:
    """All frames in order. DecodeError for a damaged stream, and for frames at other times than the packets'."""
    number = 0
    with _as_decode_errors(lambda: f"after {number} frames"), av.open(io.BytesIO(bytes(data))) as container:
        stream = _stream(container)
        packets, times = _packets(container, stream)
        for number, frame in enumerate(_decoded(stream.codec_context, packets)):
            if number >= len(times) or frame.pts != times[number]:
                raise DecodeError(f"frame {number} does not come at the time that the header says")
            yield frame


def raise_if_short_of_memory() -> None:
    """Raise MemoryError if SPARE_BYTES cannot be allocated. Call it before a clip is called damaged.

    FFmpeg's errors do not show the difference. Its H.264 decoder says "invalid data" when it gets no memory for a
    picture. A damaged header makes it ask for gigabytes, and then it says that memory is short.
    """
    np.empty(SPARE_BYTES, np.uint8)  # its pages are never touched, so it costs nothing


@contextmanager
def _as_decode_errors(place: Callable[[], str]) -> Iterator[None]:
    """Turn errors of FFmpeg and PyAV that mean a damaged clip into DecodeError, with the place that was reached."""
    try:
        yield
    except UNREADABLE as error:
        raise_if_short_of_memory()
        raise DecodeError(f"{reason(error)} ({place()})") from error


def _stream(container: Any) -> Any:
    if not container.streams.video:
        raise DecodeError("no video stream")
    stream = container.streams.video[0]
    if stream.codec_context is None:
        raise DecodeError("its codec is not known, or its header is damaged")
    # One thread a clip. The loader decodes several clips at once, so more threads for one clip gain nothing.
    stream.codec_context.thread_count = 1
    stream.codec_context.options = strictness(stream.codec_context.name)
    return stream


def _wanted_frames(
    data: bytes | npt.NDArray[np.uint8], frames: Sequence[int] | npt.NDArray[np.int32]
) -> Iterator[av.VideoFrame]:
    wanted = [int(frame) for frame in frames]
    assert wanted and all(a < b for a, b in pairwise(wanted)), wanted
    found = 0
    reached = lambda: f"after {found} of {len(wanted)} frames"  # noqa: E731
    with _as_decode_errors(reached), av.open(io.BytesIO(bytes(data))) as container:
        stream = _stream(container)
        packets, times = _packets(container, stream)
        if wanted[-1] >= len(times):
            raise DecodeError(f"frame {wanted[-1]} is wanted, but the clip has only {len(times)} frames")
        at = [times[number] for number in wanted]
        # All of the needed packets are decoded: the last wanted frame may refer to one that is shown after it.
        for frame in _decoded(stream.codec_context, _needed(packets, set(at), stream)):
            if found < len(at) and frame.pts == at[found]:
                yield frame
                found += 1
    if found == len(at):
        return
    raise_if_short_of_memory()
    raise DecodeError(f"frame {wanted[found]} is wanted, and could not be decoded")


def _packets(container: Any, stream: Any) -> tuple[list[Any], list[int]]:
    """All packets in decoding order, and the times of their frames in display order."""
    packets = [packet for packet in container.demux(stream) if packet.size]
    times = sorted(packet.pts for packet in packets if packet.pts is not None)
    if len(times) != len(packets) or any(a == b for a, b in pairwise(times)):
        raise DecodeError("its frames do not have distinct times")
    return packets, times


def _decoded(context: Any, packets: Sequence[Any]) -> Iterator[av.VideoFrame]:
    """The frames of some packets. DecodeError for one that FFmpeg flags: it makes up what is damaged or missing.

    Frames that refer to such a frame have no flag. So one damaged frame costs the clip.
    """
    for packet in (*packets, None):  # None makes the decoder return the frames that it still holds
        for frame in context.decode(packet):
            if frame.is_corrupt:
                raise DecodeError("a frame is damaged, or refers to one that is missing")
            yield frame


def _needed(packets: Sequence[Any], at: set[int], stream: Any) -> list[Any]:
    """The packets that the decoder needs for the frames at the given times, in decoding order."""
    units = _UNITS.get(stream.codec_context.name, lambda _: None)(bytes(stream.codec_context.extradata or b""))
    needed: list[Any] = []
    starts = [i for i, packet in enumerate(packets) if packet.is_keyframe and (units is None or units.begins(packet))]
    # Each turn is one group of pictures. Nothing after its last wanted frame is needed, since a frame only refers to
    # packets before it in decoding order.
    for start, stop in pairwise(sorted({0, *starts, len(packets)})):
        last = max((i for i in range(start, stop) if packets[i].pts in at), default=-1)
        group = packets[start : last + 1]
        needed += [packet for packet in group if packet.pts in at or units is None or units.refers(packet)]
    return needed


@dataclass(frozen=True)
class _NalUnits:
    """How the first coded slice of a packet shows the part of its frame in the group of pictures.

    A packet is a row of NAL units, each with its length before it. The first byte of a unit holds its type.
    """

    length_size: int  # bytes of the length before each unit
    unit_type: Callable[[int], int]  # first byte of a unit -> nal_unit_type
    slices: range  # the types that are coded slices
    starts: tuple[int, ...]  # the types at which decoding may begin: no later frame refers to an earlier one
    unreferenced: Callable[[int], bool]  # first byte of a slice -> whether no other frame refers to its frame

    def begins(self, packet: Any) -> bool:
        first = self._first_slice(packet)
        return first is not None and self.unit_type(first) in self.starts

    def refers(self, packet: Any) -> bool:
        """Whether another frame may refer to this one; True if the packet has no slice that is recognised."""
        first = self._first_slice(packet)
        return first is None or not self.unreferenced(first)

    def _first_slice(self, packet: Any) -> int | None:
        content, place = memoryview(packet), 0
        while place + self.length_size < len(content):
            first = int(content[place + self.length_size])
            if self.unit_type(first) in self.slices:
                return first
            place += self.length_size + int.from_bytes(content[place : place + self.length_size], "big")
        return None


def _h264_units(avcc: bytes) -> _NalUnits | None:
    """`avcc`: AVCDecoderConfigurationRecord (ISO/IEC 14496-15, 5.3.3). None for streams without lengths.

    The first byte of a unit is forbidden_zero_bit (1 bit), nal_ref_idc (2), nal_unit_type (5); ITU-T H.264, 7.4.1.
    """
    if len(avcc) < 5 or avcc[0] != _CONFIGURATION_VERSION:
        return None
    length_size_minus_one = avcc[4] & 0b11
    return _NalUnits(
        length_size=length_size_minus_one + 1,
        unit_type=lambda first: first & 0b11111,
        slices=range(1, 6),
        starts=(_H264_IDR_SLICE,),
        unreferenced=lambda first: first >> 5 == 0,  # nal_ref_idc 0
    )


def _hevc_units(hvcc: bytes) -> _NalUnits | None:
    """`hvcc`: HEVCDecoderConfigurationRecord (ISO/IEC 14496-15, 8.3.3). None for streams without lengths.

    The first byte of a unit is forbidden_zero_bit (1 bit), nal_unit_type (6) and a bit of nuh_layer_id; ITU-T H.265,
    7.3.1.2. An even type below 15 is a sub-layer non-reference picture (table 7-1): no frame of its sub-layer refers to
    it. With several sub-layers another may, so there no frame is left out.
    """
    if len(hvcc) < 22 or hvcc[0] != _CONFIGURATION_VERSION:
        return None
    num_temporal_layers, length_size_minus_one = hvcc[21] >> 3 & 0b111, hvcc[21] & 0b11
    return _NalUnits(
        length_size=length_size_minus_one + 1,
        unit_type=lambda first: first >> 1 & 0b111111,
        slices=range(32),
        starts=_HEVC_STARTS,
        unreferenced=lambda first: num_temporal_layers == 1 and first >> 1 & 0b111111 in _HEVC_NON_REFERENCE,
    )


_CONFIGURATION_VERSION = 1
_H264_IDR_SLICE = 5
_HEVC_STARTS = (16, 17, 18, 19, 20)  # BLA_W_LP, BLA_W_RADL, BLA_N_LP, IDR_W_RADL, IDR_N_LP; not CRA, 21
_HEVC_NON_REFERENCE = range(0, 15, 2)  # TRAIL_N, TSA_N, STSA_N, RADL_N, RASL_N and reserved ones
_UNITS: dict[str, Callable[[bytes], _NalUnits | None]] = {"h264": _h264_units, "hevc": _hevc_units}
