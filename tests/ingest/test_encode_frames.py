"""Which frames are stored: rules for intervals, margins around them, and the choice of an evaluation."""

from __future__ import annotations

import gc
import io
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lavila.ingest.encode import EncodedClip, EncodeError, EncodeSettings, Interval, encode_clip
from lavila.plan.frames import frame_span
from lavila.records import SpanRule
from tests.footage import NTSC_60, Coding, read_numbers, write_numbered_video

FRAMES, FPS = 120, Fraction(30)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("video") / "a.mp4"
    return write_numbered_video(path, FRAMES, Coding(fps=FPS), height=48, width=64)


def cut(path: Path, start: float, stop: float | None, *, rule: SpanRule = "edges", **others: Any) -> EncodedClip:
    choose = others.pop("choose", None)
    made = EncodeSettings(**{"codec": "h264", "short_side": 48, "speed": "ultrafast", "crf": 18, **others})
    return encode_clip(
        path, interval=Interval(start_second=start, stop_second=stop, rule=rule), settings=made, choose=choose
    )


@pytest.mark.parametrize("rule", ["edges", "duration", "fractional"])
@pytest.mark.parametrize("fps", [Fraction(30), NTSC_60])
def test_every_rule_for_seconds_gives_its_frames(tmp_path: Path, rule: SpanRule, fps: Fraction) -> None:
    video = write_numbered_video(tmp_path / "a.mp4", 150, Coding(fps=fps), height=48, width=64)
    for start, stop in [(0.0, 0.49), (0.51, 1.03), (1.0, 1.01), (0.984, 1.05)]:
        clip = cut(video, start, stop, rule=rule)
        first, end = frame_span(start, stop, float(fps), rule)
        assert read_numbers(clip.data) == list(range(first, max(end, first + 1)))
        assert (clip.num_frames, clip.first_frame, clip.frames_after) == (max(end, first + 1) - first, 0, 0)


def test_no_frame_stays_in_memory(video: Path) -> None:
    """Without the collector of cycles, which seldom runs: PyAV's `frame.side_data` makes one."""
    gc.collect()
    before = sum(type(one) is av.VideoFrame for one in gc.get_objects())
    gc.disable()
    try:
        cut(video, 1.0, 3.0)
        assert sum(type(one) is av.VideoFrame for one in gc.get_objects()) == before
    finally:
        gc.enable()


def test_a_margin_is_stored_around_the_interval(video: Path) -> None:
    clip = cut(video, 1.0, 2.0, margin=0.5)
    assert read_numbers(clip.data) == list(range(15, 75))
    assert (clip.start_frame, clip.first_frame, clip.num_frames, clip.frames_after) == (30, 15, 30, 15)


def test_a_margin_ends_with_the_video(video: Path) -> None:
    clip = cut(video, 0.2, 3.9, margin=1.0)
    assert read_numbers(clip.data) == list(range(120))
    assert (clip.first_frame, clip.num_frames, clip.frames_after) == (6, 111, 3)
    clip = cut(video, 3.5, 7.0, margin=1.0)
    assert read_numbers(clip.data) == list(range(75, 120))
    assert (clip.first_frame, clip.num_frames, clip.frames_after) == (30, 15, 0)
    clip = cut(video, 3.5, None, margin=1.0)
    assert (clip.first_frame, clip.num_frames, clip.frames_after) == (30, 15, 0)


def test_a_margin_does_not_save_a_clip_after_the_end(video: Path) -> None:
    with pytest.raises(EncodeError, match=r"4\.10 s.*3\.97 s") as info:
        cut(video, 4.1, 5.0, margin=1.0)
    assert info.value.after_end


@settings(max_examples=25, deadline=None)
@given(start=st.floats(0, 3.9), length=st.floats(0.01, 3), margin=st.floats(0, 2), fps=st.sampled_from([None, 12, 48]))
def test_a_margin_never_changes_the_interval(
    video: Path, start: float, length: float, margin: float, fps: int | None
) -> None:
    rate = fps or "native"
    plain, wide = (cut(video, start, start + length, margin=m, fps=rate) for m in (0.0, margin))
    stored = read_numbers(wide.data)
    assert plain.num_frames == wide.num_frames and plain.first_frame == plain.frames_after == 0
    assert stored[wide.first_frame : wide.first_frame + wide.num_frames] == read_numbers(plain.data)
    assert len(stored) == wide.first_frame + wide.num_frames + wide.frames_after
    assert wide.first_frame <= round(Fraction(margin) * Fraction(wide.fps)) >= wide.frames_after


@pytest.mark.parametrize(
    ("start", "stop", "margin"), [(1.0, 2.0, 0.0), (1.0, 2.0, 0.5), (3.5, 9.0, 1.0), (2.0, None, 0.0)]
)
def test_an_evaluation_stores_the_frames_it_chooses(
    video: Path, start: float, stop: float | None, margin: float
) -> None:
    whole = cut(video, start, stop, margin=margin)
    asked: list[tuple[int, int, float]] = []

    def choose(num_frames: int, frames_after: int, fps: float) -> Sequence[int]:
        asked.append((num_frames, frames_after, fps))
        return sorted({0, 3, num_frames // 2, num_frames - 1, num_frames + frames_after - 1})

    clip = cut(video, start, stop, margin=margin, choose=choose)
    assert asked == [(whole.num_frames, whole.frames_after, 30.0)]
    chosen = choose(whole.num_frames, whole.frames_after, 30.0)
    assert read_numbers(clip.data) == [round(start * 30) + index for index in chosen]
    assert (clip.num_frames, clip.frames_after) == (whole.num_frames, whole.frames_after)
    assert (clip.first_frame, clip.fps, clip.start_frame) == (0, 30.0, whole.start_frame)
    with av.open(io.BytesIO(clip.data)) as container:
        stream = container.streams.video[0]
        assert [frame.pts * stream.time_base * 30 for frame in container.decode(stream)] == list(range(len(chosen)))


def test_choices_are_stored_in_place_of_nothing_else(video: Path) -> None:
    one = cut(video, 0.0, None, choose=lambda *_: [77])
    assert read_numbers(one.data) == [77] and one.num_frames == FRAMES
    with pytest.raises(AssertionError):
        cut(video, 0.0, 1.0, choose=lambda *_: [3, 2])
    with pytest.raises(AssertionError):
        cut(video, 0.0, 1.0, choose=lambda *_: [30])


def test_a_choice_from_a_video_cut_short_is_refused(tmp_path: Path) -> None:
    video = write_numbered_video(tmp_path / "a.mkv", 400, height=48, width=64)
    video.write_bytes(video.read_bytes()[: video.stat().st_size // 2])
    with pytest.raises(EncodeError, match=r"a\.mkv"):
        cut(video, 0.0, None, choose=lambda *_: [0])
