"""Matroska files written element by element, and their checksums."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import av
import pytest

from lavila.ingest.encode import EncodeError, EncodeSettings, Interval, encode_clip
from lavila.ingest.matroska import CLUSTER, Checksums
from tests.footage import Coding, read_numbers, write_numbered_video

SMALL = EncodeSettings(codec="h264", short_side=48, speed="ultrafast")
FRAMES, GROUP = 40, 8
XIPH, FIXED, EBML = 0b010, 0b100, 0b110  # the flags of a block by its lacing
Frame = tuple[bytes, bool, int]
"""Content, whether it is a keyframe, and milliseconds."""


def numbers(video: Path, start: float = 0.0, stop: float | None = None) -> list[int]:
    clip = encode_clip(video, interval=Interval(start_second=start, stop_second=stop), settings=SMALL)
    return read_numbers(clip.data)


def size(number: int, length: int = 8) -> bytes:
    return (number | 1 << 7 * length).to_bytes(length, "big")


def element(name: int, content: bytes | int) -> bytes:
    content = content.to_bytes(4, "big") if isinstance(content, int) else content
    return name.to_bytes((name.bit_length() + 7) // 8, "big") + size(len(content)) + content


def block(frames: list[Frame], lacing: int) -> bytes:
    sizes = [len(content) for content, _, _ in frames]
    head = size(1, 1) + frames[0][2].to_bytes(2, "big") + bytes([0x80 * frames[0][1] | lacing])
    if lacing:
        head += bytes([len(frames) - 1])
    if lacing == XIPH:
        head += b"".join(b"\xff" * (one // 255) + bytes([one % 255]) for one in sizes[:-1])
    if lacing == EBML:
        head += size(sizes[0], 2)
        steps = [after - before for before, after in itertools.pairwise(sizes[:-1])]
        head += b"".join(size(step + (1 << 13) - 1, 2) for step in steps)
    return element(0xA3, head + b"".join(content for content, _, _ in frames))


def write(path: Path, *, lacing: int = 0, default: int | None = None) -> Path:
    """H.264 whose blocks have four frames each where they are laced; default: DefaultDuration in nanoseconds."""
    source = write_numbered_video(path.with_suffix(".mp4"), FRAMES, Coding(gop=GROUP, b_frames=0), height=48, width=64)
    with av.open(str(source)) as container:
        stream = container.streams.video[0]
        private = bytes(stream.codec_context.extradata or b"")
        frames = [
            (bytes(packet), packet.is_keyframe, round(packet.pts * packet.time_base * 1000))
            for packet in container.demux(stream)
            if packet.size and packet.pts is not None
        ]
    if lacing == FIXED:  # units of filler make frames of one size
        longest = max(len(content) for content, _, _ in frames) + 16
        filler = [longest - len(content) - 4 for content, _, _ in frames]
        frames = [
            (content + more.to_bytes(4, "big") + b"\x0c" + b"\xff" * (more - 2) + b"\x80", key, time)
            for (content, key, time), more in zip(frames, filler, strict=True)
        ]
    many = 4 if lacing else 1
    blocks = [block(frames[first : first + many], lacing) for first in range(0, FRAMES, many)]
    picture = element(0xE0, element(0xB0, 64) + element(0xBA, 48))
    track = element(0xD7, 1) + element(0x73C5, 1) + element(0x83, 1) + element(0x86, b"V_MPEG4/ISO/AVC")
    track += element(0x63A2, private) + (element(0x23E383, default) if default else b"") + picture
    head = element(0x1A45DFA3, element(0x4282, b"matroska") + element(0x4287, 4) + element(0x4285, 2))
    segment = element(0x1549A966, element(0x2AD7B1, 1_000_000)) + element(0x1654AE6B, element(0xAE, track))
    segment += element(CLUSTER, element(0xE7, 0) + b"".join(blocks))
    path.write_bytes(head + element(0x18538067, segment))
    return path


@pytest.mark.parametrize("lacing", [XIPH, FIXED, EBML], ids=["xiph", "fixed", "ebml"])
def test_frames_that_share_a_block(tmp_path: Path, lacing: int) -> None:
    """DefaultDuration gives their times. Without it, only the first frame of a block has one, and nothing is stored."""
    video = write(tmp_path / "a.mkv", lacing=lacing, default=40_000_000)
    for start, stop, first, last in ((0.0, None, 0, 40), (0.4, 1.0, 10, 25), (0.8, 1.2, 20, 30), (1.1, 9.0, 28, 40)):
        assert numbers(video, start, stop) == list(range(first, last))
    with pytest.raises(EncodeError):
        numbers(write(tmp_path / "b.mkv", lacing=lacing))


@pytest.mark.parametrize("default", [1_000_000, 20_000_000, 80_000_000, 1_000_000_000])
def test_the_times_of_blocks_count_more_than_a_default_duration(tmp_path: Path, default: int) -> None:
    video = write(tmp_path / "a.mkv", default=default)
    assert numbers(video) == list(range(FRAMES))
    assert numbers(video, 0.4, 1.0) == list(range(10, 25))


@pytest.fixture
def summed(tmp_path: Path) -> tuple[Path, list[int]]:
    """A video with a cluster for each group of pictures, and the places of the clusters."""
    source = write_numbered_video(tmp_path / "a.mp4", FRAMES, Coding(gop=GROUP), height=48, width=64)
    video = tmp_path / "a.mkv"
    with av.open(str(source)) as container, av.open(str(video), "w", options={"cluster_time_limit": "300"}) as out:
        copy: Any = out.add_stream_from_template(container.streams.video[0])
        for packet in [packet for packet in container.demux(video=0) if packet.size]:
            packet.stream = copy
            out.mux(packet)
    data, name = video.read_bytes(), CLUSTER.to_bytes(4, "big")
    places = [at for at in range(len(data)) if data[at : at + 4] == name]
    assert len(places) >= 4
    return video, places


def test_checksums_of_clusters(summed: tuple[Path, list[int]]) -> None:
    video, places = summed
    data = bytearray(video.read_bytes())
    inside = [place + 30 for place in places]
    for known in (places, []):
        checksums = Checksums(video, known)
        assert all(checksums.hold(at) and not checksums.skipped for at in inside)
    data[places[2] + 40] ^= 1
    video.write_bytes(data)
    for known in (places, [], [7]):
        checksums = Checksums(video, known)
        assert [checksums.hold(at) for at in inside[:4]] == [True, True, False, True]
        assert Checksums(video, known).hold(inside[3])  # where reading begins behind the damage
    checksums = Checksums(video, places)
    assert checksums.hold(inside[1]) and checksums.hold(inside[3]) and checksums.skipped
    data[places[2] : places[2] + 4] = bytes(4)
    video.write_bytes(data)
    checksums = Checksums(video, places)
    assert checksums.hold(inside[1]) and not checksums.hold(inside[2])


def test_a_byte_that_no_decoder_notices(summed: tuple[Path, list[int]]) -> None:
    """Damage to the head of a cluster, which holds no frame: only the checksum sees it. Other clusters are stored."""
    video, places = summed
    with av.open(str(video)) as container:
        stream: Any = container.streams.video[0]
        at, time = next(
            (packet.pos, float(packet.pts * packet.time_base))
            for packet in container.demux(stream)
            if packet.size and packet.pos > places[2]
        )
    data = bytearray(video.read_bytes())
    data[at + 3] ^= 0b1000  # the flag of an invisible frame, which FFmpeg ignores
    video.write_bytes(data)
    with av.open(str(video)) as container:
        assert len([frame for frame in container.decode(video=0) if not frame.is_corrupt]) == FRAMES
    with pytest.raises(EncodeError):
        numbers(video, time, time + 0.2)
    assert numbers(video, 0.0, 0.2) == list(range(5))
