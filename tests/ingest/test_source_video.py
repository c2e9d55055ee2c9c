"""Reading a source video: seeks, folders read as one video, irregular times, limits, and files that mean harm."""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Iterator
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from lavila.ingest import video_files
from lavila.ingest.decoded import Decoded, FrameReader
from lavila.ingest.encode import (
    EncodedClip,
    EncodeError,
    EncodeSettings,
    Interval,
    Limits,
    encode_chunk,
    encode_clip,
    probe_video,
)
from tests.footage import (
    Coding,
    numbered_picture,
    read_numbers,
    repeat_video,
    with_latin_tags,
    write_numbered_video,
    write_video,
)

SMALL = EncodeSettings(codec="h264", short_side=48, speed="ultrafast", crf=18)


def cut(path: Path, start: float, stop: float | None, **others: Any) -> EncodedClip:
    arguments = {"settings": SMALL, **others}
    return encode_clip(path, interval=Interval(start_second=start, stop_second=stop), **arguments)


def small_video(path: Path, frames: int, coding: Coding | None = None) -> Path:
    return write_numbered_video(path, frames, coding, height=48, width=64)


def write_numbered(path: Path, numbers: range) -> Path:
    return write_video(path, (numbered_picture(n, height=48, width=64) for n in numbers))


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Timestamps of all frames that are decoded, those of fruitless seeks included."""
    pts: list[int] = []
    original = FrameReader.frames

    def counting(reader: FrameReader) -> Iterator[Decoded]:
        for one in original(reader):
            if one.pts is not None:
                pts.append(one.pts)
            yield one

    monkeypatch.setattr(FrameReader, "frames", counting)
    return pts


@pytest.mark.parametrize("name", ["long.mp4", "long.mkv"])
def test_a_clip_deep_in_three_hours_is_exact_and_decodes_little(tmp_path: Path, name: str, decoded: list[int]) -> None:
    once = small_video(tmp_path / "once.mp4", 3000, Coding(fps=Fraction(30), gop=60))
    video = repeat_video(once, tmp_path / name, 108)  # 108 x 100 s
    for start, frames in [(10_750.3, 60), (5_399.9, 12), (10_700.0, 1)]:
        decoded.clear()
        clip = cut(video, start, start + frames / 30)
        first = round(start * 30)
        assert read_numbers(clip.data) == [n % 3000 for n in range(first, first + clip.num_frames)]
        assert abs(clip.num_frames - frames) <= 1
        assert len(decoded) <= 2 * 60 + clip.num_frames, "decodes more than two groups of pictures and the clip"
        with av.open(str(video)) as container:
            tick = container.streams.video[0].time_base
        assert abs(decoded[0] * tick - Fraction(start)) <= 5, "decodes another place of the video"
    assert probe_video(video).seconds == pytest.approx(10_800, abs=0.1)
    chunk = encode_chunk(video, number=179, seconds=60.0, settings=SMALL)
    assert read_numbers(chunk.data) == list(range(1200, 3000))


def test_transport_streams_and_avi_are_cut_exactly(tmp_path: Path) -> None:
    videos = [
        small_video(tmp_path / "a.ts", 300, Coding(gop=25)),
        small_video(tmp_path / "a.avi", 300, Coding(codec="mpeg4", gop=25)),
        small_video(tmp_path / "a.flv", 300, Coding(gop=25)),
        small_video(tmp_path / "a.webm", 300, Coding(codec="libvpx-vp9", gop=25, crf=20)),
    ]
    for video in videos:
        for start in (0, 1, 24, 25, 26, 130, 299):
            clip = cut(video, start / 25, (start + 3.9) / 25)
            assert read_numbers(clip.data) == list(range(start, min(start + 4, 300))), (video.name, start)


def remuxed(source: Path, path: Path, *, skip: int = 0, shift: int = 0) -> Path:
    """The packets of a video without the first `skip`, their timestamps moved by `shift` seconds, even below 0."""
    with av.open(str(source)) as container:
        kept = {"avoid_negative_ts": "disabled"}
        with av.open(str(path), "w", container_options=kept) as output:
            copy: Any = output.add_stream_from_template(container.streams.video[0])
            for packet in [packet for packet in container.demux(video=0) if packet.size][skip:]:
                moved = round(shift / packet.time_base)
                packet.pts, packet.dts, packet.stream = packet.pts + moved, packet.dts + moved, copy
                output.mux(packet)
    return path


def test_tags_that_are_not_utf8_keep_no_video_from_being_cut(tmp_path: Path) -> None:
    video = with_latin_tags(small_video(tmp_path / "plain.mp4", 30), tmp_path / "a.mp4")
    assert read_numbers(cut(video, 0.2, 0.39).data) == list(range(5, 10))
    assert probe_video(video).fps == 25


def test_timestamps_below_zero_are_timestamps(tmp_path: Path) -> None:
    video = small_video(tmp_path / "a.mp4", 60, Coding(gop=10))
    below = remuxed(video, tmp_path / "b.ts", shift=-5)
    assert read_numbers(cut(below, 1.0, 1.19).data) == list(range(25, 30))
    hidden = remuxed(video, tmp_path / "b.mp4", shift=-1)  # an edit list hides what lies before 0
    assert read_numbers(cut(hidden, 0.0, 0.19).data) == list(range(25, 30))
    assert read_numbers(cut(hidden, 1.0, 1.19).data) == list(range(50, 55))


def test_a_video_with_one_keyframe_or_none(tmp_path: Path, decoded: list[int]) -> None:
    one = small_video(tmp_path / "a.mp4", 200, Coding(gop=100_000))
    assert read_numbers(cut(one, 7.0, 7.19).data) == list(range(175, 180))
    assert len(decoded) <= 200, "decodes the whole video for each step of the search"
    none = remuxed(one, tmp_path / "b.mkv", skip=1)
    with pytest.raises(EncodeError, match=r"b\.mkv"):
        cut(none, 7.0, 7.19)


def test_a_bare_stream_is_cut_by_the_rate_it_states(tmp_path: Path) -> None:
    coded = small_video(tmp_path / "a.avi", 50, Coding(codec="mpeg4", b_frames=0))
    raw = tmp_path / "raw.m4v"
    with av.open(str(coded)) as container:
        stream = container.streams.video[0]
        packets = [bytes(packet) for packet in container.demux(stream) if packet.size]
        raw.write_bytes((stream.codec_context.extradata or b"") + b"".join(packets))
    assert read_numbers(cut(raw, 1.0, 1.19).data) == list(range(25, 30))


def test_irregular_times_become_a_constant_rate(tmp_path: Path) -> None:
    """Gaps, frames almost at the same time, and a slow stretch: each output frame is the nearest one shown."""
    shown = [0, 40, 41, 42, 80, 1500, 1501, 1540, 1600, 1640, 1680, 4000, 4040, 4041, 4080, 4900, 5000]
    video = small_video(tmp_path / "a.mkv", len(shown), Coding(milliseconds=tuple(shown), b_frames=0))
    for fps in (25.0, 10.0):
        clip = cut(video, 0.0, None, settings=EncodeSettings(codec="h264", short_side=48, crf=18, fps=fps))
        assert clip.fps == fps
        numbers = read_numbers(clip.data)
        assert len(numbers) == clip.num_frames >= 5 * fps
        for index, number in enumerate(numbers):
            due = 1000 * index / fps
            assert abs(shown[number] - due) == min(abs(at - due) for at in shown), (index, number)


def test_a_folder_of_chunks_is_one_video(tmp_path: Path) -> None:
    """Numbers continue from file to file; the second is a frame short, as those of Ego4D may be."""
    folder, fps = tmp_path / "uid.mp4", Fraction(25)
    for start, count in [(0, 250), (10, 249), (20, 250)]:
        pictures = range(start * 25, start * 25 + count)
        write_numbered(folder / f"{start}.mp4", pictures)
    (folder / "notes.txt").write_text("not a video")
    (folder / "thumbnail.mp4").write_bytes(b"nor this")
    clip = cut(folder, 9.6, 10.4)
    assert read_numbers(clip.data) == list(range(240, 260))
    assert (clip.start_frame, clip.source_fps) == (240, 25.0)
    assert read_numbers(cut(folder, 19.8, 20.2).data) == [495, 496, 497, 498, 498, 500, 501, 502, 503, 504]
    assert read_numbers(cut(folder, 10.0, 10.2).data) == list(range(250, 255))
    assert read_numbers(cut(folder, 29.8, 33.0).data) == list(range(745, 750))
    chunk = encode_chunk(folder, number=1, seconds=12.0, settings=SMALL)
    assert read_numbers(chunk.data) == [498 if n == 499 else n for n in range(300, 600)]
    facts = probe_video(folder)
    assert (facts.fps, facts.seconds, facts.height, facts.width) == (fps, 30.0, 48, 64)
    with pytest.raises(EncodeError, match=r"31\.00 s.*29\.96 s"):
        cut(folder, 31.0, 32.0)


def test_a_missing_chunk_is_named_when_a_clip_needs_it(tmp_path: Path) -> None:
    folder = tmp_path / "uid.mp4"
    for start in (10, 20, 40):
        write_numbered(folder / f"{start}.mp4", range(start * 25, start * 25 + 250))
    assert read_numbers(cut(folder, 29.8, 30.0).data) == list(range(745, 750))
    assert read_numbers(cut(folder, 40.0, 40.19).data) == list(range(1000, 1005))
    for start, stop in [(29.0, 31.0), (33.0, 34.0), (38.0, 41.0)]:
        with pytest.raises(EncodeError, match=r"uid\.mp4: 30\.mp4"):
            cut(folder, start, stop)
    with pytest.raises(EncodeError, match=r"uid\.mp4: 0\.mp4"):
        cut(folder, 3.0, 4.0)


def test_a_chunk_that_is_cut_short_is_not_taken_for_a_missing_one(tmp_path: Path) -> None:
    folder = tmp_path / "uid"
    for start in (0, 10):
        write_numbered(folder / f"{start}.mkv", range(start * 25, start * 25 + 250))
    first = folder / "0.mkv"
    first.write_bytes(first.read_bytes()[: first.stat().st_size // 2])
    with pytest.raises(EncodeError, match=r"0\.mkv"):
        cut(folder, 8.0, 11.0)
    assert read_numbers(cut(folder, 10.0, 10.2).data) == list(range(250, 255))


def test_folders_without_usable_names_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(EncodeError, match=r"0\.mp4"):
        cut(tmp_path / "empty", 0.0, 1.0)
    folder = tmp_path / "twice"
    write_numbered(folder / "0.mp4", range(5))
    write_numbered(folder / "00.mp4", range(5))
    with pytest.raises(EncodeError, match="second 0"):
        cut(folder, 0.0, 0.1)


def test_probing_reads_headers_only(tmp_path: Path, decoded: list[int]) -> None:
    video = small_video(tmp_path / "a.mp4", 250, Coding(fps=Fraction(50), sound=True))
    facts = probe_video(video)
    assert (facts.fps, facts.seconds, facts.height, facts.width) == (50, 5.0, 48, 64)
    assert not decoded
    with pytest.raises(EncodeError, match=r"b\.mp4"):
        probe_video(tmp_path / "b.mp4")


def test_a_file_that_states_no_length_is_measured(tmp_path: Path, decoded: list[int]) -> None:
    video = small_video(tmp_path / "a.mkv", 100)
    raw = video.read_bytes()
    place = raw.index(b"\x44\x89\x88")  # Duration, 8 bytes
    video.write_bytes(raw[:place] + b"\xec\x89" + raw[place + 2 :])  # now a Void element
    with av.open(str(video)) as container:
        assert container.duration is None
    assert probe_video(video).seconds == pytest.approx(4.0, abs=0.01)
    assert not decoded
    assert read_numbers(cut(video, 3.0, None).data) == list(range(75, 100))


@pytest.mark.parametrize("start", [float("nan"), float("inf"), -1.0, 1e300])
def test_intervals_that_cannot_be_are_refused(tmp_path: Path, start: float) -> None:
    video = small_video(tmp_path / "a.mp4", 10)
    with pytest.raises(EncodeError, match=r"a\.mp4"):
        cut(video, start, None)
    with pytest.raises(EncodeError, match=r"a\.mp4"):
        cut(video, 0.0, start)


class Clock:
    """A clock that moves on by a millisecond each time that it is read."""

    def __init__(self) -> None:
        self.reads = 0

    def monotonic(self) -> float:
        self.reads += 1
        return self.reads / 1000


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(video_files, "time", clock)
    return clock


def test_a_clip_that_takes_too_long_is_given_up(tmp_path: Path, decoded: list[int], clock: Clock) -> None:
    video = small_video(tmp_path / "a.mp4", 400, Coding(gop=250))
    with pytest.raises(EncodeError, match=r"0\.05 s"):
        cut(video, 0.0, None, limits=Limits(seconds=0.05))
    assert clock.reads <= 52 and len(decoded) < 60


def test_a_header_that_claims_ages_ends_with_the_time_limit(tmp_path: Path, clock: Clock) -> None:
    """Two frames a year apart would be a billion frames of nothing."""
    year = 365 * 24 * 3600 * 1000
    video = small_video(tmp_path / "a.mkv", 30, Coding(milliseconds=(*range(0, 1160, 40), year), b_frames=0))
    settings = EncodeSettings(codec="h264", short_side=48, speed="ultrafast", fps=25)
    with pytest.raises(EncodeError, match="1 s"):
        cut(video, 0.0, None, settings=settings, limits=Limits(seconds=1.0))
    assert clock.reads <= 1002
    with pytest.raises(EncodeError, match=video.name):
        probe_video(video)


@pytest.mark.parametrize("codec", ["libx264", "libvpx-vp9", "mpeg4"])
def test_pictures_above_the_limit_are_refused(tmp_path: Path, codec: str) -> None:
    video = write_numbered_video(tmp_path / "a.mkv", 5, Coding(codec=codec))
    assert cut(video, 0.0, None, limits=Limits(pixels=160 * 120)).num_frames == 5
    with pytest.raises(EncodeError, match=r"a\.mkv"):
        cut(video, 0.0, None, limits=Limits(pixels=160 * 120 - 1))


def test_a_decoder_does_not_allocate_pictures_above_the_limit(tmp_path: Path) -> None:
    """The container's header says 64x48, the stream itself 1600x1200."""
    small = write_numbered_video(tmp_path / "small.mp4", 5, height=48, width=64)
    with av.open(str(small)) as container:
        header = container.streams.video[0]
        large = write_numbered_video(tmp_path / "large.mp4", 5, height=1200, width=1600)
        with av.open(str(large)) as source, av.open(str(tmp_path / "mixed.mkv"), "w") as output:
            copy: Any = output.add_stream_from_template(header)
            for packet in source.demux(video=0):
                if packet.size:
                    packet.stream = copy
                    output.mux(packet)
    with pytest.raises(EncodeError):
        cut(tmp_path / "mixed.mkv", 0.0, None, limits=Limits(pixels=64 * 48))


