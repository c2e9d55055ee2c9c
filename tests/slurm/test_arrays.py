"""lavila/cluster/arrays.py on a real SLURM, and by the same path on submitit's local executor."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest

from lavila.cluster import arrays as _cluster
from lavila.cluster.arrays import ClusterError, ClusterOptions, run_on_cluster
from lavila.cluster.workers import Progress
from tests.slurm.conftest import MAX_ARRAY
from tests.slurm.toys import Toy

ROOT = Path(__file__).parents[2]
Cluster = Literal["slurm", "local"]
SMALL = ClusterOptions(item_seconds=30, minutes=60, cpus=1, memory_gb=1)  # an hour: see submitit's has_timed_out


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_cluster, "POLL_SECONDS", {"slurm": 0.3, "local": 0.1})
    monkeypatch.setattr(_cluster, "SETTLE_SECONDS", 1.0)
    monkeypatch.setattr(_cluster, "REPORT_SECONDS", 0.0)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # where nodes find the toys; SLURM hands the environment on


@pytest.fixture(params=["local", "slurm"])
def cluster(request: pytest.FixtureRequest) -> Cluster:
    if request.param == "slurm":
        request.getfixturevalue("slurm")
        return "slurm"
    return "local"


def run(
    cluster: Cluster, jobs: Sequence[Toy], *, concurrent: int = 4, then: Callable[[Progress], Any] = lambda _: None
) -> list[Progress]:
    """`then` is called at each look at the cluster."""
    reported: list[Progress] = []

    def on_progress(progress: Progress) -> None:
        reported.append(progress)
        then(progress)

    run_on_cluster(
        jobs,
        cluster=cluster,
        concurrent=concurrent,
        folder=jobs[0].folder / "logs",
        options=SMALL,
        on_progress=on_progress,
    )
    return reported


def outcome(toy: Toy) -> list[str]:
    return list(json.loads(toy.result.read_text()).values())


def runs(toy: Toy) -> list[list[float]]:
    """Of each time that the job was run: when it began and, if it did, ended."""
    if not toy.runs.exists():
        return []
    return [[float(word) for word in line.split()[1:]] for line in toy.runs.read_text().split("\n") if line]


def ask(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def queue() -> dict[str, str]:
    """Id -> state of what SLURM has not ended."""
    lines = ask("squeue", "--noheader", "--array", "--format=%i|%T").split()
    return dict(line.split("|") for line in lines)


class Once:
    """Acts on the cluster when a job is first seen to run, one command at each look, then lets the job continue.

    A requeued element may then start without the two minutes for which SLURM holds it back.
    """

    def __init__(self, toy: Toy, *commands: tuple[str, ...]) -> None:
        self.toy, self.commands, self.go = toy, list(commands), toy.folder / "go"
        self.release = 0.0

    def __call__(self, progress: Progress) -> None:
        if self.commands and runs(self.toy):
            (element,) = queue()
            ask(*self.commands.pop(0), element)
            self.go.touch()
            # Not before its first life is over: SLURM would take that one's exit status for the second one's.
            self.release = time.monotonic() + 3
        elif not self.commands and time.monotonic() > self.release:
            for element in queue():
                subprocess.run(["scontrol", "update", f"JobId={element}", "StartTime=now"], capture_output=True)


def held(tmp_path: Path, number: int = 0) -> Toy:
    """A job that is at its second item until the file `go` is there."""
    return Toy(number=number, items=("a", f"until {tmp_path}/go exists", "b"), folder=tmp_path)


def test_never_more_than_asked_for_at_a_time(tmp_path: Path, cluster: Cluster) -> None:
    """Eight jobs, two at a time; on SLURM they need two arrays. None continues before two have begun."""
    assert MAX_ARRAY < 8
    items = ("a", "refuse", f"until {tmp_path}/go exists", "slow")
    jobs = [Toy(number=n, items=items, folder=tmp_path) for n in range(8)]

    def let_go(_: Progress) -> None:
        if sum(bool(runs(toy)) for toy in jobs) >= 2:
            (tmp_path / "go").touch()

    reported = run(cluster, jobs, concurrent=2, then=let_go)
    assert reported[-1] == Progress(stored=24, failed=8, jobs=8)
    assert any(0 < progress.jobs < 8 for progress in reported)
    for toy in jobs:
        assert outcome(toy) == ["stored", "not available", "stored", "stored"]
    spans = [span for toy in jobs for span in runs(toy)]
    assert len(spans) == 8
    at_once = [sum(begin <= start < end for begin, end in spans) for start, _ in spans]
    assert max(at_once) == 2
    assert len(list((tmp_path / "logs").glob("*_submission.sh"))) == (2 if cluster == "slurm" else 0)


def test_what_is_done_is_not_done_again(tmp_path: Path, cluster: Cluster) -> None:
    jobs = [Toy(number=n, items=("a",), folder=tmp_path) for n in range(2)]
    jobs[0].result.write_text("{}")
    assert run(cluster, jobs)[-1] == Progress(stored=1, jobs=1)
    assert (len(runs(jobs[0])), len(runs(jobs[1]))) == (0, 1)
    assert run(cluster, jobs) == []


def test_an_item_that_crashes_is_lost_on_a_node_as_well(tmp_path: Path, cluster: Cluster) -> None:
    toy = Toy(number=0, items=("a", "segv", "b"), folder=tmp_path)
    reported = run(cluster, [toy])
    assert reported[-1] == Progress(stored=2, failed=1, lost=1, jobs=1)
    assert outcome(toy) == ["stored", "crashed its process (SIGSEGV)", "stored"]
    assert toy.remembered() == {"1": "crashed its process (SIGSEGV)"}


def test_a_failed_element_is_named_and_the_others_are_done(tmp_path: Path, cluster: Cluster) -> None:
    jobs = [Toy(number=n, items=("full" if n == 1 else "a",), folder=tmp_path) for n in range(3)]
    with pytest.raises(ClusterError) as caught:
        run(cluster, jobs)
    message = str(caught.value)
    assert f"1 of 3 jobs failed on the cluster; the first is job 1, {cluster} job " in message
    assert "OSError: [Errno 28] No space left on device: '/data/out'" in message
    log = Path(message.split("its log is ")[1].split(";")[0])
    assert log.parent == tmp_path / "logs" and "in full_disk" in log.read_text()
    assert [toy.is_done() for toy in jobs] == [True, False, True]
    assert "\n" not in message


def test_an_element_that_was_cancelled_is_done_by_the_next_run(tmp_path: Path, slurm: None) -> None:
    toy = held(tmp_path)
    with pytest.raises(ClusterError, match=r"job 0.*\(CANCELLED\): .*(SIG(TERM|CONT)|CANCELLED AT)"):
        # The file is made after the element is gone, or it would end well.
        run("slurm", [toy], then=Cancel(toy))
    assert not toy.is_done()
    (tmp_path / "go").touch()
    assert run("slurm", [toy])[-1] == Progress(stored=3, jobs=1)
    assert outcome(toy) == ["stored"] * 3


class Cancel(Once):
    def __init__(self, toy: Toy) -> None:
        super().__init__(toy, ("scancel",))
        self.go = toy.folder / "gone"


REQUEUED = [("scontrol", "requeue")]
PREEMPTED = [("scancel", "--signal=TERM"), ("scancel", "--signal=USR2")]  # to every process of the element


@pytest.mark.parametrize("commands", [REQUEUED, PREEMPTED], ids=["requeued", "preempted"])
def test_an_element_that_is_put_back_comes_to_the_same_result(
    tmp_path: Path, slurm: None, commands: list[tuple[str, ...]]
) -> None:
    toy = held(tmp_path)
    put_back = Once(toy, *commands)
    put_back.go = tmp_path / "acted"  # the first run of the job must not end well

    def then(progress: Progress) -> None:
        put_back(progress)
        if len(runs(toy)) == 2:
            (tmp_path / "go").touch()

    assert run("slurm", [toy], then=then)[-1] == Progress(stored=3, jobs=1)
    assert [len(span) for span in runs(toy)] == [1, 2]
    assert outcome(toy) == ["stored"] * 3


PARENT = """
import sys
from pathlib import Path
import lavila.cluster.arrays
from lavila.cluster.arrays import ClusterOptions, run_on_cluster
from tests.slurm.test_arrays import SMALL, held
lavila.cluster.arrays.POLL_SECONDS = {"slurm": 0.3, "local": 0.1}
folder = Path(sys.argv[2])
try:
    run_on_cluster([held(folder, n) for n in range(3)], cluster=sys.argv[1], concurrent=2, folder=folder / "logs",
                   options=SMALL, on_progress=lambda progress: None)
