"""The records that pass from one part of the system to the next, with shape, dtype, range and unit of every field.

This module imports neither torch nor DALI, since annotation readers and the plan use these records too.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from lavila.errors import UserError

if TYPE_CHECKING:
    import torch

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Frames = npt.NDArray[np.int32]

SpanRule = Literal["edges", "duration", "fractional"]
"""The rule that turns an interval in seconds into frames; see `lavila.plan.frames.frame_span`."""

BLACK_FRAME = -1
"""Frame index of an all-zero picture. Protocols with a fixed stride pad short clips with such pictures."""

HUMAN = "human"
"""The source of narrations that a person wrote. Narrations of any other source were not written by a person."""

VIDEO_SUFFIXES = (
    ".mp4", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".flv", ".wmv", ".ogg", ".ogv", ".m4v",
)  # fmt: skip
"""How the names of videos end, in lower case."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Clip:
    """An annotated interval of a source video, before it is stored."""

    clip_id: str  # unique in the dataset; names a tar member, so it has no dots, slashes or spaces
    video_id: str
    video_path: str  # relative to the video root, always with forward slashes
    start_second: float  # float64 seconds in the source video
    stop_second: float | None  # float64 seconds; None = to the end of the video
    narrations: tuple[str, ...] = ()
    verb: int | None = None  # class index >= 0, or None where the dataset has no such label
    noun: int | None = None
    action: int | None = None
    labels: tuple[int, ...] = ()  # class indices of a multi-label dataset
    extra: dict[str, str] = field(default_factory=dict)  # the other columns of the annotation row

    def __post_init__(self) -> None:
        if self.start_second < 0:
            raise UserError(f"clip {self.clip_id!r}: start {self.start_second} s is before the video begins")
        if self.stop_second is not None and self.stop_second <= self.start_second:
            raise UserError(
                f"clip {self.clip_id!r}: stop {self.stop_second} s is not after start {self.start_second} s; "
                "correct the annotation row or remove it"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipPlan:
    """Everything that chance or a protocol decides about one clip: its frames, its crops, its mirroring, its caption.

    K temporal clips of T frames, S spatial crops; V = K x S views, temporal-clip-major. Training has K = S = 1.
    """

    position: int  # place in the epoch's global order, the same on any number of ranks
    row: int  # row of the clip in clips.parquet
    frames: npt.NDArray[np.int32]  # [K, T], 0-based in the stored clip; BLACK_FRAME = all zeros
    window: tuple[int, int, int, int]  # top, left, height, width in stored pixels of the part that is resized
    resized: tuple[int, int]  # height, width in pixels of the window after the resize
    crops: npt.NDArray[np.int32]  # [S, 2] top, left in resized pixels of each square crop
    flip: bool  # whether the pictures are mirrored, left to right
    caption: float  # a number in [0, 1) that picks one of the clip's narrations
    attempt: int = 0  # 0 = the clip that has this place in the order; n = the n-th that takes the place of a bad one
    epoch: int = 0  # the epoch in whose order it has its place; 0 in an evaluation

    def distinct_frames(self) -> npt.NDArray[np.int32]:
        """The frames to decode: ascending, each once. A clip of black frames only still decodes frame 0."""
        # A view has a few frames, of which Python's sets are quicker than np.unique.
        wanted = sorted(set(self.frames.ravel().tolist()) - {BLACK_FRAME})
        return np.array(wanted or [0], np.int32)

    def gather(self) -> npt.NDArray[np.int32]:
        """[K, T] places in `distinct_frames()`; a black frame is the place one past its end."""
        distinct = self.distinct_frames()
        places = np.searchsorted(distinct, self.frames).astype(np.int32)
        return np.where(self.frames == BLACK_FRAME, np.int32(len(distinct)), places).astype(np.int32)


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoBatch:
    """A batch as the loader gives it to a task. In an evaluation B is smaller than planned where clips are bad."""

    video: torch.Tensor  # [B, V, C, T, H, W] float32 or float16, normalised, on the loader's device
    rows: npt.NDArray[np.int64]  # [B] rows in clips.parquet
    positions: npt.NDArray[np.int64]  # [B] places in the epoch's global order
    clip_ids: tuple[str, ...]  # B
    labels: dict[str, torch.Tensor]  # "verb", "noun", "action" -> [B] int64 on the device; -1 = not labelled
    label_sets: tuple[tuple[int, ...], ...]  # B x (any number) class indices of a multi-label dataset
    narrations: tuple[tuple[str, ...], ...]  # B x (any number)
    sources: tuple[tuple[str, ...], ...]  # the source of each narration: "human", "rephrased", "machine" ...
    chosen: npt.NDArray[np.int64]  # [B] place of the plan's narration in the clip's; -1 = the clip has none
    draws: npt.NDArray[np.float64]  # [B] in [0, 1): what the plan drew for each clip's words, and `chosen` follows from

    def __post_init__(self) -> None:
        assert self.video.ndim == 6, self.video.shape
        sizes = {len(self.video), len(self.rows), len(self.positions), len(self.clip_ids), len(self.narrations)}
        sizes |= {len(self.label_sets), len(self.sources), len(self.chosen), len(self.draws)}
        assert len(sizes) == 1, sizes
        for narrations, sources, chosen in zip(self.narrations, self.sources, self.chosen, strict=True):
            assert len(narrations) == len(sources), (narrations, sources)
            assert 0 <= chosen < len(narrations) if narrations else chosen == -1, chosen

    def captions(self) -> list[str]:
        """The chosen narration of each clip; "" where it has none. B."""
        return [texts[i] if texts else "" for texts, i in zip(self.narrations, self.chosen, strict=True)]

    @property
    def human(self) -> npt.NDArray[np.bool_]:
        """[B] Whether the chosen narration was written by a person; False where the clip has none."""
        chosen = zip(self.sources, self.chosen, strict=True)
        return np.array([bool(sources) and sources[i] == HUMAN for sources, i in chosen], np.bool_)

    def part(self, start: int, stop: int) -> VideoBatch:
        """The clips at places start to stop - 1; the pictures are not copied."""
        cut = slice(start, stop)
        return VideoBatch(
            video=self.video[cut],
            rows=self.rows[cut],
            positions=self.positions[cut],
            clip_ids=self.clip_ids[cut],
            labels={name: values[cut] for name, values in self.labels.items()},
            label_sets=self.label_sets[cut],
            narrations=self.narrations[cut],
            sources=self.sources[cut],
            chosen=self.chosen[cut],
            draws=self.draws[cut],
        )

    def __len__(self) -> int:
        return len(self.rows)
