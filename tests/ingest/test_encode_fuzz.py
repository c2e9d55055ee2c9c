"""Damaged and hostile videos by the hundred: each is stored or refused in one line; none crashes, hangs or escapes.

LAVILA_FUZZ=2000 sets how many videos are mutated, and LAVILA_FUZZ_FIRST the number of the first one. The mutations are
seeded: number n is always the same video.
"""

from __future__ import annotations

import functools
import os
import random
import re
import resource
import select
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from lavila.ingest.encode import (
    EncodedChunk,
    EncodedClip,
    EncodeError,
    EncodeSettings,
    Interval,
    Limits,
    encode_chunk,
    encode_clip,
    probe_video,
)
from lavila.libav import ANY_TAGS, DAMAGE
from tests.footage import Coding, numbered_picture, read_number, read_numbers, write_numbered_video

ROOT = Path(__file__).resolve().parents[2]
COUNT = int(os.environ.get("LAVILA_FUZZ", "300"))
FIRST = int(os.environ.get("LAVILA_FUZZ_FIRST", "0"))
WORKERS = 2
FRAMES = 40  # of each sound video
HIDDEN = 3  # so many frames at the start may be hidden by a header
UNSEEN = 0.001  # share of mutants with damage that nothing shows; it was 75 of 200,000
ROUNDING = 0.002  # seconds by which times differ through rounding
LIMIT_SECONDS, HANG_SECONDS = 5.0, 20.0  # of one clip; after the second a child is killed
MEMORY = 4 << 30  # bytes of address space of a child

SEEDS = {
    "h264.mp4": Coding(gop=8),
    "sound.mp4": Coding(gop=8, sound=True),
    "turned.mov": Coding(gop=8, rotation=90, matrix=1),
    "vp9.webm": Coding(codec="libvpx-vp9", gop=8, crf=30),
    "mpeg4.avi": Coding(codec="mpeg4", gop=8),
    "hevc.mkv": Coding(codec="libx265", gop=8, crf=20),
    "h264.ts": Coding(gop=8),
    "h264.flv": Coding(gop=8),
    "irregular.mkv": Coding(gop=8, milliseconds=tuple(n * n * 3 for n in range(FRAMES)), b_frames=0),
}
# Places in headers where a lie does most harm: lengths of boxes, sizes, counts, rates, edit lists, codec headers.
MARKS = re.compile(
    rb"moov|mvhd|tkhd|mdhd|stsd|stts|stsz|stsc|stco|ctts|stss|elst|avc1|avcC|hvcC|colr|pasp|mdat|dref|udta"
    rb"|strh|strf|avih|idx1|LIST|movi|\x1a\x45\xdf\xa3|\x16\x54\xae\x6b|\xe0.\xb0|\x44\x89|\x2a\xd7\xb1|\x1f\x43\xb6\x75"
    rb"|\x1c\x53\xbb\x6b|\x63\xa2|FLV\x01|onMetaData|\x00\x00\x01[\x67\x68\x65\x41\x42\x26\x40]|\x47\x40[\x00\x11]"
)
EXTREMES = [
    b"\0" * 4,
    b"\xff" * 4,
    b"\x7f" + b"\xff" * 3,
    b"\x80" + b"\0" * 3,
    b"\0\0\0\x01",
    b"\0\1\0\0",
    b"\xff" * 8,
    b"\0" * 8,
]


def truncated(data: bytearray, chance: random.Random) -> None:
    del data[chance.randrange(len(data)) :]


def flipped(data: bytearray, chance: random.Random) -> None:
    for _ in range(chance.choice([1, 1, 4, 30, 300])):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)


def zeroed(data: bytearray, chance: random.Random) -> None:
    start = chance.randrange(len(data))
    stop = min(start + chance.choice([1, 4, 64, 1000]), len(data))
    data[start:stop] = bytes(stop - start)


