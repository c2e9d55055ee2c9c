"""Finds moments of indexed videos: by a sentence, or by another moment.

All vectors are compared, and none is approximated, so the best moments are the best of all.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from lavila.demo.encoders import Vector
from lavila.demo.index import Index, Seconds
from lavila.demo.similarity import Scores, Similarities, Spans
from lavila.errors import UserError, shown

QUERIES_KEPT = 256  # vectors of the last sentences
PEAK_SHARE = 0.5  # neighbours belong to a hit while they are above this share of its height over its video


class SearchError(UserError):
    """A search for something that cannot be searched for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Hit:
    """A moment that was found."""

    video: str  # its name in the index
    start: float  # seconds of the whole video
    stop: float
    score: float  # cosine similarity, -1 to 1


class Searcher:
    """Searches an index, whose vectors it holds in memory. Any number of threads may use it.

    encode_text: the vector of a sentence, float32 [D], of unit length; `OpenEncoder.text` of the index's model.
    videos, in all methods: names of those to search; None = all.

    Raises IndexFolderError where a matrix cannot be read and for names that the index lacks, and SearchError for a
    sentence without words and for a region that cannot be.
    """

    def __init__(
        self, index: Index, encode_text: Callable[[str], Vector], *, threads: int = len(os.sched_getaffinity(0))
    ) -> None:
        self.index = index
        self.starts: Seconds = index.moments["start"].combine_chunks().to_numpy()
        self.stops: Seconds = index.moments["stop"].combine_chunks().to_numpy()
        self._videos = [video for video in index.videos if video.moments]
        self._first = np.cumsum([0, *(video.moments for video in self._videos)])  # rows of a video, and the end
        self._place = {video.name: place for place, video in enumerate(self._videos)}
        self._vectors = np.empty((len(self.starts), index.settings.dimensions), np.float16)
        for place, video in enumerate(self._videos):
            self._vectors[slice(*self._rows(place))] = index.vectors(video.name)
        self._similarities = Similarities(self._vectors, threads=threads)
        self._encoded = lru_cache(QUERIES_KEPT)(encode_text)

    def find(self, query: str, *, limit: int, videos: Sequence[str] | None = None) -> list[Hit]:
        """The moments that a sentence fits best, best first. A hit stands for its neighbours, see `PEAK_SHARE`."""
        return self._best(self._similarities(self._vector(query), self._spans(videos)), limit)

    def like(
        self, video: str, start: float, stop: float, *, limit: int, videos: Sequence[str] | None = None
    ) -> list[Hit]:
        """The moments most like a region of a video, best first, without that region itself. Seconds."""
        first, end = self._one(video)
        chosen, vector = self._example(video, start, stop)
        scores = self._similarities(vector, self._spans(videos))
        inside = (self.starts[first:end] < stop) & (self.stops[first:end] > start)
        inside[chosen] = True
        scores[first:end][inside] = -np.inf
        return self._best(scores, limit)

    def curve(self, query: str, video: str) -> tuple[Seconds, Scores]:
        """The middles of a video's windows, float64 [N] seconds, and how well a sentence fits each, float32 [N]."""
        return self._curve(self._vector(query), video)

    def curve_like(self, example: str, start: float, stop: float, video: str) -> tuple[Seconds, Scores]:
        """As `curve`, for how much each window of `video` is like a region of the video `example`."""
        return self._curve(self._example(example, start, stop)[1], video)

    def _curve(self, vector: Vector, video: str) -> tuple[Seconds, Scores]:
        first, end = self._one(video)
        return (self.starts[first:end] + self.stops[first:end]) / 2, self._similarities(vector, [(first, end)])[
            first:end
        ]

    def _example(self, video: str, start: float, stop: float) -> tuple[npt.NDArray[np.intp], Vector]:
        """The windows of a region, counted from the video's first, and their mean, float32 [D], of unit length."""
        first, end = self._one(video)
        if not start <= stop:
            raise SearchError(f"the region from {start:g} s to {stop:g} s of {shown(video)} ends before it starts")
        middles = (self.starts[first:end] + self.stops[first:end]) / 2
        chosen = np.flatnonzero((middles >= start) & (middles <= stop))
        if not len(chosen):  # shorter than the steps of the windows
            chosen = np.abs(middles - (start + stop) / 2).argmin(axis=0, keepdims=True)
        mean = self._vectors[first + chosen].astype(np.float32).mean(0)
        return chosen, mean / max(float(np.linalg.norm(mean)), 1e-12)

    def _vector(self, query: str) -> Vector:
        if not query.strip():
            raise SearchError("an empty sentence finds nothing; give some words")
        return self._encoded(query)

    def _rows(self, place: int) -> tuple[int, int]:
        return int(self._first[place]), int(self._first[place + 1])

    def _one(self, video: str) -> tuple[int, int]:
        """The rows of a video. SearchError where it has none."""
        if video not in self._place:
            why = self.index.video(video).reason
            raise SearchError(f"{shown(video)} has no moments to compare: {why}")
        return self._rows(self._place[video])

    def _spans(self, videos: Sequence[str] | None) -> Spans:
        if videos is None:
            return [(0, len(self.starts))]
        wanted = {self.index.video(name).name for name in videos}
        return [self._rows(self._place[name]) for name in sorted(wanted) if name in self._place]

    def _best(self, scores: Scores, limit: int) -> list[Hit]:
        """The best moments of those whose score is not -inf."""
        hits: list[Hit] = []
        if not len(scores):
            return hits
        left = scores.copy()  # without what hits stand for
        tops = np.maximum.reduceat(left, self._first[:-1])  # of each video: a hit changes no other's
        while len(hits) < limit and (best := float(tops.max())) > -np.inf:
            place = int(tops.argmax())
            first, end = self._rows(place)
            row = first + int(left[first:end].argmax())
            name, start, stop = self._videos[place].name, float(self.starts[row]), float(self.stops[row])
            hits.append(Hit(video=name, start=start, stop=stop, score=best))
            left[self._neighbours(scores, row, first, end)] = -np.inf
            tops[place] = left[first:end].max()
        return hits

    def _neighbours(self, scores: Scores, row: int, first: int, end: int) -> slice:
        """The rows that a hit stands for, of those of its video, first ... end - 1.

        They are those whose windows overlap or touch the hit's, and those around them on the same peak.
        """
        compared = scores[first:end]
        mean = float(compared[compared > -np.inf].mean())
        foot = mean + PEAK_SHARE * (float(scores[row]) - mean)
        low, high, start, stop = row, row + 1, self.starts[row], self.stops[row]
        while low > first and (self.stops[low - 1] >= start or scores[low - 1] >= foot):
            low -= 1
        while high < end and (self.starts[high] <= stop or scores[high] >= foot):
            high += 1
        return slice(low, high)
