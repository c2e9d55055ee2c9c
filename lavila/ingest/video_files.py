"""Opens video files from outside without trusting them.

Only real containers are read, no file that they refer to is opened, and the size of pictures and the time have limits.
Every problem of a video is an `EncodeError`.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av

from lavila.errors import UserError
from lavila.ingest.downloads import why_unreadable
from lavila.ingest.matroska import matroska_end
from lavila.ingest.places import why_missing
from lavila.libav import ANY_TAGS, DAMAGE, reason, strictness

MIN_FPS, MAX_FPS = Fraction(1, 100), 1000
TRUNCATED_SECONDS = 1.0  # a video that ends so much earlier than its header says is damaged
# FFmpeg's names of demuxers. Demuxers for playlists, scripts and series of pictures are missing: they open other files.
DEMUXERS = "mov,matroska,webm,avi,mpeg,mpegts,flv,asf,ogg,ivf,m4v"
KINDS = "mp4, mov, mkv, webm, avi, mpg, ts, flv, wmv, ogg or ivf"
AVI_TAIL = 1 << 26  # bytes at the end of an AVI, in which its index begins
DURATION_TAG = re.compile(r"([0-9]{1,4}):([0-9]{2}):([0-9]{2}(?:\.[0-9]{1,9})?)")
PART_NAME = re.compile(r"([0-9]{1,7})\.(mp4|mov|mkv|webm|avi)", re.IGNORECASE)


class EncodeError(UserError):
    """A clip that cannot be cut from its video. `after_end`: the only reason is that the video ends before the clip."""

    def __init__(self, message: str, *, after_end: bool = False) -> None:
        super().__init__(message)
        self.after_end = after_end


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The limits of one clip or chunk."""

    seconds: float = 600.0  # wall time; a single call into FFmpeg is not interrupted
    pixels: int = 8192 * 8192  # size of the largest picture


class Deadline:
    """Raises EncodeError from `check` when the time is over."""

    def __init__(self, name: str, seconds: float) -> None:
        self.name, self.seconds = name, seconds
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        """The seconds that are left, above 0."""
        return max(self._end - time.monotonic(), 0.001)

    def check(self) -> None:
        if time.monotonic() > self._end:
            raise EncodeError(f"{self.name}: given up after {self.seconds:g} s, the limit for one clip")


@dataclass(frozen=True, kw_only=True)
class Part:
    """One file of a video."""

    path: Path
    name: str  # its name in messages
    start: Fraction  # the second of the video at which it begins
    stop: Fraction | None  # the second at which the next file begins; None = there is none


def find_parts(path: Path) -> list[Part]:
    """The files of a video, in the order of time."""
    try:
        if path.is_file():
            return [Part(path=path, name=str(path), start=Fraction(0), stop=None)]
        if not path.is_dir():
            raise EncodeError(f"{path}: {why_missing(path)}")
        found = sorted((int(match[1]), file) for file in path.iterdir() if (match := PART_NAME.fullmatch(file.name)))
    except OSError as error:
        raise EncodeError(f"{path}: not readable ({error.strerror})") from error
    if not found:
        raise EncodeError(f"{path}: a folder without files named after seconds, such as 0.mp4 and 300.mp4")
    starts = [start for start, _ in found]
    if len(set(starts)) < len(starts):
        twice = next(start for start in starts if starts.count(start) > 1)
        raise EncodeError(f"{path}: two files begin at second {twice}; remove one")
    stops = [*map(Fraction, starts[1:]), None]
    return [
        Part(path=file, name=f"{path}: {file.name}", start=Fraction(start), stop=stop)
        for (start, file), stop in zip(found, stops, strict=True)
    ]


def open_video(part: Part, limits: Limits, deadline: Deadline) -> tuple[Any, Any]:
    """The container and the video stream of a file."""
    container = _open_container(part, limits, deadline)
    try:
        return container, _video_stream(part, container, limits)
    except BaseException:
        container.close()
        raise


def _open_container(part: Part, limits: Limits, deadline: Deadline) -> Any:
    options = {
        "protocol_whitelist": "file",
        "format_whitelist": DEMUXERS,
        "enable_drefs": "0",
        "use_absolute_path": "0",
        "max_pixels": _decoder_pixels(limits),  # a limit for the decoders that FFmpeg tries when it opens a file
    }
    try:
        # The protocol before it keeps FFmpeg from reading a file name as a protocol.
        name = f"file:{part.path.absolute()}"
        return av.open(name, options=options, timeout=deadline.left(), **ANY_TAGS)
    except (av.FFmpegError, OSError, ValueError) as error:
        deadline.check()
        kind = error.__class__.__name__
        why = why_unreadable(part.path) or f"it should be {KINDS}"
        raise EncodeError(f"{part.name}: not a readable video ({kind}); {why}") from error


def _video_stream(part: Part, container: Any, limits: Limits) -> Any:
    stream = _film(container)
    if stream is None:
        raise EncodeError(f"{part.name}: holds no video stream")
    context = stream.codec_context
    if context is None or not stream.time_base:
        raise EncodeError(f"{part.name}: its codec is not known, or its header is damaged")
    check_size(part.name, context.width, context.height, limits)
    context.thread_count = 1  # many processes work in parallel, each on one clip
    context.options = {"max_pixels": _decoder_pixels(limits), **strictness(context.name)}
    return stream