def lying(data: bytearray, chance: random.Random) -> None:
    """Absurd values near the names of header fields."""
    places = [match.start() for match in MARKS.finditer(bytes(data))] or [0]
    for _ in range(chance.choice([1, 1, 2, 5])):
        at = chance.choice(places) + chance.choice([-4, 3, 4, 4, 8, 8, *range(2, 100, 2)])
        value = chance.choice([*EXTREMES, chance.randbytes(2), chance.randbytes(4)])
        data[max(at, 0) : max(at, 0) + len(value)] = value


def moved(data: bytearray, chance: random.Random) -> None:
    """A stretch taken out, doubled or put elsewhere."""
    start = chance.randrange(len(data))
    piece = data[start : start + chance.choice([1, 16, 500])]
    if chance.random() < 0.6:
        del data[start : start + len(piece)]
    if chance.random() < 0.6:
        at = chance.randrange(len(data) + 1)
        data[at:at] = piece


def disguised(data: bytearray, chance: random.Random) -> None:
    """Another container's beginning, or no container at all."""
    fake = [
        b"\x1a\x45\xdf\xa3",
        b"RIFF\0\0\0\0AVI ",
        b"\0\0\0\x18ftypmp42",
        b"#EXTM3U\n",
        b"FLV\x01",
        b"\x47" * 200,
        b"",
    ]
    beginning = chance.choice(fake)
    data[: chance.choice([0, len(beginning), 64])] = beginning
    if chance.random() < 0.3:
        data[:] = chance.randbytes(chance.choice([0, 1, 100, 5000]))


def without_pictures(data: bytearray, chance: random.Random) -> None:
    """The track says that it holds something else."""
    for name, other in [(b"vide", b"soun"), (b"V_MPEG", b"A_MPEG"), (b"vids", b"auds"), (b"avc1", b"mp4a")]:
        if name in data:
            at = data.index(name)
            data[at : at + len(other)] = other
            return
    del data[:188]


MUTATIONS: list[Callable[[bytearray, random.Random], None]]
MUTATIONS = [truncated, flipped, zeroed, lying, lying, lying, moved, disguised, without_pictures]


def write_mutant(folder: Path, number: int) -> Path:
    """Video number `number`: a sound one, mutated once or a few times."""
    chance = random.Random(number)
    seed = folder / chance.choice(sorted(SEEDS))
    data = bytearray(seed.read_bytes())
    for _ in range(chance.choice([1, 1, 1, 2, 3])):
        if data:
            chance.choice(MUTATIONS)(data, chance)
    path = folder / f"{number}{seed.suffix}"
    path.write_bytes(data)
    return path


@functools.cache
def packets(path: Path) -> list[tuple[float, bytes]] | None:
    """Time in seconds and content of each packet in decoding order; None where they cannot all be read."""
    try:
        with av.open(str(path), **ANY_TAGS) as container:
            stream = container.streams.video[0]
            found = [packet for packet in container.demux(stream) if packet.size]
            times = [packet.dts if path.suffix == ".avi" or packet.pts is None else packet.pts for packet in found]
            if None in times:
                return None
            seconds = [float(time * stream.time_base) for time in times]
            return [(second, bytes(packet)) for second, packet in zip(seconds, found, strict=True)]
    except DAMAGE:
        return None


def true_times(seed: Path, mutant: Path) -> list[dict[int, float]]:
    """When each frame of a sound video is shown, in seconds from the first.

    Where the packets of the mutant are there in their order, but for the last ones, its header may say other times:
    then it may be another video with these times, too. It may also hide the first frames.
    """
    sound, found = packets(seed), packets(mutant)
    assert sound is not None
    order = sorted(range(len(sound)), key=lambda place: sound[place][0])
    answers = [sound]
    if found and len(found) <= len(sound):
        same = sum(one == other for (_, one), (_, other) in zip(found, sound, strict=False))
        answers += [found] if same > len(found) / 2 else []
    first = min(second for second, _ in sound)
    times = [{number: said[place][0] for number, place in enumerate(order) if place < len(said)} for said in answers]
    begins = [first, *sorted(times[-1].values())[:HIDDEN]] if len(answers) > 1 else [first]
    if found and len(found) < len(sound):  # seconds count from the first frame that is there
        begins.append(min(second for second, _ in found))
    return [{number: second - begin for number, second in said.items()} for said in times for begin in begins]


