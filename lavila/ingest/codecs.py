"""The encoders, and the settings that clips are coded with.

CPU encoders run on one thread: the bytes of a clip then depend on the video and the settings alone, and many clips at
once are a matter for many processes. NVENC's bytes depend on the GPU and its driver as well.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Literal

import av
import numpy as np

from lavila.cluster.workers import end_realtime
from lavila.errors import UserError
from lavila.ingest.converter import SIDE_MULTIPLE

WHOLE_CLIP = 1 << 16  # frames; a group of pictures longer than any clip
SMPTE170M = 6  # FFmpeg's number for BT.601 with 525 lines: matrix, primaries and transfer alike
LIMITED_RANGE = 1
LIBRARIES = ("libavcodec", "libswscale")  # parts of FFmpeg whose versions decide the bytes of a clip


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """An encoder of FFmpeg and how it is used."""

    name: str  # FFmpeg's
    crf: int  # default quality; VP9's is about 40 dB on film at 512x288, the others' is not measured
    speed_option: str
    speed: str  # default speed
    speeds: tuple[str, ...]  # what the encoder takes
    options: dict[str, str]  # what makes groups closed, threads one and decoding cheap
    fast: dict[str, str] = field(default_factory=dict)  # further options of `fast_speeds`
    fast_speeds: tuple[str, ...] = ()
    regular: dict[str, str] = field(default_factory=dict)  # what keeps keyframes at fixed distances, scene cuts or not
    quality_option: str = "crf"
    crf_range: tuple[int, int] = (0, 63)  # best and smallest
    max_fps: int = 1000
    min_side: int = SIDE_MULTIPLE  # pixels


X26X_PRESETS = ("ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow")
X265_PARAMS = "open-gop=0:pools=none:frame-threads=1:log-level=error"

ENCODERS = {
    "vp9": Encoder(
        name="libvpx-vp9",
        crf=36,
        speed_option="cpu-used",
        speed="5",
        speeds=tuple(map(str, range(9))),
        options={"deadline": "good", "b": "0", "lag-in-frames": "25", "auto-alt-ref": "1", "row-mt": "0"},
        # Above 5 libvpx has another speed in realtime mode only, which looks at no frame ahead.
        fast={"deadline": "realtime", "lag-in-frames": "0", "auto-alt-ref": "0"},
        fast_speeds=("6", "7", "8"),
    ),
    "h264": Encoder(
        name="libx264",
        crf=23,
        speed_option="preset",
        speed="medium",
        speeds=X26X_PRESETS,
        # No deblocking and no CABAC: a fifth more bytes for two thirds of the decoding time. Seven frames in eight that
        # nothing refers to: a seventh more bytes again, and half the time where 16 of 90 frames are wanted, because
        # the host decoder leaves the others out.
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
    ),
}


def _nvenc(codec: str, *, crf: int, crf_range: tuple[int, int], **options: str) -> Encoder:
    return Encoder(
        name=f"{codec}_nvenc",
        crf=crf,
        speed_option="preset",
        speed="p5",
        speeds=tuple(f"p{n}" for n in range(1, 8)),
        # Constant quality; no B-frames and no keyframe but where the group of pictures begins, each of them an IDR.
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
        min_side=160,  # the largest of the least widths that the chips state
    )


NVENC = {
    "h264": _nvenc("h264", crf=25, crf_range=(1, 51)),
    "hevc": _nvenc("hevc", crf=27, crf_range=(1, 51), tag="hvc1"),
    "av1": _nvenc("av1", crf=35, crf_range=(1, 63)),
}


@dataclass(frozen=True, kw_only=True)
class EncodeSettings:
    """How clips are coded. Everything here is written into the shard set's manifest.

    The defaults are measured: VP9 at these settings takes 96 KB and 28 ms of decoding for 3 s at 512x288, and one
    group of pictures as long as a short clip is both the smallest and the cheapest to decode on a CPU.
    """

    codec: str = "vp9"  # vp9, h264, hevc or av1
    short_side: int = 288  # pixels, a multiple of 16; a smaller video is never enlarged
    fps: float | Literal["native"] = "native"  # frames per second as stored; native = the video's own average
    gop: int = 0  # frames from one keyframe to the next; 0 = a clip up to 8 s, 2 s of longer ones, 0.5 s in chunks
    crf: int = field(default=-1)  # quality, lower is better; -1 = the codec's default
    speed: str = ""  # cpu-used of VP9, preset of the others; empty = the codec's default
    encoder: str = "cpu"  # cpu or nvenc
    margin: float = 0.0  # seconds kept before and after a clip's interval
    fit: str = "crop"  # crop or pad: how a side becomes a multiple of 16 where stretching by 1 % does not do it

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
    """What the encoder has to know besides the settings."""

    fps: Fraction
    height: int  # pixels
    width: int
    gop: int  # frames from one keyframe to the next
    regular: bool = False  # whether keyframes shall come at no other place


def add_encoder(output: Any, settings: EncodeSettings, coding: Coding) -> Any:
    """Add a video stream to an output container of PyAV, its encoder open."""
    os.environ.setdefault("SVT_LOG", "1")  # errors only; SVT-AV1 writes to the terminal past every other log level
    coder = settings.coder
    options = {**coder.options, coder.speed_option: settings.speed, coder.quality_option: str(settings.crf)}
    if settings.speed in coder.fast_speeds:
        options |= coder.fast
    if coding.regular:
        options |= {**coder.regular, "keyint_min": str(coding.gop)}
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


def check_encoder(settings: EncodeSettings) -> None:
    """Code one grey picture. Raises ValueError where this machine lacks what the settings ask for."""
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
    """Versions that the bytes of a clip depend on; "unknown" for one that PyAV does not tell."""
    told: Mapping[str, Iterable[int]] = getattr(av, "library_versions", {})
    libraries = {name: ".".join(map(str, told[name])) if name in told else "unknown" for name in LIBRARIES}
    return {"pyav": getattr(av, "__version__", "unknown"), **libraries}
