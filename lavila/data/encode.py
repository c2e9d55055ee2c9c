"""One clip of one video -> one small mp4, cut exactly and coded so that every decoder reads the same colours.

What comes out is always 8-bit yuv420p, BT.601 limited range, tagged so (DALI converts with BT.601 whatever the tag
says), at a constant frame rate, upright, without audio, in closed groups of pictures, both sides a multiple of 16
(NVDEC reuses a decoder only where coded and displayed size agree). Encoders run on one thread: the bytes of a clip
depend on the video and the settings alone, and many clips at once are a matter for many processes.
"""

from __future__ import annotations

import io
import itertools
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import av
import av.filter
from av.video.frame import PictureType

from lavila.annotations import frame_span

SIDE_MULTIPLE = 16  # pixels
MAX_DISTORTION = 0.01  # share by which the long side may be stretched to reach a multiple of 16; beyond it is cropped
WHOLE_CLIP = 1 << 16  # frames; a group of pictures longer than any clip
TRUNCATED_SECONDS = 1.0  # a video that ends this much before its header says is damaged, not short

# FFmpeg's numbers for colour matrices -> names of its scale filter. 2 is "not tagged", which FFmpeg takes for BT.601;
# so did the decoders that published models were trained with.
COLOR_MATRICES = {1: "bt709", 2: "bt601", 4: "fcc", 5: "bt601", 6: "bt601", 7: "smpte240m", 9: "bt2020"}
SMPTE170M = 6  # FFmpeg's number for BT.601 with 525 lines: matrix, primaries and transfer alike
LIMITED_RANGE, FULL_RANGE = 1, 2


class EncodeError(ValueError):
    """A clip that cannot be cut from its video, told in one line."""


@dataclass(frozen=True, kw_only=True)
class _Encoder:
    name: str  # FFmpeg's name
    crf: int  # default quality; VP9's is about 40 dB on film at 512x288, the others' is not measured
    speed_option: str
    speed: str  # default speed
    speeds: tuple[str, ...]  # what the encoder takes
    options: dict[str, str]  # what makes groups closed, threads one and decoding cheap


X26X_PRESETS = ("ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow")

ENCODERS = {
    "vp9": _Encoder(
        name="libvpx-vp9",
        crf=36,
        speed_option="cpu-used",
        speed="5",
        speeds=tuple(map(str, range(9))),
        options={"deadline": "good", "b": "0", "lag-in-frames": "25", "auto-alt-ref": "1", "row-mt": "0"},
    ),
    "h264": _Encoder(
        name="libx264",
        crf=23,
        speed_option="preset",
        speed="medium",
        speeds=X26X_PRESETS,
        # No deblocking and no CABAC: a fifth more bytes for two thirds of the decoding time.
        options={"tune": "fastdecode", "x264-params": "open-gop=0:sliced-threads=0"},
    ),
    "hevc": _Encoder(
        name="libx265",
        crf=25,
        speed_option="preset",
        speed="medium",
        speeds=X26X_PRESETS,
        options={"x265-params": "open-gop=0:pools=none:frame-threads=1:log-level=error", "tag": "hvc1"},
    ),
    "av1": _Encoder(
        name="libsvtav1",
        crf=35,
        speed_option="preset",
        speed="8",
        speeds=tuple(map(str, range(14))),
        options={"svtav1-params": "lp=1:fast-decode=1"},
    ),
}


