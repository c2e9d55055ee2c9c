"""tools/submit.py and the processes of its jobs on a real SLURM: ranks, stops, requeues, failures, arrays."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lavila.cluster.arrays import ENDED, ClusterError
from lavila.cluster.launch import Launch, master_port
from lavila.cluster.submission import SlurmSettings, Submitted, follow, states, submit

ROOT = Path(__file__).parents[2]
PATIENCE = 90  # seconds until a test says that nothing happens

pytestmark = pytest.mark.usefixtures("slurm")


def until(happens: Callable[[], Any], *, what: object = "", seconds: float = PATIENCE) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := happens()):
        assert time.monotonic() < deadline, what() if callable(what) else what
        time.sleep(0.1)
    return found


def start(folder: Path, what: str, **settings: Any) -> list[Submitted]:
    """A job of tests/slurm/ranks.py."""
    command = (sys.executable, "-S", str(ROOT / "tests/slurm/ranks.py"), str(folder), what)
    wanted = SlurmSettings(minutes=60, logs=str(folder / "logs"), **settings)
    launch = Launch(command=command, folder=str(folder), when_requeued=("again",))
    return submit(launch, wanted, name="test")


def starts(folder: Path, rank: int = 0) -> list[dict[str, Any]]:
    file = folder / f"rank-{rank}.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def state_of(job: Submitted) -> str:
    """SLURM's word; "" once it has forgotten the job, or where it does not answer."""
    return (states([job]) or {}).get(job.id, "")


def ended(job: Submitted) -> str:
    """SLURM's word for how a job ended."""

    def state() -> str | None:
        found = state_of(job)
        return found if found in ENDED else None

    return str(until(state, what=lambda: f"{state_of(job)}: {shown(job)}"))


def shown(job: Submitted) -> str:
    state = subprocess.run(["scontrol", "show", "job", job.id], capture_output=True, text=True).stdout
    return state + "\n".join(f"{log.name}:\n{log.read_text()}" for log in job.logs if log.exists())


def steps_of(job: Submitted) -> list[str]:
    """The processes of SLURM that look after a job on its nodes."""
    found = []
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found.append(process.read_bytes().decode(errors="replace"))
    return [command for command in found if command.startswith(f"slurmstepd: [{job.id}.")]


def at_once(job: Submitted) -> None:
    """A requeued job waits two minutes, for the end of its first start. Here it waits for no more than that."""
    until(lambda: state_of(job) == "PENDING" and not steps_of(job), what=lambda: f"{state_of(job)}: {shown(job)}")
    time.sleep(2)  # nodes refuse a start in the very second of the last end
    subprocess.run(["scontrol", "update", f"JobId={job.id}", "StartTime=now"], check=True)


def test_every_process_of_two_nodes_is_a_rank_with_a_log(tmp_path: Path) -> None:
    (job,) = start(tmp_path, "done", nodes=2, tasks_per_node=2)
    out = io.StringIO()
    assert follow([job], out), shown(job)
    assert "hello from rank-0" in out.getvalue() and "hello from rank-1" not in out.getvalue()
    found = [starts(tmp_path, rank) for rank in range(4)]
    assert [[one["RANK"] for one in lines] for lines in found] == [["0"], ["1"], ["2"], ["3"]]
    assert [lines[0]["LOCAL_RANK"] for lines in found] == ["0", "1", "0", "1"]
    assert [lines[0]["SLURM_NODEID"] for lines in found] == ["0", "0", "1", "1"]
    assert {(one["WORLD_SIZE"], one["LOCAL_WORLD_SIZE"], one["MASTER_ADDR"]) for (one,) in found} == {
        ("4", "2", "127.0.0.1")
    }
    assert {one["MASTER_PORT"] for (one,) in found} == {str(master_port(int(job.id)))}
    for rank, log in enumerate(job.logs):
        assert f"hello from rank-{rank}" in log.read_text()


def test_a_signal_before_the_end_stops_all_and_the_job_continues(tmp_path: Path) -> None:
    """SLURM's USR2 goes to every process. The command's own processes do not die of it."""
    (job,) = start(tmp_path, "stop", nodes=2)
    until(lambda: starts(tmp_path, 0) and starts(tmp_path, 1), what=lambda: shown(job))
    subprocess.run(["scancel", "--signal=USR2", job.id], check=True)
    at_once(job)
    assert ended(job) == "COMPLETED", shown(job)
    assert [(tmp_path / f"rank-{rank}.saved").read_text() for rank in (0, 1)] == ["None", "None"]  # helpers lived
    for rank in (0, 1):
        assert [one["further"] for one in starts(tmp_path, rank)] == [[], ["again"]]
        assert job.logs[rank].read_text().count(f"hello from rank-{rank}") == 2  # the log of the first start is kept


def test_a_cancelled_job_saves_and_stays_away(tmp_path: Path) -> None:
    (job,) = start(tmp_path, "stop", tasks_per_node=2)
    until(lambda: starts(tmp_path, 0) and starts(tmp_path, 1), what=lambda: shown(job))
    subprocess.run(["scancel", job.id], check=True)
    assert ended(job) == "CANCELLED", shown(job)
    assert all((tmp_path / f"rank-{rank}.saved").exists() for rank in (0, 1))
    time.sleep(1)
    assert state_of(job) in ("CANCELLED", "") and len(starts(tmp_path)) == 1


def test_a_dead_rank_takes_the_job_down(tmp_path: Path) -> None:
    (job,) = start(tmp_path, "die", nodes=2)
    assert not follow([job], io.StringIO()) and ended(job) == "FAILED"
    assert "SIGKILL" in job.logs[1].read_text()
    (line,) = starts(tmp_path, 0)
    command = Path(f"/proc/{line['pid']}/cmdline")
    until(lambda: not command.exists() or not command.read_bytes(), what="rank 0 is left")


def test_one_failing_element_of_an_array_leaves_the_others(tmp_path: Path) -> None:
    jobs = start(tmp_path, "fail", array=3, array_parallelism=2)
    assert [job.id.partition("_")[2] for job in jobs] == ["0", "1", "2"]
    assert [ended(job) for job in jobs] == ["COMPLETED", "FAILED", "COMPLETED"]
    assert "status 3" in jobs[1].logs[0].read_text() and (tmp_path / "element-2.jsonl").exists()


def test_a_refusal_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match=r"SLURM refuses the job: .*partition") as refused:
        start(tmp_path, "done", partition="nowhere")
    assert "\n" not in str(refused.value)
