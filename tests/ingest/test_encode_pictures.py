"""What pictures look like once stored: pixel formats, colours, sizes, and nothing besides pictures."""

from __future__ import annotations

import io
import shutil
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lavila.ingest.converter import MAX_SIDE
from lavila.ingest.encode import (
    ENCODERS,
    NVENC,
    EncodedClip,
    EncodeError,
    EncodeSettings,
    Interval,
    check_encoder,
    encode_clip,
    stored_size,
)
from tests.footage import Coding, decode, numbered_picture, read_number, read_numbers, write_numbered_video, write_video
from tests.ingest.test_encode import gradient


def whole(path: Path, **others: Any) -> EncodedClip:
    made = EncodeSettings(**{"codec": "h264", "short_side": 96, "speed": "ultrafast", "crf": 6, **others})
    return encode_clip(path, interval=Interval(start_second=0.0, stop_second=None), settings=made)


@pytest.mark.parametrize(
    ("name", "coding"),
    [
        ("10 bit", Coding(pix_fmt="yuv420p10le", matrix=1, codec="libx265", crf=2)),
        ("4:2:2", Coding(pix_fmt="yuv422p", matrix=1, crf=2)),
        ("4:2:2 10 bit", Coding(pix_fmt="yuv422p10le", matrix=1, crf=2)),
        ("4:2:2 10 bit BT.601", Coding(pix_fmt="yuv422p10le", matrix=6, crf=2)),
        ("4:4:4 10 bit", Coding(pix_fmt="yuv444p10le", matrix=1, crf=2)),
        ("prores", Coding(pix_fmt="yuv422p10le", matrix=1, codec="prores_ks")),
        ("yuvj", Coding(pix_fmt="yuvj420p", matrix=6, range=2, codec="mjpeg")),
        ("full range 10 bit", Coding(pix_fmt="yuv420p10le", matrix=1, range=2, codec="libx265", crf=2)),
        ("full range 4:4:4", Coding(pix_fmt="yuv444p", matrix=1, range=2, crf=2)),
        ("RGB png", Coding(pix_fmt="rgb24", codec="png")),
        ("RGB hevc", Coding(pix_fmt="gbrp", codec="libx265", crf=2, matrix=0)),
    ],
)
def test_every_kind_of_pixel_becomes_8_bit_bt601_limited(tmp_path: Path, name: str, coding: Coding) -> None:
    picture = gradient()
    suffix = "mkv" if coding.codec == "mjpeg" else "mov"
    clip = whole(write_video(tmp_path / f"a.{suffix}", [picture] * 3, coding), crf=4, speed="medium")
    error = decode(clip.data)[1].astype(float) - picture
    # Unconverted pictures have 3 to 20 levels of bias; swscale rounds the chroma of full-range BT.601 up.
    assert np.abs(error.mean(axis=(0, 1))).max() < (1.5 if (coding.matrix, coding.range) == (6, 2) else 0.75)
    assert np.abs(error).mean() < (2.5 if coding.codec == "mjpeg" else 1.5)
    with av.open(io.BytesIO(clip.data)) as container:
        frame = next(container.decode(video=0))
        tags = frame.colorspace, frame.color_primaries, frame.color_trc, frame.color_range
        assert (frame.format.name, *tags) == ("yuv420p", 6, 6, 6, 1)


@pytest.mark.parametrize("codec", list(ENCODERS))
def test_every_codec_is_tagged_alike(tmp_path: Path, codec: str) -> None:
    video = write_video(tmp_path / "a.mp4", [gradient()] * 3, Coding(matrix=1, crf=2))
    clip = whole(video, codec=codec, speed="", crf=10)
    with av.open(io.BytesIO(clip.data)) as container:
        frame = next(container.decode(video=0))
        assert (frame.format.name, frame.colorspace, frame.color_range) == ("yuv420p", 6, 1)
        assert container.streams.video[0].codec_context.name.startswith(("vp9", "h264", "hevc", "av1", "libdav1d"))
    assert np.abs((decode(clip.data)[1].astype(float) - gradient()).mean(axis=(0, 1))).max() < 0.75


def test_sound_is_dropped(tmp_path: Path) -> None:
    video = write_numbered_video(tmp_path / "a.mp4", 10, Coding(sound=True))
    with av.open(str(video)) as container:
        assert {stream.type for stream in container.streams} == {"video", "audio"}
    clip = whole(video)
    assert read_numbers(clip.data) == list(range(10))
    with av.open(io.BytesIO(clip.data)) as container:
        assert [stream.type for stream in container.streams] == ["video"]


def test_sound_that_continues_after_the_pictures_is_no_damage(tmp_path: Path) -> None:
    video = write_numbered_video(tmp_path / "a.mp4", 5, Coding(sound=True))  # 0.2 s of pictures, 1 s of sound
    pictures = write_numbered_video(tmp_path / "b.mp4", 5)
    assert whole(video).data == whole(pictures).data


