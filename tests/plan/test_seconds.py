"""Frames of intervals given in seconds: Ego4D's chunk files, whole files, Charades-Ego; equal to the reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lavila.plan.frames import (
    FrameChoice,
    SamplingName,
    Span,
    choose_frames,
    chosen_frames,
    draw_frames,
    frame_span,
    interval_span,
    protocol_frames,
    segment_bounds,
)
from lavila.plan.order import random_numbers
from lavila.records import BLACK_FRAME, SpanRule
from tests.golden_files import golden_json

SAMPLING = golden_json("sampling")
FPS = 30


def span(case: dict[str, Any], frames: int, rule: SpanRule) -> tuple[int, Span]:
    """First frame of a case's interval in a video of `frames` frames at its frame rate, and what to choose from."""
    start, stop = frame_span(case["start_second"], case["end_second"], case["fps"], rule)
    stop = max(min(stop, frames), start + 1)
    return start, Span(frames=stop - start, after=max(frames - stop, 0))


def inside(case: dict[str, Any]) -> bool:
    """Whether the reference's arithmetic applies: it repeats the last frame where a video ends early (here such a clip
    is shorter, or refused), and counts from a wrong frame after a short chunk file (here frames are found by time)."""
    counts = case["chunk_frame_counts"]
    ends_within = (
        len(counts) > 1
        and case["end_second"] * FPS > sum(counts) > (len(counts) - 1) * 9000 >= case["start_second"] * FPS
    )
    starts_after = round(case["start_second"] * FPS) >= sum(counts)
    return "raises" not in case and not starts_after and not ends_within and set(counts[:-1]) <= {9000}


CHUNKED = [case for case in SAMPLING["ego4d_chunked"] if inside(case)]


def test_most_cases_apply() -> None:
    assert len(CHUNKED) >= 33


