"""Ctrl-C ends a command with one line at every moment: while Python imports, while the command works, as it ends.

A command is a file that begins and ends so:

    if __name__ == "__main__":
        from lavila.interrupts import end_early, run_main

        end_early()

    ...

    if __name__ == "__main__":
        run_main(main)
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

INTERRUPTED = 130  # exit status: 128 and the number of the signal, as a shell has it
# Worker processes ignore these signals, and their parent decides. Ctrl-C and the end of a session reach the whole
# process group, and a batch system signals every process of a job.
LEFT_TO_PARENT = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def end_early(*, status: int = INTERRUPTED) -> None:
    """From here to `run_main`, Ctrl-C ends this process at once, with one line and this exit status.

    No KeyboardInterrupt is raised meanwhile: compiled modules that are being imported may lose it, and continue.
    """

    def end(number: int, frame: FrameType | None) -> None:
        del number, frame
        if _speaks():
            os.write(2, b"\ninterrupted before anything was done\n")
        os._exit(status)

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else this process was started to ignore it
        signal.signal(signal.SIGINT, end)


def run_main(main: Callable[[], int | None], *, status: int = INTERRUPTED) -> NoReturn:
    """Run a command's `main`, and end this process with the exit status that it returns.

    status: after a Ctrl-C that `main` leaves to this function, which then writes one line.
    """
    listens = signal.getsignal(signal.SIGINT) is not signal.SIG_IGN
    try:
        if listens:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        found = main()
    except KeyboardInterrupt:
        if _speaks():
            sys.stderr.write("\ninterrupted\n")
        found = status
    finally:
        if listens:  # what is left to do is Python's: to be interrupted there needs no traceback either
            signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.exit(found)


@contextmanager
def left_to_parent() -> Iterator[None]:
    """Processes that `multiprocessing` starts within the block ignore LEFT_TO_PARENT, from their first moment on.

    A process starts with the signals blocked that its parent blocks. They reach the parent after the block.
    """
    from multiprocessing import resource_tracker

    resource_tracker.ensure_running()  # its own start would unblock SIGINT
    before = signal.pthread_sigmask(signal.SIG_BLOCK, LEFT_TO_PARENT)
    try:
        with _later(signal.SIGINT):  # another thread, such as a progress bar's, may get it and wake this one
            yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _later(number: signal.Signals) -> Iterator[None]:
    """Handle a signal after the block. Python handles signals in the main thread; in another this does nothing."""
    handler = signal.getsignal(number)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    came: list[int] = []
    signal.signal(number, lambda number, frame: came.append(number))
    try:
        yield
    finally:
        signal.signal(number, handler)
    if came:
        signal.raise_signal(number)


def _speaks() -> bool:
    """Whether this is the main rank, or the only one."""
    return os.environ.get("RANK", "0") == "0"
