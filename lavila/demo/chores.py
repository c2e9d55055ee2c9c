"""Work that takes longer than a request: one piece after another in a thread, each once, with its progress."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

from lavila.errors import UserError

log = logging.getLogger(__name__)

Progress = Callable[[float], None]
"""Takes the share that is done, 0 to 1. Raises Stopped where the work shall end."""


class Stopped(BaseException):
    """The program ends."""


@dataclass(kw_only=True)
class Chore:
    """How far a piece of work is."""

    state: Literal["waiting", "running", "done", "failed"] = "waiting"
    share: float = 0.0  # that is done, 0 to 1
    reason: str = ""  # why it failed


class Chores:
    """Does what `start` is given, in that order."""

    def __init__(self, name: str) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._chores: dict[str, Chore] = {}
        self._lock, self._closing = threading.Lock(), threading.Event()

    def start(self, key: str, work: Callable[[Progress], None]) -> Chore:
        """Do the work, unless it is done or on its way. After a failure it is tried again."""
        with self._lock:
            chore = self._chores.get(key)
            if chore is None or chore.state == "failed":
                chore = self._chores[key] = Chore()
                self._pool.submit(self._do, chore, work)
            return chore

    def state(self, key: str) -> Chore | None:
        """How far it is; None where nobody asked for it."""
        return self._chores.get(key)

    def close(self) -> None:
        """Stop at the next progress, and begin nothing more."""
        self._closing.set()
        self._pool.shutdown(cancel_futures=True)

    def _do(self, chore: Chore, work: Callable[[Progress], None]) -> None:
        def progress(share: float) -> None:
            chore.share = min(share, 1.0)
            if self._closing.is_set():
                raise Stopped

        try:
            progress(0.0)
            chore.state = "running"
            work(progress)
            chore.share, chore.state = 1.0, "done"
        except Stopped:
            chore.state, chore.reason = "failed", "the program ended"
        except (UserError, OSError) as error:
            chore.reason, chore.state = str(error), "failed"
        except Exception as error:
            log.exception("a piece of work failed")
            chore.reason, chore.state = f"{type(error).__name__}: {error}", "failed"
