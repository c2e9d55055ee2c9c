"""A source video, opened for cutting: which frame is shown at a given second, wherever in the video that is.

A video is a file, or a folder of files named after the second at which each begins (`0.mp4`, `300.mp4`, ...), read as
one. Whatever comes from outside is taken for hostile: only real containers are read, nothing that they refer to is
opened, and pictures and time are bounded. What is wrong with a video is an `EncodeError`.
"""

from __future__ import annotations

import math
import re
import time
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import av

MAX_FPS = 1000
MAX_SECONDS = 10_000_000.0  # no video is longer; also keeps timestamps within 64 bits
MAX_LENGTH = 1_000_000.0  # seconds that a header may claim
TRUNCATED_SECONDS = 1.0  # a video that ends this much before its header says is damaged, not short

# FFmpeg's names of demuxers. Those for playlists, scripts and series of pictures are left out: they open other files.
DEMUXERS = "mov,matroska,webm,avi,mpeg,mpegts,flv,asf,ogg,ivf,m4v"
KINDS = "mp4, mov, mkv, webm, avi, mpg, ts, flv, wmv, ogg or ivf"
PART_NAME = re.compile(r"([0-9]{1,7})\.(mp4|mov|mkv|webm|avi)", re.IGNORECASE)


class EncodeError(ValueError):
    """A clip that cannot be cut from its video, told in one line. `after_end`: only because the video ends before."""

    def __init__(self, message: str, *, after_end: bool = False) -> None:
        super().__init__(message)
        self.after_end = after_end


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one clip or chunk may take before it is given up."""

    seconds: float = 600.0  # wall clock; a single call into FFmpeg is not interrupted
    pixels: int = 8192 * 8192  # of the largest picture


@dataclass(frozen=True, kw_only=True)
class VideoFacts:
    """What the header of a video says."""

    fps: Fraction  # average frames per second
    seconds: float
    height: int  # pixels, as coded: neither turned nor with square pixels
    width: int


@dataclass(frozen=True, kw_only=True)
class PictureHeader:
    """What the container says of the pictures; frames may say otherwise."""

    pixel_aspect: Fraction | None  # width / height of a pixel
    colorspace: int  # FFmpeg's number of the colour matrix
    color_range: int


class Deadline:
    """Raises EncodeError from `check` once its time is over."""

    def __init__(self, name: str, seconds: float) -> None:
        self.name, self.seconds = name, seconds
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds, above 0."""
        return max(self._end - time.monotonic(), 0.001)

    def check(self) -> None:
        if time.monotonic() > self._end:
            raise EncodeError(f"{self.name}: given up after {self.seconds:g} s, the limit for one clip")


@dataclass(frozen=True, kw_only=True)
class _Part:
    """One file of a video."""

    path: Path
    name: str  # in messages
    start: Fraction  # second of the video at which it begins
    stop: Fraction | None  # second at which the next one begins; None = the last


