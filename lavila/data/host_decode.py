"""PyAV on the CPU: encoded bytes and frame numbers -> the frames with these numbers, and no work for others.

Only the groups of pictures that hold a wanted frame are decoded, each up to its last wanted frame, and of those without
the frames that nothing refers to (half to three quarters of them in H.264 with B-frames, none in VP9). What is wanted
comes out bit for bit as if everything had been decoded.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from av.video.reformatter import Interpolation

from lavila.data.host_colour import Planes, rgb_picture


class DecodeError(ValueError):
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


def count_frames(data: bytes | npt.NDArray[np.uint8]) -> tuple[int, int, int]:
    """Number, height and width in pixels of the frames of an encoded clip. Raises as `decode_frames` does."""
    number, frame = 0, None
    try:
        with av.open(io.BytesIO(bytes(data))) as container:
            for number, frame in enumerate(container.decode(_stream(container)), start=1):  # noqa: B007
                pass
    except av.FFmpegError as error:
        raise DecodeError(f"{error.strerror} (after {number} frames)") from error
    if frame is None:
        raise DecodeError("no frame")
    return number, frame.height, frame.width


def _stream(container: Any) -> Any:
    if not container.streams.video:
        raise DecodeError("no video stream")
    stream = container.streams.video[0]
    # One thread a clip: the loader decodes several clips at once, and threads inside one gain nothing.
    stream.codec_context.thread_count = 1
    return stream


def _wanted_frames(
    data: bytes | npt.NDArray[np.uint8], frames: Sequence[int] | npt.NDArray[np.int32]
) -> Iterator[av.VideoFrame]:
    wanted = [int(frame) for frame in frames]
    assert wanted and all(a < b for a, b in pairwise(wanted)), wanted
    found = 0
    try:
        with av.open(io.BytesIO(bytes(data))) as container:
            stream = _stream(container)
            packets = [packet for packet in container.demux(stream) if packet.size]
            times = sorted(packet.pts for packet in packets if packet.pts is not None)
            if len(times) != len(packets) or any(a == b for a, b in pairwise(times)):
                raise DecodeError("its frames have no times of their own")
            if wanted[-1] >= len(times):
                raise DecodeError(f"frame {wanted[-1]} is wanted, but the clip has only {len(times)} frames")
            at = [times[number] for number in wanted]
            for frame in _decoded(stream.codec_context, _needed(packets, set(at), stream)):
                if frame.pts == at[found]:
                    yield frame
                    found += 1
                    if found == len(at):
                        return
    except av.FFmpegError as error:
        raise DecodeError(f"{error.strerror} (after {found} of {len(wanted)} frames)") from error
    raise DecodeError(f"frame {wanted[found]} is wanted, and could not be decoded")


def _decoded(context: Any, packets: Sequence[Any]) -> Iterator[av.VideoFrame]:
    for packet in (*packets, None):  # None: out with what the decoder still holds
        yield from context.decode(packet)


def _needed(packets: Sequence[Any], at: set[int], stream: Any) -> list[Any]:
    """The packets, in decoding order, that the frames at the given times are made of."""
    needed: list[Any] = []
    keys = [i for i, packet in enumerate(packets) if packet.is_keyframe] or [0]
    referred = _referred_of(stream)
    previous: list[Any] = []  # the group before, where it was left out
    for start, stop in pairwise([*keys, len(packets)]):
        last = max((i for i in range(start, stop) if packets[i].pts in at), default=-1)
        group = list(packets[start : last + 1])
        if any(packet.pts in at and packet.pts < packets[start].pts for packet in group):
            needed += previous  # an open group: its first frames in display order refer to the group before
        needed += [packet for packet in group if packet.pts in at or referred(packet)]
        previous = [] if group else [packet for packet in packets[start:stop] if referred(packet)]
    return needed


def _referred_of(stream: Any) -> Any:
    """Says of a packet whether another frame may be made from its frame."""
    name, about = stream.codec_context.name, bytes(stream.codec_context.extradata or b"")
    if name == "h264" and len(about) > 4 and about[0] == 1:
        return lambda packet: _refers(packet, (about[4] & 3) + 1, _h264_kept)
    if name == "hevc" and len(about) > 21 and about[0] == 1:
        return lambda packet: _refers(packet, (about[21] & 3) + 1, _hevc_kept)
    return lambda packet: True


def _refers(packet: Any, prefix: int, kept: Any) -> bool:
    """Whether the first coded slice of a packet belongs to a frame that is kept; True where none is recognised.

    prefix: bytes of the length before each unit.
    """
    content, place = memoryview(packet), 0
    while place + prefix + 2 <= len(content):
        verdict = kept(content[place + prefix], content[place + prefix + 1])
        if verdict is not None:
            return bool(verdict)
        place += prefix + int.from_bytes(content[place : place + prefix], "big")
    return True


def _h264_kept(first: int, second: int) -> bool | None:
    """nal_ref_idc of a slice (ITU-T H.264, 7.4.1); None for other units."""
    del second
    return first >> 5 != 0 if first & 31 in (1, 5) else None


def _hevc_kept(first: int, second: int) -> bool | None:
    """Whether a slice is no sub-layer non-reference picture (ITU-T H.265, 7.4.2.2); None for other units.

    In a stream with sub-layers such a picture may still serve a higher one, so there all are kept.
    """
    kind = first >> 1 & 63
    if kind >= 32:
        return None
    return kind > 14 or kind % 2 == 1 or second & 7 != 1
