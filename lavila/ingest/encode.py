"""Cuts a part of a video into one small mp4: to the exact frame, and so that every decoder reads the same colours.

The result is 8-bit yuv420p in BT.601 limited range and tagged so, since DALI converts with BT.601 in any case. It has a
constant frame rate and closed groups of pictures, is upright, and has no audio. Both sides are multiples of 16, since
NVDEC reuses a decoder only if coded and displayed size agree. `source_video` reads, `converter` resizes, and `codecs`
codes. This module chooses the frames.
"""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
from av.video.frame import PictureType

from lavila.ingest.codecs import (
    ENCODERS,
    NVENC,
    WHOLE_CLIP,
    Coding,
    EncodeSettings,
    add_encoder,
    check_encoder,
    encoder_versions,
    marking,
)
from lavila.ingest.converter import Converter, PictureSizes, stored_size
from lavila.ingest.picture_kinds import PictureKind
from lavila.ingest.source_video import MAX_SECONDS, SourceVideo, VideoFacts, probe_video
from lavila.ingest.video_files import EncodeError, Limits
from lavila.plan.frames import frame_span
from lavila.records import SpanRule
from lavila.shards.packets import BOX_HEADER_BYTES

__all__ = [
    "ENCODERS",
    "NVENC",
    "EncodeError",
    "EncodeSettings",
    "EncodedChunk",
    "EncodedClip",
    "Interval",
    "Limits",
    "VideoFacts",
    "check_encoder",
    "encode_chunk",
    "encode_clip",
    "encoder_versions",
    "probe_video",
    "stored_size",
]

DEFAULT_LIMITS = Limits()
MAX_RATE_TERM = 1_000_000  # the largest numerator or denominator of a frame rate that encoders take

# Timestamps continue from chunk to chunk. So groups of pictures of several chunks form one video with one header.
FRAGMENTS = "frag_keyframe+empty_moov+default_base_moof+negative_cts_offsets+frag_discont+skip_trailer"

Chooser = Callable[[int, int, float], Sequence[int]]
"""(frames of the interval, frames after it, frames per second) -> the ascending, distinct frames to store, from 0."""

# Models use few frames of a clip longer than LONG_CLIP seconds, far from each other. With short groups, fewer other
# frames have to be decoded (`benchmarks/streams.py`). `Encoder.long_group` is their length.
LONG_CLIP = 8


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An annotated interval of a video."""

    start_second: float
    stop_second: float | None  # None = to the end of the video
    rule: SpanRule = "edges"  # see lavila.plan.frames.frame_span


@dataclass(frozen=True, kw_only=True)
class EncodedClip:
    """One clip, ready for a shard."""

    data: bytes  # a whole mp4 file
    num_frames: int  # frames of the interval
    fps: float  # stored frames per second, constant
    height: int  # pixels, upright
    width: int
    source_fps: float  # the video's own average
    fps_stated: bool  # whether the video states it; else it is estimated from the times of the frames
    kind: PictureKind  # what is unusual in the video's pictures
    start_frame: int  # 0-based number of the interval's first frame in the video, at source_fps
    first_frame: int  # frames stored before the interval
    frames_after: int  # frames stored after the interval
    source_height: int  # pixels of the video, upright and square
    source_width: int
    scaled_height: int  # pixels after resizing; cropped or padded to height and width
    scaled_width: int


@dataclass(frozen=True, kw_only=True)
class EncodedChunk:
    """A stretch of a video of fixed length, ready for a shard: a header and one fragment per group of pictures.

    The header and any fragments of this and later chunks of the same video are an mp4, too.
    """

    data: bytes = field(repr=False)  # a whole mp4 file
    first_frame: int  # number of its first frame in the whole video at `fps`; timestamps count the same frames
    num_frames: int
    fps: float  # stored frames per second, constant
    height: int  # pixels, upright
    width: int
    source_fps: float  # the video's own average
    fps_stated: bool  # whether the video states it; else it is estimated from the times of the frames
    kind: PictureKind  # what is unusual in the video's pictures
    source_height: int  # pixels of the video, upright and square
    source_width: int
    scaled_height: int  # pixels after resizing; cropped or padded to height and width
    scaled_width: int
    gop: int  # frames of each group of pictures; the last may have fewer
    gop_offsets: list[int]  # bytes from the start of `data` to each group's fragment, and to the end of the last

    @property
    def gop_frames(self) -> list[int]:
        """The number of each group's first frame in the chunk."""
        return list(range(0, self.num_frames, self.gop))

    @property
    def header_size(self) -> int:
        """The bytes before the first fragment."""
        return self.gop_offsets[0]


