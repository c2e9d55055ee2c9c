"""Damage that decoders pass over: the container, or the numbers and the ends of pictures, betray it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from lavila.ingest.encode import EncodeError, EncodeSettings, Interval, encode_clip
from lavila.ingest.h264 import PictureCounter
from lavila.ingest.vpx import without_modes
from tests.footage import Coding, read_numbers, write_numbered_video, write_video

SMALL = EncodeSettings(codec="h264", short_side=48, speed="ultrafast")
FRAMES, GROUP = 40, 8
PLAIN = Coding(gop=GROUP)
PACKET = 188  # bytes of a packet of a transport stream


def numbers(video: Path, start: float = 0.0, stop: float | None = None) -> list[int]:
    clip = encode_clip(video, interval=Interval(start_second=start, stop_second=stop), settings=SMALL)
    return read_numbers(clip.data)


def sound(path: Path, coding: Coding = PLAIN, *, height: int = 48, width: int = 64) -> Path:
    write_numbered_video(path, FRAMES, coding, height=height, width=width)
    assert numbers(path) == list(range(FRAMES))
    return path


def places(video: Path) -> list[tuple[int, int]]:
    """Where each packet of the pictures lies in the file, and its bytes, in decoding order."""
    with av.open(str(video)) as container:
        return [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]


def change(video: Path, at: int, content: bytes) -> None:
    data = bytearray(video.read_bytes())
    data[at : at + len(content)] = content
    video.write_bytes(data)


def with_packets(source: Path, path: Path, edit: Callable[[int, bytes], bytes]) -> Path:
    """A copy of a video whose packets, by their number in decoding order, have other content."""
    with av.open(str(source)) as container, av.open(str(path), "w") as output:
        copy: Any = output.add_stream_from_template(container.streams.video[0])
        for number, packet in enumerate(packet for packet in container.demux(video=0) if packet.size):
            edited: Any = av.Packet(edit(number, bytes(packet)))
            edited.pts, edited.dts, edited.duration = packet.pts, packet.dts, packet.duration
            edited.is_keyframe, edited.time_base, edited.stream = packet.is_keyframe, packet.time_base, copy
            output.mux(edited)
    return path


def test_a_picture_that_ends_before_its_bits_do(tmp_path: Path) -> None:
    """Damage in CAVLC may still give a picture. Seldom does it take the same number of bits."""
    source = sound(tmp_path / "a.mp4")

    def longer(number: int, packet: bytes) -> bytes:
        return packet if number != 20 else (len(packet)).to_bytes(4, "big") + packet[4:] + bytes([0x55] * 3 + [0x80])

    assert len(places(source)) == FRAMES
    video = with_packets(source, tmp_path / "b.mp4", longer)
    with pytest.raises(EncodeError):
        numbers(video)
    assert numbers(video, 0.0, 0.6) == list(range(15))


def test_a_picture_whose_number_is_damaged(tmp_path: Path) -> None:
    """A decoder then refers to other pictures, and says nothing."""
    video = with_packets(
        sound(tmp_path / "a.mp4"),
        tmp_path / "b.mp4",
        lambda number, packet: packet if number != 2 else packet[:6] + bytes([packet[6] ^ 0x40]) + packet[7:],
    )
    with pytest.raises(EncodeError):
        numbers(video)
    assert numbers(video, 0.4, 1.0) == list(range(10, 25))


def test_a_packet_that_swallowed_the_picture_before(tmp_path: Path) -> None:
    """Without its start code, the slice of a picture is a part of what comes before it in a transport stream."""
    video = sound(tmp_path / "a.ts")
    at, size = places(video)[GROUP - 1]
    data = video.read_bytes()
    begin = data.index(b"\0\0\1\x41", at)
    assert begin < at + PACKET + size
    change(video, begin, b"\xff" * 3)
    with pytest.raises(EncodeError):
        numbers(video)
    delimiter = b"\0\0\1\x09\xf0"
    with av.open(str(tmp_path / "a.ts")) as container:
        counter = PictureCounter(bytes(container.streams.video[0].codec_context.extradata or b""))
        packet = bytes(next(container.demux(video=0)))
    # A muxer may add a delimiter. With more in it than a delimiter has, it swallowed what followed.
    for before, merged in (
        (b"", False),
        (delimiter, False),
        (delimiter + b"\xff\x41", True),
        (delimiter + bytes(64), True),
    ):
        place = counter.place(before + packet)
        assert place is not None and place.merged is merged


@pytest.mark.parametrize("rest", [b"\xff", b"\0"])
def test_a_packet_that_begins_with_the_rest_of_a_picture(tmp_path: Path, rest: bytes) -> None:
    """Its start codes are lost, and the next picture is shown at its time."""
    video = sound(tmp_path / "a.ts")
    at, _ = places(video)[GROUP - 1]
    data = video.read_bytes()
    begin = data.index(b"\0\0\1\x09", at) if rest == b"\xff" else data.index(b"\0\1\x41", at) + 1
    change(video, begin, rest * (data.index(b"\x47", begin) - begin))
    for start, stop in ((0.0, None), (0.2, 0.31)):
        with pytest.raises(EncodeError):
            numbers(video, start, stop)
    assert numbers(video, 0.64, 1.0) == list(range(16, 25))


@pytest.mark.parametrize("name", ["a.ts", "a.flv"])
def test_a_break_before_the_first_keyframe(tmp_path: Path, name: str) -> None:
    """The pictures that follow begin elsewhere, so all of them would have wrong times."""
    video = sound(tmp_path / name)
    data = bytearray(video.read_bytes())
    first = places(video)[0][0]
    del data[first - 30 if name == "a.ts" else first + 50]
    video.write_bytes(data)
    with pytest.raises(EncodeError):
        numbers(video, 0.4, 1.0)


@pytest.mark.parametrize(
    ("name", "sign", "offset"),
    [("a.ts", b"\0\0\1\xe0", 2), ("a.ts", b"\0\0\1\xe0", 6), ("a.flv", b"\x17\1\0\0\x50", 0)],
    ids=["start code", "marker of the header", "kind of the first picture"],
)
def test_damaged_bytes_before_the_first_keyframe(tmp_path: Path, name: str, sign: bytes, offset: int) -> None:
    """The first picture is lost, or has no time, and FFmpeg counts seconds from the next one."""
    video = sound(tmp_path / name)
    at = video.read_bytes().index(sign, places(video)[0][0]) + offset
    change(video, at, b"\0\0" if name == "a.flv" else b"\0")
    for start, stop in ((0.0, None), (0.4, 1.0)):
        with pytest.raises(EncodeError, match="first keyframe"):
            numbers(video, start, stop)


def test_a_recording_may_begin_within_a_packet(tmp_path: Path) -> None:
    video = sound(tmp_path / "a.ts")
    video.write_bytes(video.read_bytes()[-77:] + video.read_bytes())
    assert numbers(video, 0.4, 1.0) == list(range(10, 25))


def test_a_first_picture_far_behind_the_beginning(tmp_path: Path) -> None:
    """Tables and padding before it, as where sound begins first."""
    video = sound(tmp_path / "a.ts")
    content, padding = video.read_bytes(), b"\x47\x1f\xff\x10" + b"\xff" * (PACKET - 4)
    tables = content[: places(video)[0][0]]
    video.write_bytes((tables + padding * 50) * 10 + content)
    assert places(video)[0][0] > 80_000
    assert numbers(video, 0.4, 1.0) == list(range(10, 25))
    change(video, video.read_bytes().index(b"\0\0\1\xe0"), b"\1")
    with pytest.raises(EncodeError, match="first keyframe"):
        numbers(video, 0.4, 1.0)


@pytest.mark.parametrize("lost", [0, 77, 3 * 192])  # with the tables, a part of them, the first picture at once
def test_packets_with_a_time_before_each(tmp_path: Path, lost: int) -> None:
    source, video = sound(tmp_path / "a.mp4"), tmp_path / "a.m2ts"
    with av.open(str(source)) as container, av.open(str(video), "w", options={"mpegts_m2ts_mode": "1"}) as output:
        copy: Any = output.add_stream_from_template(container.streams.video[0])
        for packet in container.demux(video=0):
            if packet.size:
                packet.stream = copy
                output.mux(packet)
    content = video.read_bytes()
    video.write_bytes(content[lost:])
    assert numbers(video, 0.4, 1.0) == list(range(10, 25))
    change(video, content.index(b"\0\0\1\xe0") - lost, b"\1")
    with pytest.raises(EncodeError, match="first keyframe"):
        numbers(video, 0.4, 1.0)


def test_an_flv_whose_tags_break_off(tmp_path: Path) -> None:
    """The picture before the break is not held for those that are lost. A recording that was stopped is whole."""
    video = sound(tmp_path / "a.flv")
    at, _ = places(video)[16]
    whole = video.read_bytes()
    change(video, at + 38, bytes(64))
    with pytest.raises(EncodeError):
        numbers(video, 0.4, 1.0)
    video.write_bytes(whole[: at + 5])
    assert numbers(video, 0.4, 0.6) == list(range(10, 15))


def test_an_flv_with_a_tag_without_content(tmp_path: Path) -> None:
    video = sound(tmp_path / "a.flv")
    at, _ = places(video)[0]
    content = video.read_bytes()
    empty = b"\x09" + bytes(10) + (11).to_bytes(4, "big")
    video.write_bytes(content[:at] + empty + content[at:])
    assert numbers(video, 0.4, 1.0) == list(range(10, 25))


def test_tags_that_an_flv_lost_in_its_middle(tmp_path: Path) -> None:
    """At irregular times, and between groups, the times alone would count as a pause of the camera."""
    times = tuple(40 * n + 3 * (n % 5) for n in range(FRAMES))
    video = sound(tmp_path / "a.flv", Coding(gop=GROUP, b_frames=0, milliseconds=times))
    (at, _), (end, _) = places(video)[12], places(video)[16]
    whole = video.read_bytes()
    video.write_bytes(whole[: at + 7] + whole[end - 20 :])  # FFmpeg finds the next whole tag, a keyframe
    for start, stop in ((0.0, None), (0.2, 0.6), (0.56, 0.7)):
        with pytest.raises(EncodeError):
            numbers(video, start, stop)
    assert numbers(video, 0.0, 0.4) == list(range(10))


def test_an_avi_without_its_first_frame(tmp_path: Path) -> None:
    """An AVI counts its frames, so each would be shown early."""
    video = sound(tmp_path / "a.avi", Coding(codec="mpeg4", gop=GROUP))
    at = places(video)[0][0] - 8
    assert video.read_bytes()[at : at + 4] == b"00dc"
    change(video, at, b"\0\1\0\0")
    for start, stop in ((0.0, None), (0.4, 1.0)):
        with pytest.raises(EncodeError):
            numbers(video, start, stop)


@pytest.mark.parametrize("lost", [1, 3])
def test_an_avi_without_frames_in_its_middle(tmp_path: Path, lost: int) -> None:
    """The sizes in its index show it, also right behind a seek."""
    video = sound(tmp_path / "a.avi", Coding(codec="mpeg4", gop=GROUP))
    for at, _ in places(video)[20 : 20 + lost]:
        change(video, at - 8, b"\0\1")
    for start, stop in ((0.0, None), (0.0, 0.84), (0.72, 0.84)):
        with pytest.raises(EncodeError):
            numbers(video, start, stop)
    for start, stop, last in ((0.0, 0.8, 20), (1.2, None, 40)):
        assert numbers(video, start, stop) == list(range(round(25 * start), last))


def test_an_avi_whose_index_does_not_fit_and_that_lacks_a_frame(tmp_path: Path) -> None:
    """FFmpeg counts, and a picture would be held for the one that is lost."""
    video = sound(tmp_path / "a.avi", Coding(codec="mpeg4", gop=GROUP))
    at = places(video)[13][0] - 4  # within the name and the size of its chunk
    data = video.read_bytes()
    padding = data.index(b"JUNK") + 64
    video.write_bytes(data[:padding] + data[padding + 16 : at] + bytes(16) + data[at:])  # the index fits no longer
    with pytest.raises(EncodeError, match="frames were lost"):
        numbers(video)
    assert numbers(video, 0.0, 0.48) == list(range(12))


def test_a_matroska_block_whose_name_is_damaged(tmp_path: Path) -> None:
    """Without it there is a gap in time, which would count as a pause of the camera."""
    video = sound(tmp_path / "a.webm", Coding(codec="libvpx-vp9", gop=GROUP, crf=30))
    at, _ = places(video)[GROUP - 1]
    begin = video.read_bytes().rindex(b"\xa3", 0, at)
    assert at - begin < 10
    change(video, begin, b"\xe3")
    with pytest.raises(EncodeError):
        numbers(video, 0.0, 0.3)
    assert numbers(video, 0.4, 1.0) == list(range(10, 25))


@pytest.mark.parametrize("name", [b"\xa1", b"\xab"], ids=["a block of a group", "the size of a cluster"])
def test_a_webm_block_that_looks_like_another_part(tmp_path: Path, name: bytes) -> None:
    """FFmpeg passes over it, and the gap would count as a pause of the camera."""
    video = sound(tmp_path / "a.webm", Coding(codec="libvpx-vp9", gop=GROUP, crf=30))
    at, size = places(video)[13]
    begin = video.read_bytes().rindex(b"\xa3", 0, at)
    assert at - begin < 4 and size
    change(video, begin, name)
    for start, stop in ((0.0, None), (0.4, 0.55), (0.52, 0.6)):
        with pytest.raises(EncodeError):
            numbers(video, start, stop)
    assert numbers(video, 0.64, 1.0) == list(range(16, 25))


def test_a_false_time_right_before_the_end_of_a_clip(tmp_path: Path) -> None:
    """Only the next frame, which is shown earlier, shows that it is false."""
    source = sound(tmp_path / "a.mp4", Coding(gop=GROUP, b_frames=0))
    with av.open(str(source)) as container, av.open(str(tmp_path / "b.mp4"), "w") as output:
        copy: Any = output.add_stream_from_template(container.streams.video[0])
        for number, packet in enumerate(packet for packet in container.demux(video=0) if packet.size):
            assert packet.pts is not None
            packet.pts += 2 * packet.duration * (number == 20)
            packet.stream = copy
            output.mux(packet)
    for stop in (0.86, 0.9, 2.0):
        with pytest.raises(EncodeError):
            numbers(tmp_path / "b.mp4", 0.0, stop)
    assert numbers(tmp_path / "b.mp4", 0.0, 0.6) == list(range(15))


def test_mpeg4_that_begins_without_a_keyframe(tmp_path: Path) -> None:
    """Its decoder shows changes of nothing."""
    source = sound(tmp_path / "a.avi", Coding(codec="mpeg4", gop=GROUP, b_frames=0))
    with av.open(str(source)) as container, av.open(str(tmp_path / "b.mkv"), "w") as output:
        copy: Any = output.add_stream_from_template(container.streams.video[0])
        for packet in [packet for packet in container.demux(video=0) if packet.size][1:]:
            packet.stream = copy
            output.mux(packet)
    with pytest.raises(EncodeError):
        numbers(tmp_path / "b.mkv", 0.0, 0.2)
    assert numbers(tmp_path / "b.mkv", 0.4, 0.6) == [11, 12, 13, 14, 15]


def test_a_hole_in_a_packet_of_vp8(tmp_path: Path) -> None:
    """libvpx makes noise of zeros, without an error."""
    noise = np.random.default_rng(0).integers(0, 256, (3 * GROUP, 96, 160, 3), np.uint8)
    video = write_video(tmp_path / "a.webm", noise, Coding(codec="libvpx", gop=GROUP))
    at, size = places(video)[2 * GROUP]
    modes = size - len(without_modes("vp8", video.read_bytes()[at + 4 : at + 4 + size]))
    assert size - modes > 200
    change(video, at + 4 + modes + 100, bytes(48))
    with pytest.raises(EncodeError):
        numbers(video)
    assert len(numbers(video, 0.0, 0.6)) == 15


def test_a_hole_that_begins_in_a_packet_of_vp9(tmp_path: Path) -> None:
    """Zeros at the end of a packet may be padding, but not where the file continues with zeros."""
    video = sound(tmp_path / "a.webm", Coding(codec="libvpx-vp9", gop=GROUP, crf=30))
    at, size = places(video)[2 * GROUP]
    change(video, at + 4 + size - 48, bytes(78))
    with pytest.raises(EncodeError):
        numbers(video, 0.0, 0.66)
    assert numbers(video, 0.0, 0.6) == list(range(15))


def test_an_mp4_whose_table_points_out_of_the_file(tmp_path: Path) -> None:
    """The header's length alone allows a video to end a second early."""
    video = sound(tmp_path / "a.mp4", Coding(gop=GROUP, sound=True))
    data = video.read_bytes()
    table = data.index(b"stco") + 12
    change(video, table + 4 * (int.from_bytes(data[table - 4 : table], "big") - 2), b"\x7f")
    with pytest.raises(EncodeError):
        numbers(video)
    assert numbers(video, 0.0, 0.4) == list(range(10))
