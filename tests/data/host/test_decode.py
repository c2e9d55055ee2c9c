"""Frames that nobody asked for are not decoded, and those asked for come out bit for bit as if they had been."""

from __future__ import annotations

import io
from fractions import Fraction
from typing import Any

import av
import numpy as np
import pytest

from lavila.cluster.workers import end_realtime
from lavila.data.host import decode
from lavila.data.host.decode import DecodeError, decode_frames, decode_planes, video_problem

FRAMES = 45
X265 = "pools=none:frame-threads=1:log-level=error:bframes=7:b-adapt=0"
STREAMS = {
    "h264 b": ("libx264", 1000, {"x264-params": "open-gop=0:bframes=7:b-adapt=0:b-pyramid=none"}),
    "h264 pyramid": ("libx264", 15, {"x264-params": "open-gop=0:bframes=7:b-adapt=0:b-pyramid=normal"}),
    "h264 open groups": ("libx264", 15, {"x264-params": "open-gop=1:bframes=7:b-adapt=0:b-pyramid=normal"}),
    "h264 no b": ("libx264", 15, {"tune": "zerolatency"}),
    "hevc b": ("libx265", 1000, {"x265-params": f"open-gop=0:{X265}"}),
    "hevc open groups": ("libx265", 15, {"x265-params": f"open-gop=1:{X265}"}),
    "hevc sub-layers": ("libx265", 1000, {"x265-params": f"open-gop=0:temporal-layers=3:{X265}"}),
    "vp9": ("libvpx-vp9", 15, {"deadline": "realtime", "cpu-used": "8"}),
    "av1": ("libsvtav1", 15, {"preset": "12", "svtav1-params": "lp=1"}),
}


