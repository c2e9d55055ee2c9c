"""PyAV on the CPU: encoded bytes and frame numbers -> the frames with these numbers, and no work for others.

Only the groups of pictures that hold a wanted frame are decoded, each up to its last wanted frame, and of those without
the frames that nothing refers to (half to three quarters of them in H.264 with B-frames, none in VP9). What is wanted
comes out bit for bit as if everything had been decoded.
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
from lavila.libav import reason
from lavila.shards.packets import UNREADABLE, packet_problem

SPARE_BYTES = 64 << 20  # a process that cannot have so much more is short of memory


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
    """The same frames one after another, not yet RGB. Raises as `decode_frames` does."""
    for frame in _wanted_frames(data, frames):
        picture = frame if frame.format.name == "yuv420p" else _to_yuv420p(frame)
        lines = [np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size) for plane in picture.planes]
        yield Planes(lines[0], lines[1], lines[2], frame.width)


def _to_yuv420p(frame: av.VideoFrame) -> av.VideoFrame:
    return frame.reformat(format="yuv420p", interpolation=Interpolation.BILINEAR | Interpolation.ACCURATE_RND)


def video_problem(data: bytes | npt.NDArray[np.uint8], *, frames: int, height: int, width: int) -> str | None:
    """Why `data` is not an mp4 of so many frames of that size in pixels, in one line; None where it is one.

    Its header is compared with its bytes, and every frame is decoded; one frame at a time is held.
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
    """All frames in order. DecodeError for a damaged stream, and where frames do not come at the times of packets."""
    number = 0
    with _faults_told(lambda: f"after {number} frames"), av.open(io.BytesIO(bytes(data))) as container:
        stream = _stream(container)
        packets, times = _packets(container, stream)
        for number, frame in enumerate(_decoded(stream.codec_context, packets)):
            if number >= len(times) or frame.pts != times[number]:
                raise DecodeError(f"frame {number} does not come at the time that the header says")
            yield frame


def raise_if_short_of_memory() -> None:
    """Raises MemoryError where a little more cannot be had. To be asked before a clip is called damaged.

    What FFmpeg says does not tell: its H.264 decoder calls data invalid when it gets no memory for a picture, and a
    damaged header makes it ask for gigabytes and say that memory is short.
    """
    np.empty(SPARE_BYTES, np.uint8)  # never touched, so it costs nothing


@contextmanager
def _faults_told(place: Callable[[], str]) -> Iterator[None]:
    """Turns errors of FFmpeg and PyAV that mean a damaged clip into DecodeError, with the place that was reached."""
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
    # One thread a clip: the loader decodes several clips at once, and threads inside one gain nothing.
    stream.codec_context.thread_count = 1
    return stream


def _wanted_frames(
    data: bytes | npt.NDArray[np.uint8], frames: Sequence[int] | npt.NDArray[np.int32]
) -> Iterator[av.VideoFrame]:
    wanted = [int(frame) for frame in frames]
    assert wanted and all(a < b for a, b in pairwise(wanted)), wanted
    found = 0
    reached = lambda: f"after {found} of {len(wanted)} frames"  # noqa: E731
    with _faults_told(reached), av.open(io.BytesIO(bytes(data))) as container:
        stream = _stream(container)
        packets, times = _packets(container, stream)
        if wanted[-1] >= len(times):
            raise DecodeError(f"frame {wanted[-1]} is wanted, but the clip has only {len(times)} frames")
        at = [times[number] for number in wanted]
        for frame in _decoded(stream.codec_context, _needed(packets, set(at), stream)):
            if frame.pts == at[found]:
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
        raise DecodeError("its frames have no times of their own")
    return packets, times


def _decoded(context: Any, packets: Sequence[Any]) -> Iterator[av.VideoFrame]:
    for packet in (*packets, None):  # None: out with what the decoder still holds
        yield from context.decode(packet)


def _needed(packets: Sequence[Any], at: set[int], stream: Any) -> list[Any]:
    """The packets, in decoding order, that the frames at the given times are made of."""
    units = _UNITS.get(stream.codec_context.name, lambda _: None)(bytes(stream.codec_context.extradata or b""))
    needed: list[Any] = []
    starts = [i for i, packet in enumerate(packets) if packet.is_keyframe and (units is None or units.begins(packet))]
    for start, stop in pairwise(sorted({0, *starts, len(packets)})):
        last = max((i for i in range(start, stop) if packets[i].pts in at), default=-1)
        group = packets[start : last + 1]
        needed += [packet for packet in group if packet.pts in at or units is None or units.refers(packet)]
    return needed


@dataclass(frozen=True)
class _Units:
    """How to tell a frame's part in its group from the first of its coded slices."""

    prefix: int  # bytes of the length before each unit
    kind: Callable[[int], int]  # first byte of a unit -> its type
    slices: range  # types that are coded slices
    starts: tuple[int, ...]  # of frames at which decoding may begin, with none after them that refers to one before
    unreferenced: Callable[[int], bool]  # first byte of a slice -> nothing refers to its frame

    def begins(self, packet: Any) -> bool:
        first = self._first_slice(packet)
        return first is not None and self.kind(first) in self.starts

    def refers(self, packet: Any) -> bool:
        """Whether another frame may be made from this one; True where no slice is recognised."""
        first = self._first_slice(packet)
        return first is None or not self.unreferenced(first)

    def _first_slice(self, packet: Any) -> int | None:
        content, place = memoryview(packet), 0
        while place + self.prefix < len(content):
            if self.kind(content[place + self.prefix]) in self.slices:
                return int(content[place + self.prefix])
            place += self.prefix + int.from_bytes(content[place : place + self.prefix], "big")
        return None


def _h264_units(about: bytes) -> _Units | None:
    """about: avcC (ISO/IEC 14496-15). Types and nal_ref_idc: ITU-T H.264, 7.4.1. None for streams without lengths."""
    if len(about) < 5 or about[0] != 1:
        return None
    return _Units(
        prefix=(about[4] & 3) + 1,
        kind=lambda first: first & 31,
        slices=range(1, 6),
        starts=(5,),
        unreferenced=lambda first: first >> 5 == 0,
    )


def _hevc_units(about: bytes) -> _Units | None:
    """about: hvcC. Types: ITU-T H.265, table 7-1. In a stream of several sub-layers every frame may be referred to."""
    if len(about) < 22 or about[0] != 1:
        return None
    layers = about[21] >> 3 & 7
    return _Units(
        prefix=(about[21] & 3) + 1,
        kind=lambda first: first >> 1 & 63,
        slices=range(32),
        starts=(16, 17, 18, 19, 20),
        unreferenced=lambda first: layers == 1 and first >> 1 & 63 < 15 and first >> 1 & 1 == 0,
    )


_UNITS: dict[str, Callable[[bytes], _Units | None]] = {"h264": _h264_units, "hevc": _hevc_units}