def test_the_bytes_do_not_depend_on_where_the_video_lies(tmp_path: Path) -> None:
    video = write_numbered_video(tmp_path / "a.mp4", 10)
    other = tmp_path / "another folder" / "b.MP4"
    other.parent.mkdir()
    shutil.copy(video, other)
    assert whole(video) == whole(other)


SIDES = st.integers(16, 4000)


@given(
    height=SIDES,
    width=SIDES,
    short_side=st.sampled_from([16, 64, 128, 224, 256, 288, 320]),
    fit=st.sampled_from(["crop", "pad"]),
)
def test_sizes_are_multiples_of_16_without_distortion(height: int, width: int, short_side: int, fit: str) -> None:
    if max(height, width) * min(short_side, height, width) > MAX_SIDE * min(height, width):
        return
    scaled, stored = stored_size(height, width, short_side=short_side, fit=fit)
    assert all(side % 16 == 0 and side >= 16 for side in stored)
    assert all(abs(kept - side) < 16 for kept, side in zip(stored, scaled, strict=True))
    assert all(kept <= side if fit == "crop" else kept >= side for kept, side in zip(stored, scaled, strict=True))
    assert all(
        side <= source for side, source in zip(scaled, (height, width), strict=True) if fit == "crop" or side == source
    )
    assert min(scaled) == min(short_side, height, width)
    # Never stretched by more than 1 %, or by the half pixel that whole pixels cost.
    exact = Fraction(max(height, width) * min(scaled), min(height, width))
    assert abs(max(scaled) - exact) <= max(exact / 100, Fraction(1, 2))


def test_what_does_not_fit_is_cropped_or_padded_and_recorded(tmp_path: Path) -> None:
    video = write_numbered_video(tmp_path / "a.mp4", 20, height=180, width=324)
    cropped, padded = (whole(video, short_side=128, fit=fit) for fit in ("crop", "pad"))
    for clip in (cropped, padded):
        assert (clip.source_height, clip.source_width) == (180, 324)
        assert (clip.scaled_height, clip.scaled_width) == (128, 230)
        assert read_numbers(clip.data) == list(range(20))
    assert (cropped.height, cropped.width) == (128, 224)
    assert (padded.height, padded.width) == (128, 240)
    borders = decode(padded.data)
    left, right = 4, 6  # chroma is half as fine: the middle is rounded to an even column
    assert borders[:, :, : left - 1].max() <= 12 and borders[:, :, 240 - right + 1 :].max() <= 12
    assert borders[:, 10:-10, left + 2 : 240 - right - 2].min() > 30
    inside = borders[:, :, left + 2 : left + 226]  # the crop takes the middle, too
    assert np.abs(inside.astype(int) - decode(cropped.data).astype(int)).mean() < 3


@pytest.mark.parametrize("fit", ["crop", "pad"])
def test_turned_and_stretched_pictures_fit_too(tmp_path: Path, fit: str) -> None:
    upright = [numbered_picture(n, height=150, width=100) for n in (5, 6, 1029)]
    stored = [np.ascontiguousarray(np.rot90(picture, -1)) for picture in upright]
    clip = whole(write_video(tmp_path / "a.mp4", stored, Coding(rotation=90)), fit=fit)
    assert read_numbers(clip.data) == [5, 6, 1029]
    assert (clip.source_height, clip.source_width, clip.scaled_height, clip.scaled_width) == (150, 100, 144, 96)
    assert (clip.height, clip.width) == (144, 96)
    wide = whole(
        write_numbered_video(tmp_path / "b.mp4", 3, Coding(aspect=Fraction(5, 4)), height=100, width=100), fit=fit
    )
    assert (wide.source_height, wide.source_width, wide.scaled_height, wide.scaled_width) == (100, 125, 96, 120)
    assert (wide.height, wide.width) == (96, 112 if fit == "crop" else 128)


def test_pixels_of_absurd_shape_are_refused(tmp_path: Path) -> None:
    for aspect in (Fraction(90), Fraction(1, 90)):
        video = write_numbered_video(tmp_path / "a.mkv", 3, Coding(aspect=aspect), height=96, width=96)
        with pytest.raises(EncodeError, match=r"8192|16 pixels"):
            whole(video)


def test_a_picture_that_changes_its_size_is_refused(tmp_path: Path) -> None:
    later = Coding(milliseconds=tuple(range(400, 800, 40)), b_frames=0)
    parts = [
        write_numbered_video(tmp_path / "0.ts", 10, Coding(b_frames=0), height=96, width=128),
        write_numbered_video(tmp_path / "1.ts", 10, later),
    ]
    video = tmp_path / "a.ts"
    video.write_bytes(b"".join(part.read_bytes() for part in parts))
    with pytest.raises(EncodeError, match=r"128x96.*160x120"):
        whole(video)