@dataclass(frozen=True, kw_only=True)
class _Cut:
    """The moments of a video that are stored, as exact numbers. Output frame 0 is the first one of the interval."""

    start_frame: int  # first frame of the interval, at source_fps
    source_fps: Fraction
    fps: Fraction
    num_frames: int | None  # frames of the interval if the video lasts so long; None = to its end
    before: int  # frames to store before the interval
    after: int  # frames to store after the interval

    def second(self, index: int) -> Fraction:
        """The time of output frame `index`, in seconds from the video's first frame."""
        return self.start_frame / self.source_fps + index / self.fps

    def stop(self) -> int | None:
        """The number after the last output frame; None = to the end of the video."""
        return None if self.num_frames is None else self.num_frames + self.after

    def group(self, long_group: float) -> int:
        """The default number of frames in a group of pictures: a whole clip, or `long_group` seconds of a long one."""
        if self.num_frames is None or self.num_frames <= LONG_CLIP * self.fps:
            return WHOLE_CLIP
        return max(round(long_group * self.fps), 1)

    def seconds(self) -> Iterator[Fraction]:
        """The time of each output frame."""
        stop = self.stop()
        indices = itertools.count(-self.before) if stop is None else range(-self.before, stop)
        return (self.second(index) for index in indices)


def encode_clip(
    video_path: Path,
    *,
    interval: Interval,
    settings: EncodeSettings,
    limits: Limits = DEFAULT_LIMITS,
    choose: Chooser | None = None,
) -> EncodedClip:
    """Cut, turn upright, resize and encode one clip of a video (a file, or a folder of files as in `source_video`).

    The frames are those of `lavila.plan.frames.frame_span` at the video's average frame rate. Timestamps find them:
    frame n is the one nearest to n / fps. With settings.fps, the clip has the frames nearest to each n / settings.fps
    from the same start. A clip past the end of the video stops there. So does its margin at both ends of the video.

    With `choose`, only the frames that it returns are stored, as consecutive frames. num_frames and frames_after still
    count the frames from which it chose.

    Raises EncodeError for problems of this clip or video. Other errors are problems of the encoder.
    """
    with SourceVideo(video_path, limits) as source:
        cut = _cut(source, interval, settings)
        try:
            return _encoded(source, cut, settings, choose)
        except EncodeError as error:
            shown = Fraction(interval.start_second) < source.end + 1 / source.fps
            if not error.after_end or not shown or not cut.start_frame:
                raise
        # The start lies in the last half frame of the video, and was rounded up past the last frame.
        start = cut.start_frame - 1
        before = min(cut.before, math.floor(start / source.fps * cut.fps))
        return _encoded(source, replace(cut, start_frame=start, before=before), settings, choose)


def _encoded(source: SourceVideo, cut: _Cut, settings: EncodeSettings, choose: Chooser | None) -> EncodedClip:
    frames = _all_frames(source, cut)
    if choose is None:
        gop = settings.gop or cut.group(settings.coder.long_group)
        coded = _code(frames, source, settings, fps=cut.fps, gop=gop)
        num_frames, frames_after = _split(source, cut, coded.num_frames)
        before = cut.before
    else:
        num_frames, frames_after = _split(source, cut, sum(1 for _ in frames))
        before = 0
        chosen = [int(index) for index in choose(num_frames, frames_after, float(cut.fps))]
        assert chosen and chosen == sorted(set(chosen)), chosen
        assert chosen[0] >= 0 and chosen[-1] < num_frames + frames_after, (chosen, num_frames, frames_after)
        frames = source.frames_at(cut.second(index) for index in chosen)
        coded = _code(frames, source, settings, fps=cut.fps, gop=settings.gop or WHOLE_CLIP)
        assert coded.num_frames == len(chosen), (coded.num_frames, chosen)
    return EncodedClip(
        data=coded.data,
        num_frames=num_frames,
        start_frame=cut.start_frame,
        first_frame=before,
        frames_after=frames_after,
        **_picture(coded, source, cut.fps),
    )


