"""Commands of the repository in separate processes that need no seconds to start.

A fresh interpreter computes for four seconds until it has imported what train.py needs. Here a server imports that once
for each process of pytest, and forks for each command. A fork has its own environment, working folder, output and exit
status, receives signals, and can be killed like any other process. What only a start from nothing shows (what is
imported when, variables that libraries read while they load) is for `subprocess`.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest

from benchmarks.ports import free_ports
from lavila.cluster import workers
from lavila.interrupts import LEFT_TO_PARENT

ROOT = Path(__file__).resolve().parents[1]
# What the commands of these tests import, and what a training imports only when it comes to it.
PRELOADED = (
    "tests.forks",
    "tests.warm",
    "torch._dynamo",
    "torch.distributed.checkpoint.state_dict_saver",
    "lavila.engine.evaluator",
    "lavila.engine.narrating",
    "lavila.engine.trainer",
    "lavila.ingest.run",
    "lavila.inspection.verify",
    "fsspec.core",  # for checkpoints
)


def share_server() -> None:
    """Whoever starts the server of this process first (multiprocessing has one) preloads what forks need, too."""
    preload = forkserver.set_forkserver_preload
    forkserver.set_forkserver_preload = lambda names: preload([*PRELOADED, *names])


def _from_server(target: Callable[..., None], *arguments: object) -> ForkServerProcess:
    """A process that will be forked from the server, which then runs."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([])  # see `share_server`
    with pytest.MonkeyPatch.context() as patch:  # the server has the environment of the first command
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.delenv("MKL_CBWR", raising=False)
        patch.setenv("PYTHONPATH", str(ROOT))
        forkserver.ensure_running()
    return context.Process(target=target, args=arguments)


start_from_nothing = workers._start


def start_worker(job: workers.Job, lost: Mapping[int, Mapping[int, str]], memory: int | None) -> workers._Worker:
    """What `workers._start` does, with a fork in place of an interpreter that imports for a second.

    tests/conftest.py puts it in place. Commands that tests start with `subprocess` have the other one, and so have the
    tests of workers.
    """
    ours, theirs = multiprocessing.Pipe(duplex=False)
    process = _from_server(_work_on_job, job, dict(lost.get(job.number, {})), theirs, memory, dict(os.environ))
    process.start()
    theirs.close()
    return workers._Worker(job, process, ours)


def _work_on_job(
    job: workers.Job, lost: Mapping[int, str], pipe: Connection[Any, Any], memory: int | None, given: dict[str, str]
) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, LEFT_TO_PARENT)
    os.environ.clear()
    os.environ.update(given)
    workers._work(job, lost, pipe, os.getppid(), memory)


class Fork:
    """A command in a forked process; a small part of what subprocess.Popen has."""

    def __init__(self, words: Sequence[object], environment: Mapping[str, str], folder: Path) -> None:
        """words: a Python file or `-m` and a module, and its arguments."""
        self.words = [str(word) for word in words]
        with tempfile.NamedTemporaryFile(delete=False) as out, tempfile.NamedTemporaryFile(delete=False) as err:
            self._files = Path(out.name), Path(err.name)
        arguments = (self.words, dict(environment), str(folder), *map(str, self._files))
        self._process = _from_server(_work, *arguments)
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def poll(self) -> int | None:
        """The exit status; minus the signal's number for one that a signal ended; None while it runs."""
        return self._process.exitcode

    def said(self) -> str:
        """What it has printed so far."""
        return "".join(path.read_text() for path in self._files)

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def communicate(self, timeout: float) -> subprocess.CompletedProcess[str]:
        """Wait for its end. TimeoutExpired, and no process is left, where it takes more than `timeout` seconds."""
        self._process.join(timeout)
        late = self._process.exitcode is None
        if late:
            self.send_signal(signal.SIGKILL)
            self._process.join()
        texts = [path.read_text() for path in self._files]
        for path in self._files:
            path.unlink()
        if late:
            raise subprocess.TimeoutExpired(self.words, timeout, *texts)
        return subprocess.CompletedProcess(self.words, self._process.exitcode or 0, *texts)


def start(*words: object, environment: Mapping[str, str] = os.environ, folder: Path = ROOT) -> Fork:
    """Start a command."""
    return Fork(words, environment, folder)


def run(
    *words: object, environment: Mapping[str, str] = os.environ, folder: Path = ROOT, timeout: float = 120
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return start(*words, environment=environment, folder=folder).communicate(timeout)


def start_ranks(count: int, *words: object, environment: Mapping[str, str] = os.environ) -> list[Fork]:
    """A command in `count` processes that find each other as those of torchrun do. None is restarted or killed."""
    (port,) = free_ports(1)
    together = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1"}
    together |= {"MASTER_PORT": str(port)}
    return [
        start(*words, environment={**environment, **together, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(count)
    ]


def run_ranks(
    count: int, *words: object, environment: Mapping[str, str] = os.environ, timeout: float = 120
) -> list[subprocess.CompletedProcess[str]]:
    """Run a command in `count` ranks to their end: what each of them did. A rank that waits in vain is killed."""
    forks = start_ranks(count, *words, environment=environment)
    ends = time.monotonic() + timeout
    return [fork.communicate(max(1.0, ends - time.monotonic())) for fork in forks]


def _work(words: list[str], environment: dict[str, str], folder: str, out: str, err: str) -> None:
    """What the fork does."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, LEFT_TO_PARENT)  # the server blocks them if a pool of workers started it
    for path, descriptor in ((out, 1), (err, 2)):
        opened = os.open(path, os.O_WRONLY)
        os.dup2(opened, descriptor)
        os.close(opened)
    assert threading.active_count() == 1, threading.enumerate()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    import torch  # the server has imported it

    torch.set_num_threads(int(environment.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    sys.path[:0] = [part for part in environment.get("PYTHONPATH", "").split(os.pathsep) if part]
    if words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        sys.path.insert(0, str(Path(words[0]).parent))
        runpy.run_path(words[0], run_name="__main__")
