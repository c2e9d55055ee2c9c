"""Processes for hostile work: an item that crashes or stalls its process is lost and named, and does no other harm.

A decoder of other people's files may crash or hang in C code, where no Python exception helps. So each job runs in a
separate process, which reports over a pipe which item it works on. Only one process writes to each pipe, so no pipe
needs a lock and a process may be killed at any moment. When an item ends its process, the job runs again from the start
and counts that item as failed. This module knows nothing of videos.
"""

from __future__ import annotations

import contextlib
import ctypes
import enum
import multiprocessing
import os
import pickle
import resource
import signal
import sys
import time
import traceback
import types
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, Protocol

from lavila.errors import UserError
from lavila.interrupts import left_to_parent

GRACE_SECONDS = 5.0  # added to an item's limit, so that a job that watches the time itself can end the item first
LOOK_SECONDS = 0.2  # between two looks at the clock
EXIT_SECONDS = 10.0  # how long a process may take to end after its last message, or after it was killed
FAULTS = frozenset(signal.Signals[f"SIG{name}"] for name in ("SEGV", "ABRT", "BUS", "FPE", "ILL", "SYS", "TRAP"))
PR_SET_PDEATHSIG = 1  # the option of prctl(2) that has the kernel signal a process when its parent dies


class ItemEvent(enum.IntEnum):
    """What a job can report about an item."""

    BEGUN = 0
    STORED = 1
    FAILED = 2


class WorkerDied(UserError):
    """A process ended, and no item was the cause."""


class Job(Protocol):
    """A picklable list of items to process, numbered from 0. Running it twice does no harm.

    Its class lies in a module that can be imported, not in the command itself.
    """

    @property
    def number(self) -> int:
        """The job's number, which names it in messages."""
        ...

    @property
    def num_items(self) -> int:
        """The number of items."""
        ...

    def run(self, report: Callable[[int, ItemEvent], None], lost: Mapping[int, str]) -> None:
        """Process all items. Runs in a worker process, and calls `report(item, event)` from the main thread.

        The items in `lost` (item -> reason) ended a process before. They count as failed and are not tried.
        """
        ...

    def remember_loss(self, item: int, reason: str) -> None:
        """Write to disk that an item is lost, so that a later run skips it. Runs in the parent."""
        ...


@dataclass(frozen=True, kw_only=True)
class Progress:
    """The state of a run. A job that runs again counts from 0 again, so the numbers may fall."""

    stored: int = 0  # number of stored items
    failed: int = 0  # number of failed items, with the lost ones
    lost: int = 0  # number of items that ended a process in this run
    jobs: int = 0  # number of jobs that are done


def run_jobs(
    jobs: Sequence[Job],
    *,
    workers: int,
    item_seconds: float,
    on_progress: Callable[[Progress], None],
    memory: int | None = None,
) -> None:
    """Run every job, `workers` at a time, each in a fresh process.

    An item is lost when it takes more than `item_seconds`, or when its process crashes, exits without a message or
    runs out of `memory`. Then `remember_loss` is called, and the job runs again without the item. `memory`: bytes of
    data a process may have (RLIMIT_DATA: heap and anonymous mappings, not libraries); None = no limit.
    `on_progress` is called some times a second, and may raise to end the run.

    Raises what a job raises, with its type if that can be pickled. Raises WorkerDied where a process was killed from
    outside, or ended between two items. No process is left in any case, after Ctrl-C neither; when this process is
    killed, the kernel kills its workers.
    """
    if workers < 1 or item_seconds <= 0:
        raise ValueError(f"workers = {workers}, item_seconds = {item_seconds}: both must be above 0")
    supervisor = _Supervisor(jobs, item_seconds=item_seconds, memory=memory)
    try:
        while supervisor.step(workers):
            on_progress(supervisor.progress())
        on_progress(supervisor.progress())
    finally:
        supervisor.kill_all()


