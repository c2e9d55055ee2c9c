"""Which frames: an interval in seconds -> frames, and the choice of T of them, as LaViLa makes it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from lavila.records import BLACK_FRAME, Frames, Ints, SpanRule

SamplingName = Literal["segments", "strided"]


@dataclass(frozen=True, kw_only=True)
class Span:
    """A clip's interval, in frames."""

    frames: float  # annotated
    after: int = 0  # stored frames that follow it and that a view may reach into

    def reach(self, choice: FrameChoice) -> float:
        """Frames to choose from: the interval, and where it has fewer than T (LaViLa's Ego4D rule), what follows."""
        if choice.sampling == "segments" and self.after:
            return max(self.frames, min(choice.frames, math.ceil(self.frames) + self.after))
        return self.frames


@dataclass(frozen=True, kw_only=True)
class FrameChoice:
    """T frames of a clip."""

    frames: int  # T
    sampling: SamplingName = "segments"  # one frame of each of T equal parts, or every stride-th frame
    stride: int = 2  # frames between two chosen ones, for "strided"


def interval_span(rule: SpanRule, *, stored: int, after: int, fps: float, seconds: float) -> Span:
    """What views of a clip choose from: frames of its interval, and frames past it that a short clip may use.

    `stored`, `after`: frames of the interval and past it that are stored; `seconds`: the interval's stated length.
    The rules are those of `lavila.plan.frames.frame_span`.
    """
    # A video that ends before its stated length has fewer frames than that.
    frames = min(stored, fps * seconds) if rule == "fractional" else stored
    return Span(frames=float(frames), after=after if rule == "duration" else 0)


def segment_bounds(start: int, stop: float, frames: int) -> tuple[Ints, Ints]:
    """First and last candidate frame, both inclusive, of each of `frames` equal parts of [start, stop)."""
    edges = np.round(np.arange(frames + 1) * ((stop - start - 1) / frames)).astype(np.int64) + start
    return edges[:-1], np.minimum(edges[1:], math.ceil(stop))


def choose_frames(num_frames: float, choice: FrameChoice, *, clips: int) -> Frames:
    """The frames of an evaluation among `num_frames`, [clips, T]; BLACK_FRAME where a short clip is padded.

    segments: temporal clip k of K takes each part at the fraction (2k+1)/2K; K=1 is the centre, as published.
    strided: starts are spread evenly; a clip shorter than T*stride is padded at its end and repeated K times.
    A clip shorter than one frame (a fractional length) is its first frame.
    """
    num_frames = max(num_frames, 1)
    if choice.sampling == "segments":
        low, high = segment_bounds(0, num_frames, choice.frames)
        k = np.arange(clips, dtype=np.int64)[:, None]
        return ((low * (2 * clips - 2 * k - 1) + high * (2 * k + 1)) // (2 * clips)).astype(np.int32)
    span = choice.frames * choice.stride
    last_start = max(num_frames - span, 0)
    starts = np.linspace(0, last_start, clips).astype(np.int64) if clips > 1 else np.zeros(1, np.int64)
    return _strided(starts, num_frames, choice)


def protocol_frames(span: Span, choice: FrameChoice, *, clips: int) -> Frames:
    """Every frame of a clip that an evaluation asks for: ascending, each once."""
    frames = np.unique(choose_frames(span.reach(choice), choice, clips=clips))
    stored: Frames = frames[frames != BLACK_FRAME].astype(np.int32)
    return stored


def chosen_frames(
    protocol: Mapping[str, Any], rule: SpanRule, *, stored: int, after: int, fps: float, seconds: float
) -> Frames:
    """The frames of one clip that a shard set made for an evaluation holds: ascending, each once.

    `protocol`: the fields of a `FrameChoice`, and "clips", as the set's manifest tells them under "frames_for"; the
    rest as in `interval_span`.
    """
    settings = dict(protocol)
    clips = settings.pop("clips")
    span = interval_span(rule, stored=stored, after=after, fps=fps, seconds=seconds)
    return protocol_frames(span, FrameChoice(**settings), clips=clips)


def draw_frames(num_frames: float, choice: FrameChoice, random: np.random.Generator) -> Frames:
    """The frames of a training clip, [1, T]: one anywhere in each part, or a random start of a fixed stride.

    As in `choose_frames`, a clip shorter than one frame is its first frame.
    """
    num_frames = max(num_frames, 1)
    if choice.sampling == "segments":
        low, high = segment_bounds(0, num_frames, choice.frames)
        return random.integers(low, high, endpoint=True).astype(np.int32)[None]
    last_start = int(max(num_frames - choice.frames * choice.stride, 0))
    return _strided(random.integers(0, last_start, size=1, endpoint=True), num_frames, choice)


def _strided(starts: Ints, num_frames: float, choice: FrameChoice) -> Frames:
    frames = starts[:, None] + np.arange(choice.frames) * choice.stride
    return np.where(frames < num_frames, frames, BLACK_FRAME).astype(np.int32)


def frame_span(start_second: float, stop_second: float, fps: float, rule: SpanRule = "edges") -> tuple[int, int]:
    """First frame and the one past the last of an interval at `fps` frames per second, by one of LaViLa's rules.

    The start rounds to the nearest frame (halves to even). An interval of any length has at least that frame: LaViLa's
    own arithmetic leaves some that are shorter than a frame without one, and cannot read them. The stop, by rule:

    * edges (EPIC-KITCHENS-100, EGTEA): rounds up.
    * duration (Ego4D, EgoMCQ, Charades-Ego trimmed): start + whole frames of the duration. Frames after it may be used
      by a model that wants more frames than that.
    * fractional (Charades-Ego untrimmed): start + the duration's frames rounded up; the choice of frames works with the
      fractional number, fps * duration.
    """
    start = round(fps * start_second)
    frames = fps * (stop_second - start_second)
    stop = {
        "edges": math.ceil(fps * stop_second),
        "duration": start + int(frames),
        "fractional": start + math.ceil(frames),
    }[rule]
    return start, max(stop, start + 1)
