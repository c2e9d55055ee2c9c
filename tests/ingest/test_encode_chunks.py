"""Videos stored once, in chunks of short groups of pictures: what each chunk holds, and that groups can be combined."""

from __future__ import annotations

import io
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from nvidia.dali import fn, pipeline_def

from lavila.ingest.encode import ENCODERS, EncodedChunk, EncodeError, EncodeSettings, encode_chunk
from tests.footage import NTSC_60, Coding, read_number, read_numbers, write_numbered_video, write_video

FRAMES, SECONDS, GOP = 130, 0.7, 8
BOUNDS = [0, 42, 84, 126, 130]  # frames at 59.94 per second


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("video") / "a.mp4"
    return write_numbered_video(path, FRAMES, Coding(fps=NTSC_60), height=96, width=128)


def settings(codec: str, **others: Any) -> EncodeSettings:
    speed = {"vp9": "8", "av1": "10"}.get(codec, "veryfast")
    return EncodeSettings(**{"codec": codec, "short_side": 96, "gop": GOP, "speed": speed, "crf": 20, **others})


def chunks(video: Path, codec: str) -> list[EncodedChunk]:
    return [encode_chunk(video, number=n, seconds=SECONDS, settings=settings(codec)) for n in range(4)]


def group(chunk: EncodedChunk, number: int) -> tuple[bytes, list[int]]:
    """The bytes of a group of pictures, and the numbers of its frames in the video."""
    start = chunk.first_frame + chunk.gop_frames[number]
    stop = min(start + chunk.gop, chunk.first_frame + chunk.num_frames)
    return chunk.data[chunk.gop_offsets[number] : chunk.gop_offsets[number + 1]], list(range(start, stop))


def selected(made: list[EncodedChunk]) -> tuple[bytes, list[int]]:
    """The header of one chunk and some groups of it and of later ones, with gaps."""
    data, numbers = made[1].data[: made[1].header_size], []
    for chunk, number in [(1, 1), (1, 2), (1, 4), (2, 0), (2, 3), (2, 5), (3, 0)]:
        more, frames = group(made[chunk], number)
        data, numbers = data + more, numbers + frames
    return data, numbers


def time_of_fragments(chunk: EncodedChunk) -> list[Fraction]:
    """The decoding time that each fragment states, in frames of the video."""
    with av.open(io.BytesIO(chunk.data)) as container:
        tick = container.streams.video[0].time_base
    times = []
    for offset in chunk.gop_offsets[:-1]:
        box = chunk.data.index(b"tfdt", offset) + 4
        width = 8 if chunk.data[box] else 4  # version 1 has 64 bits
        times.append(int.from_bytes(chunk.data[box + 4 : box + 4 + width], "big") * tick * NTSC_60)
    return times


@pytest.mark.parametrize("codec", list(ENCODERS))
def test_chunks_hold_the_frames_of_the_video_one_after_another(video: Path, codec: str) -> None:
    made = chunks(video, codec)
    for chunk, (first, stop) in zip(made, pairwise(BOUNDS), strict=True):
        assert (chunk.first_frame, chunk.num_frames, chunk.gop) == (first, stop - first, GOP)
        assert chunk.fps == chunk.source_fps == float(NTSC_60)
        assert (chunk.height, chunk.width, chunk.source_height, chunk.source_width) == (96, 128, 96, 128)
        assert read_numbers(chunk.data) == list(range(first, stop))
        assert time_of_fragments(chunk) == list(range(first, stop, GOP))
        with av.open(io.BytesIO(chunk.data)) as container:
            keys = [frame.key_frame for frame in container.decode(video=0)]
            assert container.streams.video[0].average_rate == NTSC_60
        assert [number for number, key in enumerate(keys) if key] == chunk.gop_frames
    assert encode_chunk(video, number=1, seconds=SECONDS, settings=settings(codec)) == made[1]


@pytest.mark.parametrize("codec", list(ENCODERS))
def test_all_chunks_of_a_video_have_the_same_header(video: Path, codec: str) -> None:
    made = chunks(video, codec)
    assert len({chunk.data[: chunk.header_size] for chunk in made}) == 1
    other = encode_chunk(video, number=0, seconds=SECONDS, settings=settings(codec, short_side=64))
    assert other.data[: other.header_size] != made[0].data[: made[0].header_size]


