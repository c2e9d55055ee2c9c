"""What the times in a file say: clocks that jump, pauses, rates that nobody states, and the end of the pictures."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from lavila.ingest import times
from lavila.ingest.encode import EncodedClip, EncodeError, EncodeSettings, Interval, encode_clip, probe_video
from lavila.ingest.times import clock_jump, film_rate
from tests.footage import Coding, numbered_picture, read_numbers, write_numbered_video, write_video

SMALL = EncodeSettings(codec="h264", short_side=48, speed="ultrafast", crf=18)
FRAMES = 50  # of each piece: 2 s


def cut(path: Path, start: float, stop: float | None) -> EncodedClip:
    return encode_clip(path, interval=Interval(start_second=start, stop_second=stop), settings=SMALL)


def numbered(path: Path, numbers: Sequence[int], coding: Coding) -> Path:
    return write_video(path, (numbered_picture(n, height=48, width=64) for n in numbers), coding)


def remuxed(source: Path, path: Path, *, shift: int = 0, hold: float = 0.0, **options: str) -> Path:
    """The packets of a video, `shift` seconds later, the last one shown for `hold` seconds."""
    with av.open(str(source)) as container, av.open(str(path), "w", options=options) as out:
        copy: Any = out.add_stream_from_template(container.streams.video[0])
        packets = [packet for packet in container.demux(video=0) if packet.size]
        for packet in packets:
            ticks = round(shift / packet.time_base)
            packet.pts, packet.stream = packet.pts + ticks, copy
            packet.dts = None if packet.dts is None else packet.dts + ticks
            if hold and packet is packets[-1]:
                packet.duration = round(hold / packet.time_base)
            out.mux(packet)
    return path


KINDS = {
    "ts": ("ts", Coding(gop=10)),
    "mpg": ("mpg", Coding(codec="mpeg2video", gop=10)),
    "vp8.webm": ("webm", Coding(codec="libvpx", gop=10)),
    "h264.mkv": ("mkv", Coding(gop=10)),
}


def pieces(folder: Path, ending: str, coding: Coding) -> list[Path]:
    return [numbered(folder / f"{n}.{ending}", range(n * FRAMES, (n + 1) * FRAMES), coding) for n in (0, 1)]


def joined(path: Path, parts: Sequence[Path]) -> Path:
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path


def assert_refused(video: Path) -> None:
    """Every clip is refused with the reason, those before the jump, too: which of both clocks was meant?"""
    with pytest.raises(EncodeError, match="clock jumps"):
        probe_video(video)
    for start in (0.2, 1.0, 1.9, 2.4, 3.5):
        with pytest.raises(EncodeError, match="clock jumps"):
            cut(video, start, start + 0.2)


@pytest.mark.parametrize("kind", KINDS)
def test_a_clock_that_begins_anew_is_refused(tmp_path: Path, kind: str) -> None:
    ending, coding = KINDS[kind]
    parts = pieces(tmp_path, ending, coding)
    assert_refused(joined(tmp_path / f"a.{ending}", parts))
    assert read_numbers(cut(parts[1], 1.0, 1.19).data) == list(range(75, 80)), "a piece for itself is sound"


def test_fragments_of_two_recordings_in_one_mp4_are_refused(tmp_path: Path) -> None:
    flags = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}
    whole = pieces(tmp_path, "mp4", Coding(gop=10))
    parts = [remuxed(part, tmp_path / f"f{n}.mp4", **flags) for n, part in enumerate(whole)]
    assert_refused(joined(tmp_path / "a.mp4", parts))
    assert read_numbers(cut(parts[1], 1.0, 1.19).data) == list(range(75, 80))


@pytest.mark.parametrize("shifts", [(3600, 10), (10, 3600), (0, 1)], ids=["back", "ahead", "overlap"])
def test_pieces_with_other_clocks_are_refused(tmp_path: Path, shifts: tuple[int, int]) -> None:
    """FFmpeg takes a clock that goes back below its start for one that has passed 2^33, 26 hours ahead."""
    parts = [
        remuxed(part, tmp_path / f"{n}_later.ts", shift=shift)
        for n, (part, shift) in enumerate(zip(pieces(tmp_path, "ts", Coding(gop=10)), shifts, strict=True))
    ]
    assert_refused(joined(tmp_path / "a.ts", parts))


def test_a_clock_that_runs_on_through_joints_and_past_its_end_is_sound(tmp_path: Path) -> None:
    parts = pieces(tmp_path, "ts", Coding(gop=10, b_frames=0))
    video = joined(tmp_path / "a.ts", [parts[0], remuxed(parts[1], tmp_path / "later.ts", shift=2)])
    for start in (0, 30, 48, 60, 95):
        assert read_numbers(cut(video, start / 25, (start + 4.9) / 25).data) == list(range(start, start + 5))
    near_the_end = int(2**33 / 90_000) - 1  # the 33 bits of an MPEG clock begin anew within the video
    wrapped = remuxed(parts[0], tmp_path / "wrapped.ts", shift=near_the_end)
    for start in (0, 20, 40):
        assert read_numbers(cut(wrapped, start / 25, (start + 4.9) / 25).data) == list(range(start, start + 5))


@pytest.mark.parametrize("ending", ["mp4", "mkv"])
def test_frames_that_a_file_and_its_codec_order_otherwise_are_refused(tmp_path: Path, ending: str) -> None:
    """Also where the time goes back right behind the clip: a frame of the clip is among those that come too late."""
    source, path = numbered(tmp_path / "a.mp4", range(40), Coding(gop=8)), tmp_path / f"b.{ending}"
    with av.open(str(source)) as container, av.open(str(path), "w") as out:
        copy: Any = out.add_stream_from_template(container.streams.video[0])
        packets = [packet for packet in container.demux(video=0) if packet.size]
        shown = sorted(packet.pts for packet in packets[24:])
        for packet, pts in itertools.zip_longest(packets, [*(packet.pts for packet in packets[:24]), *shown]):
            packet.pts, packet.dts, packet.stream = pts, packet.dts - 4 * packet.duration, copy
            out.mux(packet)
    assert read_numbers(cut(path, 0.4, 0.79).data) == list(range(10, 20))
    assert read_numbers(cut(path, 0.88, 0.99).data) == [22, 23, 24]
    for stop in (1.04, 1.2):  # at 1.00 s the file has frame 27, which the codec shows after 25 and 26
        with pytest.raises(EncodeError, match="goes back"):
            cut(path, 0.8, stop)


def test_a_file_is_read_through_once_by_a_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    original = times.open_video

    def counting(part: Any, *others: Any) -> Any:
        opened.append(part.path.name)
        return original(part, *others)

    monkeypatch.setattr(times, "open_video", counting)
    numbered(tmp_path / "a.ts", range(FRAMES), Coding(gop=10))
    numbered(tmp_path / "a.mp4", range(FRAMES), Coding(gop=10))
    for start in (0.0, 0.5, 1.0):
        cut(tmp_path / "a.ts", start, start + 0.1)
        cut(tmp_path / "a.mp4", start, start + 0.1)
    assert opened == ["a.ts"], "and an mp4 not at all: its table says enough"


@pytest.mark.parametrize("b_frames", [0, 3])
def test_places_of_a_jump(b_frames: int) -> None:
    """Frames that are decoded early are none; going back by a frame at a keyframe is one."""
    group = [0, *itertools.chain(*([n + b_frames, *range(n, n + b_frames)] for n in range(1, 22, b_frames + 1)))]
    shown = np.concatenate([np.array(group) + n * len(group) for n in range(4)])
    keys = np.tile(np.arange(len(group)) == 0, 4)
    assert clock_jump(shown, keys, dts=None, most=None) is None
    back = shown.copy()
    back[2 * len(group) :] -= 2
    assert clock_jump(back, keys, dts=None, most=None) == (2 * len(group) - 1, 2 * len(group) - 2)
    assert clock_jump(np.r_[shown, shown], np.zeros(2 * len(shown), bool), dts=None, most=None) is not None
    steps = np.arange(len(shown))
    assert clock_jump(shown, keys, dts=steps, most=Fraction(2)) is None
    assert clock_jump(shown, keys, dts=steps + 5 * (steps > 40), most=Fraction(2)) is not None
    assert clock_jump(shown[:0], keys[:0], dts=None, most=None) is None


# Pauses

HELD = {
    "at the end": ([*range(0, 2000, 40)], 4.0),
    "in the middle": ([*range(0, 1000, 40), *range(6000, 7000, 40)], 0.0),
    "at the start": ([0, *range(5000, 7000, 40)], 0.0),
    "twice": ([*range(0, 800, 40), *range(5000, 5800, 40), *range(9000, 9400, 40)], 3.0),
}


@pytest.mark.parametrize("b_frames", [0, 2])
@pytest.mark.parametrize("where", HELD)
def test_a_pause_leaves_the_rate_and_the_frames_of_the_film(tmp_path: Path, where: str, b_frames: int) -> None:
    shown, hold = HELD[where]
    coding = Coding(gop=10, b_frames=b_frames, milliseconds=tuple(shown))
    video = remuxed(numbered(tmp_path / "0.mp4", range(len(shown)), coding), tmp_path / "a.mp4", hold=hold)
    with av.open(str(video)) as container:
        mean = container.streams.video[0].average_rate
    assert mean < 20, "the header's mean rate is not that of the film"
    end = shown[-1] / 1000 + max(hold, 0.04)
    moments = [0.4, shown[-1] / 1000 - 0.4, end - 0.5]
    for start in moments:
        clip = cut(video, start, start + 0.4)
        assert (clip.source_fps, clip.fps_stated) == (25.0, False)
        dues = [40 * (clip.start_frame + n) for n in range(clip.num_frames)]
        nearest = [min(range(len(shown)), key=lambda n, due=due: (abs(shown[n] - due), n)) for due in dues]
        assert read_numbers(clip.data) == nearest, start
        assert clip.num_frames >= 10
    beyond = cut(video, end - 0.4, end + 5)
    assert beyond.num_frames == pytest.approx(10, abs=1), "and the clip over the end stops there"


@pytest.mark.parametrize("ending", ["mkv", "webm"])
def test_a_last_frame_is_held_in_matroska_too(tmp_path: Path, ending: str) -> None:
    coding = Coding(gop=10) if ending == "mkv" else Coding(codec="libvpx", gop=10)
    video = remuxed(numbered(tmp_path / f"0.{ending}", range(FRAMES), coding), tmp_path / f"a.{ending}", hold=4.0)
    assert read_numbers(cut(video, 5.0, 5.2).data) == [FRAMES - 1] * 5
    assert read_numbers(cut(video, 1.0, 1.19).data) == list(range(25, 30))


@pytest.mark.parametrize(
    ("distances", "fps", "pause"),
    [
        ([40] * 50, 25, False),
        ([40] * 50 + [5000], 25, True),
        ([33, 33, 34] * 40, 30, False),
        ([16, 17, 17] * 40 + [2000] * 3, 60, True),
        ([5000] * 20, Fraction(1, 5), False),  # a slide show has no pauses
        ([16, 50] * 50, Fraction(2000, 66), False),
    ],
)
def test_the_rate_of_a_film(distances: list[int], fps: Fraction, pause: bool) -> None:
    stamps = np.cumsum([0, *distances])
    found = film_rate(stamps, Fraction(1, 1000))
    assert found[0] == pytest.approx(float(fps), rel=0.002) and found[1] is pause
    assert film_rate(stamps[:1], Fraction(1, 1000)) == (None, False)
    assert film_rate(stamps, Fraction(1, 1000), last=60_000)[1]


# Rates that nobody states

BROWSER = {
    "vp8.webm": Coding(codec="libvpx", b_frames=0),
    "vp9.webm": Coding(codec="libvpx-vp9", crf=20, b_frames=0),
    "h264.mkv": Coding(b_frames=0),
}


def without_rate(path: Path) -> Path:
    """DefaultDuration becomes a Void element."""
    data = path.read_bytes()
    at = data.index(b"\x23\xe3\x83\x84")
    path.write_bytes(data[:at] + b"\xec\x86" + bytes(6) + data[at + 8 :])
    return path


@pytest.mark.parametrize("kind", BROWSER)
@pytest.mark.parametrize("steps", [(16, 17, 33, 33, 34, 50, 66), (100, 101, 99), (8, 8, 9)], ids=["27", "10", "120"])
def test_a_rate_that_nobody_states_is_estimated(tmp_path: Path, kind: str, steps: tuple[int, ...]) -> None:
    chance = random.Random(1)
    shown = list(itertools.accumulate((chance.choice(steps) for _ in range(119)), initial=0))
    coding = Coding(**{**vars(BROWSER[kind]), "milliseconds": tuple(shown)})
    video = without_rate(numbered(tmp_path / f"a.{kind.rpartition('.')[2]}", range(120), coding))
    true = 119 / (shown[-1] / 1000)
    with av.open(str(video)) as container:
        even = container.streams.video[0].average_rate  # FFmpeg finds it where times are even; else None, or 0/0
    facts = probe_video(video)
    assert float(facts.fps) == pytest.approx(true, rel=0.02)
    clip = cut(video, 0.2, 0.8)
    assert clip.fps == clip.source_fps == float(facts.fps)
    assert clip.fps_stated is (bool(even) and abs(float(even) / true - 1) < 0.3)
    assert clip.num_frames == pytest.approx(0.6 * true, abs=2)


def test_a_stated_rate_stays_as_it_is(tmp_path: Path) -> None:
    """Also where the times are uneven: published numbers were made with the rate in the header."""
    for name, coding in {
        "a.mkv": Coding(fps=Fraction(50)),
        "a.mp4": Coding(),
        "a.ts": Coding(fps=Fraction(30)),
    }.items():
        clip = cut(write_numbered_video(tmp_path / name, 60, coding, height=48, width=64), 0.2, 0.5)
        assert (clip.source_fps, clip.fps_stated) == (float(coding.fps), True)
    chance = random.Random(2)
    uneven = tuple(40 * n + chance.randrange(-12, 13) for n in range(1, 60))
    video = numbered(tmp_path / "uneven.mp4", range(59), Coding(b_frames=0, milliseconds=uneven))
    with av.open(str(video)) as container:
        mean = container.streams.video[0].average_rate
    clip = cut(video, 0.2, 0.5)
    assert (clip.source_fps, clip.fps_stated) == (float(mean), True)