class _Supervisor:
    def __init__(self, jobs: Sequence[Job], *, item_seconds: float, memory: int | None) -> None:
        self.waiting = deque(jobs)
        self.running: list[_Worker] = []
        self.item_seconds, self.memory = item_seconds, memory
        self.lost: dict[int, dict[int, str]] = {}  # job number -> item -> reason
        self.done = Progress()
        self.clock = 0.0
        self._looked = time.monotonic()

    def step(self, workers: int) -> bool:
        """Start jobs while there is room, wait a moment, and handle what happened. False when all jobs are done."""
        while self.waiting and len(self.running) < workers:
            self.running.append(_start(self.waiting.popleft(), self.lost, self.memory))
        wait([worker.pipe for worker in self.running], timeout=LOOK_SECONDS)
        now = time.monotonic()
        # When this process is stopped (Ctrl-Z), so are its workers. That time does not count.
        self.clock += min(now - self._looked, 5 * LOOK_SECONDS)
        self._looked = now
        for worker in list(self.running):
            worker.listen(self.clock)
            if worker.item is not None and self.clock - worker.begun > self.item_seconds + GRACE_SECONDS:
                item = worker.item
                worker.end(kill=True)
                self._lose(worker, item, f"took longer than {self.item_seconds:g} s")
            elif worker.silent:
                self._finish(worker)
        return bool(self.waiting or self.running)

    def _finish(self, worker: _Worker) -> None:
        """Handle the result of a process that has closed its pipe."""
        worker.end()
        result = worker.result
        if isinstance(result, MemoryError) and worker.item is not None:
            limit = "there is" if self.memory is None else f"the {self.memory / 2**20:.0f} MiB it may use"
            self._lose(worker, worker.item, f"needs more memory than {limit}")
        elif isinstance(result, BaseException):
            raise result
        elif isinstance(result, _Done):
            self.running.remove(worker)
            self.done = _plus(self.done, worker, jobs=1)
        else:
            self._lose(worker, worker.item, _cause(worker))

    def _lose(self, worker: _Worker, item: int | None, reason: str) -> None:
        job = worker.job
        lost = self.lost.setdefault(job.number, {})
        if item is None:
            raise WorkerDied(f"job {job.number}: {reason} while it was at no item; this is no fault of the data")
        if item in lost:
            raise WorkerDied(f"job {job.number}: item {item} {reason}, though the job had to leave it out")
        job.remember_loss(item, reason)
        lost[item] = reason
        self.running.remove(worker)
        self.waiting.appendleft(job)

    def progress(self) -> Progress:
        total = self.done
        for worker in self.running:
            total = _plus(total, worker, jobs=0)
        lost = sum(len(items) for items in self.lost.values())
        return Progress(stored=total.stored, failed=total.failed, lost=lost, jobs=total.jobs)

    def kill_all(self) -> None:
        for worker in self.running:
            worker.process.kill()
        for worker in self.running:
            worker.process.join(EXIT_SECONDS)
            worker.pipe.close()


def _plus(total: Progress, worker: _Worker, *, jobs: int) -> Progress:
    return Progress(
        stored=total.stored + worker.counts[ItemEvent.STORED],
        failed=total.failed + worker.counts[ItemEvent.FAILED],
        jobs=total.jobs + jobs,
    )


def _cause(worker: _Worker) -> str:
    """How a process without a result ended. Raises WorkerDied where its item cannot be the cause."""
    status = worker.process.exitcode
    assert status is not None
    if status >= 0:
        return f"ended its process (exit status {status})"
    name = signal.Signals(-status).name
    if -status in FAULTS:
        return f"crashed its process ({name})"
    why = "killed, perhaps for memory" if name == "SIGKILL" else f"killed by {name}"
    raise WorkerDied(f"a worker process died ({why}); run again with --resume, and fewer --workers")