def _film(container: Any) -> Any:
    """The video stream that FFmpeg finds best, among those that are no thumbnails; None where there is none.

    Some cameras put a picture of the film, or some seconds of it, into a stream before the film. In an mp4 the first
    stream is the default one, and FFmpeg prefers that to all others. A thumbnail has one frame, or lasts less than
    half of the longest stream.
    """
    best = container.streams.best("video")
    if best is None or len(container.streams.video) == 1:
        return best
    seconds = {one.index: _own_seconds(one) or 0 for one in container.streams.video}
    longest = max(seconds.values())
    films = [one for one in container.streams.video if one.frames != 1 and 2 * seconds[one.index] >= longest]
    return films[0] if films and best.index not in [one.index for one in films] else best


def _own_seconds(stream: Any) -> Fraction | None:
    """The length that the header states for a stream itself; None if it states none."""
    return seconds_of_tag(stream) if stream.duration is None else Fraction(stream.duration * stream.time_base)


def check_size(name: str, width: int, height: int, limits: Limits) -> None:
    """Raise EncodeError for a picture above the limit."""
    if width * height > limits.pixels:
        raise EncodeError(f"{name}: picture of {width}x{height}; allowed are {limits.pixels} pixels")


def declared_seconds(container: Any, stream: Any) -> Fraction | None:
    """The length of the video stream in seconds, from the header; if only the whole file's is stated, that."""
    if (own := _own_seconds(stream)) is not None:
        return own
    return None if container.duration is None else Fraction(container.duration, av.time_base)


def seconds_of_tag(stream: Any) -> Fraction | None:
    """The length of a stream of a Matroska file, as its muxer noted it ('00:01:02.500000000')."""
    match = DURATION_TAG.fullmatch(stream.metadata.get("DURATION", ""))
    if match is None:
        return None
    hours, minutes, seconds = match.groups()
    return 3600 * int(hours) + 60 * int(minutes) + Fraction(seconds)


def is_avi_cut_short(path: Path) -> bool:
    """Whether an AVI ends before its first RIFF chunk does, without the index that its writer puts at the end."""
    size = path.stat().st_size
    with path.open("rb") as file:
        said = 8 + int.from_bytes(file.read(8)[4:8], "little")
        file.seek(max(size - AVI_TAIL, 0))
        return said > size and b"idx1" not in file.read()


def is_cut_short(part: Part, container: Any, stream: Any, deadline: Deadline) -> bool:
    """Whether a file is not whole, given that its pictures end earlier than its header says. Reads to the file's end.

    A header may state only the length of the whole file, and then its sound may continue after the pictures.
    """
    if container.format.name.startswith("matroska") and (end := matroska_end(part.path)) is not None:
        return part.path.stat().st_size < end
    declared = declared_seconds(container, stream)
    if declared is None or stream.duration is not None:
        return True
    reached = Fraction(0)
    try:
        for packet in container.demux():
            deadline.check()
            if packet.pts is not None:
                end_of_packet = (packet.pts + (packet.duration or 0)) * packet.time_base
                reached = max(reached, end_of_packet)
    except DAMAGE:
        return True
    return reached < declared - TRUNCATED_SECONDS


def _decoder_pixels(limits: Limits) -> str:
    """FFmpeg's limit, which it checks before it allocates memory. It is wide, since decoders add edges."""
    return str(2 * limits.pixels + 512 * 512)


def frame_rate(name: str, stream: Any) -> Fraction:
    """The average frames per second, from the header."""
    rate = stream.average_rate or stream.guessed_rate
    if not rate:
        raise EncodeError(f"{name}: states no frame rate; remux it, for example to mp4")
    return allowed_rate(name, Fraction(rate))


def allowed_rate(name: str, rate: Fraction) -> Fraction:
    """A frame rate as it is. Raises EncodeError if it is out of bounds."""
    if not MIN_FPS <= rate <= MAX_FPS:
        raise EncodeError(f"{name}: {float(rate):g} frames per second; allowed are {float(MIN_FPS)} to {MAX_FPS}")
    return rate


def truncated(part: Part, seconds: Fraction, declared: Fraction) -> EncodeError:
    """The error for a file that ends at `seconds`."""
    return EncodeError(
        f"{part.name}: ends at {float(seconds):.2f} s although its header says {float(declared):.2f} s; "
        "fetch the file again"
    )


def measured_seconds(name: str, container: Any, stream: Any, deadline: Deadline) -> Fraction:
    """The seconds from the first frame to the end of the last. Reads the whole file, without decoding."""
    last: int | None = None
    try:
        for packet in container.demux(stream):
            deadline.check()
            if packet.pts is not None:
                last = packet.pts if last is None else max(last, packet.pts)
    except DAMAGE as error:
        raise EncodeError(f"{name}: states no length, and is damaged ({reason(error)})") from error
    if last is None:
        raise EncodeError(f"{name}: states neither its length nor the time of its frames; remux it, for example to mp4")
    return Fraction((last - (stream.start_time or 0)) * stream.time_base) + 1 / frame_rate(name, stream)