def encode_chunk(
    video_path: Path, *, number: int, seconds: float, settings: EncodeSettings, limits: Limits = DEFAULT_LIMITS
) -> EncodedChunk:
    """Encode stretch `number` (from 0) of a video that is cut every `seconds` seconds.

    Frame g of the whole video has the time g / fps. A stretch has the frames from fps * number * seconds, rounded, up
    to the first one of the next stretch, or to the end of the video.

    Raises EncodeError as in `encode_clip`; with `after_end` if the video ends before the stretch begins.
    """
    with SourceVideo(video_path, limits) as source:
        fps = _stored_rate(source, settings)
        first, stop = (round(fps * Fraction(seconds) * place) for place in (number, number + 1))
        if stop <= first:
            raise EncodeError(f"{video_path}: {float(fps):g} frames per second give no frame in {seconds:g} s")
        gop = settings.gop or max(round(fps / 2), 1)
        frames = source.frames_at(Fraction(index) / fps for index in range(first, stop))
        begun = next(frames, None)
        if begun is None:
            source.check_reached(stop / fps)
            raise _after_end(source, f"chunk {number}", first / fps)
        coded = _code(itertools.chain([begun], frames), source, settings, fps=fps, gop=gop, first_pts=first)
        if coded.num_frames < stop - first:
            source.check_reached(stop / fps)
        offsets = _fragment_offsets(coded.data)
        assert len(offsets) == -(-coded.num_frames // gop) + 1, (offsets, coded.num_frames, gop)
        return EncodedChunk(
            data=coded.data,
            first_frame=first,
            num_frames=coded.num_frames,
            gop=gop,
            gop_offsets=offsets,
            **_picture(coded, source, fps),
        )


def _stored_rate(source: SourceVideo, settings: EncodeSettings) -> Fraction:
    if settings.fps != "native":
        return Fraction(settings.fps).limit_denominator(1001)
    fps, most = source.fps, settings.coder.max_fps
    if fps > most:
        raise EncodeError(
            f"{source.path}: {float(fps):g} frames per second; {settings.codec} takes {most}: set the fps"
        )
    return fps if max(fps.as_integer_ratio()) <= MAX_RATE_TERM else fps.limit_denominator(1001)


def _cut(source: SourceVideo, interval: Interval, settings: EncodeSettings) -> _Cut:
    start_second, stop_second = interval.start_second, interval.stop_second
    for second in (start_second, 0.0 if stop_second is None else stop_second):
        if not 0 <= second <= MAX_SECONDS:
            raise EncodeError(f"{source.path}: no clip from {start_second} s to {stop_second} s can be cut")
    until = start_second if stop_second is None else stop_second
    start, stop = frame_span(start_second, until, float(source.fps), interval.rule)
    fps = _stored_rate(source, settings)
    margin = round(settings.margin * fps)
    return _Cut(
        start_frame=start,
        source_fps=source.fps,
        fps=fps,
        num_frames=None if stop_second is None else math.ceil((stop - start) / source.fps * fps),
        before=min(margin, math.floor(start / source.fps * fps)),
        after=margin,
    )


def _all_frames(source: SourceVideo, cut: _Cut) -> Iterator[Any]:
    """One decoded frame for each output frame. At least one, or an error."""
    count = 0
    for frame in source.frames_at(cut.seconds()):
        yield frame
        count += 1
    stop = cut.stop()
    if stop is None or count < cut.before + stop:
        source.check_reached(None if stop is None else cut.second(stop))
    if count <= cut.before:
        raise _after_end(source, "the clip", cut.second(0))


def _after_end(source: SourceVideo, what: str, second: Fraction) -> EncodeError:
    return EncodeError(
        f"{source.path}: {what} begins at {float(second):.2f} s, "
        f"after the last frame of the video at {float(source.end):.2f} s",
        after_end=True,
    )


def _split(source: SourceVideo, cut: _Cut, count: int) -> tuple[int, int]:
    """How many of the `count` frames that the video had are in the interval, and how many come after it."""
    inside = count - cut.before
    num_frames = inside if cut.num_frames is None else min(cut.num_frames, inside)
    return num_frames, inside - num_frames


@dataclass(frozen=True, kw_only=True)
class _Coded:
    data: bytes
    num_frames: int
    sizes: PictureSizes
    kind: PictureKind


def _picture(coded: _Coded, source: SourceVideo, fps: Fraction) -> dict[str, Any]:
    """The fields that clips and chunks share."""
    sizes = coded.sizes
    return {
        "fps": float(fps),
        "source_fps": float(source.fps),
        "fps_stated": source.fps_stated,
        "kind": coded.kind,
        **dict(zip(("height", "width"), sizes.stored, strict=True)),
        **dict(zip(("source_height", "source_width"), sizes.source, strict=True)),
        **dict(zip(("scaled_height", "scaled_width"), sizes.scaled, strict=True)),
    }


def _code(
    frames: Iterator[Any],
    source: SourceVideo,
    settings: EncodeSettings,
    *,
    fps: Fraction,
    gop: int,
    first_pts: int | None = None,
) -> _Coded:
    """Convert and encode frames into an mp4. With `first_pts`, the number of the first frame, groups are fragments."""
    fragments = first_pts is not None
    first_pts = first_pts or 0
    first = next(frames)
    convert = Converter(first, source.header, short_side=settings.short_side, fit=settings.fit)
    height, width = convert.sizes.stored
    if min(height, width) < settings.coder.min_side:
        least = settings.coder.min_side
        raise EncodeError(f"{source.path}: stored as {width}x{height}, but NVENC takes {least} pixels and more")
    options = {"fflags": "+bitexact"} | ({"movflags": FRAGMENTS} if fragments else {})
    buffer = io.BytesIO()
    count, keyframes, num_packets = 0, [], 0
    with av.open(buffer, "w", format="mp4", container_options=options) as output:
        coding = Coding(fps=fps, height=height, width=width, gop=gop, regular=fragments)
        stream, mark = add_encoder(output, settings, coding), marking(settings, coding)
        for frame in itertools.chain([first], frames, [None]):
            picture = None
            if frame is not None:
                picture = mark(convert(frame))
                picture.pts, picture.time_base = first_pts + count, 1 / fps
                picture.pict_type = PictureType.NONE  # so that the encoder chooses keyframes, not the source
                count += 1
            for packet in stream.encode(picture):
                if packet.is_keyframe:
                    keyframes.append(round(packet.pts * packet.time_base * fps) - first_pts)
                output.mux(packet)
                num_packets += 1
    assert num_packets == count, (num_packets, count)
    assert not fragments or keyframes == list(range(0, count, gop)), (keyframes, count, gop)
    return _Coded(data=buffer.getvalue(), num_frames=count, sizes=convert.sizes, kind=convert.kind)


def _fragment_offsets(data: bytes) -> list[int]:
    """The first byte of each fragment (moof and mdat) of a fragmented mp4, and the end of the last one."""
    position, kinds, offsets = 0, [], []
    while position < len(data):
        size, kind = int.from_bytes(data[position : position + 4], "big"), data[position + 4 : position + 8]
        assert size >= BOX_HEADER_BYTES, (position, size, kind)
        if kind == b"moof":
            offsets.append(position)
        kinds.append(kind)
        position += size
    assert position == len(data) and kinds == [b"ftyp", b"moov"] + [b"moof", b"mdat"] * len(offsets), kinds
    return [*offsets, position]
