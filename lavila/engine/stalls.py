"""Notices a rank that makes no progress, long before a collective's time-out, and shows where it stands.

The ranks wait for one another, so when one hangs all of them stand still. Each counts its places on the way through an
update and puts the count where the others can read it: who is behind holds the others up.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
import traceback

from torch._C._distributed_c10d import Store

log = logging.getLogger(__name__)

LOOKS = 10  # at the clock, in the time that counts as a stall
LONGEST_LOOK = 10.0  # seconds


class StallWatch:
    """A thread that names the ranks that are behind when this one has made no progress for `seconds`; 0 = never.

    store: through which the ranks see one another's places; None where there is one rank.
    """

    def __init__(self, *, rank: int, world: int, seconds: float, store: Store | None) -> None:
        self._rank, self._world, self._seconds, self._store = rank, world, seconds, store
        self._count, self._what, self._since = 0, "begins", time.monotonic()
        self._reported = False
        self._watched = threading.get_ident()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="stall-watch", daemon=True)

    def at(self, what: str) -> None:
        """This rank has come to its next place. All ranks go through the same places, in the same order."""
        self._count += 1
        self._what = what
        self.alive()

    def alive(self) -> None:
        """This rank gets on, at the place where it is."""
        self._since = time.monotonic()

    def start(self) -> None:
        """Begin to watch the thread that made this."""
        self.alive()
        if self._seconds:
            self._thread.start()

    def end(self) -> None:
        """Watch no more."""
        self._end.set()
        if self._thread.is_alive():
            self._thread.join(1)  # it may wait for a store whose machine is gone

    def _run(self) -> None:
        pause = min(self._seconds / LOOKS, LONGEST_LOOK)
        while not self._end.wait(pause):
            self._tell()
            seconds = time.monotonic() - self._since
            if seconds < self._seconds:
                if self._reported:
                    log.warning("progress again: %s", self._what)
                self._reported = False
            elif not self._reported:
                self._report(seconds)
                self._reported = True

    def _report(self, seconds: float) -> None:
        places = self._places()
        last = min(count for count, _ in places.values())
        behind = [f"rank {rank} ({what})" for rank, (count, what) in sorted(places.items()) if count == last]
        is_behind = places[self._rank][0] == last
        stacks = f"; its threads:\n{stacks_of_threads(self._watched)}" if is_behind else ""
        log.warning(
            "no progress for %.0f s (engine.stall_seconds=%g): rank %d %s. Behind all others: %s%s",
            seconds, self._seconds, self._rank, self._what, ", ".join(behind), stacks,
        )  # fmt: skip

    def _tell(self) -> None:
        if self._store is not None:
            try:
                self._store.set(f"place-{self._rank}", json.dumps([self._count, self._what]))
            except RuntimeError:  # the rank that keeps the store is gone, which ends this one as well
                self._store = None

    def _places(self) -> dict[int, tuple[int, str]]:
        """Count and place of each rank that has said it."""
        found = {self._rank: (self._count, self._what)}
        for rank in range(self._world):
            key = f"place-{rank}"
            try:
                if rank != self._rank and self._store is not None and self._store.check([key]):
                    count, what = json.loads(self._store.get(key))
                    found[rank] = count, what
            except RuntimeError:
                self._store = None
        return found


def stacks_of_threads(first: int) -> str:
    """The stacks of all threads of this process, the one with the identity `first` before the others."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    frames = sorted(sys._current_frames().items(), key=lambda item: item[0] != first)
    return "\n".join(
        f"thread {names.get(identity, identity)}:\n{''.join(traceback.format_stack(frame)).rstrip()}"
        for identity, frame in frames
        if identity != threading.get_ident()
    )
