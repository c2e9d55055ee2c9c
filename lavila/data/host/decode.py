"""PyAV on the CPU: encoded bytes and frame numbers -> the frames with these numbers, with as little work as possible.

The decoder is given only the packets that the wanted frames need (`streams.reduction.needed`). The frames are bit for
bit the same as if everything were decoded. Clips as our encoder writes them are read without FFmpeg's demuxer, since
that decodes the first frame when it opens a file.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate, chain, pairwise
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from av.video.reformatter import Interpolation

from lavila.data.host.colour import Planes, rgb_picture
from lavila.data.streams.boxes import OtherForm, TableError
from lavila.data.streams.mp4 import Packets, read_mp4, shown_order
from lavila.data.streams.reduction import WHOLE, needed
from lavila.errors import UserError
from lavila.libav import reason, strictness
from lavila.shards.packets import UNREADABLE, packet_problem

DECODERS = {"av1": "libdav1d"}  # FFmpeg's names of decoders that differ from the codec's
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
    except TableError as error:
        raise DecodeError(str(error)) from error
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
    with _as_decode_errors(reached), _opened(bytes(data)) as (context, packets):
        # All of the needed packets are decoded: the last wanted frame may refer to one that is shown after it.
        for frame in _decoded(context, _numbered(packets, needed(packets, wanted))):
            if found < len(wanted) and frame.pts == wanted[found]:
                yield frame
                found += 1
    if found == len(wanted):
        return
    raise_if_short_of_memory()
    raise DecodeError(f"frame {wanted[found]} is wanted, and could not be decoded")


@contextmanager
def _opened(data: bytes) -> Iterator[tuple[Any, Packets]]:
    """A decoder, and all packets of a video."""
    try:
        source = read_mp4(data)
    except OtherForm as other:
        WHOLE.count(str(other))
        with av.open(io.BytesIO(data)) as container:
            stream = _stream(container)
            yield stream.codec_context, _demuxed(container, stream)
        return
    codec = source.packets.codec
    context: Any = av.CodecContext.create(DECODERS.get(codec, codec), "r")
    context.thread_count = 1
    context.options = strictness(context.name)
    if source.extradata:
        context.extradata = source.extradata
    yield context, source.packets


def _demuxed(container: Any, stream: Any) -> Packets:
    """All packets of a video of any form, copied into one piece of memory."""
    packets, _ = _packets(container, stream)
    sizes = [packet.size for packet in packets]
    names = {decoder: codec for codec, decoder in DECODERS.items()}
    return Packets(
        codec=names.get(stream.codec_context.name, stream.codec_context.name),
        config=bytes(stream.codec_context.extradata or b""),
        data=b"".join(map(bytes, packets)),
        starts=list(accumulate(sizes[:-1], initial=0)),
        sizes=sizes,
        numbers=shown_order([packet.pts for packet in packets]),
        keys=[packet.is_keyframe for packet in packets],
    )


def _numbered(packets: Packets, places: Sequence[int]) -> Iterator[av.Packet]:
    """Some packets for a decoder. The times of their frames are the frames' numbers."""
    for place in places:
        packet = av.Packet(packets.packet(place))
        packet.pts = packets.numbers[place]
        yield packet


def _packets(container: Any, stream: Any) -> tuple[list[Any], list[int]]:
    """All packets in decoding order, and the times of their frames in display order."""
    packets = [packet for packet in container.demux(stream) if packet.size]
    times = sorted(packet.pts for packet in packets if packet.pts is not None)
    if len(times) != len(packets) or any(a == b for a, b in pairwise(times)):
        raise DecodeError("its frames do not have distinct times")
    return packets, times


def _decoded(context: Any, packets: Iterable[Any]) -> Iterator[av.VideoFrame]:
    """The frames of some packets. DecodeError for one that FFmpeg flags: it makes up what is damaged or missing.

    Frames that refer to such a frame have no flag. So one damaged frame costs the clip.
    """
    for packet in chain(packets, [None]):  # None makes the decoder return the frames that it still holds
        for frame in context.decode(packet):
            if frame.is_corrupt:
                raise DecodeError("a frame is damaged, or refers to one that is missing")
            yield frame