@pytest.fixture
def requests_seen() -> Iterator[tuple[int, list[str]]]:
    """A web server on this machine: its port, and the paths that it was asked for."""
    seen: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.path)
            self.send_error(404)

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server.server_port, seen
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("kind", ["concat", "hls", "hls_http", "dash", "sdp", "image", "image_numbers"])
def test_a_file_cannot_make_other_files_or_hosts_be_opened(
    tmp_path: Path, requests_seen: tuple[int, list[str]], kind: str
) -> None:
    port, seen = requests_seen
    inner = small_video(tmp_path / "secret.ts", 10)
    picture = tmp_path / "p1.png"
    write_video(picture, [np.zeros((48, 64, 3), np.uint8)], Coding(codec="png", pix_fmt="rgb24"))
    playlist = "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{}\n#EXT-X-ENDLIST\n"
    content = {
        "concat": f"ffconcat version 1.0\nfile {inner.name}\n",
        "hls": playlist.format(inner),
        "hls_http": playlist.format(f"http://127.0.0.1:{port}/a.ts"),
        "dash": f'<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period>'
        f'<AdaptationSet mimeType="video/mp4"><Representation id="0"><BaseURL>http://127.0.0.1:{port}/b.mp4'
        "</BaseURL></Representation></AdaptationSet></Period></MPD>",
        "sdp": f"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video {port} RTP/AVP 96\n"
        "a=rtpmap:96 H264/90000\n",
    }
    name = "p%d.png" if kind == "image_numbers" else "a.mp4"
    video = tmp_path / name
    video.write_bytes(picture.read_bytes() if kind.startswith("image") else content[kind].encode())
    with pytest.raises(EncodeError, match=r"mp4, mov, mkv"):
        cut(video, 0.0, None)
    assert not seen