@dataclass(frozen=True, kw_only=True)
class EncodeSettings:
    """How clips are coded. Everything here is written into the shard set's manifest.

    The defaults are measured: VP9 at these settings takes 96 KB and 28 ms of decoding for 3 s at 512x288, and one
    group of pictures as long as the clip is both the smallest and the cheapest to decode on a CPU.
    """

    codec: str = "vp9"  # vp9, h264, hevc or av1
    short_side: int = 288  # pixels, a multiple of 16; a smaller video is never enlarged
    fps: float | Literal["native"] = "native"  # frames per second as stored; native = the video's own average
    gop: int = 0  # frames from one keyframe to the next; 0 = one group as long as the clip
    crf: int = field(default=-1)  # quality, lower is better; -1 = the codec's default
    speed: str = ""  # cpu-used of VP9, preset of the others; empty = the codec's default

    def __post_init__(self) -> None:
        if self.codec not in ENCODERS:
            raise ValueError(f"codec {self.codec!r} is not known; choose one of {', '.join(ENCODERS)}")
        if self.short_side < SIDE_MULTIPLE or self.short_side % SIDE_MULTIPLE:
            near = max(round(self.short_side / SIDE_MULTIPLE), 1) * SIDE_MULTIPLE
            raise ValueError(f"short side {self.short_side} is not a multiple of {SIDE_MULTIPLE} pixels; try {near}")
        if self.fps != "native" and not 0 < self.fps <= 1000:
            raise ValueError(f"fps {self.fps!r}: give 'native' or frames per second above 0 and up to 1000")
        if self.gop < 0:
            raise ValueError(f"gop {self.gop}: give a number of frames, or 0 for one group as long as the clip")
        if not -1 <= self.crf <= 63:
            raise ValueError(f"crf {self.crf}: give 0 (best) to 63 (smallest), or -1 for the codec's default")
        encoder = ENCODERS[self.codec]
        if self.speed and self.speed not in encoder.speeds:
            raise ValueError(f"speed {self.speed!r}: {self.codec} takes one of {', '.join(encoder.speeds)}")
        object.__setattr__(self, "crf", encoder.crf if self.crf == -1 else self.crf)
        object.__setattr__(self, "speed", self.speed or encoder.speed)


@dataclass(frozen=True, kw_only=True)
class EncodedClip:
    """One clip as it goes into a shard."""

    data: bytes  # a whole mp4 file
    num_frames: int
    fps: float  # frames per second as stored, constant
    height: int  # pixels, upright
    width: int
    source_fps: float  # the video's own average
    start_frame: int  # 0-based number in the video of the clip's first frame, at source_fps


@dataclass(frozen=True, kw_only=True)
class _Cut:
    """Which moments of a video are wanted, as exact numbers."""

    start_frame: int
    source_fps: Fraction
    fps: Fraction
    stop: Fraction | None  # seconds from the video's first frame, excluded; None = to the end

    def second(self, index: int) -> Fraction:
        """When output frame `index` is due, in seconds from the video's first frame."""
        return self.start_frame / self.source_fps + index / self.fps

    def wanted(self, index: int) -> bool:
        return self.stop is None or self.second(index) < self.stop


def encoder_versions() -> dict[str, str]:
    """Versions that the bytes of a clip depend on."""
    libraries = {name: ".".join(map(str, version)) for name, version in av.library_versions.items()}
    return {"pyav": av.__version__, "libavcodec": libraries["libavcodec"], "libswscale": libraries["libswscale"]}


def encode_clip(
    video_path: Path, *, start_second: float, stop_second: float | None, settings: EncodeSettings
) -> EncodedClip:
    """Cut, turn upright, resize and encode one clip.

    Frames are those of `lavila.annotations.frame_span` at the video's own average frame rate, found by timestamp: of
    all frames the nearest to n / fps. With settings.fps, the nearest to each n / settings.fps from the same start. A
    clip that reaches past the end of the video stops there.

    Raises EncodeError for what is wrong with this clip or video; anything else is wrong with the encoder.
    """
    if not video_path.is_file():
        raise EncodeError(f"{video_path}: no such video")
    try:
        container = av.open(str(video_path))
    except (av.FFmpegError, OSError) as error:
        raise EncodeError(f"{video_path}: not a readable video ({error.__class__.__name__})") from error
    with container:
        if not container.streams.video:
            raise EncodeError(f"{video_path}: holds no video stream")
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1  # one process per clip is the parallelism here
        cut = _cut(video_path, stream, start_second, stop_second, settings)
        aspect = stream.sample_aspect_ratio
        return _encode(_chosen_frames(video_path, container, stream, cut), cut, settings, aspect)


def _cut(
    video_path: Path, stream: Any, start_second: float, stop_second: float | None, settings: EncodeSettings
) -> _Cut:
    source_fps = stream.average_rate or stream.guessed_rate
    if not source_fps:
        raise EncodeError(f"{video_path}: states no frame rate; remux it, for example to mp4")
    # A clip shorter than half a frame still gets the frame it lies in.
    start, stop = frame_span(start_second, start_second if stop_second is None else stop_second, float(source_fps))
    stop = max(stop, start + 1)
    fps = source_fps if settings.fps == "native" else Fraction(settings.fps).limit_denominator(1001)
    return _Cut(
        start_frame=start,
        source_fps=source_fps,
        fps=fps,
        stop=None if stop_second is None else stop / source_fps,
    )