def test_a_picture_that_changes_its_colours_is_converted_throughout(tmp_path: Path) -> None:
    later = Coding(matrix=6, crf=2, milliseconds=tuple(range(400, 800, 40)), b_frames=0)
    parts = [
        write_video(tmp_path / "0.ts", [gradient()] * 10, Coding(matrix=1, crf=2, b_frames=0)),
        write_video(tmp_path / "1.ts", [gradient()] * 10, later),
    ]
    video = tmp_path / "a.ts"
    video.write_bytes(b"".join(part.read_bytes() for part in parts))
    pictures = decode(whole(video, crf=4).data)
    assert len(pictures) == 20
    for number, picture in enumerate(pictures):
        assert np.abs((picture.astype(float) - gradient()).mean(axis=(0, 1))).max() < 1, number


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"encoder": "gpu"}, "cpu.*nvenc"),
        ({"codec": "vp9", "encoder": "nvenc"}, "NVENC.*vp9.*h264, hevc, av1"),
        ({"codec": "h264", "encoder": "nvenc", "short_side": 96}, "NVENC.*160"),
        ({"codec": "h264", "encoder": "nvenc", "speed": "medium"}, "h264.*p1, p2"),
        ({"codec": "h264", "encoder": "nvenc", "crf": 0}, "crf 0.*h264.*1"),
        ({"codec": "hevc", "crf": 52}, "crf 52.*hevc.*0"),
        ({"codec": "av1", "fps": 300.0}, "240"),
        ({"margin": -1.0}, "margin -1.0"),
        ({"margin": float("nan")}, "margin nan"),
        ({"fit": "stretch"}, "crop.*pad"),
    ],
)
def test_settings_say_what_is_allowed(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EncodeSettings(**wrong)


@pytest.mark.parametrize("codec", list(ENCODERS))
def test_encoders_of_the_cpu_are_there(codec: str) -> None:
    check_encoder(EncodeSettings(codec=codec))


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="there is an NVIDIA driver")
@pytest.mark.parametrize("codec", ["h264", "hevc", "av1"])
def test_nvenc_that_is_missing_is_reported_before_the_work(codec: str) -> None:
    with pytest.raises(ValueError, match="--encoder nvenc") as info:
        check_encoder(EncodeSettings(codec=codec, encoder="nvenc"))
    assert not isinstance(info.value, EncodeError)  # it is not a clip's fault


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="there is an NVIDIA driver")
@pytest.mark.parametrize("codec", list(NVENC))
def test_nvenc_knows_every_option(codec: str) -> None:
    """Values are read before the driver is asked for: nonsense in an option that exists is another error."""
    coder = EncodeSettings(codec=codec, encoder="nvenc").coder
    options = {**coder.options, coder.speed_option: coder.speed, coder.quality_option: str(coder.crf)}
    options.pop("tag", None)  # the container's

    def failure(changed: dict[str, str]) -> str:
        context: Any = av.CodecContext.create(coder.name, "w")
        context.height, context.width, context.pix_fmt, context.time_base = 256, 256, "yuv420p", Fraction(1, 25)
        context.options = {**options, **changed}
        with pytest.raises(av.FFmpegError) as info:
            context.open()
        return info.type.__name__

    no_driver = failure({})
    assert failure({"no-such-option": "nonsense"}) == no_driver
    for option in options:
        assert failure({option: "nonsense"}) != no_driver, option


def test_every_rate_of_frames_is_stored_or_refused(tmp_path: Path) -> None:
    video = write_numbered_video(tmp_path / "fast.mp4", 12, Coding(fps=Fraction(480)))
    assert whole(video).fps == 480.0
    with pytest.raises(EncodeError, match=r"480.*av1.*240"):
        whole(video, codec="av1", speed="")
    assert whole(video, codec="av1", speed="", fps=120.0).num_frames == 3
    slow = write_numbered_video(tmp_path / "slow.mp4", 3, Coding(fps=Fraction(1, 3)))
    for codec in ENCODERS:
        clip = whole(slow, codec=codec, speed="")
        assert (clip.fps, clip.num_frames) == (pytest.approx(1 / 3), 3)
        assert [read_number(picture) for picture in decode(clip.data)] == [0, 1, 2]
    odd = write_numbered_video(tmp_path / "odd.mp4", 12, Coding(fps=Fraction(30_000_001, 1_000_003)))
    assert whole(odd, codec="vp9", speed="").num_frames == 12
    absurd = write_numbered_video(tmp_path / "absurd.mp4", 12, Coding(fps=Fraction(90_000)))
    with pytest.raises(EncodeError, match=r"90000.*0\.01.*1000"):
        whole(absurd)