@pytest.mark.parametrize("case", CHUNKED, ids=lambda c: f"{c['start_second']}-{c['end_second']}x{c['n']}")
def test_ego4d_chunks_equal_the_reference(case: dict[str, Any]) -> None:
    start, of = span(case, sum(case["chunk_frame_counts"]), "duration")
    choice = FrameChoice(frames=case["n"])
    chosen = choose_frames(of.reach(choice), choice, clips=1)[0] + start
    assert [[int(frame) // 9000 * 300, int(frame) % 9000] for frame in chosen] == case["frames"]
    if case["jitter_low_high_inclusive"] and case["jitter_redrawn_after_missing_next_chunk"] is None:
        low, high = segment_bounds(0, of.reach(choice), case["n"])
        offset = start - int(case["start_second"]) // 300 * 9000  # the reference counts from the chunk's start
        assert np.stack([low + offset, high + offset], axis=1).tolist() == case["jitter_low_high_inclusive"]


WHOLE = [case for case in SAMPLING["whole_file"] if "raises" not in case and case["end_second"] is not None]


@pytest.mark.parametrize("case", WHOLE, ids=lambda c: f"{c['start_second']}-{c['end_second']}x{c['n']}")
def test_whole_files_equal_the_reference(case: dict[str, Any]) -> None:
    start, of = span(case, case["num_frames"], "duration")
    choice = FrameChoice(frames=case["n"])
    assert (choose_frames(of.reach(choice), choice, clips=1)[0] + start).tolist() == case["frames"]


def lengths(fps: float, seconds: float, *, stored: int) -> float:
    of = interval_span("fractional", stored=stored, after=7, fps=fps, seconds=seconds)
    assert of.after == 0
    return of.frames


@pytest.mark.parametrize("case", SAMPLING["charades_untrimmed_sparse"], ids=lambda c: str(c["duration_frames"]))
def test_untrimmed_videos_are_sampled_by_their_fractional_length(case: dict[str, Any]) -> None:
    start, stop = frame_span(0.0, case["length_field"], case["fps"], "fractional")
    length = lengths(case["fps"], case["length_field"], stored=stop - start)
    assert choose_frames(length, FrameChoice(frames=case["n"]), clips=1)[0].tolist() == case["frames"]
    assert max(case["frames"]) < stop
    assert lengths(case["fps"], case["length_field"], stored=stop - 9) == stop - 9  # the video is shorter than it says


STRIDED = [case for case in SAMPLING["charades_untrimmed_strided"] if "raises" not in case]


@pytest.mark.parametrize("case", STRIDED, ids=lambda c: f"{c['num_frames']}x{c['num_clips']}")
def test_untrimmed_videos_with_a_stride(case: dict[str, Any]) -> None:
    choice = FrameChoice(frames=case["clip_length"], sampling="strided", stride=case["clip_stride"])
    assert choose_frames(case["num_frames"], choice, clips=case["num_clips"]).ravel().tolist() == case["frames"]


def test_a_protocol_asks_for_each_frame_once() -> None:
    sparse = protocol_frames(Span(frames=90), FrameChoice(frames=4), clips=3)
    assert sparse.tolist() == sorted(set(choose_frames(90, FrameChoice(frames=4), clips=3).ravel().tolist()))
    padded = protocol_frames(Span(frames=5), FrameChoice(frames=4, sampling="strided", stride=2), clips=2)
    assert padded.tolist() == [0, 2, 4]  # the black frame is not stored
    assert protocol_frames(Span(frames=2, after=9), FrameChoice(frames=4), clips=1).tolist() == [0, 1, 2]
    assert protocol_frames(Span(frames=2), FrameChoice(frames=4), clips=1).tolist() == [0, 1]


RULES: tuple[SpanRule, ...] = ("edges", "duration", "fractional")


@given(
    rule=st.sampled_from(RULES),
    start=st.floats(0, 600),
    seconds=st.one_of(st.just(0.0), st.floats(1e-9, 0.05), st.floats(0, 30)),
    fps=st.one_of(st.floats(1, 120), st.sampled_from([24.0, 25.0, 30000 / 1001])),
    after=st.integers(0, 40),
    parts=st.integers(1, 20),
    sampling=st.sampled_from(["segments", "strided"]),
    stride=st.integers(1, 5),
    clips=st.integers(1, 5),
)
@settings(max_examples=500, deadline=None)
def test_every_planned_frame_lies_in_the_stored_clip(
    rule: SpanRule,
    start: float,
    seconds: float,
    fps: float,
    after: int,
    parts: int,
    sampling: SamplingName,
    stride: int,
    clips: int,
) -> None:
    """Of any length down to nothing: a clip has at least one frame, and only a stride past its end gives black ones."""
    first, stop = frame_span(start, start + seconds, fps, rule)
    assert stop > first
    choice = FrameChoice(frames=parts, sampling=sampling, stride=stride)
    for stored in {stop - first, 1}:  # also a video that ends after the first frame
        of = interval_span(rule, stored=stored, after=after, fps=fps, seconds=seconds)
        last = stored - 1 + (of.after if sampling == "segments" else 0)
        planned = [choose_frames(of.reach(choice), choice, clips=clips)]
        planned += [draw_frames(of.reach(choice), choice, random_numbers(0, 9, 0, i)) for i in range(3)]
        for frames in planned:
            black = frames == BLACK_FRAME
            assert ((frames >= 0) & (frames <= last) | black).all(), frames
            assert not black.any() if sampling == "segments" else not black[:, 0].any()
        protocol = {"frames": parts, "sampling": sampling, "stride": stride, "clips": clips}
        kept = chosen_frames(protocol, rule, stored=stored, after=after, fps=fps, seconds=seconds)
        assert len(kept) and kept.min() >= 0 and kept.max() <= last


@pytest.mark.parametrize("length", [0.0, 0.01, 0.3, 0.5, 0.99, 1.0])
def test_a_clip_of_less_than_a_frame_is_its_only_frame(length: float) -> None:
    of = interval_span("fractional", stored=1, after=0, fps=1.0, seconds=length)
    for sampling, frames in (("segments", [0, 0, 0]), ("strided", [0, BLACK_FRAME, BLACK_FRAME])):
        choice = FrameChoice(frames=3, sampling=sampling)  # type: ignore[arg-type]
        assert choose_frames(of.reach(choice), choice, clips=2).tolist() == [frames, frames]
        assert draw_frames(of.reach(choice), choice, random_numbers(0, 9, 0)).tolist() == [frames]
        assert choose_frames(length, choice, clips=1).tolist() == [frames]  # asked directly, as `ClipSizes` can