def _chosen_frames(video_path: Path, container: Any, stream: Any, cut: _Cut) -> Iterator[Any]:
    """One decoded frame for each output frame: the one shown nearest to when that is due. At least one, or an error."""
    first_pts = stream.start_time or 0
    index, last, last_second = 0, None, Fraction(0)
    try:
        for frame in _decode_from(container, stream, first_pts + math.floor(cut.second(0) / stream.time_base)):
            second = (frame.pts - first_pts) * stream.time_base
            while last is not None and cut.wanted(index) and 2 * cut.second(index) <= last_second + second:
                yield _sound(video_path, last, last_second)
                index += 1
            if not cut.wanted(index):
                return
            last, last_second = frame, second
    except av.FFmpegError as error:
        raise EncodeError(f"{video_path}: damaged after {float(last_second):.2f} s ({error.strerror})") from error
    if last is None:
        raise EncodeError(f"{video_path}: no frame could be decoded")
    half_a_frame = 1 / (2 * cut.source_fps)
    while cut.wanted(index) and cut.second(index) < last_second + half_a_frame:
        yield _sound(video_path, last, last_second)
        index += 1
    if cut.wanted(index):
        _check_not_truncated(video_path, container, cut, last_second)
    if index == 0:
        raise EncodeError(
            f"{video_path}: the clip begins at {float(cut.second(0)):.2f} s, "
            f"after the last frame of the video at {float(last_second):.2f} s"
        )


def _sound(video_path: Path, frame: Any, second: Fraction) -> Any:
    if frame.is_corrupt:
        raise EncodeError(f"{video_path}: the frame at {float(second):.2f} s is damaged")
    return frame


def _check_not_truncated(video_path: Path, container: Any, cut: _Cut, last_second: Fraction) -> None:
    """An annotation may reach past the end of a video. A file that is cut short must not pass for that."""
    if container.duration is None:
        return
    declared = Fraction(container.duration, av.time_base)
    expected = declared if cut.stop is None else min(declared, cut.stop)
    if last_second < expected - TRUNCATED_SECONDS:
        raise EncodeError(
            f"{video_path}: ends at {float(last_second):.2f} s although its header says {float(declared):.2f} s; "
            "fetch the file again"
        )


def _decode_from(container: Any, stream: Any, target: int) -> Iterator[Any]:
    """Frames in display order, from a keyframe at or before timestamp `target` (of `stream.time_base`) to the end.

    A seek may land on a keyframe behind the target (containers index by decoding time): then go further back.
    """
    first_pts = stream.start_time or 0
    back = 0
    while True:
        position = max(target - back, first_pts)
        container.seek(position, stream=stream)
        frames = (frame for frame in container.decode(stream) if frame.pts is not None)
        # What precedes the first keyframe after a seek may lack its references.
        frame = next((frame for frame in frames if frame.key_frame or position == first_pts), None)
        if position == first_pts or (frame is not None and frame.pts <= target + 1):
            break
        back = max(2 * back, math.ceil(1 / stream.time_base))
    if frame is not None:
        yield frame
        yield from frames


