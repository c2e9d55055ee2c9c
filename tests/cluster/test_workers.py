"""lavila/cluster/workers.py with processes that really crash, hang and are killed."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from lavila.cluster import workers
from lavila.cluster.workers import Progress, WorkerDied, run_jobs
from tests.forks import start_from_nothing
from tests.slurm.toys import Toy

ROOT = Path(__file__).parents[2]
SECONDS = 0.5  # for an item, where one is to take too long


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "GRACE_SECONDS", 0.3)
    monkeypatch.setattr(workers, "_start", start_from_nothing)


def run(jobs: Sequence[Toy], *, processes: int = 2, seconds: float = 60, memory: int | None = None) -> list[Progress]:
    progress: list[Progress] = []
    run_jobs(jobs, workers=processes, item_seconds=seconds, on_progress=progress.append, memory=memory)
    return progress


def outcome(toy: Toy) -> dict[str, str]:
    return dict(json.loads(toy.result.read_text()))


def children() -> list[str]:
    """Worker processes of this one. (A test run has other children as well, and zombies have no command line.)"""
    found = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    return [pid for pid in found if not command_line(pid) or "spawn_main" in command_line(pid)]


def command_line(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return "gone"


def test_all_jobs_are_run_and_counted(tmp_path: Path) -> None:
    jobs = [Toy(number=n, items=("a", "refuse", "b"), folder=tmp_path) for n in range(5)]
    before = children()
    progress = run(jobs)
    assert progress[-1] == Progress(stored=10, failed=5, lost=0, jobs=5)
    for toy in jobs:
        assert outcome(toy) == {"0 a": "stored", "1 refuse": "not available", "2 b": "stored"}
        assert len(toy.runs.read_text().split("\n")) == 2
    assert children() == before


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        ("segv", "crashed its process (SIGSEGV)"),
        ("abort", "crashed its process (SIGABRT)"),
        ("exit", "ended its process (exit status 3)"),
        ("spin", "took longer than 0.5 s"),
        ("sleep", "took longer than 0.5 s"),
    ],
)
def test_an_item_that_takes_its_process_down_is_lost_alone(tmp_path: Path, item: str, reason: str) -> None:
    toy = Toy(number=3, items=("a", item, "b", item), folder=tmp_path)
    progress = run([toy], seconds=SECONDS)
    assert outcome(toy) == {"0 a": "stored", f"1 {item}": reason, "2 b": "stored", f"3 {item}": reason}
    assert progress[-1] == Progress(stored=2, failed=2, lost=2, jobs=1)
    assert toy.remembered() == {"1": reason, "3": reason}
    assert children() == []

    first = toy.result.read_bytes()
    toy.result.unlink()
    assert run([toy], seconds=SECONDS)[-1] == Progress(stored=2, failed=2, lost=0, jobs=1)  # not tried again
    assert toy.result.read_bytes() == first


def test_memory_that_is_not_there_is_the_items_loss(tmp_path: Path) -> None:
    toy = Toy(number=0, items=("a", "allocate", "b"), folder=tmp_path)
    run([toy], memory=512 << 20)
    assert outcome(toy)["1 allocate"] == "needs more memory than the 512 MiB it may use"
    assert outcome(toy)["2 b"] == "stored"


def test_a_worker_does_not_inherit_real_time_priority(tmp_path: Path) -> None:
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    except PermissionError:
        pytest.skip("real-time priority is for root, or for who is allowed it")
    try:
        toy = Toy(number=0, items=("ordinary",), folder=tmp_path)
        run([toy])
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    assert outcome(toy) == {"0 ordinary": "stored"}


def test_a_killed_process_is_no_items_fault(tmp_path: Path) -> None:
    toy = Toy(number=0, items=("a", "killed"), folder=tmp_path)
    with pytest.raises(WorkerDied, match=r"--resume.*--workers"):
        run([toy])
    assert not toy.losses.exists()
    assert children() == []


def test_a_crash_between_items_is_no_items_fault(tmp_path: Path) -> None:
    with pytest.raises(WorkerDied, match=r"job 4.*SIGSEGV"):
        run([Toy(number=4, items=("a",), folder=tmp_path, before_end="segv")])


def test_a_job_that_tries_a_lost_item_again_is_stopped(tmp_path: Path) -> None:
    with pytest.raises(WorkerDied, match=r"item 0"):
        run([Toy(number=0, items=("segv",), folder=tmp_path, obeys=False)])


def test_an_error_of_a_job_ends_the_run_as_what_it_is(tmp_path: Path) -> None:
    jobs = [Toy(number=0, items=("sleep",), folder=tmp_path), Toy(number=1, items=("full",), folder=tmp_path)]
    with pytest.raises(OSError, match="No space left on device: '/data/out'") as caught:
        run(jobs)
    assert caught.value.errno == errno.ENOSPC
    assert "in full_disk" in caught.value.__notes__[0]  # the traceback in the worker
    assert children() == []


@pytest.mark.parametrize(("item", "message"), [("odd", "Odd: odd 7"), ("leave", "SystemExit: 5")])
def test_an_error_that_cannot_travel_is_reported_in_words(tmp_path: Path, item: str, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        run([Toy(number=0, items=(item,), folder=tmp_path)])


def test_the_caller_may_end_the_run(tmp_path: Path) -> None:
    class Enough(Exception):
        pass

    def enough(progress: Progress) -> None:
        if progress.failed:
            raise Enough

    with pytest.raises(Enough):
        run_jobs(
            [Toy(number=0, items=("refuse", "sleep"), folder=tmp_path)], workers=1, item_seconds=60, on_progress=enough
        )
    assert children() == []


def test_time_that_the_whole_run_is_stopped_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy = Toy(number=0, items=("slow",), folder=tmp_path)
    real, leap = time.monotonic, [0.0]
    monkeypatch.setattr(workers.time, "monotonic", lambda: real() + leap[0])

    def stop(progress: Progress) -> None:
        if toy.runs.exists() and not leap[0]:
            leap[0] = 3600.0

    run_jobs([toy], workers=1, item_seconds=3, on_progress=stop)
    assert leap[0]
    assert outcome(toy) == {"0 slow": "stored"}


def test_any_number_of_kills_later_the_result_is_the_same(tmp_path: Path) -> None:
    """One worker is killed at each of three places, and the run started again, as a user would."""
    gates = [tmp_path / f"gate-{n}" for n in range(3)]
    one, two, three = (f"until {gate} exists" for gate in gates)
    items = ("a", one, "refuse", "segv", two, "b", three)
    hunted = [Toy(number=n, items=items, folder=tmp_path / "hunted") for n in range(2)]
    hunted[0].folder.mkdir()
    for gate, place in zip(gates, (1, 4, 6), strict=True):
        killed: list[str] = []

        def hunt(progress: Progress, place: int = place, killed: list[str] = killed) -> None:
            if progress.stored + progress.failed == place * len(hunted) and not killed:  # all wait at the gate
                killed.extend(children()[:1])
                for ending in (signal.SIGTERM, signal.SIGINT, signal.SIGKILL):  # the first two are left to the parent
                    os.kill(int(killed[0]), ending)

        with pytest.raises(WorkerDied):
            run_jobs(hunted, workers=2, item_seconds=60, on_progress=hunt)
        assert killed and children() == [] and not any(toy.is_done() for toy in hunted)
        gate.touch()
    run(hunted)
    plain = [Toy(number=n, items=items, folder=tmp_path / "plain") for n in range(2)]
    plain[0].folder.mkdir()
    run(plain)
    assert [toy.result.read_bytes() for toy in hunted] == [toy.result.read_bytes() for toy in plain]


PARENT = """
import sys
from pathlib import Path
from lavila.cluster.workers import run_jobs
from tests.slurm.toys import Toy
if __name__ == "__main__":
    jobs = [Toy(number=n, items=(sys.argv[2],), folder=Path(sys.argv[1])) for n in range(2)]
    try:
        run_jobs(jobs, workers=2, item_seconds=60, on_progress=lambda progress: None)
    except KeyboardInterrupt:
        print("interrupted")
