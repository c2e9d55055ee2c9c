"""Cutting and coding one clip: exact frames, exact sizes, exact colours, and an error for everything else."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from lavila.data.streams.headers import VP9_ALONE
from lavila.data.streams.mp4 import read_mp4
from lavila.ingest.decoded import Decoded, FrameReader
from lavila.ingest.encode import ENCODERS, EncodedClip, EncodeError, EncodeSettings, Interval, encode_clip, stored_size
from lavila.plan.frames import frame_span
from tests.footage import NTSC_60, Coding, decode, numbered_picture, read_numbers, write_numbered_video, write_video

ROOT = Path(__file__).resolve().parents[2]
FAST = EncodeSettings(codec="h264", short_side=96, speed="ultrafast", crf=18)


def cut(path: Path, start: float, stop: float | None, settings: EncodeSettings = FAST) -> EncodedClip:
    return encode_clip(path, interval=Interval(start_second=start, stop_second=stop), settings=settings)


@pytest.mark.parametrize("fps", [NTSC_60, Fraction(50), Fraction(25), Fraction(30000, 1001), Fraction(47952, 1001)])
def test_frames_are_those_of_the_span(tmp_path: Path, fps: Fraction) -> None:
    video = write_numbered_video(tmp_path / "a.mp4", int(5 * fps), Coding(fps=fps))
    for start, stop in [(0.0, 0.31), (0.5, 1.01), (3.97, 4.5), (2.013, 2.02)]:
        clip = cut(video, start, stop)
        first, end = frame_span(start, stop, float(fps))
        assert read_numbers(clip.data) == list(range(first, max(end, first + 1)))
        assert clip.num_frames == max(end, first + 1) - first
        assert clip.start_frame == first
        assert clip.fps == clip.source_fps == float(fps)


@pytest.mark.parametrize("name", ["deep.mp4", "deep.mkv"])
def test_a_seek_deep_into_a_video_is_exact_and_decodes_little(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    video = write_numbered_video(tmp_path / name, 1500, Coding(fps=NTSC_60, gop=60), height=48, width=64)
    decoded: list[int] = []
    original = FrameReader.frames

    def counting(reader: FrameReader) -> Iterator[Decoded]:
        for one in original(reader):
            decoded.append(one.pts)
            yield one

    monkeypatch.setattr(FrameReader, "frames", counting)
    settings = EncodeSettings(codec="h264", short_side=48, speed="ultrafast")
    first, end = frame_span(22.3, 22.6, float(NTSC_60))
    assert read_numbers(cut(video, 22.3, 22.6, settings).data) == list(range(first, end))
    assert len(decoded) <= 2 * 60 + (end - first)


def test_every_start_of_a_group_of_pictures_is_exact(tmp_path: Path) -> None:
    video = write_numbered_video(tmp_path / "a.mp4", 40, Coding(gop=8, b_frames=3), height=48, width=64)
    settings = EncodeSettings(codec="h264", short_side=48, speed="ultrafast")
    for start in range(40):
        assert read_numbers(cut(video, start / 25, start / 25 + 0.04, settings).data)[0] == start


def test_fps_takes_the_nearest_source_frame(tmp_path: Path) -> None:
    video = write_numbered_video(tmp_path / "a.mp4", 200, Coding(fps=Fraction(50)))
    clip = cut(video, 1.0, 3.0, EncodeSettings(codec="h264", short_side=96, fps=30, speed="ultrafast", crf=18))
    assert clip.fps == 30.0
    assert clip.num_frames == 60
    wanted = [50 + n * 50 / 30 for n in range(60)]
    assert all(abs(got - exact) <= 0.5 + 1e-9 for got, exact in zip(read_numbers(clip.data), wanted, strict=True))


def test_clip_past_the_end_is_clamped_and_beyond_the_end_refused(tmp_path: Path) -> None:
    video = write_numbered_video(tmp_path / "a.mp4", 50)
    assert read_numbers(cut(video, 1.8, 9.0).data) == list(range(45, 50))
    assert read_numbers(cut(video, 1.0, None).data) == list(range(25, 50))
    assert read_numbers(cut(video, 1.96, 9.0).data) == [49]
    with pytest.raises(EncodeError, match=r"2\.00 s.*1\.96 s"):
        cut(video, 2.0, 3.0)
    with pytest.raises(EncodeError, match=r"90\.00 s"):
        cut(video, 90.0, 91.0)


@pytest.mark.parametrize("rotation", [90, -90, 180])
def test_rotation_is_baked_in(tmp_path: Path, rotation: int) -> None:
    turns = rotation // 90
    upright = [numbered_picture(n, height=160, width=96) for n in (5, 6, 1029)]
    stored = [np.ascontiguousarray(np.rot90(picture, -turns)) for picture in upright]
    clip = cut(write_video(tmp_path / "a.mp4", stored, Coding(rotation=rotation)), 0.0, None)
    assert (clip.height, clip.width) == (160, 96)
    assert read_numbers(clip.data) == [5, 6, 1029]
    with av.open(io.BytesIO(clip.data)) as container:
        assert next(container.decode(video=0)).rotation == 0


def gradient(height: int = 96, width: int = 128) -> np.ndarray:
    """Smooth, saturated colours: the mean is not blurred away by 4:2:0 chroma."""
    y, x = np.mgrid[0:height, 0:width]
    red, green = 40 + 170 * x / width, 40 + 170 * y / height
    return np.stack([red, green, 210 - 170 * (x + y) / (height + width)], axis=2).round().astype(np.uint8)


@pytest.mark.parametrize(
    ("matrix", "color_range", "pix_fmt"),
    [
        (6, 1, "yuv420p"),
        (1, 1, "yuv420p"),
        (1, 2, "yuv420p"),
        (6, 2, "yuv420p"),
        (1, 1, "yuv420p10le"),
        (1, 1, "yuv444p"),
    ],
)
def test_colours_come_out_as_bt601_limited(tmp_path: Path, matrix: int, color_range: int, pix_fmt: str) -> None:
    picture = gradient()
    coding = Coding(matrix=matrix, range=color_range, pix_fmt=pix_fmt, crf=4)
    video = write_video(tmp_path / "a.mp4", [picture] * 3, coding)
    clip = cut(video, 0.0, None, EncodeSettings(codec="h264", short_side=96, crf=4))
    error = decode(clip.data)[1].astype(float) - picture
    bias = np.abs(error.mean(axis=(0, 1))).max()  # unconverted pictures have 3 to 20 levels
    assert bias < (1.5 if (matrix, color_range) == (6, 2) else 0.75)  # swscale rounds the chroma of that one case up
    assert np.abs(error).mean() < 1.5
    with av.open(io.BytesIO(clip.data)) as container:
        frame = next(container.decode(video=0))
        assert (frame.format.name, frame.colorspace, frame.color_range) == ("yuv420p", 6, 1)


@pytest.mark.parametrize(
    ("height", "width", "short_side", "scaled", "kept"),
    [
        (1080, 1920, 288, (288, 512), (288, 512)),
        (1440, 1920, 288, (288, 384), (288, 384)),
        (480, 854, 288, (288, 512), (288, 512)),  # 512.4: stretched by 0.08 %
        (720, 1280, 128, (128, 228), (128, 224)),  # 227.6: 1.6 % off, so cropped
        (1920, 1080, 288, (512, 288), (512, 288)),
        (240, 320, 288, (240, 320), (240, 320)),
        (250, 330, 288, (250, 330), (240, 320)),  # smaller than asked for: never enlarged
        (300, 300, 288, (288, 288), (288, 288)),
    ],
)
def test_stored_size(height: int, width: int, short_side: int, scaled: tuple[int, int], kept: tuple[int, int]) -> None:
    assert stored_size(height, width, short_side=short_side) == (scaled, kept)


def test_pixels_that_are_not_square_become_square(tmp_path: Path) -> None:
    video = write_numbered_video(tmp_path / "a.mp4", 5, Coding(aspect=Fraction(4, 3)), height=96, width=96)
    clip = cut(video, 0.0, None)
    assert (clip.height, clip.width) == (96, 128)
    assert read_numbers(clip.data) == list(range(5))


@pytest.mark.parametrize("codec", list(ENCODERS))
@pytest.mark.parametrize("gop", [0, 4])
def test_every_codec_gives_closed_groups_and_the_same_bytes_again(tmp_path: Path, codec: str, gop: int) -> None:
    video = write_numbered_video(tmp_path / "a.mp4", 30)
    settings = EncodeSettings(codec=codec, short_side=96, gop=gop)
    clip = cut(video, 0.2, 0.9, settings)
    assert clip.data == cut(video, 0.2, 0.9, settings).data
    assert read_numbers(clip.data) == list(range(5, 23))
    with av.open(io.BytesIO(clip.data)) as container:
        assert [stream.type for stream in container.streams] == ["video"]
        keys = [frame.key_frame for frame in container.decode(video=0)]
        assert container.streams.video[0].average_rate == 25
    assert keys[0]
    if gop:
        assert all(any(keys[n : n + gop]) for n in range(len(keys) - gop + 1))
    elif codec in {"vp9", "av1"}:
        assert sum(keys) == 1


@pytest.mark.parametrize("short_side", [64, 96, 128])
def test_small_film_gives_the_same_bytes_again(short_side: int) -> None:
    film, settings = ROOT / "assets/bigbuckbunny.mp4", EncodeSettings(codec="h264", short_side=short_side)
    clips = set()
    for run in range(6):
        used = [np.random.default_rng(run * 100 + i).bytes(1000 + 777 * i) for i in range(100)]
        del used  # other memory for each run
        clips.add(cut(film, 1.0, 2.0, settings).data)
    assert len(clips) == 1


@pytest.mark.parametrize("speed", ["0", "5", "6", "8"])
def test_no_vp9_frame_refers_to_the_second_ones_of_a_group(speed: str, tmp_path: Path) -> None:
    """The loader leaves them out where they are not wanted: `Vp9Reader`."""
    source = write_numbered_video(tmp_path / "source.mp4", 30)
    settings = EncodeSettings(codec="vp9", short_side=64, speed=speed, gop=7)
    packets = read_mp4(cut(source, 0.0, None, settings).data).packets
    headers = [packets.view(place)[:2].tolist() for place in range(30)]
    for place, (first, refresh_frame_flags) in enumerate(headers):
        if place % 7:
            assert first == VP9_ALONE and bool(refresh_frame_flags) == (place % 7 % 2 == 0)
    assert [place for place in range(30) if packets.keys[place]] == [0, 7, 14, 21, 28]


def test_long_clips_are_coded_in_short_groups(tmp_path: Path) -> None:
    still = [numbered_picture(0, height=48, width=64)] * 250  # no cut at which an encoder would add a keyframe
    video = write_video(tmp_path / "a.mp4", still)

    def keyframes(stop: float, **settings: Any) -> list[int]:
        chosen = settings.pop("choose", None)
        coding = EncodeSettings(**{"codec": "vp9", "short_side": 48, "speed": "8", **settings})
        interval = Interval(start_second=0.0, stop_second=stop)
        clip = encode_clip(video, interval=interval, settings=coding, choose=chosen)
        with av.open(io.BytesIO(clip.data)) as container:
            return [number for number, frame in enumerate(container.decode(video=0)) if frame.key_frame]

    assert keyframes(8.0) == [0]
    assert keyframes(9.6) == list(range(0, 240, 20))
    assert keyframes(9.6, codec="h264", speed="ultrafast") == [0, 50, 100, 150, 200]
    assert keyframes(9.6, gop=100) == [0, 100, 200]
    # Of frames chosen for a protocol all are wanted.
    assert keyframes(9.6, choose=lambda frames, after, fps: range(0, frames, 2)) == [0]


def test_errors_name_the_video_and_the_reason(tmp_path: Path) -> None:
    with pytest.raises(EncodeError, match=r"missing\.mp4"):
        cut(tmp_path / "missing.mp4", 0.0, 1.0)
    noise = tmp_path / "noise.mp4"
    noise.write_bytes(bytes(range(256)) * 64)
    with pytest.raises(EncodeError, match=r"noise\.mp4"):
        cut(noise, 0.0, 1.0)
    with av.open(str(tmp_path / "sound.mkv"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
    with pytest.raises(EncodeError, match=r"sound\.mkv"):
        cut(tmp_path / "sound.mkv", 0.0, 1.0)
    with pytest.raises(EncodeError, match=r"32x8.*16 pixels"):
        cut(write_video(tmp_path / "tiny.mp4", [np.zeros((8, 32, 3), np.uint8)] * 3), 0.0, None)


def test_a_video_cut_short_is_not_taken_for_a_short_video(tmp_path: Path) -> None:
    video = write_numbered_video(tmp_path / "a.mkv", 400, Coding(fps=Fraction(25)))
    whole = video.read_bytes()
    video.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(EncodeError, match=r"a\.mkv"):
        cut(video, 5.0, 15.0)
    assert read_numbers(cut(video, 1.0, 2.0).data) == list(range(25, 50))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"codec": "vp8"}, "vp9, h264, hevc, av1"),
        ({"short_side": 250}, "256"),
        ({"fps": 0.0}, "'native'"),
        ({"gop": -1}, "gop -1"),
        ({"crf": 99}, "crf 99"),
    ],
)
def test_settings_say_what_is_allowed(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EncodeSettings(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("codec", ["vp9", "h264", "hevc", "av1"])
def test_no_thread_is_left_with_real_time_priority(codec: str, tmp_path: Path) -> None:
    """As root, SVT-AV1 takes it, and a busy child that inherits it stops the machine."""
    video = write_numbered_video(tmp_path / "v.mp4", 12, height=64, width=64)
    seen: set[int] = set()

    def look(num_frames: int, frames_after: int, fps: float) -> list[int]:
        seen.update(os.sched_getscheduler(int(thread.name)) for thread in Path("/proc/self/task").iterdir())
        return list(range(num_frames))

    settings = EncodeSettings(codec=codec, short_side=64)
    for choose in (None, look, look):
        encode_clip(video, interval=Interval(start_second=0.0, stop_second=None), settings=settings, choose=choose)
    seen.add(os.sched_getscheduler(0))
    assert seen == {os.SCHED_OTHER}
