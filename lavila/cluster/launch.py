"""One process of a SLURM job: it runs a command as a rank, and has the job requeued when the command was stopped.

SLURM signals every process of a job. Only this one hears SLURM's USR2: the command and all that it starts ignore it, so
that no process that the command needs dies of it. This one then sends SIGTERM to the command alone.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

log = logging.getLogger(__name__)

STOPPED = 75  # exit status of a command that has saved and that the same command continues (EX_TEMPFAIL, sysexits.h)
OTHERS_SECONDS = 60.0  # how long rank 0 waits for the commands of the others to stop
HEARD = (signal.SIGUSR2, signal.SIGTERM, signal.SIGCONT)
PREEMPTED = re.compile(r"PreemptTime=(?!None|Unknown)\S")
FIRST_PORT, PORTS = 20000, 12768  # up to 32767: Linux gives connections that programs open the ports from 32768 on


@dataclass(frozen=True, kw_only=True)
class Launch:
    """What submitit calls in each process of a job. Its fields go through a pickle."""

    command: Sequence[str]
    folder: str  # the command's working directory
    when_requeued: Sequence[str] = ()  # further arguments where an earlier start was cut short

    def __call__(self, element: int = 0) -> None:
        """Run the command as the rank that SLURM made this process, and end with its exit status.

        `element`: number in a job array, which the command finds in its environment by itself.
        """
        del element
        from submitit.helpers import TorchDistributedEnvironment

        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", force=True)
        os.environ.setdefault("MASTER_PORT", str(master_port(int(os.environ["SLURM_JOB_ID"]))))
        TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
        again = int(os.environ.get("SLURM_RESTART_COUNT", 0)) > 0
        command = [*self.command, *(self.when_requeued if again else ())]
        status, heard = _run(command, Path(self.folder))
        stopped_by_signal = -status in heard and bool(heard)
        if status and not (status == STOPPED or stopped_by_signal):
            log.error("%s: ended with %s", " ".join(command), _shown(status))
            sys.exit(status if status > 0 else 128 - status)
        if status and int(os.environ["RANK"]) > 0:
            _mark(int(os.environ["RANK"])).touch()
        elif status and (signal.SIGUSR2 in heard or preempted()):
            _wait_for_others(int(os.environ["WORLD_SIZE"]))
            log.info("the job is put into the queue again, and continues from there")
            subprocess.run(["scontrol", "requeue", os.environ["SLURM_JOB_ID"]], check=True)
        sys.exit(0)

    def checkpoint(self, *arguments: Any) -> Any:
        """submitit calls this on USR2 before `__call__` has begun: the same again."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, *arguments)


def _run(command: Sequence[str], folder: Path) -> tuple[int, set[int]]:
    """The exit status of the command, and the signals that this process has heard meanwhile."""
    heard: set[int] = set()
    process: subprocess.Popen[bytes] | None = None

    def hear(number: int, frame: FrameType | None) -> None:
        heard.add(number)
        if number == signal.SIGUSR2 and process is not None and process.poll() is None:
            process.terminate()

    for number in HEARD:
        signal.signal(number, hear)
    process = subprocess.Popen(
        command,
        cwd=folder,
        preexec_fn=lambda: signal.signal(signal.SIGUSR2, signal.SIG_IGN),
    )
    if signal.SIGUSR2 in heard:  # it came before there was a process to tell
        process.terminate()
    status = process.wait()
    # SIGTERM in place of USR2, which this process has sent, counts as heard.
    return status, heard | ({int(signal.SIGTERM)} if signal.SIGUSR2 in heard else set())


def _mark(rank: int) -> Path:
    """The file that says that the command of a rank has stopped."""
    return Path(os.environ["SUBMITIT_FOLDER"]) / f".{os.environ['SLURM_JOB_ID']}_{rank}.stopped"


def _wait_for_others(world: int) -> None:
    """Wait for the other ranks: SLURM ends all processes of a job that is requeued."""
    marks = [_mark(rank) for rank in range(1, world)]
    deadline = time.monotonic() + OTHERS_SECONDS
    while not all(mark.exists() for mark in marks) and time.monotonic() < deadline:
        time.sleep(0.1)
    for mark in marks:
        mark.unlink(missing_ok=True)


def master_port(job: int) -> int:
    """Where rank 0 of a job listens. Jobs that run side by side have numbers close together, and so different ports.

    submitit's own choice may be a port that Linux has given to a connection of any program on the node.
    """
    return FIRST_PORT + job % PORTS


def preempted() -> bool:
    """Whether SLURM takes this job's place away for another job, and does not cancel it."""
    shown = subprocess.run(
        ["scontrol", "show", "job", os.environ["SLURM_JOB_ID"]], capture_output=True, text=True, check=False
    ).stdout
    return PREEMPTED.search(shown) is not None and "JobState=CANCELLED" not in shown


def _shown(status: int) -> str:
    return f"status {status}" if status > 0 else signal.Signals(-status).name