class SourceVideo:
    """A video, open within a `with` block. All seconds are counted from its first frame.

    Raises EncodeError wherever the video is not as it should be.
    """

    def __init__(self, path: Path, limits: Limits) -> None:
        self.path, self.limits = path, limits
        self.deadline = Deadline(str(path), limits.seconds)
        self.end = Fraction(0)  # second of the last frame that was read
        self._parts = _find_parts(path)
        self._open: tuple[_Part, Any, Any] | None = None
        self._at_start = True  # whether nothing has been read of the file that is open
        try:
            stream = self._opened(self._parts[0])[1]
            self.fps = _frame_rate(self._parts[0].name, stream)
            context = stream.codec_context
            self.header = PictureHeader(
                pixel_aspect=stream.sample_aspect_ratio, colorspace=context.colorspace, color_range=context.color_range
            )
            self._coded = context.height, context.width
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> SourceVideo:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        if self._open is not None:
            self._open[1].close()
            self._open = None

    def facts(self) -> VideoFacts:
        """What the headers say; a file that does not state its length is read through, without decoding."""
        last = self._parts[-1]
        seconds = self._declared(last)
        if seconds is None:
            container, stream = self._opened(last)
            self._at_start = False
            seconds = _measured_seconds(last.name, container, stream, self.deadline)
        total = float(last.start + seconds)
        if total > MAX_LENGTH:
            raise EncodeError(f"{self.path}: its header says {total:.0f} s, which cannot be")
        return VideoFacts(fps=self.fps, seconds=total, height=self._coded[0], width=self._coded[1])

    def frames_at(self, seconds: Iterable[Fraction]) -> Iterator[Any]:
        """The decoded frame shown nearest to each of some ascending seconds, for as many as the video lasts.

        The last frame stands for half a frame after it.
        """
        wanted = iter(seconds)
        due = next(wanted, None)
        if due is None:
            return
        last, last_second = None, Fraction(0)
        for second, frame in self._timed(due):
            while due is not None and last is not None:
                middle = (last_second + second) / 2
                if due > middle or (frame is None and due == middle):
                    break
                yield self._sound(last, last_second)
                due = next(wanted, None)
            if frame is None:
                continue
            while due is not None and due <= second:
                yield self._sound(frame, second)
                due = next(wanted, None)
            if due is None:
                return
            last, last_second = frame, second
        if last is None:
            raise EncodeError(f"{self.path}: no frame could be decoded")

    def check_reached(self, stop: Fraction | None) -> None:
        """An annotation may reach past the end of a video. A file that is cut short must not pass for that.

        To be called where `frames_at` ended early. `stop` is the second up to which frames were wanted; None = all.
        """
        part = self._parts[-1]
        declared = self._declared(part)
        if declared is None:
            return
        expected = declared if stop is None else min(declared, stop - part.start)
        if self.end + 1 / self.fps - part.start < expected - TRUNCATED_SECONDS:
            raise _truncated(part, self.end - part.start, declared)

    def _sound(self, frame: Any, second: Fraction) -> Any:
        self.deadline.check()
        if frame.is_corrupt:
            raise EncodeError(f"{self.path}: the frame at {float(second):.2f} s is damaged")
        if frame.width * frame.height > self.limits.pixels:
            raise self._too_large(frame.width, frame.height)
        return frame

    def _too_large(self, width: int, height: int) -> EncodeError:
        return EncodeError(f"{self.path}: picture of {width}x{height}; allowed are {self.limits.pixels} pixels")

    def _timed(self, start: Fraction) -> Iterator[tuple[Fraction, Any]]:
        """(second, frame) from a keyframe at or before `start`; after each file, (its end, None)."""
        first = bisect_right(self._parts, start, key=lambda part: part.start) - 1
        if first < 0:
            raise EncodeError(f"{self.path}: 0{self._parts[0].path.suffix} is missing")
        for part in self._parts[first:]:
            self.end = part.start
            any_frame = False
            for second, frame in self._decoded(part, max(start, part.start)):
                if part.stop is not None and second >= part.stop:
                    break
                any_frame, self.end = True, second
                yield second, frame
            end = self.end + 1 / self.fps if any_frame else part.start
            yield end, None
            if part.stop is not None and part.stop - end > TRUNCATED_SECONDS:
                raise self._gap(part, end)

    def _gap(self, part: _Part, end: Fraction) -> EncodeError:
        """Why there is nothing between the end of a file and the start of the next."""
        declared = self._declared(part)
        if declared is not None and end - part.start < declared - TRUNCATED_SECONDS:
            return _truncated(part, end - part.start, declared)
        missing = f"{round(end)}{part.path.suffix}"
        return EncodeError(f"{self.path}: {missing} is missing, with what is shown from {float(end):.2f} s on")

    def _decoded(self, part: _Part, start: Fraction) -> Iterator[tuple[Fraction, Any]]:
        stream = self._opened(part)[1]
        first_pts, tick = stream.start_time or 0, stream.time_base
        second = Fraction(0)
        try:
            for frame in self._decoded_from(part, first_pts, first_pts + math.floor((start - part.start) / tick)):
                second = (frame.pts - first_pts) * tick
                yield part.start + second, frame
        except (av.FFmpegError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise EncodeError(f"{part.name}: damaged after {float(second):.2f} s ({reason})") from error

    def _decoded_from(self, part: _Part, first_pts: int, target: int) -> Iterator[Any]:
        """Frames in display order, from a keyframe at or before timestamp `target` to the end of the file.

        A seek may land on a keyframe behind the target (containers index by decoding time): then go further back, in
        the end to the very start of the file.
        """
        back = 0
        while (position := target - back) > first_pts:
            container, stream = self._opened(part)
            self._at_start = False
            container.seek(position, stream=stream)
            frames = _decode(container, stream, self.deadline)
            frame = next(frames, None)
            # What precedes the first keyframe after a seek may lack its references.
            while frame is not None and not frame.key_frame and frame.pts <= target + 1:
                frame = next(frames, None)
            if frame is not None and frame.key_frame and frame.pts <= target + 1:
                yield frame
                yield from frames
                return
            back = max(2 * back, math.ceil(1 / stream.time_base))
        if not self._at_start:  # a seek to the start of a transport stream can miss it
            self.close()
        container, stream = self._opened(part)
        self._at_start = False
        yield from _decode(container, stream, self.deadline)

    def _opened(self, part: _Part) -> tuple[Any, Any]:
        """Container and video stream of a file. One file is open at a time."""
        if self._open is None or self._open[0] is not part:
            self.close()
            container = _open_container(part, self.limits, self.deadline)
            self._at_start = True
            self._open = (part, container, None)
            self._open = (part, container, self._video_stream(part, container))
        return self._open[1:]

    def _video_stream(self, part: _Part, container: Any) -> Any:
        stream = container.streams.best("video")
        if stream is None:
            raise EncodeError(f"{part.name}: holds no video stream")
        context = stream.codec_context
        if context is None or not stream.time_base:
            raise EncodeError(f"{part.name}: its codec is not known, or its header is damaged")
        if context.width * context.height > self.limits.pixels:
            raise self._too_large(context.width, context.height)
        context.thread_count = 1  # one process per clip is the parallelism here
        context.options = {"max_pixels": _decoder_pixels(self.limits)}
        return stream

    def _declared(self, part: _Part) -> Fraction | None:
        """Seconds of a file as its header says."""
        container, stream = self._opened(part)
        if stream.duration is not None:
            return Fraction(stream.duration * stream.time_base)
        return None if container.duration is None else Fraction(container.duration, av.time_base)


def probe_video(video_path: Path, limits: Limits | None = None) -> VideoFacts:
    """Frame rate, length and size of a video, from its header. Raises EncodeError."""
    with SourceVideo(video_path, limits or Limits()) as source:
        return source.facts()


def _find_parts(path: Path) -> list[_Part]:
    try:
        if path.is_file():
            return [_Part(path=path, name=str(path), start=Fraction(0), stop=None)]
        if not path.is_dir():
            raise EncodeError(f"{path}: no such video")
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
        _Part(path=file, name=f"{path}: {file.name}", start=Fraction(start), stop=stop)
        for (start, file), stop in zip(found, stops, strict=True)
    ]