class _Worker:
    """A worker process, as the parent sees it."""

    def __init__(self, job: Job, process: SpawnProcess, pipe: Connection[Any, Any]) -> None:
        self.job, self.process, self.pipe = job, process, pipe
        self.item: int | None = None  # the item that it works on
        self.begun = 0.0  # when the item began, by the supervisor's clock
        self.counts = {ItemEvent.STORED: 0, ItemEvent.FAILED: 0}
        self.result: _Done | BaseException | None = None
        self.silent = False  # whether its pipe is closed

    def listen(self, clock: float) -> None:
        """Read the messages that the process has sent since the last call."""
        try:
            while not self.silent and self.pipe.poll():
                message = self.pipe.recv()
                if not isinstance(message, tuple):
                    self.result = message
                    continue
                item, event = message
                self.item = item if event is ItemEvent.BEGUN else None
                self.begun = clock
                if event is not ItemEvent.BEGUN:
                    self.counts[event] += 1
        except (EOFError, OSError):  # OSError: the process was killed while it wrote a message
            self.silent = True

    def end(self, *, kill: bool = False) -> None:
        """Wait until the process is gone and its exit status is known."""
        if kill:
            self.process.kill()
        self.process.join(EXIT_SECONDS)
        if self.process.exitcode is None:  # hangs in an exit handler
            self.process.kill()
            self.process.join(EXIT_SECONDS)
        if self.process.exitcode is None:
            raise WorkerDied(f"worker process {self.process.pid} cannot be killed; does its storage hang?")
        self.pipe.close()


@dataclass(frozen=True)
class _Done:
    """The last message of a process whose job is done."""


def _start(job: Job, lost: Mapping[int, Mapping[int, str]], memory: int | None) -> _Worker:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(job, dict(lost.get(job.number, {})), theirs, os.getpid(), memory))
    with left_to_parent(), _without_main():
        process.start()
    theirs.close()  # so that the pipe ends when the process does
    return _Worker(job, process, ours)


@contextlib.contextmanager
def _without_main() -> Iterator[None]:
    """A process that starts within the block imports the modules of its job only.

    Otherwise it would import the command, too, with all that this needs before the first job: half a worker's start.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _work(job: Job, lost: Mapping[int, str], pipe: Connection[Any, Any], parent: int, memory: int | None) -> None:
    """What a worker process does from start to end."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # also ends a loop in C code
    if os.getppid() != parent:  # the parent died before the call above
        os._exit(1)
    end_realtime()  # a worker that spins must not keep its parent from running
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash of a decoder needs no core file
    if memory is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    try:
        job.run(lambda item, event: pipe.send((item, event)), lost)
        result: _Done | BaseException = _Done()
    except BaseException as error:
        result = _portable(error)
    pipe.send(result)
    sys.stdout.flush()
    sys.stderr.flush()


def end_realtime() -> None:
    """Give ordinary priority back to all threads of this process that have a real-time one.

    SVT-AV1 takes real-time priority when it runs as root, and every later thread and process inherits it. Nothing
    interrupts a busy real-time thread, so two of them stop a machine of two cores.
    """
    for thread in map(int, os.listdir("/proc/self/task")):  # noqa: PTH208
        try:
            if os.sched_getscheduler(thread) in (os.SCHED_FIFO, os.SCHED_RR):
                os.sched_setscheduler(thread, os.SCHED_OTHER, os.sched_param(0))
        except ProcessLookupError:  # it has ended meanwhile
            continue


def _portable(error: BaseException) -> BaseException:
    """The error in a form that can be pickled, with its traceback as a note."""
    error.add_note("in a worker process:\n" + "".join(traceback.format_exception(error)))
    with contextlib.suppress(Exception):
        copy = pickle.loads(pickle.dumps(error))
        if isinstance(error, Exception) and type(copy) is type(error) and str(copy) == str(error):
            return error
    other = RuntimeError(f"{type(error).__name__}: {error}")
    other.__notes__ = error.__notes__
    return other
