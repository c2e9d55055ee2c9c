"""The encoders, and the settings with which clips are coded.

CPU encoders run on one thread, so the bytes of a clip depend only on the video and the settings. Many processes code
many clips at once. NVENC's bytes also depend on the GPU and its driver.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Literal

import av
import av.filter
import numpy as np

from lavila.cluster.workers import end_realtime
from lavila.errors import UserError
from lavila.ingest.converter import SIDE_MULTIPLE

WHOLE_CLIP = 1 << 16  # frames of a group of pictures that is longer than any clip
SMPTE170M = 6  # BT.601 with 525 lines: number of the matrix, the primaries and the transfer (ITU-T H.273)
LIMITED_RANGE = 1  # FFmpeg's AVCOL_RANGE_MPEG
LIBRARIES = ("libavcodec", "libswscale")  # the parts of FFmpeg whose versions decide the bytes of a clip


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """An encoder of FFmpeg, with its options."""

    name: str  # FFmpeg's name of the encoder
    crf: int  # default quality; for VP9 about 40 dB on film at 512x288, for others not measured
    speed_option: str
    speed: str  # default speed
    speeds: tuple[str, ...]  # the speeds that the encoder takes
    options: dict[str, str]  # options for closed groups, one thread and cheap decoding
    fast: dict[str, str] = field(default_factory=dict)  # more options for `fast_speeds`
    fast_speeds: tuple[str, ...] = ()
    regular: dict[str, str] = field(
        default_factory=dict
    )  # options for keyframes at fixed distances, without scene cuts
    quality_option: str = "crf"
    crf_range: tuple[int, int] = (0, 63)  # values of the best quality and of the smallest files
    second_frames: int = 0  # flags that libvpx takes with every second frame of a group; 0 = none
    max_fps: int = 1000
    min_side: int = SIDE_MULTIPLE  # the smallest side of a picture, pixels
    long_group: float = 2.0  # seconds of a group of pictures in long clips


# libvpx's flags of a frame that no other refers to (vpx/vp8cx.h): it updates no reference picture and no probabilities.
VP8_EFLAG_NO_UPD_LAST, VP8_EFLAG_NO_UPD_ENTROPY, VP8_EFLAG_NO_UPD_GF, VP8_EFLAG_NO_UPD_ARF = (
    1 << bit for bit in (18, 20, 22, 23)
)

# Seconds of a group of pictures in long clips, for codecs whose frames need most of those before them. For 16 frames of
# 30 s, at most a quarter of the pictures is decoded. Of H.264 and HEVC as coded here, a tenth is, with groups of 2 s.
SHORT_GROUP = 0.8

X26X_PRESETS = ("ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow")
# As in H.264 below, no frame refers to seven frames in eight. Measured with 3 s of film at 512x288: a sixth fewer bytes
# than with x265's own choice of B-frames, SSIM 0.974 instead of 0.976, and half the time to decode 16 of 75 frames.
# The lookahead is that of preset medium. That of ultrafast is shorter than a run of B-frames, which x265 refuses.
X265_PARAMS = "open-gop=0:pools=none:frame-threads=1:log-level=error:bframes=7:b-adapt=0:b-pyramid=0:rc-lookahead=20"

# In narrower pictures x264's macroblock tree gives other bits from run to run (findings/x264_small_pictures.sh).
X264_STEADY_WIDTH = 256

ENCODERS = {
    "vp9": Encoder(
        name="libvpx-vp9",
        crf=36,
        speed_option="cpu-used",
        speed="5",
        speeds=tuple(map(str, range(9))),
        # No frame refers to the second, fourth, ... frame of a group, and a frame's header says all that its decoding
        # needs (error-resilient). So the decoder can leave out every second frame that is not wanted: 16 frames of 3 s
        # take 0.6 of the time. At the same SSIM a clip has a tenth more bytes. With three such frames in four it is 0.5
        # of the time, and a quarter more bytes. One pass looks at no later frame, so lag-in-frames changes nothing.
        options={
            "deadline": "good",
            "b": "0",
            "lag-in-frames": "0",
            "auto-alt-ref": "0",
            "row-mt": "0",
            "error-resilient": "default",
        },
        second_frames=VP8_EFLAG_NO_UPD_LAST | VP8_EFLAG_NO_UPD_ENTROPY | VP8_EFLAG_NO_UPD_GF | VP8_EFLAG_NO_UPD_ARF,
        fast={"deadline": "realtime"},  # libvpx has speeds above 5 only in this mode
        fast_speeds=("6", "7", "8"),
        long_group=SHORT_GROUP,
    ),
    "h264": Encoder(
        name="libx264",
        crf=23,
        speed_option="preset",
        speed="medium",
        speeds=X26X_PRESETS,
        # Without deblocking and CABAC, a clip has a fifth more bytes and takes two thirds of the decoding time. No
        # frame refers to seven frames in eight. That adds a seventh more bytes and halves the time for 16 of 90 frames,
        # since the host decoder skips the others.
        options={
            "tune": "fastdecode",
            "x264-params": "open-gop=0:sliced-threads=0:bframes=7:b-adapt=0:b-pyramid=none",
        },
        regular={"sc_threshold": "0"},
        crf_range=(0, 51),
    ),
    "hevc": Encoder(
        name="libx265",
        crf=25,
        speed_option="preset",
        speed="medium",
        speeds=X26X_PRESETS,
        options={"x265-params": X265_PARAMS, "tag": "hvc1"},
        regular={"x265-params": f"{X265_PARAMS}:scenecut=0"},
        crf_range=(0, 51),
    ),
    "av1": Encoder(
        name="libsvtav1",
        crf=35,
        speed_option="preset",
        speed="8",
        speeds=tuple(map(str, range(14))),
        options={"svtav1-params": "lp=1:fast-decode=1"},
        max_fps=240,
        long_group=SHORT_GROUP,
    ),
}


def _nvenc(codec: str, *, crf: int, crf_range: tuple[int, int], **options: str) -> Encoder:
    return Encoder(
        name=f"{codec}_nvenc",
        crf=crf,
        speed_option="preset",
        speed="p5",
        speeds=tuple(f"p{n}" for n in range(1, 8)),
        # Constant quality, no B-frames, and keyframes (IDR) only where a group of pictures begins.
        options={
            "rc": "vbr",
            "b": "0",
            "bf": "0",
            "forced-idr": "1",
            "no-scenecut": "1",
            "rc-lookahead": "0",
            **options,
        },
        quality_option="cq",
        crf_range=crf_range,
        min_side=160,  # the largest of the chips' smallest widths
        long_group=SHORT_GROUP,  # without B-frames, each frame needs all before it
    )


NVENC = {
    "h264": _nvenc("h264", crf=25, crf_range=(1, 51)),
    "hevc": _nvenc("hevc", crf=27, crf_range=(1, 51), tag="hvc1"),
    "av1": _nvenc("av1", crf=35, crf_range=(1, 63)),
}


@dataclass(frozen=True, kw_only=True)
class EncodeSettings:
    """The settings with which clips are coded. The manifest of the shard set holds all of them.

    The defaults are measured. With them, 3 s of VP9 at 512x288 take 106 KB, and 52 of 90 frames are decoded for 16. One
    group of pictures as long as a short clip is the smallest, and the cheapest to decode on a CPU.
    """

    codec: str = "vp9"  # vp9, h264, hevc or av1
    short_side: int = 288  # pixels, a multiple of 16; a smaller video is not enlarged
    fps: float | Literal["native"] = "native"  # stored frames per second; native = the average of the video
    gop: int = 0  # frames between keyframes; 0 = a clip up to 8 s, `Encoder.long_group` of longer ones, 0.5 s of chunks
    crf: int = field(default=-1)  # quality, lower is better; -1 = the codec's default
    speed: str = ""  # cpu-used of VP9, preset of the others; empty = the codec's default
    encoder: str = "cpu"  # cpu or nvenc
    margin: float = 0.0  # seconds kept before and after a clip's interval
    fit: str = "crop"  # crop or pad: how a side becomes a multiple of 16 if a stretch by 1 % is not enough

    def __post_init__(self) -> None:
        if self.codec not in ENCODERS:
            raise UserError(f"codec {self.codec!r} is not known; choose one of {', '.join(ENCODERS)}")
        if self.encoder not in ("cpu", "nvenc"):
            raise UserError(f"encoder {self.encoder!r} is not known; choose cpu or nvenc")
        if self.encoder == "nvenc" and self.codec not in NVENC:
            raise UserError(f"NVENC has no encoder for {self.codec}; choose one of {', '.join(NVENC)}, or encoder cpu")
        if self.short_side < SIDE_MULTIPLE or self.short_side % SIDE_MULTIPLE:
            near = max(round(self.short_side / SIDE_MULTIPLE), 1) * SIDE_MULTIPLE
            raise UserError(f"short side {self.short_side} is not a multiple of {SIDE_MULTIPLE} pixels; try {near}")
        if self.gop < 0:
            raise UserError(f"gop {self.gop}: give a number of frames, or 0 for groups that suit the clip's length")
        if not (math.isfinite(self.margin) and self.margin >= 0):
            raise UserError(f"margin {self.margin}: give seconds, 0 or more")
        if self.fit not in ("crop", "pad"):
            raise UserError(f"fit {self.fit!r} is not known; choose crop or pad")
        self._check_against(self.coder)
        object.__setattr__(self, "crf", self.coder.crf if self.crf == -1 else self.crf)
        object.__setattr__(self, "speed", self.speed or self.coder.speed)

    def _check_against(self, coder: Encoder) -> None:
        if self.fps != "native" and not 0 < self.fps <= coder.max_fps:
            raise UserError(
                f"fps {self.fps!r}: give 'native' or frames per second above 0 and up to {coder.max_fps} ({self.codec})"
            )
        best, smallest = coder.crf_range
        if self.crf != -1 and not best <= self.crf <= smallest:
            raise UserError(
                f"crf {self.crf}: {self.codec} takes {best} (best) to {smallest} (smallest), or -1 for its default"
            )
        if self.speed and self.speed not in coder.speeds:
            raise UserError(f"speed {self.speed!r}: {self.codec} takes one of {', '.join(coder.speeds)}")
        if self.short_side < coder.min_side:
            raise UserError(f"short side {self.short_side}: NVENC takes pictures of {coder.min_side} pixels and more")

    @property
    def coder(self) -> Encoder:
        """The encoder that these settings name."""
        return NVENC[self.codec] if self.encoder == "nvenc" else ENCODERS[self.codec]


@dataclass(frozen=True, kw_only=True)
class Coding:
    """What the encoder needs besides the settings."""

    fps: Fraction
    height: int  # pixels
    width: int
    gop: int  # frames from one keyframe to the next
    regular: bool = False  # whether there may be no other keyframes


def add_encoder(output: Any, settings: EncodeSettings, coding: Coding) -> Any:
    """Add a video stream with an open encoder to an output container of PyAV."""
    os.environ.setdefault(
        "SVT_LOG", "1"
    )  # 1 = errors only; no other setting keeps SVT-AV1 from writing to the terminal
    coder = settings.coder
    options = {**coder.options, coder.speed_option: settings.speed, coder.quality_option: str(settings.crf)}
    if settings.speed in coder.fast_speeds:
        options |= coder.fast
    if coding.regular:
        options |= {**coder.regular, "keyint_min": str(coding.gop)}
    if coder.name == "libx264" and coding.width < X264_STEADY_WIDTH:
        options["x264-params"] += ":mbtree=0"
    stream = output.add_stream(coder.name, rate=coding.fps, options=options)
    stream.width, stream.height, stream.pix_fmt = coding.width, coding.height, "yuv420p"
    context = stream.codec_context
    context.time_base = 1 / coding.fps
    context.thread_count = 1
    context.gop_size = coding.gop
    context.colorspace = context.color_primaries = context.color_trc = SMPTE170M
    context.color_range = LIMITED_RANGE
    context.open()
    end_realtime()
    return stream


def marking(settings: EncodeSettings, coding: Coding) -> Callable[[Any], Any]:
    """What each picture of a stream passes before its encoder, in order: it gives libvpx the flags of the frame.

    FFmpeg's libvpx reads them from the frame's metadata, and only a filter can write those.
    """
    flags = settings.coder.second_frames
    if not flags:
        return lambda picture: picture
    graph: Any = av.filter.Graph()
    graph.threads = 1
    source = graph.add_buffer(width=coding.width, height=coding.height, format="yuv420p", time_base=1 / coding.fps)
    second = f"mod(mod(n,{coding.gop}),2)"  # n counts the pictures
    mark = graph.add("metadata", mode="add", key="vp8-flags", value=str(flags), enable=second)
    graph.link_nodes(source, mark, graph.add("buffersink")).configure()

    def marked(picture: Any) -> Any:
        graph.push(picture)
        return graph.pull()

    return marked


def check_encoder(settings: EncodeSettings) -> None:
    """Code one grey picture. Raises UserError if this machine cannot code with these settings."""
    coding = Coding(fps=Fraction(25), height=256, width=256, gop=8)
    try:
        with av.open(os.devnull, "w", format="null") as output:
            stream = add_encoder(output, settings, coding)
            frame: Any = av.VideoFrame.from_ndarray(np.full((384, 256), 128, np.uint8), format="yuv420p")
            frame.pts, frame.time_base = 0, 1 / coding.fps
            assert [*stream.encode(frame), *stream.encode(None)]
    except (av.FFmpegError, av.codec.codec.UnknownCodecError) as error:
        if settings.encoder == "nvenc":
            raise UserError(
                f"--encoder nvenc: no NVIDIA driver with NVENC for {settings.codec} here ({error.__class__.__name__}); "
                "run where there is one (H100 and A100 have no NVENC), or use --encoder cpu"
            ) from error
        raise UserError(
            f"--codec {settings.codec}: this build of FFmpeg cannot use {settings.coder.name} ({error})"
        ) from error


def encoder_versions() -> Mapping[str, str]:
    """The versions on which the bytes of a clip depend; "unknown" for one that PyAV does not have."""
    found: Mapping[str, Iterable[int]] = getattr(av, "library_versions", {})
    libraries = {name: ".".join(map(str, found[name])) if name in found else "unknown" for name in LIBRARIES}
    return {"pyav": getattr(av, "__version__", "unknown"), **libraries}