"""


@pytest.mark.parametrize("item", ["spin", "sleep"])
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_workers_end_with_their_parent(tmp_path: Path, item: str, end: signal.Signals) -> None:
    (tmp_path / "parent.py").write_text(PARENT)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path / "tmp")}
    (tmp_path / "tmp").mkdir()
    command = [sys.executable, str(tmp_path / "parent.py"), str(tmp_path), item]
    parent = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    started = [tmp_path / f"{n}.runs" for n in range(2)]
    wait_for(lambda: all(path.exists() and path.read_text() for path in started), "the workers")
    pids = [int(path.read_text().split()[0]) for path in started]
    # Ctrl-C reaches the whole process group; the others only the parent.
    os.killpg(parent.pid, end) if end is signal.SIGINT else parent.send_signal(end)
    out, err = parent.communicate(timeout=10)
    assert (out, err) == ("interrupted\n" if end is signal.SIGINT else "", "")
    wait_for(lambda: not any(alive(pid) for pid in pids), "the workers to end")
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_worker_does_not_import_the_command(tmp_path: Path) -> None:
    (tmp_path / "parent.py").write_text(f"print('imported', flush=True)\n{PARENT}")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, tmp_path / "parent.py", tmp_path, "a"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "imported\n"
    assert [outcome(Toy(number=n, items=("a",), folder=tmp_path)) for n in range(2)] == [{"0 a": "stored"}] * 2


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended may be kept by the system until its new parent asks for it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, f"waited 20 s for {what}"
        time.sleep(0.02)


def test_nothing_heavy_is_imported() -> None:
    code = "import sys, lavila.cluster.workers; print([m for m in ('torch', 'av', 'nvidia.dali') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_wrong_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="workers"):
        run_jobs([], workers=0, item_seconds=1, on_progress=lambda progress: None)
