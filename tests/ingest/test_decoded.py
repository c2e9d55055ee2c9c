"""Frames in display order: none on top of damage counts as sound, and order gives the times where nothing else does."""

from __future__ import annotations

import random
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from lavila.ingest.encode import EncodeError, EncodeSettings, Interval, encode_clip
from lavila.ingest.source_video import SourceVideo
from lavila.ingest.video_files import Limits
from tests.footage import Coding, numbered_picture, read_numbers, write_video

FRAMES, GROUP, HEIGHT, WIDTH = 60, 20, 96, 128
SMALL = EncodeSettings(codec="h264", short_side=48, speed="ultrafast", crf=18)
RATE = Fraction(25)
Packets = list[tuple[bytes, Any]]
"""Content of each packet, and the packet."""


def moving(number: int) -> np.ndarray:
    """Stripes that move, so that every frame differs from the one before it everywhere."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    grey = ((rows + columns + 5 * number) % 96 * 2 + 20).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


CODINGS = {
    "h264": ("mp4", "libx264", {"bf": "0"}),
    "h264 b": ("mp4", "libx264", {"x264-params": "bframes=3:b-adapt=0"}),
    "h264 open groups": ("mkv", "libx264", {"x264-params": "bframes=3:b-adapt=0:open-gop=1"}),
    "h264 refreshed": ("mp4", "libx264", {"x264-params": "bframes=0:intra-refresh=1"}),
    "hevc b": ("mp4", "libx265", {"x265-params": "bframes=3:b-adapt=0:log-level=error"}),
    "mpeg4 b": ("avi", "mpeg4", {"bf": "2"}),
    "mpeg2 b": ("mkv", "mpeg2video", {"bf": "2"}),
}


def coded(path: Path, codec: str, options: dict[str, str]) -> Path:
    with av.open(str(path), "w") as out:
        stream: Any = out.add_stream(codec, rate=RATE, options={"g": str(GROUP), "sc_threshold": "0", **options})
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = WIDTH, HEIGHT, "yuv420p", 1_000_000
        stream.codec_context.thread_count = 1
        for number in range(FRAMES):
            frame: Any = av.VideoFrame.from_ndarray(moving(number), format="rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = number, 1 / RATE
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def spoilt(source: Path, path: Path, at: int, *, seed: int) -> Path:
    """The same packets, with noise in packet number `at`, or, for an odd seed, without the second half of it."""
    chance = random.Random(seed)
    with av.open(str(source)) as container, av.open(str(path), "w") as out:
        copy: Any = out.add_stream_from_template(container.streams.video[0])
        packets = [packet for packet in container.demux(video=0) if packet.size]
        for number, packet in enumerate(packets):
            data = bytearray(bytes(packet))
            if number == at:
                place = len(data) // 3
                data[place:] = b"" if seed % 2 else chance.randbytes(len(data) - place)
            new: Any = av.Packet(bytes(data))
            for name in ("pts", "dts", "time_base", "duration", "is_keyframe"):
                setattr(new, name, getattr(packet, name))
            new.stream = copy
            out.mux(new)
    return path


def shown(path: Path) -> dict[int, tuple[np.ndarray, bool]]:
    """Number of a frame by its time -> its luma, and whether it counts as damaged. Fewer where decoding broke off."""
    found: dict[int, tuple[np.ndarray, bool]] = {}
    with SourceVideo(path, Limits()) as source:
        try:
            for second, one in source._timed(Fraction(0)):
                if one is not None:
                    luma = one.frame.to_ndarray(format="yuv420p")[:HEIGHT].astype(int)
                    found[round(second * RATE)] = luma, one.damaged
        except EncodeError:
            pass
    return found


@pytest.mark.parametrize("name", CODINGS)
def test_no_frame_on_top_of_damage_is_sound(tmp_path: Path, name: str) -> None:
    """Damage in a keyframe, in a frame that others refer to, in one that none refers to, and near the end of a group.

    Noise may by chance be a valid stream of another picture, which no decoder can see.
    """
    ending, codec, options = CODINGS[name]
    sound = coded(tmp_path / f"sound.{ending}", codec, options)
    true = shown(sound)
    assert list(true) == list(range(FRAMES)) and not any(damaged for _, damaged in true.values())
    noticed = 0
    for seed, at in enumerate((GROUP, GROUP + 1, GROUP + 3, GROUP + 5, 2 * GROUP - 2, GROUP, GROUP + 1)):
        found = shown(spoilt(sound, tmp_path / f"{at}.{ending}", at, seed=seed))
        bad = [number for number, (_, damaged) in found.items() if damaged]
        if not bad and len(found) == FRAMES:
            continue
        noticed += 1
        other = [number for number, (luma, _) in found.items() if np.abs(luma - true[number][0]).mean() > 3]
        assert all(found[number][1] for number in other), (at, other)
        assert all(number >= GROUP - 8 for number in bad), "frames of an earlier group stay sound"
        if at < 2 * GROUP - 2 and "refreshed" not in name:
            assert all(number < 2 * GROUP + 8 for number in bad), "and so do those of later ones"
    assert noticed >= 4


def test_a_clip_on_top_of_a_damaged_keyframe_is_refused_and_others_are_stored(tmp_path: Path) -> None:
    sound = coded(tmp_path / "sound.mp4", "libx264", {"bf": "0"})
    video = spoilt(sound, tmp_path / "a.mp4", GROUP, seed=0)
    for start, refused in [(0, False), (15, False), (18, True), (GROUP, True), (35, True), (2 * GROUP, False)]:
        interval = Interval(start_second=start / 25, stop_second=(start + 4) / 25)
        if refused:
            with pytest.raises(EncodeError, match="damaged"):
                encode_clip(video, interval=interval, settings=SMALL)
        else:
            assert encode_clip(video, interval=interval, settings=SMALL).num_frames == 4


@pytest.mark.parametrize("b_frames", [0, 2])
def test_frames_behind_a_loss_in_a_transport_stream_are_damaged(tmp_path: Path, b_frames: int) -> None:
    """Packets of 188 bytes are gone, as after bad reception: a whole frame may be, without a trace elsewhere."""
    sound = coded(tmp_path / "sound.ts", "libx264", {"bf": str(b_frames), "x264-params": "scenecut=0"})
    true, data = shown(sound), sound.read_bytes()
    noticed = 0
    for seed in range(25):
        chance = random.Random(seed)
        at, count = chance.randrange(10, len(data) // 188 - 30), chance.choice([1, 1, 2, 3, 8, 20])
        video = tmp_path / f"{seed}.ts"
        video.write_bytes(data[: 188 * at] + data[188 * (at + count) :])
        found = shown(video)
        other = [number for number, (luma, _) in found.items() if np.abs(luma - true[number][0]).mean() > 3]
        assert all(found[number][1] for number in other), (seed, other)
        noticed += any(damaged for _, damaged in found.values())
    assert noticed > 10


# Containers without times of presentation

IN_ORDER = {
    "h264": ("avi", "libx264", {"bf": "2"}),
    "h264 without b": ("avi", "libx264", {"bf": "0"}),
    "h264 pyramid": ("avi", "libx264", {"x264-params": "bframes=5:b-adapt=0:b-pyramid=normal"}),
    "h264 open groups": ("avi", "libx264", {"x264-params": "bframes=3:b-adapt=0:open-gop=1"}),
    "mpeg4": ("avi", "mpeg4", {"bf": "2"}),
    "mpeg2": ("avi", "mpeg2video", {"bf": "2"}),
}


def numbered(path: Path, codec: str, options: dict[str, str]) -> Path:
    with av.open(str(path), "w") as out:
        stream: Any = out.add_stream(codec, rate=RATE, options={"g": "12", "sc_threshold": "0", **options})
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = WIDTH, HEIGHT, "yuv420p", 2_000_000
        stream.codec_context.thread_count = 1
        for number in range(FRAMES):
            picture = numbered_picture(number, height=HEIGHT, width=WIDTH)
            frame: Any = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = number, 1 / RATE
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def assert_exact(video: Path, frames: int = FRAMES) -> None:
    whole = Interval(start_second=0.0, stop_second=None)
    assert read_numbers(encode_clip(video, interval=whole, settings=SMALL).data) == list(range(frames))
    for start in range(0, frames - 3, 4):
        interval = Interval(start_second=start / 25, stop_second=(start + 2.9) / 25)
        found = read_numbers(encode_clip(video, interval=interval, settings=SMALL).data)
        assert found == list(range(start, start + 3)), start


@pytest.mark.parametrize("name", IN_ORDER)
def test_order_gives_the_times_of_an_avi(tmp_path: Path, name: str) -> None:
    ending, codec, options = IN_ORDER[name]
    assert_exact(numbered(tmp_path / f"a.{ending}", codec, options))


def without_offsets(path: Path) -> Path:
    """An mp4 whose table of offsets between decoding and presentation (ctts) is gone, as old muxers wrote it."""
    data = path.read_bytes()
    assert data.count(b"ctts") == 1 and data.count(b"edts") == 1
    path.write_bytes(data.replace(b"ctts", b"free").replace(b"edts", b"free"))
    return path


@pytest.mark.parametrize("name", ["h264", "h264 pyramid", "mpeg4"])
def test_order_gives_the_times_of_an_mp4_without_offsets(tmp_path: Path, name: str) -> None:
    _, codec, options = IN_ORDER[name]
    assert_exact(without_offsets(numbered(tmp_path / "a.mp4", codec, options)))


def test_joined_avi_files_are_one_video(tmp_path: Path) -> None:
    """FFmpeg reads the second index, too, and counts on."""
    for n in (0, 1):
        pictures = (numbered_picture(k, height=HEIGHT, width=WIDTH) for k in range(30 * n, 30 * n + 30))
        write_video(tmp_path / f"{n}.avi", pictures, Coding(codec="mpeg4", gop=10))
    video = tmp_path / "a.avi"
    video.write_bytes((tmp_path / "0.avi").read_bytes() + (tmp_path / "1.avi").read_bytes())
    assert_exact(video)


def test_every_packet_has_an_object_for_itself(tmp_path: Path) -> None:
    """PyAV finds what a packet hands to its frame by the object's address, and forgets it with the first that ends."""
    video = numbered(tmp_path / "a.avi", "libx264", {"bf": "2"})
    readers: list[Callable[[], Any]] = []
    for _ in range(3):
        source = SourceVideo(video, Limits())
        frames = source.frames_at(Fraction(n, 25) for n in range(FRAMES))
        readers.append(lambda frames=frames: next(frames, None))
    for number in range(FRAMES):
        for read in readers:
            assert read().opaque.number is not None, number
