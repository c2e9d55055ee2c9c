"""The order of an epoch's clips: stretches of neighbouring rows in a random order, shuffled fully in a bounded window.

A full shuffle jumps through the whole set. Then no cache helps, and the order takes memory and time that grow with the
number of clips. Here an epoch visits the set in windows. A window is made of many stretches from all over the set. The
rows of a stretch lie next to each other in a tar. The clips of a window come in a fully random order. A set that fits
into one window is shuffled fully.

The order keeps one number for each stretch and the clips of one window, at any place of the epoch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lavila.records import Ints

ORDER, CLIP, STRETCHES = 1, 2, 3  # streams of random numbers; different numbers keep them apart


@dataclass(frozen=True, kw_only=True)
class Shuffle:
    """How far an epoch's order mixes the rows of the table."""

    window: int = 131_072  # the largest number of clips that are mixed with each other
    stretch: int = 64  # neighbouring rows that stay in one window
    read_ahead: bool = False  # whether whole stretches of the next window are read before their clips are due


def random_numbers(seed: int, stream: int, epoch: int, position: int = 0, *, attempt: int = 0) -> np.random.Generator:
    """The generator of a (seed, stream, epoch, position, attempt).

    Philox computes its n-th number from a key and a counter, so any position is reached at once, without drawing the
    numbers before it.
    """
    return np.random.Generator(np.random.Philox(key=[seed, stream], counter=[0, attempt, position, epoch]))


class EpochOrder:
    """The clips 0 .. num_clips - 1 in the order of an epoch: a function of (seed, epoch, position).

    Every clip comes once. `order[position]` is quickest for positions that follow each other: they share a window.
    Safe to use from many threads.
    """

    def __init__(self, num_clips: int, *, seed: int, epoch: int, shuffle: Shuffle) -> None:
        assert num_clips > 0 and shuffle.window > 0 and shuffle.stretch > 0, (num_clips, shuffle)
        self._num_clips, self._seed, self._epoch, self._stretch = num_clips, seed, epoch, shuffle.stretch
        count = -(-num_clips // shuffle.stretch)
        windows = min(-(-num_clips // shuffle.window), count)
        self._stretches = random_numbers(seed, STRETCHES, epoch).permutation(count)
        # Windows of equal size: a small one at the end would hardly mix at all.
        self._bounds = np.arange(windows + 1) * count // windows
        # The last stretch of the table may be short. Windows after the one that holds it begin that much earlier.
        short = count * shuffle.stretch - num_clips
        place = int(np.flatnonzero(self._stretches == count - 1)[0])
        self._starts: Ints = self._bounds * shuffle.stretch - np.where(self._bounds > place, short, 0)
        self._latest: tuple[int, Ints] | None = None

    def __len__(self) -> int:
        return self._num_clips

    def __getitem__(self, position: int) -> int:
        assert 0 <= position < self._num_clips, (position, self._num_clips)
        number = self._window_of(position)
        latest = self._latest  # looked up once: another thread may ask for another window meanwhile
        if latest is None or latest[0] != number:
            latest = self._latest = (number, self.window(number))
        return int(latest[1][position - int(self._starts[number])])

    @property
    def windows(self) -> int:
        """The number of windows in an epoch."""
        return len(self._starts) - 1

    def _window_of(self, position: int) -> int:
        return int(np.searchsorted(self._starts, position, side="right")) - 1

    def _stretches_of(self, number: int) -> Ints:
        return np.sort(self._stretches[self._bounds[number] : self._bounds[number + 1]])

    def coming(self, start: int, stop: int, *, part: int, parts: int) -> list[tuple[int, int]]:
        """First and last clip of each stretch of the next window to read while a step uses positions [start, stop).

        The steps of a window share the stretches of the next window evenly. `parts` readers share those of a step, and
        this is reader `part`.
        """
        number = self._window_of(start)
        if number + 1 >= self.windows:
            return []
        stretches, begin, end = self._stretches_of(number + 1), int(self._starts[number]), int(self._starts[number + 1])
        # A step that ends at x % of this window brings the next window's stretches up to x %. The step before may have
        # used this window's first positions, so the first step that starts here brings their share, too.
        first_step = start - (stop - start) < begin
        low, high = (len(stretches) * (min(place, end) - begin) // (end - begin) for place in (start, stop))
        due = (stretches[i] for i in range(0 if first_step else low, high) if i % parts == part)
        clips = ((int(stretch) * self._stretch, int(stretch + 1) * self._stretch - 1) for stretch in due)
        return [(first, min(last, self._num_clips - 1)) for first, last in clips]

    def window(self, number: int) -> Ints:
        """The clips of a window in their order."""
        clips = (self._stretches_of(number)[:, None] * self._stretch + np.arange(self._stretch)).ravel()
        clips = clips[clips < self._num_clips]
        mixed: Ints = clips[random_numbers(self._seed, ORDER, self._epoch, number).permutation(len(clips))]
        return mixed
