"""From an interval in seconds to frames, and the choice of T of them as LaViLa makes it."""

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

    frames: float  # frames of the annotated interval
    after: int = 0  # stored frames after it that a view may use

    def reach(self, choice: FrameChoice) -> float:
        """The number of frames to choose from. An interval of fewer than T adds what follows (LaViLa's Ego4D rule)."""
        if choice.sampling == "segments" and self.after:
            return max(self.frames, min(choice.frames, math.ceil(self.frames) + self.after))
        return self.frames


@dataclass(frozen=True, kw_only=True)
class FrameChoice:
    """The rule that chooses T frames of a clip."""

    frames: int  # T
    sampling: SamplingName = "segments"  # one frame of each of T equal parts, or every stride-th frame
    stride: int = 2  # frames between two chosen ones, for "strided"


def interval_span(rule: SpanRule, *, stored: int, after: int, fps: float, seconds: float) -> Span:
    """The frames that views of a clip may use: those of its interval, and those after it.

    `stored`, `after`: the stored frames of the interval and after it. `seconds`: the interval's stated length. `rule`:
    as in `frame_span`.
    """
    # A video that ends before its stated length has fewer frames than the length says.
    frames = min(stored, fps * seconds) if rule == "fractional" else stored
    return Span(frames=float(frames), after=after if rule == "duration" else 0)


def segment_bounds(start: int, stop: float, frames: int) -> tuple[Ints, Ints]:
    """First and last candidate frame, both inclusive, of each of `frames` equal parts of [start, stop)."""
    edges = np.round(np.arange(frames + 1) * ((stop - start - 1) / frames)).astype(np.int64) + start
    return edges[:-1], np.minimum(edges[1:], math.ceil(stop))


def choose_frames(num_frames: float, choice: FrameChoice, *, clips: int) -> Frames:
    """The frames of an evaluation among `num_frames`, [clips, T]; BLACK_FRAME where a short clip is padded.

    segments: temporal clip k of K takes the frame at the fraction (2k+1)/2K of each part. K=1 takes the centre, as
    published.
    strided: starts are spread evenly. A clip shorter than T*stride is padded at its end and repeated K times.
    A fractional length below one frame counts as one frame.
    """
    num_frames = max(num_frames, 1)
    if choice.sampling == "segments":
        low, high = segment_bounds(0, num_frames, choice.frames)
        k = np.arange(clips, dtype=np.int64)[:, None]
        # low + (high - low) * (2k + 1) / 2K, in whole numbers so that it rounds down exactly.
        return ((low * (2 * clips - 2 * k - 1) + high * (2 * k + 1)) // (2 * clips)).astype(np.int32)
    span = choice.frames * choice.stride
    last_start = max(num_frames - span, 0)
    starts = np.linspace(0, last_start, clips).astype(np.int64) if clips > 1 else np.zeros(1, np.int64)
    return _strided(starts, num_frames, choice)


def protocol_frames(span: Span, choice: FrameChoice, *, clips: int) -> Frames:
    """The frames of a clip that an evaluation uses: ascending, each once."""
    frames = np.unique(choose_frames(span.reach(choice), choice, clips=clips))
    stored: Frames = frames[frames != BLACK_FRAME].astype(np.int32)
    return stored


def chosen_frames(
    protocol: Mapping[str, Any], rule: SpanRule, *, stored: int, after: int, fps: float, seconds: float
) -> Frames:
    """The frames of one clip in a shard set that was made for one evaluation: ascending, each once.

    `protocol`: the manifest's "frames_for", with the fields of a `FrameChoice` and "clips". The others are as in
    `interval_span`.
    """
    settings = dict(protocol)
    clips = settings.pop("clips")
    span = interval_span(rule, stored=stored, after=after, fps=fps, seconds=seconds)
    return protocol_frames(span, FrameChoice(**settings), clips=clips)


def draw_frames(num_frames: float, choice: FrameChoice, random: np.random.Generator) -> Frames:
    """The frames of a training clip, [1, T]: a random one of each part, or a fixed stride from a random start.

    As in `choose_frames`, a fractional length below one frame counts as one frame.
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
    """First frame, and the frame after the last, of an interval at `fps` frames per second, by one of LaViLa's rules.

    The start rounds to the nearest frame (halves to even). Every interval has at least that frame. (LaViLa's own
    arithmetic gives none to some intervals shorter than a frame, and cannot read them.) The rule decides the stop:

    * edges (EPIC-KITCHENS-100, EGTEA): the stop second rounds up.
    * duration (Ego4D, EgoMCQ, Charades-Ego trimmed): start + the whole frames of the duration. A model that wants more
      frames may use those after it.
    * fractional (Charades-Ego untrimmed): start + the duration's frames rounded up. The choice of frames uses the
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