def test_a_mov_cannot_point_at_other_files(tmp_path: Path) -> None:
    """A data reference of kind `alis` names another file; its media must not be read from there."""
    inner = small_video(tmp_path / "secret.mov", 10)
    raw = inner.read_bytes()
    place = raw.index(b"dref") + 12  # version, flags and count lie between
    assert raw[place + 4 : place + 8] in (b"url ", b"alis")
    path = b"secret.mov"
    entry = b"alis" + bytes(4 + 10 + 1 + 27 + 12) + bytes([len(path)]) + path.ljust(63, b"\0") + bytes(16)
    entry += struct.pack(">HH", 1, 1) + bytes(16) + struct.pack(">HH", 2, len(path)) + path + struct.pack(">H", 0xFFFF)
    entry = struct.pack(">I", len(entry) + 4) + entry
    old = struct.unpack(">I", raw[place : place + 4])[0]
    grown = len(entry) - old
    changed = bytearray(raw[:place] + entry + raw[place + old :])
    for box in (b"moov", b"trak", b"mdia", b"minf", b"dinf", b"dref"):
        at = raw.index(box) - 4
        changed[at : at + 4] = struct.pack(">I", struct.unpack(">I", raw[at : at + 4])[0] + grown)
    media = raw.index(b"mdat") + 4
    end = media - 8 + struct.unpack(">I", raw[media - 8 : media - 4])[0]
    changed[media:end] = bytes(end - media)  # nothing is left but in the other file
    outer = tmp_path / "outer.mov"
    outer.write_bytes(changed)
    with pytest.raises(EncodeError):
        cut(outer, 0.0, None)
    with av.open(str(outer), options={"enable_drefs": "1"}) as container:  # the file does what it was made for
        assert sum(1 for _ in container.decode(video=0)) == 10