def pictures() -> list[np.ndarray]:
    """Noise that moves and a shade that changes, 64x48."""
    random = np.random.default_rng(0)
    noise = random.integers(16, 236, (72, 200), np.uint8)
    return [np.roll(noise, 3 * i, axis=1)[:, :64] // 2 + i for i in range(FRAMES)]


def coded(codec: str, gop: int, options: dict[str, str]) -> bytes:
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.thread_count = 1
        stream.codec_context.gop_size = gop
        for number, picture in enumerate(pictures()):
            frame = av.VideoFrame.from_ndarray(picture, format="yuv420p")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    end_realtime()  # which SVT-AV1 takes
    return out.getvalue()


def every_frame(data: bytes) -> list[list[np.ndarray]]:
    """The planes of all frames, decoded one after another."""
    with av.open(io.BytesIO(data)) as container:
        frames = list(container.decode(video=0))
        return [
            [np.frombuffer(p, np.uint8).reshape(p.height, p.line_size)[:, : p.width].copy() for p in frame.planes]
            for frame in frames
        ]


@pytest.mark.parametrize("name", STREAMS)
def test_wanted_frames_are_those_of_decoding_everything(name: str) -> None:
    data = coded(*STREAMS[name])
    every = every_frame(data)
    assert len(every) == FRAMES
    random = np.random.default_rng(1)
    choices = [[0], [44], [14, 15], [13], [16], list(range(45)), list(range(0, 45, 4))]
    choices += [sorted(random.choice(45, random.integers(1, 12), replace=False).tolist()) for _ in range(30)]
    for wanted in choices:
        found = []
        for planes in decode_planes(data, wanted):
            halves = (planes.width, planes.width // 2, planes.width // 2)
            lines = zip((planes.luma, planes.blue, planes.red), halves, strict=True)
            found.append([plane[:, :width].copy() for plane, width in lines])
        assert len(found) == len(wanted)
        for number, planes in zip(wanted, found, strict=True):
            assert all((a == b).all() for a, b in zip(planes, every[number], strict=True)), (wanted, number)


def fed(data: bytes, wanted: list[int], monkeypatch: pytest.MonkeyPatch) -> int:
    """How many packets a decoder is given for some frames."""
    given: list[int] = []
    needed = decode.needed

    def count(*args: Any) -> list[int]:
        places = needed(*args)
        given.append(len(places))
        return places

    monkeypatch.setattr(decode, "needed", count)
    decode_frames(data, wanted)
    return given[0]


def test_what_no_wanted_frame_needs_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    b, grouped, layered = (coded(*STREAMS[name]) for name in ("h264 b", "vp9", "hevc sub-layers"))
    closed, groups_open = (coded(*STREAMS[name]) for name in ("h264 pyramid", "h264 open groups"))
    assert fed(b, list(range(45)), monkeypatch) == 45
    # Every eighth frame is referred to: 0, 8, 16, 24, and the wanted one; nothing after it.
    assert fed(b, [20], monkeypatch) == 5
    # Groups of 15 frames: the wanted frame is the third of its group.
    assert fed(grouped, [32], monkeypatch) == 3
    assert fed(grouped, [2, 32], monkeypatch) == 6
    # Decoding only begins where no later frame looks behind.
    assert fed(groups_open, [44], monkeypatch) > 2 * fed(closed, [44], monkeypatch)
    # In a stream with sub-layers any frame may be referred to; the last three are decoded after frame 44.
    assert fed(layered, [44], monkeypatch) == 42


def test_frames_that_are_not_there_are_refused() -> None:
    data = coded(*STREAMS["h264 b"])
    with pytest.raises(DecodeError, match=r"frame 45.*45 frames"):
        decode_frames(data, [3, 45])
    for broken in (b"", bytes(1000), data[:400]):
        with pytest.raises(DecodeError):
            decode_frames(broken, [0])


def test_damage_shows_in_the_group_that_has_it_only() -> None:
    data = bytearray(coded(*STREAMS["vp9"]))
    with av.open(io.BytesIO(bytes(data))) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    place = packets[17].pos
    data[place : place + packets[17].size] = bytes(packets[17].size)
    assert decode_frames(bytes(data), [3, 40]).shape == (2, 48, 64, 3)
    with pytest.raises(DecodeError):
        decode_frames(bytes(data), [3, 20, 40])


@pytest.mark.parametrize("name", ["h264 b", "h264 pyramid", "h264 no b", "hevc b"])
def test_what_was_decoded_on_top_of_damage_is_refused(name: str) -> None:
    """FFmpeg flags only the damaged frame, or raises. All that follow in its group show the damage, too."""
    data = bytearray(coded(*STREAMS[name]))
    with av.open(io.BytesIO(bytes(data))) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    hit = max(range(17, 24), key=lambda n: packets[n].size)  # others refer to the largest
    first, size = packets[hit].pos, packets[hit].size
    kept = 12 if name.startswith("hevc") else 30  # in HEVC only the header of so small a picture shows damage
    data[first + kept : first + size] = bytes(size - kept)  # as of a block of a disk that was lost
    sound, spoilt = every_frame(coded(*STREAMS[name])), every_frame_or_none(bytes(data))
    times = sorted(packet.pts for packet in packets)
    at = times.index(packets[hit].pts)
    later = [n for n in range(at, FRAMES) if spoilt is None or not np.array_equal(spoilt[n][0], sound[n][0])]
    assert spoilt is None or later, "the damage shows"
    for wanted in [*later[:4], later[-1]]:
        with pytest.raises(DecodeError):
            decode_frames(bytes(data), [wanted])
    assert video_problem(bytes(data), frames=FRAMES, height=48, width=64) is not None
    assert decode_frames(bytes(data), [0]).shape == (1, 48, 64, 3), "frames before it are sound"


def every_frame_or_none(data: bytes) -> list[list[np.ndarray]] | None:
    """All frames as FFmpeg gives them; None if it raises, or gives fewer."""
    try:
        found = every_frame(data)
    except av.FFmpegError:
        return None
    return found if len(found) == FRAMES else None