def stored_size(height: int, width: int, *, short_side: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """(height, width) to scale an upright picture to, and (height, width) of the centre to keep, in pixels.

    The short side becomes `short_side`, or keeps its size where it is smaller. The long side follows; where a multiple
    of 16 lies within 1 % it is stretched onto it, else cropped down to one. Raises EncodeError below 16 pixels.
    """
    short, long = sorted((height, width))
    if short < SIDE_MULTIPLE:
        raise EncodeError(f"picture of {width}x{height} is smaller than {SIDE_MULTIPLE} pixels")
    if short <= short_side:
        scaled_short, exact = short, Fraction(long)
    else:
        scaled_short, exact = short_side, Fraction(long * short_side, short)
    near = round(exact / SIDE_MULTIPLE) * SIDE_MULTIPLE
    scaled_long = near if abs(near - exact) <= MAX_DISTORTION * exact and exact != long else round(exact)
    kept_short, kept_long = (side // SIDE_MULTIPLE * SIDE_MULTIPLE for side in (scaled_short, scaled_long))
    if height <= width:
        return (scaled_short, scaled_long), (kept_short, kept_long)
    return (scaled_long, scaled_short), (kept_long, kept_short)


def _upright_size(frame: Any, stream_aspect: Fraction | None) -> tuple[int, int]:
    """Height and width in square pixels after the rotation that the file asks for."""
    width = round(frame.width * stream_aspect) if stream_aspect else frame.width
    return (frame.height, width) if frame.rotation % 180 == 0 else (width, frame.height)


class _Converter:
    """Decoded frame -> upright, resized, 8-bit yuv420p frame in BT.601 limited range."""

    def __init__(self, first: Any, aspect: Fraction | None, short_side: int) -> None:
        turned = first.rotation % 180 != 0
        scaled, (self.height, self.width) = stored_size(*_upright_size(first, aspect), short_side=short_side)
        scale_height, scale_width = reversed(scaled) if turned else scaled
        full_range = first.color_range == FULL_RANGE or first.format.name.startswith("yuvj")
        # swscale's default arithmetic truncates; with these flags the mean is within 0.03 levels of exact, 0.9 for
        # full-range BT.601, whose chroma swscale rounds up.
        scale = {
            "w": str(scale_width),
            "h": str(scale_height),
            "flags": "bicubic+accurate_rnd+full_chroma_int+full_chroma_inp",
            "in_range": "pc" if full_range else "tv",
            "out_range": "tv",
            "out_color_matrix": "bt601",
        }
        if first.colorspace in COLOR_MATRICES:  # RGB has none
            scale["in_color_matrix"] = COLOR_MATRICES[first.colorspace]
        # FFmpeg counts rotation counter-clockwise.
        turn = {0: [], 90: [("transpose", {"dir": "cclock"})], 270: [("transpose", {"dir": "clock"})]}
        turn[180] = [("hflip", {}), ("vflip", {})]
        if first.rotation % 360 not in turn:
            raise EncodeError(f"rotation by {first.rotation} degrees; only multiples of 90 are understood")
        steps = [("scale", scale), ("format", {"pix_fmts": "yuv420p"}), *turn[first.rotation % 360]]
        steps += [("crop", {"w": str(self.width), "h": str(self.height)}), ("setsar", {"sar": "1"})]
        self.graph = av.filter.Graph()
        self.graph.threads = 1
        self.source = self.graph.add_buffer(
            width=first.width, height=first.height, format=first.format, time_base=first.time_base
        )
        nodes = [self.source]
        for name, options in steps:
            nodes.append(self.graph.add(name, **options))
        self.sink = self.graph.add("buffersink")
        self.graph.link_nodes(*nodes, self.sink).configure()
        self.input = (first.width, first.height, first.format.name, first.rotation)

    def __call__(self, frame: Any) -> Any:
        if (frame.width, frame.height, frame.format.name, frame.rotation) != self.input:
            raise EncodeError(f"the picture changes from {self.input} to {frame.width}x{frame.height} within the clip")
        self.source.push(frame)
        return self.sink.pull()


def _encode(frames: Iterator[Any], cut: _Cut, settings: EncodeSettings, aspect: Fraction | None) -> EncodedClip:
    os.environ.setdefault("SVT_LOG", "1")  # errors only; SVT-AV1 writes to the terminal past every other log level
    encoder = ENCODERS[settings.codec]
    options = {**encoder.options, encoder.speed_option: settings.speed, "crf": str(settings.crf)}
    buffer = io.BytesIO()
    first = next(frames)
    convert = _Converter(first, aspect, settings.short_side)
    num_frames = num_packets = 0
    with av.open(buffer, "w", format="mp4", container_options={"fflags": "+bitexact"}) as output:
        stream: Any = output.add_stream(encoder.name, rate=cut.fps, options=options)
        stream.width, stream.height, stream.pix_fmt = convert.width, convert.height, "yuv420p"
        context = stream.codec_context
        context.time_base = 1 / cut.fps
        context.thread_count = 1
        context.gop_size = settings.gop or WHOLE_CLIP
        context.colorspace = context.color_primaries = context.color_trc = SMPTE170M
        context.color_range = LIMITED_RANGE
        for frame in itertools.chain([first], frames):
            picture = convert(frame)
            picture.pts, picture.time_base = num_frames, 1 / cut.fps
            picture.pict_type = PictureType.NONE  # keyframes are the encoder's choice, not the source's
            num_frames += 1
            for packet in stream.encode(picture):
                output.mux(packet)
                num_packets += 1
        for packet in stream.encode(None):
            output.mux(packet)
            num_packets += 1
    assert num_packets == num_frames, (num_packets, num_frames)
    return EncodedClip(
        data=buffer.getvalue(),
        num_frames=num_frames,
        fps=float(cut.fps),
        height=convert.height,
        width=convert.width,
        source_fps=float(cut.source_fps),
        start_frame=cut.start_frame,
    )