def _open_container(part: _Part, limits: Limits, deadline: Deadline) -> Any:
    options = {
        "protocol_whitelist": "file",
        "format_whitelist": DEMUXERS,
        "enable_drefs": "0",
        "use_absolute_path": "0",
        "max_pixels": _decoder_pixels(limits),  # of the decoders that FFmpeg tries on opening
    }
    try:
        # With a protocol given, no file name can be taken for one.
        name = f"file:{part.path.absolute()}"
        return av.open(name, options=options, timeout=deadline.left(), metadata_errors="ignore")
    except (av.FFmpegError, OSError, ValueError) as error:
        deadline.check()
        reason = error.__class__.__name__
        raise EncodeError(f"{part.name}: not a readable video ({reason}); it should be {KINDS}") from error


def _decoder_pixels(limits: Limits) -> str:
    """FFmpeg's own limit, kept before memory is taken. Decoders add edges, so it is a wide one."""
    return str(4 * limits.pixels + 512 * 512)


def _frame_rate(name: str, stream: Any) -> Fraction:
    rate = stream.average_rate or stream.guessed_rate
    if not rate:
        raise EncodeError(f"{name}: states no frame rate; remux it, for example to mp4")
    if not 0 < rate <= MAX_FPS:
        raise EncodeError(f"{name}: {float(rate):g} frames per second; allowed are up to {MAX_FPS}")
    return Fraction(rate)


def _truncated(part: _Part, seconds: Fraction, declared: Fraction) -> EncodeError:
    return EncodeError(
        f"{part.name}: ends at {float(seconds):.2f} s although its header says {float(declared):.2f} s; "
        "fetch the file again"
    )


def _measured_seconds(name: str, container: Any, stream: Any, deadline: Deadline) -> Fraction:
    last: int | None = None
    try:
        for packet in container.demux(stream):
            deadline.check()
            if packet.pts is not None:
                last = packet.pts if last is None else max(last, packet.pts)
    except av.FFmpegError as error:
        raise EncodeError(f"{name}: states no length, and is damaged ({error.strerror})") from error
    if last is None:
        raise EncodeError(f"{name}: states neither its length nor the time of its frames; remux it, for example to mp4")
    return Fraction((last - (stream.start_time or 0)) * stream.time_base) + 1 / _frame_rate(name, stream)


def _decode(container: Any, stream: Any, deadline: Deadline) -> Iterator[Any]:
    for packet in container.demux(stream):
        deadline.check()
        for frame in packet.decode():
            if frame.pts is not None:
                yield frame
