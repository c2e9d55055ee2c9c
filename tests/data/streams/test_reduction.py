"""A decoder that is given a reduced video gives the frames of the whole one, bit for bit, and decodes less."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lavila.data.dali_pipelines.probe import DecodeProbe
from lavila.data.pictures import Execution, Payload
from lavila.data.streams.boxes import TableError
from lavila.data.streams.mp4 import read_mp4
from lavila.data.streams.reduction import needed, reduced
from tests.data.streams.videos import FRAMES, LAYOUTS, Video, chosen, decoded, moving, random_plan
from tests.footage import Coding, write_video

# Of each of the twelve videos. LAVILA_RANDOM_PLANS=840 makes it ten thousand; that takes some minutes.
PLANS = int(os.environ.get("LAVILA_RANDOM_PLANS", "25"))
EDGES = [
    [0],
    [FRAMES - 1],
    [0, FRAMES - 1],
    [19, 20],
    [20],
    [21],
    [11, 12],
    list(range(FRAMES)),
    list(range(1, FRAMES)),
]
Find = Callable[[str, str], Video]


def test_wanted_frames_are_those_of_the_whole_video(one: Video) -> None:
    random = np.random.default_rng(1)
    count = len(read_mp4(one.data).packets.sizes)
    sizes = []
    for frames in [*EDGES, *(random_plan(random) for _ in range(PLANS))]:
        stream = reduced(one.data, frames)
        assert not stream.whole and stream.frames.dtype == np.int32 and len(stream.frames) == len(frames)
        found = decoded(stream.data)
        assert [found[number] for number in stream.frames] == chosen(frames, one), frames
        assert len(found) == len(needed(read_mp4(one.data).packets, frames)) <= count
        sizes.append(len(found))
    assert min(sizes) < FRAMES / 4
    if PLANS >= 25:
        assert np.mean(sizes) < 0.9 * FRAMES


def test_a_reduced_video_can_be_reduced_again(one: Video) -> None:
    once = reduced(one.data, [3, 30, 31, 60])
    again = reduced(once.data, once.frames[1:3])
    assert [decoded(again.data)[number] for number in again.frames] == chosen([30, 31], one)
    same = reduced(once.data, once.frames)
    assert same.data is once.data and same.frames.tolist() == once.frames.tolist()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_dali_gives_the_frames_of_the_whole_video(layout: str, video_of: Find) -> None:
    one, random = video_of("vp9", layout), np.random.default_rng(2)
    plans = [*EDGES, *(random_plan(random) for _ in range(max(PLANS, 23)))]
    streams = [reduced(one.data, frames) for frames in plans]
    given = [(stream.data, stream.frames) for stream in streams]
    whole = [(one.data, np.array(frames, np.int32)) for frames in plans]
    batches = [[Payload(data=np.frombuffer(data, np.uint8), frames=f) for data, f in each] for each in (given, whole)]
    execution = Execution(decoder="dali_cpu", device_id=None, batch_size=len(plans), threads=2, prefetch=1)
    probe = DecodeProbe(batches, execution=execution)
    found, expected = probe.pictures(), probe.pictures()
    assert [len(pictures) for pictures in found] == [len(frames) for frames in plans]
    assert all((a == b).all() for a, b in zip(found, expected, strict=True))
    assert any(len(stream.data) < len(one.data) / 2 for stream in streams)


def places(of: Video, frames: list[int]) -> list[int]:
    return needed(read_mp4(of.data).packets, frames)


def test_what_no_wanted_frame_needs_is_left_out(video_of: Find) -> None:
    one, groups = video_of("vp9", "one group"), video_of("vp9", "groups of 20")
    assert places(one, [30]) == list(range(0, 31, 2))
    assert places(groups, [30]) == list(range(20, 31, 2))
    assert places(groups, [3, 9, 62]) == [0, 2, 3, 4, 6, 8, 9, 60, 62]
    h264 = video_of("h264", "one group")
    # Every eighth frame is one that others refer to, and frame 20 is shown between two of them.
    assert len(places(h264, [20])) == 5 and len(places(h264, [16])) == 3
    assert places(h264, list(range(FRAMES))) == list(range(FRAMES))
    fragments = video_of("h264", "fragments")
    assert min(places(fragments, [50])) == 50, "the second chunk begins with a keyframe"


def test_every_vp9_frame_of_another_encoder_is_needed(tmp_path: Path) -> None:
    """libvpx lets each frame refer to the one before, unless an option forbids it."""
    coding = Coding(codec="libvpx-vp9", gop=FRAMES)
    packets = read_mp4(write_video(tmp_path / "other.mp4", moving(FRAMES), coding).read_bytes()).packets
    assert needed(packets, [30]) == list(range(31))


def test_a_vp9_frame_is_left_out_only_among_frames_that_carry_nothing_over(video_of: Find) -> None:
    """Once a frame takes over motion vectors or probabilities, what precedes it is needed."""
    packets = read_mp4(video_of("vp9", "one group").data).packets
    data = bytearray(packets.data)
    data[packets.starts[14]] &= ~0b1  # error_resilient_mode
    other = replace(packets, data=bytes(data))
    assert needed(other, [12]) == list(range(0, 13, 2))
    assert needed(other, [16]) == list(range(17))


def test_av1_frames_need_only_the_frames_in_their_slots(video_of: Find) -> None:
    one = video_of("av1", "one group")
    # A pyramid: the frame in the middle needs a few others, not all before it.
    assert len(places(one, [40])) < 12
    assert len(places(one, list(range(0, FRAMES, 2)))) < FRAMES


def test_a_frame_beyond_the_end_is_an_error_for_every_decoder(one: Video) -> None:
    with pytest.raises(TableError, match=r"frame 75 .* 75 frames"):
        reduced(one.data, [3, FRAMES])
