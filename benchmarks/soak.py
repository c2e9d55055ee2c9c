"""Trains a tiny model with two ranks while faults are injected, and looks at what the processes take and what is lost.

    python tools/make_toy_data.py
    python -m benchmarks.soak [--minutes 30]

A copy of the toy set is damaged in one of its sixteen clips after it was written. In the first half of the time a run
is ended again and again: SIGKILL for both ranks, SIGKILL for one, SIGTERM for one. Each time the same command continues
it. In the second half the processes stay. All the time smaller faults come in turn: a rank is paused until the others
have named it, no file may grow (a full disk), a signal asks for a save. At the end SIGTERM stops the run, and a run
that nobody disturbs repeats its first updates.

Memory, open files, threads and child processes of each rank are read from /proc once a second. Memory is flat where the
processes that stay do not grow once they are warm. Writes benchmarks/results/soak.json and the table of
docs/RELIABILITY.md, and ends with status 1 where anything was lost or leaked.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import random
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import common
from benchmarks.common import ROOT, fill_docs, machine
from benchmarks.ports import free_ports
from lavila.cluster.launch import STOPPED
from lavila.report.files import read_metrics
from lavila.shards.reader import open_shard_set

DOCS = ROOT / "docs/RELIABILITY.md"
TOY = ROOT / "data/toy/ek100/shards/train"
RANKS = 2
LIVES = 6  # of the run in the first half
PAUSE_SECONDS, STALL_SECONDS, FULL_SECONDS = 4.0, 2.0, 3.0
PATIENCE_SECONDS = 120.0  # until a process is ready, or has ended
GROWTH_MIB = 64.0  # of a warm process, over the second half; more is a leak
SETTINGS = (
    "device=cpu", "log_every_steps=1", "checkpoint_every_steps=20", "checkpoint_every_minutes=0.2", "data.batch_size=4",
    "data.threads=1", "optim.epochs=1000000", "optim.precision=fp32", "optim.schedule=constant", "keep_best=",
    "evals.val.every_epochs=0", f"engine.stall_seconds={STALL_SECONDS}", "data.max_bad_clips=1000",
)  # fmt: skip


@dataclass
class Usage:
    """What a rank has taken, one number a second."""

    memory: list[float] = field(default_factory=list)  # resident, MiB
    files: list[int] = field(default_factory=list)
    threads: list[int] = field(default_factory=list)
    children: list[int] = field(default_factory=list)

    def look(self, pid: int) -> None:
        """Add the numbers of now."""
        folder = Path(f"/proc/{pid}")
        with contextlib.suppress(OSError, StopIteration):
            lines = (folder / "status").read_text().splitlines()
            memory = next(line for line in lines if line.startswith("VmRSS")).split()[1]
            tasks = list((folder / "task").iterdir())
            children = [child for task in tasks for child in (task / "children").read_text().split()]
            files = len(list((folder / "fd").iterdir()))
            self.memory.append(int(memory) / 1024)
            self.files.append(files)
            self.threads.append(len(tasks))
            self.children.append(len(children))


class Ranks:
    """One start of the run: two processes, what they log, and what they take."""

    def __init__(self, run_dir: Path, shards: Path) -> None:
        (port,) = free_ports(1)
        self.run_dir, self.log = run_dir, list[str]()
        self.usage = [Usage() for _ in range(RANKS)]
        command = [sys.executable, str(ROOT / "train.py"), "--config", "ek100_cls_tsf_l", "--config", "toy", *SETTINGS]
        command += [f"run_dir={run_dir}", f"data.train={shards}"]
        self.processes = []
        for rank in range(RANKS):
            own = {
                "RANK": rank,
                "WORLD_SIZE": RANKS,
                "LOCAL_RANK": rank,
                "LOCAL_WORLD_SIZE": RANKS,
                "MASTER_PORT": port,
            }
            environment = os.environ | {name: str(value) for name, value in own.items()}
            environment |= {"MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}
            # A pipe, since the limit on files must not reach the log.
            process = subprocess.Popen(
                command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )
            self.processes.append(process)
            threading.Thread(target=self._read, args=(process,), daemon=True).start()

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        self.log.extend(process.stdout)

    def look(self) -> None:
        """Read what the ranks take."""
        for process, usage in zip(self.processes, self.usage, strict=True):
            usage.look(process.pid)

    def wait_for(self, holds: Callable[[], bool]) -> None:
        """Wait until something holds, and look once a second."""
        end = time.monotonic() + PATIENCE_SECONDS
        while not holds():
            assert time.monotonic() < end, "".join(self.log[-40:])
            time.sleep(0.2)

    def run_for(self, seconds: float) -> None:
        """Let them train."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            assert all(process.poll() is None for process in self.processes), "".join(self.log[-40:])
            self.look()
            time.sleep(min(1.0, max(0.0, end - time.monotonic())))

    def ended(self) -> list[int]:
        """Wait for the end of all. Returns their statuses."""
        for process in self.processes:
            process.wait(PATIENCE_SECONDS)
        return [process.returncode for process in self.processes]

    def count(self, text: str) -> int:
        """Lines of the log with a text."""
        return sum(text in line for line in list(self.log))