@pytest.mark.parametrize("codec", list(ENCODERS))
def test_a_header_and_any_groups_after_it_are_a_video(video: Path, codec: str) -> None:
    made = chunks(video, codec)
    for number in range(len(made[1].gop_frames)):  # each group alone: it needs no other
        data, frames = group(made[1], number)
        assert read_numbers(made[1].data[: made[1].header_size] + data) == frames
    data, frames = selected(made)
    assert read_numbers(data) == frames


@pytest.mark.parametrize("codec", list(ENCODERS))
def test_nothing_follows_the_last_group(video: Path, codec: str) -> None:
    chunk = chunks(video, codec)[0]
    assert chunk.gop_offsets[-1] == len(chunk.data)
    for start, stop in pairwise(chunk.gop_offsets):
        assert chunk.data[start + 4 : start + 8] == b"moof"
        size = int.from_bytes(chunk.data[start : start + 4], "big")
        assert chunk.data[start + size + 4 : start + size + 8] == b"mdat"
        assert start + size + int.from_bytes(chunk.data[start + size : start + size + 4], "big") == stop
    assert b"mfra" not in chunk.data[chunk.gop_offsets[-2] :]


def test_dali_decodes_selected_groups_on_the_cpu(video: Path) -> None:
    data, numbers = selected(chunks(video, "vp9"))
    wanted = [0, 3, 11, 17, 24, 25, 40, len(numbers) - 1]

    @pipeline_def(batch_size=1, num_threads=1, device_id=None)
    def pipeline() -> Any:
        encoded = fn.external_source(source=lambda: [np.frombuffer(data, np.uint8)], dtype=None)
        return fn.decoders.video(encoded, frames=np.array(wanted, np.int32), pad_mode="none")

    built = pipeline()
    built.build()
    (out,) = built.run()
    pictures = np.asarray(out.as_array())[0]
    assert [read_number(picture) for picture in pictures] == [numbers[place] for place in wanted]


def test_scene_cuts_do_not_move_keyframes(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    scenes = random.integers(0, 255, (10, 96, 128, 3), dtype=np.uint8)
    video = write_video(tmp_path / "cuts.mp4", (scenes[n // 5] for n in range(50)), Coding(gop=1))
    for codec in ENCODERS:
        chunk = encode_chunk(video, number=0, seconds=10, settings=settings(codec, gop=12, crf=40))
        assert chunk.gop_frames == [0, 12, 24, 36, 48] and len(chunk.gop_offsets) == 6


def test_groups_last_half_a_second_unless_set_otherwise(video: Path) -> None:
    assert encode_chunk(video, number=0, seconds=1, settings=settings("h264", gop=0)).gop == 30
    slow = settings("h264", gop=0, fps=15)
    chunk = encode_chunk(video, number=1, seconds=1, settings=slow)
    assert (chunk.gop, chunk.fps, chunk.first_frame, chunk.num_frames) == (8, 15.0, 15, 15)
    wanted = [n * float(NTSC_60) / 15 for n in range(15, 30)]
    assert all(abs(n - exact) <= 0.5 for n, exact in zip(read_numbers(chunk.data), wanted, strict=True))


def test_a_chunk_after_the_end_says_so(video: Path) -> None:
    with pytest.raises(EncodeError, match=r"chunk 4.*2\.80 s.*2\.15 s") as info:
        encode_chunk(video, number=4, seconds=SECONDS, settings=settings("h264"))
    assert info.value.after_end
    with pytest.raises(EncodeError, match=r"0\.001 s"):
        encode_chunk(video, number=4, seconds=0.001, settings=settings("h264"))
    with pytest.raises(EncodeError, match=r"b\.mp4") as info:
        encode_chunk(video.with_name("b.mp4"), number=0, seconds=SECONDS, settings=settings("h264"))
    assert not info.value.after_end


def test_a_video_cut_short_does_not_end_with_a_short_chunk(tmp_path: Path) -> None:
    video = write_numbered_video(tmp_path / "a.mkv", 400, Coding(fps=Fraction(25)), height=48, width=64)
    video.write_bytes(video.read_bytes()[: video.stat().st_size // 2])
    small = settings("h264", short_side=48)
    assert read_numbers(encode_chunk(video, number=0, seconds=2, settings=small).data) == list(range(50))
    for number in (0, 1, 7):
        with pytest.raises(EncodeError, match=r"a\.mkv") as info:
            encode_chunk(video, number=number, seconds=10, settings=small)
        assert not info.value.after_end
