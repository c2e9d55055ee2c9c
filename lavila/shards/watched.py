"""Reads of storage that may never answer: the caller waits for a limited time, and continues without the answer.

A thread that the system holds in a read cannot be ended. So a read runs in a thread that nobody else needs, and that no
process waits for at its end. It comes back when the storage answers after all.
"""

from __future__ import annotations

import queue
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

from lavila.errors import UserError

T = TypeVar("T")

MOST_STUCK = 4  # reads that hang at a time; with so many, no further one is begun
IDLE_SECONDS = 5.0  # until a thread without work ends


class StorageHangsError(UserError):
    """A read that has no answer after the seconds that it may take."""


class _Call:
    """A piece of work for a thread, and what came of it."""

    def __init__(self, key: int, work: Callable[[], Any]) -> None:
        self.key, self.work = key, work
        self.done = threading.Lock()  # a lock is the cheapest thing that one can wait for
        self.done.acquire()
        self.result: Any = None
        self.error: BaseException | None = None
        self.finished = self.left = False  # `left`: nobody waits for it any more

    def run(self) -> None:
        try:
            self.result = self.work()
        except BaseException as error:
            self.error = error


class WatchedCalls:
    """Calls work in threads and waits `seconds` for it. Safe to use from many threads."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._lock = threading.Lock()
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._gone: queue.SimpleQueue[threading.Thread] = queue.SimpleQueue()
        self._free = 0  # threads that wait and that no call has been put into the queue for
        self._stuck: Counter[int] = Counter()  # key -> calls that nobody waits for any more

    def __call__(self, key: int, work: Callable[[], T]) -> T:
        """What `work` returns or raises.

        StorageHangsError after `seconds`. It comes at once where an earlier call with this key still hangs, or
        MOST_STUCK calls with any keys do. So a storage that hangs costs its time once, and not once for each clip.
        """
        call = _Call(key, work)
        with self._lock:
            if self._stuck[key] or self._stuck.total() >= MOST_STUCK:
                raise StorageHangsError(f"no answer from storage for {self.seconds:g} s")
            if self._free:
                self._free -= 1
            else:
                threading.Thread(target=self._serve, name="storage_read", daemon=True).start()
        self._calls.put(call)
        if not call.done.acquire(timeout=self.seconds):
            with self._lock:
                if not call.finished:
                    call.left = True
                    self._stuck[key] += 1
                    raise StorageHangsError(f"no answer from storage for {self.seconds:g} s")
        if call.error is not None:
            raise call.error
        result: T = call.result
        return result

    def rest(self) -> None:
        """End the threads that have no work. The next call starts them again."""
        with self._lock:
            free, self._free = self._free, 0
        for _ in range(free):
            self._calls.put(None)
        for _ in range(free):
            self._gone.get().join()

    def _serve(self) -> None:
        while True:
            try:
                call = self._calls.get(timeout=IDLE_SECONDS)
            except queue.Empty:
                with self._lock:
                    if self._free:
                        self._free -= 1
                        return
                continue  # a call for this thread is on its way
            if call is None:
                self._gone.put(threading.current_thread())
                return
            call.run()
            with self._lock:
                call.finished = True
                self._free += 1
                if call.left:
                    self._stuck[call.key] -= 1
            call.done.release()
            del call  # so that its result is freed while this waits
