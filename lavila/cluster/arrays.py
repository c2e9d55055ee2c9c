"""Work on a SLURM cluster, or on this machine by the same path, through submitit.

One element of a job array does one job, in the same kind of supervised process as on a single machine. Only a job's
files say whether it is done, never the scheduler. Jobs may run twice without harm. So a lost node costs only time, and
so does an element that is preempted, requeued or cancelled.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from lavila.cluster.workers import Job, Progress, run_jobs
from lavila.errors import UserError

logger = logging.getLogger(__name__)

MEMORY = 4 << 30  # bytes a worker may have; a 1080p video needs 0.2 GiB, but a false header could ask for any amount
POLL_SECONDS = {"slurm": 5.0, "local": 0.5}  # pause between two questions to the scheduler
SETTLE_SECONDS = 15.0  # how long a file written on a node may take to be seen here
CANCEL_SECONDS = 60.0  # SLURM kills an element that ignores its first signal after KillWait, 30 s by default
REPORT_SECONDS = 2.0  # pause between two reports of an element's progress
MAX_ARRAY = 1000  # elements of an array where the scheduler does not name its limit
STOPPED = {"BOOT_FAIL", "CANCELLED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT"}
ENDED = frozenset({"COMPLETED", "REVOKED", *STOPPED})


class ClusterError(UserError):
    """The cluster cannot be used, or elements failed; the message says which and where to look."""


class ClusterJob(Job, Protocol):
    """A job whose files say whether it is done."""

    def is_done(self) -> bool:
        """Whether the files are there, as this machine sees them."""
        ...


@dataclass(frozen=True, kw_only=True)
class ClusterOptions:
    """The resources of an element of the array. The local executor uses only the first two."""

    item_seconds: float = 600.0  # time limit of one item, as in run_jobs
    minutes: int = 24 * 60  # time limit of the element
    cpus: int = 2
    memory_gb: float = 4.0
    partition: str | None = None
    extra: Mapping[str, str] = field(default_factory=dict)  # any further sbatch option, without the leading dashes


def run_on_cluster(
    jobs: Sequence[ClusterJob],
    *,
    cluster: Literal["slurm", "local"],
    concurrent: int,
    folder: Path,
    options: ClusterOptions,
    on_progress: Callable[[Progress], None],
) -> None:
    """Do every job that is not done, `concurrent` elements at a time, and wait for the end.

    `folder` takes logs and submitit's files; all nodes must see it under the same name. Elements that an earlier run
    with the same folder left in SLURM's queue are cancelled first. When this ends, also by Ctrl-C, the elements are
    cancelled. (With the local executor they run to their end if this process is killed.)
    Raises ClusterError, once all elements have ended, if some jobs are not done.
    """
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    array = _array(cluster, folder, concurrent=concurrent, options=options)
    array.cancel()
    waiting = [job for job in jobs if not job.is_done()]
    for job in waiting:
        _progress_path(folder, job.number).unlink(missing_ok=True)
    watch = _Watch(folder)
    try:
        while waiting or watch.active:
            room = array.room(len(watch.active))
            if waiting and room > 0:
                watch.active += array.submit(waiting[:room])
                waiting = waiting[room:]
            time.sleep(POLL_SECONDS[cluster])
            watch.look(array.states(watch.active))
            on_progress(watch.progress())
    finally:
        if watch.active or waiting:
            sys.stderr.write("cancelling what is in the queue; this can take half a minute\n")
            array.cancel()
    if watch.failed:
        first = watch.failed[0]
        raise ClusterError(
            f"{len(watch.failed)} of {len(jobs)} jobs failed on the cluster; the first is job {first.job.number}, "
            f"{cluster} job {first.id} ({first.state}): {_last_line(first.log)}; its log is {first.log}; "
            "put that right and run again with --resume"
        )


@dataclass
class _Submitted:
    """An element as the parent sees it."""

    job: ClusterJob
    handle: Any  # submitit.Job
    state: str = "PENDING"
    ended: float | None = None  # when the scheduler was first seen to be done with it

    @property
    def id(self) -> str:
        return str(self.handle.job_id)

    @property
    def log(self) -> Path:
        return Path(self.handle.paths.stderr)


class _Watch:
    """The elements that wait or run, and the results of the others."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.active: list[_Submitted] = []
        self.failed: list[_Submitted] = []
        self.done = Progress()

    def look(self, states: Mapping[str, str] | None) -> None:
        """Sort the elements by the scheduler's answer. None: it did not answer."""
        if states is None:
            return
        for element in list(self.active):
            element.state = states.get(element.id, "gone from the queue")
            if element.id in states and element.state not in ENDED:
                element.ended = None  # an element that had ended may have been requeued
                continue
            now = time.monotonic()
            element.ended = element.ended or now
            if element.job.is_done():
                self.done = _plus(self.done, self._reported(element, missing=element.job.num_items), jobs=1)
                self.active.remove(element)
            elif now - element.ended >= SETTLE_SECONDS:
                self.failed.append(element)
                self.active.remove(element)

    def progress(self) -> Progress:
        total = self.done
        for element in self.active:
            if element.state != "PENDING":
                total = _plus(total, self._reported(element, missing=0), jobs=0)
        return total

    def _reported(self, element: _Submitted, *, missing: int) -> Progress:
        """The last report of an element; without one, `missing` stored items."""
        try:
            return Progress(**json.loads(_progress_path(self.folder, element.job.number).read_bytes()))
        except FileNotFoundError:
            return Progress(stored=missing)


