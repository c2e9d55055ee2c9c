"""A command as a SLURM job: what is asked of the cluster, from a file of defaults and from flags; through submitit.

Nothing about a cluster is built in. What neither the file nor a flag names is left to SLURM.
"""

from __future__ import annotations

import difflib
import re
import shutil
import subprocess
import time
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO, Union, get_args, get_origin, get_type_hints

import yaml

from lavila.cluster.arrays import ENDED, ClusterError
from lavila.cluster.launch import Launch
from lavila.files import user_path

ASK_SECONDS = 1.0  # pause between two questions about jobs that are followed
SURE = 3  # answers in a row that a job has ended
PLAIN = re.compile(r"[A-Za-z0-9@:,*|&!=./_+\-\[\]()]+")  # names of partitions, accounts and constraints


@dataclass(frozen=True, kw_only=True)
class SlurmSettings:
    """What a job asks for. None: SLURM's own default. The file of defaults has these names."""

    minutes: int | None = None  # time limit; needed, as submitit's default of 5 minutes is nobody's
    nodes: int = 1
    gpus_per_node: int | None = None
    tasks_per_node: int | None = None  # processes on each node; None: one for each GPU, or one
    cpus_per_task: int | None = None
    memory_gb: float | None = None  # of each node
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    name: str | None = None  # None: that of the command
    array: int | None = None  # elements of a job array, which share the work of narrate.py
    array_parallelism: int | None = None  # elements at a time; None: all
    signal_seconds: int = 120  # before the time limit: the signal on which training saves
    logs: str = "runs/slurm"  # folder of logs and submitit's files, which all nodes must see
    setup: tuple[str, ...] = ()  # lines of shell before the command, such as `module load`
    extra: Mapping[str, str] = field(default_factory=dict)  # any further option of sbatch, without the leading dashes

    def __post_init__(self) -> None:
        for name in ("minutes", "nodes", "tasks_per_node", "cpus_per_task", "array", "array_parallelism", "memory_gb"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ClusterError(f"{name}={value}: must be more than 0")
        for name in ("gpus_per_node", "signal_seconds"):
            if (value := getattr(self, name)) is not None and value < 0:
                raise ClusterError(f"{name}={value}: must be 0 or more")
        for name in ("partition", "account", "qos", "constraint", "name"):
            value = getattr(self, name)
            if value is not None and not PLAIN.fullmatch(value):
                raise ClusterError(f"{name}={value!r}: letters, digits and @:,*|&!=./_+-[]() are allowed")

    @property
    def tasks(self) -> int:
        """Processes on each node."""
        return self.tasks_per_node or self.gpus_per_node or 1

    def parameters(self, name: str) -> dict[str, Any]:
        """As submitit takes them. `name`: of the job, where the settings have none. ClusterError without minutes."""
        if self.minutes is None:
            raise ClusterError("no time limit: give --minutes N, or `minutes: N` in the file of --settings")
        further = {key.replace("-", "_"): value for key, value in self.extra.items()}
        slurm = {
            "partition": self.partition,
            "account": self.account,
            "qos": self.qos,
            "constraint": self.constraint,
            "array_parallelism": self.array_parallelism or self.array,
            "setup": list(self.setup) or None,
            "signal_delay_s": self.signal_seconds,
        }
        # A dead process ends all others. Since SLURM 22.05 srun does not inherit the number of CPUs from sbatch.
        cpus = [f"--cpus-per-task={self.cpus_per_task}"] if self.cpus_per_task else []
        given = {
            "timeout_min": self.minutes,
            "nodes": self.nodes,
            "tasks_per_node": self.tasks,
            "gpus_per_node": self.gpus_per_node,
            "cpus_per_task": self.cpus_per_task,
            "mem_gb": self.memory_gb,
            "stderr_to_stdout": True,
            **{f"slurm_{key}": value for key, value in slurm.items()},
            "name": self.name or name,
            "slurm_srun_args": ["--kill-on-bad-exit=1", "--open-mode=append", *cpus],
            "slurm_additional_parameters": {"requeue": True, **further},
        }
        return {key: value for key, value in given.items() if value is not None}


def read_settings(path: Path) -> dict[str, Any]:
    """The values of a file of defaults, by the names of SlurmSettings. ClusterError names what is wrong in it."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise ClusterError(f"{path}: cannot be read ({error.strerror}); name a YAML file of settings") from error
    except yaml.YAMLError as error:
        raise ClusterError(f"{path}: not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(values, dict):
        raise ClusterError(f"{path}: holds a {type(values).__name__}, and lines `name: value` are expected")
    kinds = get_type_hints(SlurmSettings)
    found = {}
    for name, value in values.items():
        if name not in kinds:
            near = difflib.get_close_matches(str(name), kinds, n=1)
            meant = f"Did you mean {near[0]!r}?" if near else f"There are {', '.join(kinds)}"
            raise ClusterError(f"{path}: {name}: no such setting. {meant}")
        found[name] = _typed(f"{path}: {name}", value, kinds[name])
    return found


def _typed(what: str, value: Any, kind: Any) -> Any:
    kinds = (
        [one for one in get_args(kind) if one is not types.NoneType]
        if get_origin(kind) in (Union, types.UnionType)
        else [kind]
    )
    if value is None and len(get_args(kind)) > 1:
        return None
    (wanted,) = kinds
    if get_origin(wanted) is tuple and isinstance(value, list) and all(isinstance(one, str) for one in value):
        return tuple(value)
    if get_origin(wanted) is not None and get_origin(wanted) is not tuple and isinstance(value, dict):
        return {str(key): str(one) for key, one in value.items()}
    if wanted is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if isinstance(wanted, type) and isinstance(value, wanted) and not isinstance(value, bool):
        return value
    shown = (
        getattr(wanted, "__name__", str(wanted))
        if get_origin(wanted) is None
        else "a list of lines"
        if get_origin(wanted) is tuple
        else "lines `option: value`"
    )
    raise ClusterError(f"{what}: {value!r} is not of the right kind; expected {shown}")


def settings_of(file: Path | None, given: Mapping[str, Any]) -> SlurmSettings:
    """The settings of a file of defaults, and above them those that are given (None: not given)."""
    values = read_settings(file) if file is not None else {}
    extra = {**values.pop("extra", {}), **(given.get("extra") or {})}
    values |= {name: value for name, value in given.items() if value is not None and name != "extra"}
    return SlurmSettings(**values, extra=extra)


@dataclass(frozen=True, kw_only=True)
class Submitted:
    """A job, or an element of an array, in SLURM's queue."""

    id: str
    logs: tuple[Path, ...]  # of each rank


def states(jobs: Sequence[Submitted]) -> dict[str, str] | None:
    """SLURM's word for the state of each job that it still knows, by id; None where it does not answer."""
    ids = sorted({job.id.partition("_")[0] for job in jobs})
    asked = subprocess.run(
        ["squeue", "--noheader", "--array", "--states=all", f"--jobs={','.join(ids)}", "--format=%i|%T"],
        capture_output=True,
        text=True,
        check=False,
    )
    if asked.returncode and "Invalid job id" not in asked.stderr:
        return None
    lines = [line.partition("|") for line in asked.stdout.split()]
    return {name: state for name, _, state in lines}


def submit(launch: Launch, settings: SlurmSettings, *, name: str) -> list[Submitted]:
    """Put a command into SLURM's queue: one job, or the elements of an array. ClusterError where SLURM refuses."""
    try:
        import submitit
        from submitit.core.utils import FailedJobError
    except ImportError:
        raise ClusterError("submitting needs submitit: pip install 'lavila[slurm]'") from None
    if shutil.which("sbatch") is None:
        raise ClusterError("sbatch is not in PATH: run this on a machine from which SLURM jobs can be submitted")
    folder = user_path(settings.logs).absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ClusterError(
            f"logs={folder}: cannot be made ({error.strerror}); name another folder with --logs"
        ) from error
    executor = submitit.AutoExecutor(folder=folder, cluster="slurm")
    executor.update_parameters(**settings.parameters(name))
    try:
        if settings.array is None:
            handles = [executor.submit(launch)]
        else:
            handles = executor.map_array(launch, range(settings.array))
    except FailedJobError as error:
        said = [line for line in str(error).splitlines() if "sbatch: error" in line] or str(error).splitlines()
        raise ClusterError(f"SLURM refuses the job: {said[0].strip()}") from error
    ranks = range(settings.nodes * settings.tasks)
    return [
        Submitted(id=str(one.job_id), logs=tuple(folder / f"{one.job_id}_{rank}_log.out" for rank in ranks))
        for one in handles
    ]


def script(settings: SlurmSettings, *, name: str) -> str:
    """The script that sbatch would get, for a look at it. Needs no SLURM."""
    try:
        from submitit.slurm.slurm import SlurmExecutor, _make_sbatch_string
    except ImportError:
        raise ClusterError("submitting needs submitit: pip install 'lavila[slurm]'") from None
    given = settings.parameters(name)
    plain = {key.removeprefix("slurm_"): value for key, value in given.items()}
    equivalents: Mapping[str, Any] = SlurmExecutor._equivalence_dict() or {}
    converted: dict[str, Any] = {equivalents.get(key, key): value for key, value in plain.items()}
    if "mem" in converted:
        converted["mem"] = f"{converted['mem']:g}GB"
    if settings.array is not None:
        converted["map_count"] = settings.array
    folder = user_path(settings.logs).absolute()
    text: str = _make_sbatch_string(command="LAUNCH", folder=folder, **converted)
    return text


class _Follower:
    """A job that is followed: how far its log is copied, and whether it has ended."""

    def __init__(self, job: Submitted) -> None:
        self.job = job
        self.state = "PENDING"
        self._copied = self._seen_ended = 0

    def copy(self, out: TextIO) -> None:
        """What is new in the log of rank 0."""
        if self.job.logs[0].exists():
            with self.job.logs[0].open("rb") as log:
                log.seek(self._copied)
                new = log.read()
            self._copied += len(new)
            out.write(new.decode(errors="replace"))
            out.flush()

    def look(self, found: Mapping[str, str]) -> None:
        """Take SLURM's answer. A job that it has forgotten ended as it was last seen."""
        self.state = found.get(self.job.id, self.state)
        gone = self.state in ENDED or self.job.id not in found
        self._seen_ended = self._seen_ended + 1 if gone else 0

    @property
    def ended(self) -> bool:
        """A job on its way back into the queue may look ended once."""
        return self._seen_ended >= SURE


def follow(jobs: Sequence[Submitted], out: TextIO) -> bool:
    """Copy the logs of rank 0 to `out` until all jobs have ended, through all requeues. Whether they ended well."""
    followers = [_Follower(job) for job in jobs]
    while not all(one.ended for one in followers):
        time.sleep(ASK_SECONDS)
        found = states(jobs)
        for one in followers:
            one.copy(out)
            if found is not None:
                one.look(found)
    return all(one.state == "COMPLETED" for one in followers)
