"""Signals that ask a run to save, and those that ask it to save and stop.

A batch system sends a signal some seconds before it takes the machine away. The handler only notes it. At the next
update the ranks exchange it, so that all of them save the same update, wherever the signal found each of them.
"""

from __future__ import annotations

import enum
import logging
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from lavila.errors import UserError

log = logging.getLogger(__name__)


class Stopped(UserError):
    """Training that a signal has ended. What it has done is saved, and the same command continues."""


class Wish(enum.IntFlag):
    """What a rank wants all ranks to do after the current update."""

    NOTHING = 0
    SAVE = 1
    STOP = 2  # save, and end
    BAD_CLIPS = 4  # exchange new bad clips


@dataclass
class Asked:
    """What signals have asked this process for so far."""

    wish: Wish = Wish.NOTHING
    by: str = ""  # the last signal's name

    def take_save(self) -> Wish:
        """The wish, of which SAVE is then forgotten: it is granted once, and STOP stays."""
        wish = self.wish
        self.wish &= ~Wish.SAVE
        return wish


@contextmanager
def listening(*, stop: Sequence[str], save: Sequence[str]) -> Iterator[Asked]:
    """Note the signals with these names (SIGTERM, ...) inside the block; their earlier handlers return after it.

    A signal that this process was started to ignore stays ignored, as after `nohup`: whoever started it listens itself.
    Python handles signals in the main thread alone. In another thread nothing is noted, and a warning says so.
    """
    asked = Asked()
    wishes = {signal.Signals[name]: Wish.SAVE for name in save} | {signal.Signals[name]: Wish.STOP for name in stop}
    if threading.current_thread() is not threading.main_thread():
        log.warning("this is not the main thread of its process, so %s will not be noticed", ", ".join([*stop, *save]))
        yield asked
        return

    def note(number: int, frame: FrameType | None) -> None:
        # No logging here: the signal may have come in the middle of a log line, whose lock is taken.
        asked.wish |= wishes[signal.Signals(number)]
        asked.by = signal.Signals(number).name

    before = {
        number: signal.signal(number, note) for number in wishes if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield asked
    finally:
        for number, handler in before.items():
            # None: the handler was not set by Python, and cannot be set again.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