def test_names_that_look_like_protocols_are_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    small_video(tmp_path / "a.mp4", 5)
    for name in ("concat:a.mp4|a.mp4", "http:a.mp4", "pipe:0", "a b%d.mp4", "é\udcff.mp4"):
        Path(name).write_bytes(Path("a.mp4").read_bytes())
        assert read_numbers(cut(Path(name), 0.0, None).data) == list(range(5))


@pytest.mark.parametrize("kind", ["pipe", "device", "null", "unreadable"])
def test_what_is_no_file_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.mp4"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path = Path("/dev/zero")
    elif kind == "null":
        path = tmp_path / "a\0b.mp4"
    else:
        small_video(path, 5).chmod(0)
        if os.access(path, os.R_OK):
            pytest.skip("root reads every file")
    with pytest.raises(EncodeError):
        cut(path, 0.0, None)


# Sound that continues after the pictures


def with_sound(path: Path, frames: int, seconds: float) -> Path:
    """A numbered video, and silence for `seconds` seconds."""
    with av.open(str(path), "w") as out:
        stream: Any = out.add_stream("libx264", rate=25, options={"g": "12", "preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        sound: Any = out.add_stream({".mkv": "pcm_s16le", ".flv": "aac"}.get(path.suffix, "mp2"), rate=44100)
        sound.layout = "mono"
        packets = []
        for number in range(frames):
            frame: Any = av.VideoFrame.from_ndarray(numbered_picture(number, height=48, width=64), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            packets += stream.encode(frame)
        packets += stream.encode(None)
        samples = sound.codec_context.frame_size or 1024
        for number in range(int(44100 * seconds / samples)):
            silence = np.zeros((1, samples), np.float32 if sound.name == "aac" else np.int16)
            form = "fltp" if sound.name == "aac" else "s16"
            piece: Any = av.AudioFrame.from_ndarray(silence, format=form, layout="mono")
            piece.pts, piece.sample_rate, piece.time_base = number * samples, 44100, Fraction(1, 44100)
            packets += sound.encode(piece)
        packets += sound.encode(None)
        for packet in sorted(packets, key=lambda packet: packet.dts * packet.time_base):
            out.mux(packet)
    return path


@pytest.mark.parametrize("name", ["a.mkv", "a.flv", "a.avi", "a.ts", "a.mov"])
def test_sound_that_continues_costs_no_clip(tmp_path: Path, name: str) -> None:
    """Some containers state only the length of the whole file."""
    video = with_sound(tmp_path / name, 100, 8.0)
    assert read_numbers(cut(video, 1.0, 1.19).data) == list(range(25, 30))
    assert read_numbers(cut(video, 3.5, 7.0).data) == list(range(88, 100))
    assert read_numbers(cut(video, 3.0, None).data) == list(range(75, 100))
    assert encode_chunk(video, number=0, seconds=60.0, settings=SMALL).num_frames == 100
    with pytest.raises(EncodeError, match=r"5\.00 s.*3\.96 s"):
        cut(video, 5.0, 6.0)


@pytest.mark.parametrize("sized", [True, False], ids=["sized", "live"])
@pytest.mark.parametrize("name", ["a.mkv", "a.flv"])
def test_a_file_that_is_cut_short_is_refused_with_sound_too(tmp_path: Path, name: str, sized: bool) -> None:
    video = with_sound(tmp_path / name, 200, 8.0)
    data = bytearray(video.read_bytes()[: video.stat().st_size // 2])
    if not sized and name == "a.mkv":  # a recorder that wrote as it went does not know the size
        at = data.index(b"\x18\x53\x80\x67") + 4
        data[at : at + 8] = b"\x01" + b"\xff" * 7
    video.write_bytes(data)
    assert read_numbers(cut(video, 1.0, 1.19).data) == list(range(25, 30))
    for start, stop in [(2.0, 7.0), (6.0, 7.0), (0.0, None)]:
        with pytest.raises(EncodeError, match=r"fetch the file again|damaged"):
            cut(video, start, stop)


def test_the_length_that_a_matroska_file_notes_for_its_pictures_counts(tmp_path: Path) -> None:
    facts = probe_video(with_sound(tmp_path / "a.mkv", 100, 8.0))
    assert facts.seconds == pytest.approx(4.0, abs=0.05)
    for hostile in (
        b"",
        b"\x1a\x45\xdf\xa3",
        b"\x1a\x45\xdf\xa3\xff" + b"\xff" * 8,
        b"\x1a\x45\xdf\xa3\0" * 3,
        b"x" * 90,
    ):
        (tmp_path / "b.mkv").write_bytes(hostile)
        assert video_files.matroska_end(tmp_path / "b.mkv") is None