def _plus(total: Progress, more: Progress, *, jobs: int) -> Progress:
    return Progress(
        stored=total.stored + more.stored,
        failed=total.failed + more.failed,
        lost=total.lost + more.lost,
        jobs=total.jobs + jobs,
    )


class _Element:
    """The function that runs on a node. submitit pickles it by value, so nodes need not find this file."""

    def __init__(self, folder: Path, item_seconds: float) -> None:
        self.folder, self.item_seconds = folder, item_seconds

    def __call__(self, job: ClusterJob) -> None:
        if job.is_done():  # SLURM requeued the element just after it had ended
            return
        path, latest, due = _progress_path(self.folder, job.number), Progress(), 0.0

        def report(progress: Progress) -> None:
            nonlocal latest, due
            latest = progress
            if time.monotonic() >= due:
                _write(path, progress)
                due = time.monotonic() + REPORT_SECONDS

        run_jobs([job], workers=1, item_seconds=self.item_seconds, memory=MEMORY, on_progress=report)
        _write(path, latest)

    def checkpoint(self, job: ClusterJob) -> Any:
        """Put the same job into the queue again. submitit calls this when the element is preempted or out of time."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, job)


def _progress_path(folder: Path, number: int) -> Path:
    return folder / f"progress-{number:06d}.json"


def _write(path: Path, progress: Progress) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(asdict(progress)))
    temporary.replace(path)


def _last_line(log: Path) -> str:
    try:
        lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").split("\n")]
    except OSError:
        return "it wrote no log"
    lines = [line for line in lines if line and not line.startswith("srun: ")]  # srun only repeats the exit status
    return lines[-1] if lines else "its log is empty"


def _array(
    cluster: Literal["slurm", "local"], folder: Path, *, concurrent: int, options: ClusterOptions
) -> _SlurmArrays | _LocalJobs:
    try:
        import cloudpickle  # type: ignore[import-untyped]
        import submitit
    except ImportError:
        raise ClusterError("running on a cluster needs submitit: pip install 'lavila[slurm]'") from None
    if cluster == "slurm" and shutil.which("sbatch") is None:
        raise ClusterError("sbatch is not in PATH: run this on a machine from which SLURM jobs can be submitted")
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    executor = submitit.AutoExecutor(folder=folder, cluster=cluster)
    executor.update_parameters(timeout_min=options.minutes)
    element = _Element(folder, options.item_seconds)
    if cluster == "local":
        return _LocalJobs(executor, element, concurrent)
    extra = {name.replace("-", "_"): value for name, value in options.extra.items()}
    name = f"lavila-{hashlib.sha256(os.fsencode(folder)).hexdigest()[:12]}"
    executor.update_parameters(
        name=name,
        cpus_per_task=options.cpus,
        mem_gb=options.memory_gb,
        slurm_array_parallelism=concurrent,
        slurm_additional_parameters={"requeue": True, **extra, "job_name": name},
        # Since SLURM 22.05 srun does not inherit this from sbatch.
        slurm_srun_args=[f"--cpus-per-task={extra.get('cpus_per_task', options.cpus)}"],
        **({} if options.partition is None else {"slurm_partition": options.partition}),
    )
    return _SlurmArrays(executor, element, name)


class _SlurmArrays:
    """Job arrays, one after the other, since `concurrent` limits one array. All have one name, made from the folder."""

    def __init__(self, executor: Any, element: _Element, name: str) -> None:
        self.executor, self.element, self.name = executor, element, name
        config = _ask("scontrol", "show", "config") or ""
        found = re.search(r"MaxArraySize\s*=\s*(\d+)", config)
        self.size = int(found[1]) if found and int(found[1]) > 0 else MAX_ARRAY

    def room(self, active: int) -> int:
        """The number of elements that may be submitted now."""
        return 0 if active else self.size

    def submit(self, jobs: Sequence[ClusterJob]) -> list[_Submitted]:
        from submitit.core.utils import FailedJobError

        try:
            handles = self.executor.map_array(self.element, jobs)
        except FailedJobError as error:
            said = [line for line in str(error).splitlines() if "sbatch: error" in line] or str(error).splitlines()
            raise ClusterError(f"SLURM refuses the job array: {said[0].strip()}") from error
        return [_Submitted(job, handle) for job, handle in zip(jobs, handles, strict=True)]

    def states(self, active: Sequence[_Submitted]) -> dict[str, str] | None:
        """Job id -> state of every element that SLURM still knows."""
        # squeue and not sacct, since not every cluster keeps accounts.
        lines = _ask("squeue", "--noheader", "--array", "--states=all", f"--name={self.name}", "--format=%i|%T")
        if lines is None:
            return None
        return dict(line.split("|", 1) for line in lines.splitlines())

    def cancel(self) -> None:
        """Cancel every array of this folder, and wait until none of its elements runs."""
        _ask("scancel", "--quiet", f"--name={self.name}")
        deadline = time.monotonic() + CANCEL_SECONDS
        while left := [name for name, state in (self.states([]) or {}).items() if state not in ENDED]:
            if time.monotonic() > deadline:
                raise ClusterError(f"SLURM jobs {', '.join(left)} do not end; cancel them, then run again")
            logger.info("waiting for %d cancelled elements to end", len(left))
            time.sleep(0.5)


class _LocalJobs:
    """Processes on this machine. submitit starts each as soon as it is submitted, so `room` limits them."""

    def __init__(self, executor: Any, element: _Element, concurrent: int) -> None:
        self.executor, self.element, self.concurrent = executor, element, concurrent
        self.started: list[_Submitted] = []

    def room(self, active: int) -> int:
        """The number of processes that may be started now."""
        return self.concurrent - active

    def submit(self, jobs: Sequence[ClusterJob]) -> list[_Submitted]:
        new = []
        for job in jobs:
            new.append(_Submitted(job, self.executor.submit(self.element, job)))
            self.started.append(new[-1])
        return new

    def states(self, active: Sequence[_Submitted]) -> dict[str, str]:
        """Job id (a process id) -> state."""
        return {element.id: "COMPLETED" if element.handle.done() else "RUNNING" for element in active}

    def cancel(self) -> None:
        """Kill the processes. submitit only interrupts them, which a process started with & ignores."""
        for element in self.started:
            if element.handle.done():
                continue
            controller = int(element.id)
            with contextlib.suppress(ProcessLookupError, FileNotFoundError):
                os.kill(controller, signal.SIGSTOP)  # so that it cannot start another child
                for child in Path(f"/proc/{controller}/task/{controller}/children").read_text().split():
                    os.kill(int(child), signal.SIGKILL)
            os.kill(
                controller, signal.SIGKILL
            )  # nobody has waited for it yet, so the id cannot belong to another process
            while not element.handle.done():
                time.sleep(0.01)


def _ask(*command: str) -> str | None:
    """The output of a SLURM command. None, and a line in the log, when it fails: the controller may be restarting."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    except subprocess.CalledProcessError as error:
        logger.warning("%s: %s", command[0], error.stderr.strip())
    except (OSError, subprocess.TimeoutExpired) as error:
        logger.warning("%s", error)
    return None
