"""A source video, opened for cutting: which frame is shown at a given second, wherever in the video that is.

A video is a file, or a folder of files named after the second at which each begins (`0.mp4`, `300.mp4`, ...), read as
one. `video_files` opens them. What is wrong with a video is an `EncodeError`.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import av

from lavila.ingest.video_files import (
    TRUNCATED_SECONDS,
    Deadline,
    EncodeError,
    Limits,
    Part,
    check_size,
    declared_seconds,
    find_parts,
    frame_rate,
    measured_seconds,
    open_video,
    truncated,
)
from lavila.libav import DAMAGE, reason

MAX_SECONDS = 10_000_000.0  # no video is longer; also keeps timestamps within 64 bits
MAX_LENGTH = 1_000_000.0  # seconds that a header may claim


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


class SourceVideo:
    """A video, open within a `with` block. All seconds are counted from its first frame.

    Raises EncodeError wherever the video is not as it should be.
    """

    def __init__(self, path: Path, limits: Limits) -> None:
        self.path, self.limits = path, limits
        self.deadline = Deadline(str(path), limits.seconds)
        self.end = Fraction(0)  # second of the last frame that was read
        self._parts = find_parts(path)
        self._open: tuple[Part, Any, Any] | None = None
        self._at_start = True  # whether nothing has been read of the file that is open
        try:
            stream = self._opened(self._parts[0])[1]
            self.fps = frame_rate(self._parts[0].name, stream)
            context, aspect = stream.codec_context, stream.sample_aspect_ratio
            self.header = PictureHeader(
                pixel_aspect=Fraction(aspect) if aspect else None,  # not known: None before PyAV 19, then a ratio 0/1
                colorspace=context.colorspace,
                color_range=context.color_range,
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
        seconds = declared_seconds(*self._opened(last))
        if seconds is None:
            container, stream = self._opened(last)
            self._at_start = False
            seconds = measured_seconds(last.name, container, stream, self.deadline)
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
        declared = declared_seconds(*self._opened(part))
        if declared is None:
            return
        expected = declared if stop is None else min(declared, stop - part.start)
        if self.end + 1 / self.fps - part.start < expected - TRUNCATED_SECONDS:
            raise truncated(part, self.end - part.start, declared)

    def _sound(self, frame: Any, second: Fraction) -> Any:
        self.deadline.check()
        if frame.is_corrupt:
            raise EncodeError(f"{self.path}: the frame at {float(second):.2f} s is damaged")
        check_size(str(self.path), frame.width, frame.height, self.limits)
        return frame

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

    def _gap(self, part: Part, end: Fraction) -> EncodeError:
        """Why there is nothing between the end of a file and the start of the next."""
        declared = declared_seconds(*self._opened(part))
        if declared is not None and end - part.start < declared - TRUNCATED_SECONDS:
            return truncated(part, end - part.start, declared)
        missing = f"{round(end)}{part.path.suffix}"
        return EncodeError(f"{self.path}: {missing} is missing, with what is shown from {float(end):.2f} s on")

    def _decoded(self, part: Part, start: Fraction) -> Iterator[tuple[Fraction, Any]]:
        stream = self._opened(part)[1]
        first_pts, tick = stream.start_time or 0, stream.time_base
        second = Fraction(0)
        try:
            for frame in self._decoded_from(part, first_pts, first_pts + math.floor((start - part.start) / tick)):
                second = (frame.pts - first_pts) * tick
                yield part.start + second, frame
        except DAMAGE as error:
            raise EncodeError(f"{part.name}: damaged after {float(second):.2f} s ({reason(error)})") from error

    def _decoded_from(self, part: Part, first_pts: int, target: int) -> Iterator[Any]:
        """Frames in display order, from a keyframe at or before timestamp `target` to the end of the file.

        A seek may land on a keyframe behind the target (containers index by decoding time): then go further back, in
        the end, or where the file has no index, to its very start.
        """
        back = 0
        while (position := target - back) > first_pts:
            container, stream = self._opened(part)
            self._at_start = False
            try:
                container.seek(position, stream=stream)
            except av.FFmpegError:  # no index, or a damaged one
                break
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

    def _opened(self, part: Part) -> tuple[Any, Any]:
        """Container and video stream of a file. One file is open at a time."""
        if self._open is None or self._open[0] is not part:
            self.close()
            self._open = (part, *open_video(part, self.limits, self.deadline))
            self._at_start = True
        return self._open[1:]


def probe_video(video_path: Path, limits: Limits | None = None) -> VideoFacts:
    """Frame rate, length and size of a video, from its header. Raises EncodeError."""
    with SourceVideo(video_path, limits or Limits()) as source:
        return source.facts()


def _decode(container: Any, stream: Any, deadline: Deadline) -> Iterator[Any]:
    """Frames in display order. One that nothing gives a time to cannot be placed, and is left out."""
    for packet in container.demux(stream):
        deadline.check()
        for frame in packet.decode():
            if frame.pts is not None:
                yield frame
