"""A source video: finds the frame that is shown at a given second.

A video is a file, or a folder of files that are read as one. Each of these has the second at which it begins as its
name (`0.mp4`, `300.mp4`, ...). `video_files` opens them. Every problem of a video is an `EncodeError`.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import av

from lavila.ingest.broadcast import FlvTags, flv_ends_soundly
from lavila.ingest.decoded import Decoded, FrameReader, Structure
from lavila.ingest.gaps import GAP_FRAMES, LOSSY, Gaps, gap_ticks
from lavila.ingest.matroska import Checksums, ends_soundly
from lavila.ingest.picture_kinds import PictureHeader
from lavila.ingest.times import FileTimes, file_times, is_numbered
from lavila.ingest.video_files import (
    TRUNCATED_SECONDS,
    Deadline,
    EncodeError,
    Limits,
    Part,
    check_size,
    declared_seconds,
    find_parts,
    is_cut_short,
    measured_seconds,
    open_video,
    truncated,
)
from lavila.libav import DAMAGE, reason

MAX_SECONDS = 10_000_000.0  # longer than any video, and small enough that timestamps fit into 64 bits
MAX_LENGTH = 1_000_000.0  # the longest length in seconds that a header may state


@dataclass(frozen=True, kw_only=True)
class VideoFacts:
    """The facts in the header of a video."""

    fps: Fraction  # average frames per second
    seconds: float
    height: int  # pixels as coded, before rotation and without square pixels
    width: int


@dataclass(frozen=True, kw_only=True, slots=True)
class _Shown:
    """A frame with the second from which on it is shown."""

    second: Fraction
    frame: Any
    damaged: bool
    missing: int = 0  # frames that were lost between the one before it and this one
    aspect: Fraction | None = None  # width / height of a pixel, as the codec states it


class SourceVideo:
    """A video that is open within a `with` block. Seconds count from its first frame.

    Its methods raise EncodeError for every problem of the video.
    """

    def __init__(self, path: Path, limits: Limits) -> None:
        self.path, self.limits = path, limits
        self.deadline = Deadline(str(path), limits.seconds)
        self.end = Fraction(0)  # the second of the last frame that was read
        self._stop = Fraction(0)  # the second at which that frame ends
        self._parts = find_parts(path)
        self._open: tuple[Part, Any, Any] | None = None
        self._times: dict[Part, FileTimes] = {}
        self._reader: FrameReader
        self._aspect: Fraction | None = None  # of the pixels of the first frame that was asked for, as its codec says
        self._at_start = True  # whether nothing has been read from the open file
        try:
            stream = self._opened(self._parts[0])[1]
            times = self._times[self._parts[0]]
            self.fps, self.fps_stated = times.fps, times.stated
            context, aspect = stream.codec_context, stream.sample_aspect_ratio
            self.header = PictureHeader(
                pixel_aspect=Fraction(aspect)
                if aspect
                else None,  # an unknown aspect is None before PyAV 19, and 0/1 since then
                colorspace=context.colorspace,
                color_range=context.color_range,
                transfer=context.color_trc,
                primaries=context.color_primaries,
                codec_tag=context.codec_tag,
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
        """The facts in the headers. A file whose header does not state its length is read through, without decoding."""
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
        """For each of some ascending seconds the nearest decoded frame, up to the end of the video.

        The last frame is the nearest one up to half a frame after it, or until half a frame before the end of the
        time for which the file shows it.
        """
        self._aspect = None
        wanted = iter(seconds)
        due = next(wanted, None)
        if due is None:
            return
        last: _Shown | None = None
        frames = self._timed(due)
        for second, shown in frames:
            # Up to `until` the frame before is the nearest one.
            until = second if shown is None or last is None else (last.second + second) / 2
            if shown is not None and shown.missing and last is not None:
                half = (second - last.second) / (2 * (shown.missing + 1))
                while due is not None and due <= last.second + half:
                    yield self._sound(last)
                    due = next(wanted, None)
                if due is not None and due < second - half:
                    raise self._lost(last.second, shown)
            while due is not None and last is not None and (due < until or (due == until and shown is not None)):
                yield self._sound(last)
                due = next(wanted, None)
            if shown is None:
                continue
            if last is None and due is not None and due < second - GAP_FRAMES / self.fps:
                raise EncodeError(
                    f"{self.path}: its first picture that can be decoded is shown at {float(second):.2f} s; what comes "
                    "before lacks its keyframe"
                )
            while due is not None and due <= second:
                yield self._sound(shown)
                due = next(wanted, None)
            if due is None:
                if last is not None and second - last.second >= GAP_FRAMES / self.fps:
                    next(frames, None)  # its time may be false, and then the one that follows is earlier
                return
            last = shown
        if last is None:
            raise EncodeError(f"{self.path}: no frame could be decoded")

    def check_reached(self, stop: Fraction | None) -> None:
        """Raise EncodeError if the video ended early because its file is cut short.

        An annotation may also reach past the end of a whole video, and that is allowed. Call this when `frames_at`
        ended early. `stop`: the second up to which frames were needed; None = all.
        """
        part = self._parts[-1]
        declared = declared_seconds(*self._opened(part))
        if declared is None:
            return
        expected = declared if stop is None else min(declared, stop - part.start)
        times, reached = self._times[part], self._stop - part.start
        # A table of all frames says more than the length of the file.
        listed = times.last_dts is not None and times.last_dts != self._reader.last_dts
        least = GAP_FRAMES / self.fps if listed else TRUNCATED_SECONDS
        if reached < expected - least and self._is_cut_short(part):
            raise truncated(part, self.end - part.start, declared)

    def _is_cut_short(self, part: Part) -> bool:
        last_dts = self._times[part].last_dts
        if last_dts is not None and last_dts == self._reader.last_dts:  # the last packet of the table was there
            return False
        self.close()  # to read it from the start
        container, stream = self._opened(part)
        self._at_start = False
        return is_cut_short(part, container, stream, self.deadline)

    def _sound(self, shown: _Shown) -> Any:
        self.deadline.check()
        if shown.damaged:
            raise EncodeError(
                f"{self.path}: the frame at {float(shown.second):.2f} s is damaged, or refers to a damaged one"
            )
        check_size(str(self.path), shown.frame.width, shown.frame.height, self.limits)
        self._follow_aspect(shown)
        return shown.frame

    def _follow_aspect(self, shown: _Shown) -> None:
        """Take over the shape of the pixels of a clip's first frame. Raises EncodeError if it changes within the clip.

        Broadcasts change it. Their containers do not state it; another one does, and then counts, as in players.
        """
        lossy = self._open is not None and self._open[1].format.name in LOSSY
        if shown.aspect is None or shown.aspect == self._aspect or not (lossy or self.header.pixel_aspect is None):
            return
        if self._aspect is not None:
            raise EncodeError(
                f"{self.path}: the shape of its pixels changes from {self._aspect} to {shown.aspect} at "
                f"{float(shown.second):.2f} s, within the clip; give intervals that end or begin there"
            )
        self._aspect = shown.aspect
        if lossy:
            self.header = replace(self.header, pixel_aspect=shown.aspect)

    def _lost(self, before: Fraction, shown: _Shown) -> EncodeError:
        between = f"{float(before):.2f} s and {float(shown.second):.2f} s"
        return EncodeError(f"{self.path}: frames were lost between {between} ({shown.missing}, by the times)")

    def _timed(self, start: Fraction) -> Iterator[tuple[Fraction, _Shown | None]]:
        """(second, frame) from a keyframe at or before `start` on. After each file: when its last frame ends, and None.

        The last frame ends half a frame early, as the others do where the next one is as near.
        """
        first = bisect_right(self._parts, start, key=lambda part: part.start) - 1
        if first < 0:
            raise EncodeError(f"{self.path}: 0{self._parts[0].path.suffix} is missing")
        for part in self._parts[first:]:
            self.end = self._stop = part.start
            any_frame = False
            for shown in self._decoded(part, max(start, part.start)):
                if part.stop is not None and shown.second >= part.stop:
                    break
                any_frame, self.end = True, shown.second
                yield shown.second, shown
            if any_frame:
                self._stop = max(self._stop, self.end + 1 / self.fps)
            yield self._stop - 1 / (2 * self.fps), None
            if part.stop is not None and part.stop - self._stop > TRUNCATED_SECONDS:
                raise self._gap(part, self._stop)

    def _gap(self, part: Part, end: Fraction) -> EncodeError:
        """The error for a gap between the end of a file and the start of the next one."""
        declared = declared_seconds(*self._opened(part))
        if declared is not None and end - part.start < declared - TRUNCATED_SECONDS and self._is_cut_short(part):
            return truncated(part, end - part.start, declared)
        missing = f"{round(end)}{part.path.suffix}"
        return EncodeError(f"{self.path}: {missing} is missing, which begins at {float(end):.2f} s")

    def _decoded(self, part: Part, start: Fraction) -> Iterator[_Shown]:
        """The frames of a file from a keyframe at or before `start` on. Knows in the end when the last one ends."""
        container, stream = self._opened(part)
        times = self._times[part]
        first_pts, tick = (stream.start_time or 0) if times.first is None else times.first, stream.time_base
        pts: int | None = None
        last: Decoded | None = None
        lacks = False  # whether frames may refer to lost ones
        gaps = Gaps(
            lossy=container.format.name in LOSSY, regular=times.regular, indexed=times.indexed, rate=tick * self.fps
        )
        try:
            for one in self._decoded_from(part, first_pts, first_pts + math.floor((start - part.start) / tick)):
                before, after = (one.pts, one.before) if pts is None or one.pts >= pts else (pts, one.pts)
                if after is not None:
                    seconds = " to ".join(f"{float((time - first_pts) * tick):.2f} s" for time in (before, after))
                    raise EncodeError(f"{part.name}: the time goes back from {seconds}; remux it, for example to mp4")
                missing = 0 if last is None else gaps.missing(last, one)
                if last is not None and not missing and any(last.pts < time < one.pts for time in self._reader.lost):
                    missing = max(round((one.pts - last.pts) * tick * self.fps) - 1, 1)
                last, pts = one, one.pts
                second = part.start + (one.pts - first_pts) * tick
                lacks = not one.starts and (lacks or (missing > 0 and one.place is None))
                yield _Shown(
                    second=second, frame=one.frame, damaged=one.damaged or lacks, missing=missing, aspect=one.aspect
                )
        except DAMAGE as error:
            where = f"before {float(start - part.start):.2f} s"
            if pts is not None:
                where = f"after {float((pts - first_pts) * tick):.2f} s"
            raise EncodeError(f"{part.name}: damaged {where} ({reason(error)})") from error
        for found, why in (
            (times.indexed[-1:], "its index lists frames that are not there"),
            (self._reader.lost, "no picture could be decoded of the last packets"),
        ):
            if pts is not None and any(time > pts for time in found):
                second = float((pts - first_pts) * tick)
                raise EncodeError(f"{part.name}: damaged after {second:.2f} s ({why})")
        if pts is not None and not self._ends_soundly(part, container.format.name):
            second = float((pts - first_pts) * tick)
            raise EncodeError(f"{part.name}: damaged after {second:.2f} s (no sound block follows)")
        if times.hold is not None and times.last_dts == self._reader.last_dts:
            self._stop = max(self._stop, self.end + times.hold)
        elif times.stop is not None and (times.by_order or pts == self._reader.latest):
            self._stop = max(self._stop, part.start + times.stop)

    def _ends_soundly(self, part: Part, kind: str) -> bool:
        """Whether the container is sound from the last frame to the end of the file, as far as it shows that."""
        begin, size = self._reader.last_place
        if kind == "flv":
            return flv_ends_soundly(part.path, begin)
        return not kind.startswith("matroska") or ends_soundly(part.path, begin, size)

    def _decoded_from(self, part: Part, first_pts: int, target: int) -> Iterator[Decoded]:
        """Frames in display order, from a keyframe at or before timestamp `target` to the end of the file.

        Containers index by decoding time, so a seek may land on a keyframe after the target. Then this seeks further
        back. In the end, or if the file has no index, it decodes from the start.
        """
        by_order, suspect = self._times[part].by_order, self._times[part].suspect
        for position in self._seeks(part, first_pts, target):
            container, stream = self._opened(part)
            self._at_start = False
            try:
                container.seek(position, stream=stream)
            except av.FFmpegError:  # the index is missing or damaged
                break
            frames = self._frames(part, container, stream)
            # Frames between the place of a seek and the next keyframe may refer to frames that were skipped. Where the
            # order gives the times, those have none. A transport stream notes on the packet before one that a part of
            # it was lost, so the first packet behind a seek may not be whole.
            placed = by_order and stream.codec_context.has_b_frames
            for one in frames:
                if one.pts > target + 1:
                    break
                if placed or (one.starts and (one.number or one.pts not in suspect)):
                    yield one
                    yield from frames
                    return
        if not self._at_start:  # a seek to the start of a transport stream can miss it
            self.close()
        container, stream = self._opened(part)
        self._at_start = False
        yield from self._frames(part, container, stream, from_start=True)

    def _seeks(self, part: Part, first_pts: int, target: int) -> Iterator[int]:
        """The times to seek to, one after another, until a frame at or before `target` comes."""
        times = self._times[part]
        if times.by_order:  # if they are reordered, frames have times only from the second keyframe on
            place = bisect_right(times.keyframes, target) - 1
            place -= bool(self._opened(part)[1].codec_context.has_b_frames)
            while place > 0:
                yield times.keyframes[place]
                place -= 1
            return
        back = 0
        while (position := target - back) > first_pts:
            yield position
            back = max(2 * back, math.ceil(1 / self._opened(part)[1].time_base))

    def _frames(self, part: Part, container: Any, stream: Any, *, from_start: bool = False) -> Iterator[Any]:
        """The frames that have a time. One without a time has no place, and is left out."""
        gap, times = gap_ticks(stream.time_base * self.fps), self._times[part]
        limits, deadline = self.limits, self.deadline
        structure: Structure | None = None
        if container.format.name.startswith("matroska"):
            structure = Checksums(part.path, times.clusters)
        elif container.format.name == "flv":
            structure = FlvTags(part.path)
        self._reader = FrameReader(
            container=container,
            stream=stream,
            deadline=self.deadline,
            limits=self.limits,
            gap=gap,
            by_order=times.by_order,
            from_start=from_start,
            indexed=times.indexed,
            sizes=times.sizes,
            numbered=lambda: is_numbered(part, container, stream, limits, deadline),
            structure=structure,
        )
        return (one for one in self._reader.frames() if one.pts is not None)

    def _opened(self, part: Part) -> tuple[Any, Any]:
        """The container and the video stream of a file. Only one file is open at a time."""
        if self._open is None or self._open[0] is not part:
            self.close()
            container, stream = open_video(part, self.limits, self.deadline)
            self._open = (part, container, stream)
            self._at_start = True
            self._times[part] = file_times(part, container, stream, self.limits, self.deadline)
        return self._open[1:]


def probe_video(video_path: Path, limits: Limits | None = None) -> VideoFacts:
    """The frame rate, length and size of a video, from its header. Raises EncodeError."""
    with SourceVideo(video_path, limits or Limits()) as source:
        return source.facts()