except KeyboardInterrupt:
    print("interrupted")
"""


def start_parent(tmp_path: Path, cluster: Cluster) -> subprocess.Popen[str]:
    """A run of three jobs, two of which have begun."""
    (tmp_path / "parent.py").write_text(PARENT)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(tmp_path / "parent.py"), cluster, str(tmp_path)]
    pipe = subprocess.PIPE
    parent = subprocess.Popen(command, env=environment, stdout=pipe, text=True, start_new_session=True)
    deadline = time.monotonic() + 60
    while sum(len(runs(held(tmp_path, n))) for n in range(3)) < 2:
        assert parent.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    return parent


def workers(tmp_path: Path) -> list[int]:
    """Processes that still work on a job."""
    lines = [line for path in tmp_path.glob("*.runs") for line in path.read_text().split("\n") if line]
    pids = [int(line.split()[0]) for line in lines]
    return [pid for pid in pids if Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes()]


def test_an_interrupt_of_the_parent_alone_ends_local_elements(tmp_path: Path) -> None:
    parent = start_parent(tmp_path, "local")
    parent.send_signal(signal.SIGINT)
    assert parent.communicate(timeout=60)[0] == "interrupted\n"
    assert workers(tmp_path) == []


def test_ctrl_c_cancels_and_the_next_run_ends_well(tmp_path: Path, cluster: Cluster) -> None:
    parent = start_parent(tmp_path, cluster)
    assert len(workers(tmp_path)) == 2
    os.killpg(parent.pid, signal.SIGINT)
    assert parent.communicate(timeout=60)[0] == "interrupted\n"
    assert workers(tmp_path) == []
    if cluster == "slurm":
        assert queue() == {}
    (tmp_path / "go").touch()
    jobs = [held(tmp_path, n) for n in range(3)]
    run(cluster, jobs)
    assert [outcome(toy) for toy in jobs] == [["stored"] * 3] * 3


def test_what_a_killed_run_left_in_the_queue_is_cancelled(tmp_path: Path, slurm: None) -> None:
    parent = start_parent(tmp_path, "slurm")
    parent.kill()
    parent.communicate()
    old = queue()
    assert len(old) == 3
    (tmp_path / "other").mkdir()
    (tmp_path / "other/go").touch()
    run("slurm", [held(tmp_path / "other")])  # the work of another folder
    assert queue().keys() == old.keys()
    seen: set[str] = set()

    def then(progress: Progress) -> None:
        seen.update(queue())
        (tmp_path / "go").touch()

    jobs = [held(tmp_path, n) for n in range(3)]
    run("slurm", jobs, then=then)
    assert not seen & old.keys()
    assert [outcome(toy) for toy in jobs] == [["stored"] * 3] * 3


def test_slurms_refusal_is_an_error(tmp_path: Path, slurm: None) -> None:
    with pytest.raises(ClusterError, match="sbatch"):
        run_on_cluster(
            [held(tmp_path)],
            cluster="slurm",
            concurrent=1,
            folder=tmp_path / "logs",
            options=ClusterOptions(partition="nonsense"),
            on_progress=lambda progress: None,
        )


def test_further_options_reach_sbatch(tmp_path: Path, slurm: None) -> None:
    toy = Toy(number=0, items=("a",), folder=tmp_path)
    extra = {"cpus-per-task": "3", "comment": "by hand", "partition": "main"}
    run_on_cluster(
        [toy],
        cluster="slurm",
        concurrent=1,
        folder=tmp_path / "logs",
        options=ClusterOptions(extra=extra),
        on_progress=lambda progress: None,
    )
    (script,) = (tmp_path / "logs").glob("*_submission.sh")
    text = script.read_text()
    assert text.count("--cpus-per-task=3") == 2  # sbatch's and srun's
    assert "--cpus-per-task=2" not in text and "--comment='by hand'" in text


def test_a_scheduler_that_gives_no_answer_is_asked_again(tmp_path: Path, slurm: None, monkeypatch: Any) -> None:
    """As when slurmctld is restarted."""
    real, silent = _cluster._ask, [0]

    def ask_in_vain(*command: str) -> str | None:
        if command[0] == "squeue" and (tmp_path / "0.runs").exists() and silent[0] < 5:
            silent[0] += 1
            return None
        return real(*command)

    monkeypatch.setattr(_cluster, "_ask", ask_in_vain)
    toy = Toy(number=0, items=("a",), folder=tmp_path)
    run("slurm", [toy])
    assert silent[0] == 5 and outcome(toy) == ["stored"]


def test_without_submitit_or_slurm_it_is_said_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ClusterError, match=r"sbatch.*PATH"):
        run("slurm", [held(tmp_path)])
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(ClusterError, match=r"pip install 'lavila\[slurm\]'"):
        run("local", [held(tmp_path)])


def test_submitit_is_imported_only_when_used() -> None:
    code = "import sys, lavila.cluster.arrays; print('submitit' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