@functools.cache
def names(turn: int, scaled: tuple[int, int], stored: tuple[int, int]) -> dict[int, list[int]]:
    """What is read from pictures in one of the eight orientations -> the numbers that it can mean.

    A header that states another pixel aspect gives pictures of other sizes: they are scaled, and cropped or padded.
    """
    found: dict[int, list[int]] = {}
    for number in range(FRAMES):
        picture = numbered_picture(number, height=48, width=64)
        turned = np.rot90(picture[:, ::-1] if turn >= 4 else picture, turn % 4)
        frame: Any = av.VideoFrame.from_ndarray(np.ascontiguousarray(turned), format="rgb24")
        resized = frame.reformat(height=scaled[0], width=scaled[1], interpolation="BICUBIC").to_ndarray()
        # FFmpeg's crop and pad filters begin at even pixels.
        edges = []
        for one, other in zip(stored, scaled, strict=True):
            first = round(abs(one - other) / 2) // 2 * 2
            edges.append((first if one > other else -first, one))
        resized = np.pad(resized, [(max(first, 0), max(side, 0)) for first, side in edges] + [(0, 0)])
        top, left = (max(-first, 0) for first, _ in edges)
        resized = resized[top : top + stored[0], left : left + stored[1]]
        found.setdefault(read_number(resized), []).append(number)
    return found


def is_right(made: EncodedChunk | EncodedClip, seed: Path, mutant: Path) -> bool:
    """Whether each stored frame is the one that is shown at its time, all in one orientation."""
    read = read_numbers(made.data)
    scaled, stored = (made.scaled_height, made.scaled_width), (made.height, made.width)
    begin = made.first_frame / made.fps if isinstance(made, EncodedChunk) else made.start_frame / made.source_fps
    dues = [begin + place / made.fps for place in range(len(read))]
    for times in true_times(seed, mutant):
        nearest = [min(abs(second - due) for second in times.values()) for due in dues]
        for turn in range(8):
            if all(
                any(
                    one in times and abs(times[one] - due) <= least + ROUNDING
                    for one in names(turn, scaled, stored).get(number, [])
                )
                for number, due, least in zip(read, dues, nearest, strict=True)
            ):
                return True
    return False


def cut(path: Path, number: int) -> EncodedChunk | EncodedClip:
    settings = EncodeSettings(codec="h264", short_side=48, speed="ultrafast", fit="pad" if number % 2 else "crop")
    limits = Limits(seconds=LIMIT_SECONDS, pixels=1 << 22)
    if number % 4 == 3:
        probe_video(path, limits)
        return encode_chunk(path, number=0, seconds=1.0, settings=settings, limits=limits)
    start, stop = [(0.0, None), (0.4, 1.0), (1.2, 3.0), (0.0, None)][number % 4]
    interval = Interval(start_second=start, stop_second=stop)
    return encode_clip(path, interval=interval, settings=settings, limits=limits)


def store(path: Path, number: int) -> str:
    """What becomes of a video: one line. Anything but an EncodeError goes through."""
    try:
        made = cut(path, number)
    except EncodeError as error:
        assert "\n" not in str(error), error
        return f"refused {error}"
    assert made.data and made.num_frames > 0
    seed = path.parent / random.Random(number).choice(sorted(SEEDS))
    if is_right(made, seed, path):
        return "stored rightly"
    return f"wrong, {seed.name}: {' '.join(map(str, read_numbers(made.data)))}"