class Soak:
    """The whole time, and what happened in it."""

    def __init__(self, folder: Path, shards: Path, *, seconds: float, seed: int) -> None:
        self.run_dir, self.shards, self.seconds = folder / "run", shards, seconds
        self.chance = random.Random(seed)
        self.faults: Counter[str] = Counter()
        self.seen: Counter[str] = Counter()  # what the log says of them
        self.soft = itertools.cycle((self._pause, self._refuse, self._ask_for_save))

    def lines(self) -> int:
        """Updates in the log of the run so far."""
        return len(read_metrics(self.run_dir / "metrics.jsonl"))

    def begin(self) -> Ranks:
        """Start or continue the run, and wait for its first new line."""
        before = self.lines()
        ranks = Ranks(self.run_dir, self.shards)
        ranks.wait_for(lambda: ranks.count(" loss ") > 1 or any(p.poll() is not None for p in ranks.processes))
        assert before == 0 or ranks.count("resumed from") == 1, "".join(ranks.log[-40:])
        return ranks

    def live(self, ranks: Ranks, seconds: float) -> None:
        """Train for so long with a smaller fault every few seconds."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            ranks.run_for(min(left, 5.0))
            if end - time.monotonic() > 2 * PAUSE_SECONDS:
                next(self.soft)(ranks)

    def _pause(self, ranks: Ranks) -> None:
        victim = self.chance.choice(ranks.processes)
        victim.send_signal(signal.SIGSTOP)
        time.sleep(PAUSE_SECONDS)
        victim.send_signal(signal.SIGCONT)
        self.faults["a rank is paused"] += 1

    def _refuse(self, ranks: Ranks) -> None:
        for most in (1024, resource.RLIM_INFINITY):
            for process in ranks.processes:
                with contextlib.suppress(ProcessLookupError):
                    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))
            if most == 1024:
                ranks.processes[0].send_signal(signal.SIGUSR1)  # so that a save meets the limit
                ranks.run_for(FULL_SECONDS)
        self.faults["no file may grow, and a save is due"] += 1

    def _ask_for_save(self, ranks: Ranks) -> None:
        self.chance.choice(ranks.processes).send_signal(signal.SIGUSR1)
        self.faults["a signal asks for a save"] += 1

    def end(self, ranks: Ranks, how: str) -> None:
        """End a life of the run."""
        if how == "SIGTERM for one rank":
            self.chance.choice(ranks.processes).send_signal(signal.SIGTERM)
            assert ranks.ended() == [STOPPED] * RANKS, "".join(ranks.log[-40:])
        else:
            victims = ranks.processes if how == "SIGKILL for both ranks" else [self.chance.choice(ranks.processes)]
            for victim in victims:
                victim.kill()
            assert 0 not in ranks.ended()
        self.faults[how] += 1
        for what, text in SAID.items():
            self.seen[what] += ranks.count(text)

    def run(self) -> Ranks:
        """All of it. Returns the ranks of the second half."""
        ways = itertools.cycle(("SIGKILL for both ranks", "SIGTERM for one rank", "SIGKILL for one rank"))
        half = time.monotonic() + self.seconds / 2
        for number in range(LIVES):
            ranks = self.begin()
            self.live(ranks, max(3.0, (half - time.monotonic()) / (LIVES - number)))
            self.end(ranks, next(ways))
            if time.monotonic() > half:
                break
        ranks = self.begin()
        self.live(ranks, self.seconds / 2)
        self.end(ranks, "SIGTERM for one rank")
        return ranks


SAID = {
    "lines that name a rank that stands still": "Behind all others",
    "saves that failed": "could not be written",
    "saves that were not begun": "is not saved",
    "checkpoints": "checkpoint: ",
}


def damaged(folder: Path) -> Path:
    """A copy of the toy set with zeros in the middle of one clip."""
    shards = open_shard_set(TOY)
    copy = folder / "shards"
    shutil.copytree(TOY, copy)
    clip = shards.clips.slice(5, 1).to_pylist()[0]
    with (copy / f"shard-{clip['shard']:06d}.tar").open("r+b") as tar:
        tar.seek(clip["offset"] + 32)
        tar.write(bytes(clip["size"] - 64))
    return copy


def losses(run_dir: Path) -> list[tuple[int, float]]:
    """Update and loss of each line."""
    return [(line["step"], line["loss"]) for line in read_metrics(run_dir / "metrics.jsonl")]


def undisturbed(folder: Path, shards: Path, *, seconds: float) -> list[tuple[int, float]]:
    """The first updates of a run that nobody disturbs."""
    ranks = Ranks(folder / "undisturbed", shards)
    ranks.wait_for(lambda: ranks.count(" loss ") > 1)
    ranks.run_for(seconds)
    ranks.processes[0].send_signal(signal.SIGTERM)
    assert ranks.ended() == [STOPPED] * RANKS, "".join(ranks.log[-40:])
    return losses(folder / "undisturbed")


def growth(usage: Usage) -> dict[str, float]:
    """How a process that stayed has changed, from the first fifth after a warm-up to the last fifth of its samples."""
    warm = len(usage.memory) // 4
    part = max(1, len(usage.memory) // 5)

    def change(values: list[Any]) -> tuple[float, float]:
        return statistics.median(values[warm : warm + part]), statistics.median(values[-part:])

    first, last = change(usage.memory)
    return {
        "memory_mib": last,
        "memory_growth_mib": last - first,
        "files_growth": change(usage.files)[1] - change(usage.files)[0],
        "threads_growth": change(usage.threads)[1] - change(usage.threads)[0],
        "children": max(usage.children),
        "samples": len(usage.memory),
    }


def measure(folder: Path, *, minutes: float, seed: int) -> dict[str, Any]:
    """Run it, and say what came of it."""
    shards = damaged(folder)
    began = time.monotonic()
    soak = Soak(folder, shards, seconds=60 * minutes, seed=seed)
    last = soak.run()
    took = time.monotonic() - began
    found = losses(soak.run_dir)
    alone = undisturbed(folder, shards, seconds=max(20.0, 60 * minutes / 6))
    both = min(len(found), len(alone))
    left_over = [path.name for path in (soak.run_dir / "checkpoints").iterdir() if path.name.startswith(".")]
    return {
        "minutes": round(took / 60, 1),
        "updates": len(found),
        "faults": dict(soak.faults),
        "log": dict(soak.seen),
        "lost_or_doubled": sum(
            a != b for a, b in zip([step for step, _ in found], range(1, len(found) + 1), strict=True)
        ),
        "compared_updates": both,
        "different_losses": sum(a != b for a, b in zip(found[:both], alone[:both], strict=True)),
        "ranks": [growth(usage) for usage in last.usage],
        "left_over": left_over,
        "bad_clips": len(read_metrics(soak.run_dir / "bad_clips.jsonl")),
    }


def is_sound(found: dict[str, Any]) -> bool:
    """Whether nothing was lost and nothing leaked."""
    flat = all(
        one["memory_growth_mib"] < GROWTH_MIB
        and one["files_growth"] <= 2
        and one["threads_growth"] <= 2
        and not one["children"]
        for one in found["ranks"]
    )
    lost = found["lost_or_doubled"] or found["different_losses"] or found["left_over"]
    return flat and not lost and found["compared_updates"] > 0


def table(found: dict[str, Any]) -> str:
    """The figures as Markdown."""
    about = found["machine"]

    def both(key: str, digits: int = 0) -> str:
        return " and ".join(f"{one[key]:+.{digits}f}" if "growth" in key else f"{one[key]:.{digits}f}" for one in ranks)

    ranks = found["ranks"]
    faults = [(what, f"{count} times") for what, count in found["faults"].items()]
    rows = [
        ("updates, over all lives of the run", f"{found['updates']:,}"),
        *faults,
        *((f"in the log: {what}", f"{count}") for what, count in found["log"].items()),
        ("lines of metrics.jsonl lost or doubled", f"{found['lost_or_doubled']}"),
        (
            "losses that differ from an undisturbed run's",
            f"{found['different_losses']} of {found['compared_updates']:,}",
        ),
        ("memory of the ranks at the end, MiB", both("memory_mib")),
        ("its change over the second half, MiB", both("memory_growth_mib", 1)),
        ("change of open files", both("files_growth")),
        ("change of threads", both("threads_growth")),
        ("child processes", both("children")),
        ("temporary folders left", f"{len(found['left_over'])}"),
    ]
    return "\n".join([
        f"{found['minutes']:g} minutes; {about['processor']}, {about['cores']} cores, torch {about['torch']}.",
        "", "| | |", "| --- | --- |", *(f"| {what} | {value} |" for what, value in rows),
    ])  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0, help="of faults; default %(default)g")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    if not TOY.is_dir():
        parser.error(f"{TOY} is missing; make it with tools/make_toy_data.py")
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    found = measure(folder, minutes=given.minutes, seed=given.seed) | {"machine": machine("torch")}
    sys.stdout.write(json.dumps(found, indent=1) + "\n")
    if not is_sound(found):
        sys.stdout.write(f"something was lost or has leaked; the run is kept in {folder}\n")
        return 1
    (common.RESULTS / "soak.json").write_text(json.dumps(found, indent=1) + "\n")
    fill_docs("soak", table(found), DOCS)
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
