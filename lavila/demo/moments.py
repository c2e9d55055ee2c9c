"""Moments of a video: one line of text for each stretch in which the narrator says the same."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from lavila.demo.footage import Window

# How Ego4D's narrators write the person who wears the camera: "#C C opens", "#c c opens", "#C opens", "C opens".
CAMERA_WEARER = re.compile(r"^\s*(?:#\s*[cC](?:\s+[cC])?|C(?:\s+C)?)(?=\s|$)")
SUBJECT = "#C C"
ARTICLES = {"a", "an", "the"}
GAP = 0.5  # seconds without words, as of a window that is lost, over which two moments are still neighbours


@dataclass(frozen=True, kw_only=True)
class Moment:
    """A stretch of a video and what happens in it."""

    start: float  # seconds
    stop: float
    text: str
    nll: float  # nats per token of the text, as the narrator sees it
    others: tuple[str, ...] = ()  # further texts of the first window, each once, the most frequent first
    windows: int = 1  # number of windows that say the same
    key_frame: bytes = b""  # a JPEG of the middle of the first window


def one_subject(text: str, subject: str) -> str:
    """The text with one way to name the person who wears the camera, in single spaces."""
    return " ".join(CAMERA_WEARER.sub(lambda _: subject, text, count=1).split())


def shares(windows: Sequence[Window]) -> list[tuple[float, float]]:
    """The seconds for which each window speaks: where neighbours overlap, each up to the middle of the overlap.

    windows: ascending starts, and stops that do not fall.
    """
    found = [(window.start, window.stop) for window in windows]
    for place, (one, other) in enumerate(pairwise(windows)):
        if other.start < one.stop:
            middle = (one.stop + other.start) / 2
            found[place : place + 2] = (found[place][0], middle), (middle, other.stop)
    return found


def join(moments: Iterable[Moment]) -> Iterator[Moment]:
    """The moments, in order; neighbours that say the same become one. They are at most GAP seconds apart."""
    running: Moment | None = None
    for moment in moments:
        if running is not None and moment.start - running.stop <= GAP and _same(running.text, moment.text):
            running = replace(running, stop=moment.stop, windows=running.windows + 1)
            continue
        if running is not None:
            yield running
        running = moment
    if running is not None:
        yield running


def other_texts(texts: Sequence[str], chosen: str) -> tuple[str, ...]:
    """The texts that say something else than the chosen one, each once, the most frequent first."""
    counts: dict[str, int] = {}
    for text in texts:
        if text and not _same(text, chosen):
            counts[text] = counts.get(text, 0) + 1
    return tuple(sorted(counts, key=lambda text: -counts[text]))


def _same(one: str, other: str) -> bool:
    return _plain(one) == _plain(other)


def _plain(text: str) -> list[str]:
    """What counts when two texts are compared: the words, without articles, case and punctuation."""
    return [word for word in re.findall(r"[\w#']+", text.lower()) if word not in ARTICLES]