def child(folder: Path, first: int) -> None:
    """Store mutants first, first + WORKERS, ...; report of each when it begins and what became of it."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    for number in range(first, FIRST + COUNT, WORKERS):
        print("begun", number, flush=True)
        path = write_mutant(folder, number)
        began = time.monotonic()
        try:
            outcome = store(path, number)
        except Exception as error:
            outcome = f"escaped {error!r}".replace("\n", " ")
        path.unlink()
        print(f"{time.monotonic() - began:.3f} {outcome}", flush=True)


def outcomes(folder: Path, worker: int) -> Iterator[tuple[int, float, str]]:
    """(number, seconds, outcome) of one worker's mutants; children that crash or hang are replaced."""
    number = FIRST + worker
    while number < FIRST + COUNT:
        command = [sys.executable, "-m", "tests.ingest.test_encode_fuzz", str(folder), str(number)]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0)
        assert process.stdout is not None
        pending, lost = b"", ""
        while not lost:
            if not select.select([process.stdout], [], [], HANG_SECONDS)[0]:
                process.kill()
                lost = "hung"
                break
            block = process.stdout.read(65536)
            if not block:
                lost = f"crashed with {process.wait()}"
            *complete, pending = (pending + block).split(b"\n")
            for line in complete:
                word, rest = line.decode(errors="replace").split(" ", 1)
                if word != "begun":
                    yield number, float(word), rest
                    number += WORKERS
        process.wait()
        process.stdout.close()
        if number < FIRST + COUNT:  # the child did not come to its end
            yield number, 0.0, lost
            number += WORKERS


def test_every_damaged_video_is_stored_or_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, coding in SEEDS.items():
        write_numbered_video(tmp_path / name, FRAMES, coding, height=48, width=64)
    began = time.monotonic()
    results: list[tuple[int, float, str]] = []
    workers = [outcomes(tmp_path, worker) for worker in range(WORKERS)]
    while workers:
        for worker in list(workers):
            result = next(worker, None)
            if result is None:
                workers.remove(worker)
            else:
                results.append(result)
    kinds = Counter(outcome.split(" ", 1)[0] for _, _, outcome in results)
    slowest = max(seconds for _, seconds, _ in results)
    with capsys.disabled():
        print(
            f"\n{COUNT} mutated videos: {dict(kinds)}, slowest {slowest:.1f} s, {time.monotonic() - began:.0f} s in all"
        )
    otherwise = [f"{number}: {outcome}" for number, _, outcome in results if outcome.startswith("wrong")]
    with capsys.disabled():
        print(f"{len(otherwise)} were stored wrong", *otherwise[:20], sep="\n  ")
    # A bit that turns in the arithmetic code of H.264 or HEVC may give other pictures without any sign.
    assert len(otherwise) <= COUNT * UNSEEN
    wrong = [
        (number, seconds, outcome)
        for number, seconds, outcome in results
        if outcome.split()[0] not in ("stored", "refused", "wrong,")
    ]
    assert not wrong
    assert sorted(number for number, _, _ in results) == list(range(FIRST, FIRST + COUNT))
    assert kinds["stored"] > COUNT / 20 and kinds["refused"] > COUNT / 3, "mutations that prove nothing"


def test_the_search_for_crashes_sees_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child that dies or stands still is counted, and the work continues behind it."""
    script = """
import os, sys, time
for n in range(int(sys.argv[-1]), 6, 2):
    print("begun", n, flush=True)
    if n == 2: os.abort()
    if n == 3: time.sleep(60)
    print("0.1 stored", flush=True)
"""
    monkeypatch.setattr(sys.modules[__name__], "FIRST", 0)
    monkeypatch.setattr(sys.modules[__name__], "COUNT", 6)
    monkeypatch.setattr(sys.modules[__name__], "HANG_SECONDS", 1.0)
    original = subprocess.Popen

    def fake(command: list[str], **others: object) -> object:
        return original([sys.executable, "-c", script, *command[-2:]], **others)  # type: ignore[call-overload]

    monkeypatch.setattr(subprocess, "Popen", fake)
    found = {number: outcome for worker in (0, 1) for number, _, outcome in outcomes(tmp_path, worker)}
    assert found == {0: "stored", 2: "crashed with -6", 4: "stored", 1: "stored", 3: "hung", 5: "stored"}


if __name__ == "__main__":
    child(Path(sys.argv[1]), int(sys.argv[2]))
