"""Jobs for the tests of processes and clusters. Imported by the processes that run them, so as small as can be."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import re
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from lavila.cluster.workers import ItemEvent
from lavila.files import whole_file


class Refused(ValueError):
    """An item that fails in the ordinary way."""


class Odd(Exception):
    """Cannot be unpickled: its argument is not its message."""

    def __init__(self, *, code: int) -> None:
        super().__init__(f"odd {code}")


def refuse() -> None:
    raise Refused("not available")


def spin_in_c() -> None:
    re.match(r"(a+)+$", "a" * 40 + "b")  # for days, without letting other threads run


def full_disk() -> None:
    raise OSError(errno.ENOSPC, "No space left on device", "/data/out")


def allocate() -> None:
    bytearray(1 << 40)


def odd() -> None:
    raise Odd(code=7)


ACTIONS: dict[str, Callable[[], object]] = {
    "refuse": refuse,
    "segv": lambda: ctypes.string_at(0),
    "abort": os.abort,
    "exit": lambda: os._exit(3),
    "spin": spin_in_c,
    "sleep": lambda: ctypes.CDLL(None).sleep(1000),
    "slow": lambda: time.sleep(0.2),
    "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "full": full_disk,
    "allocate": allocate,
    "odd": odd,
    "leave": lambda: exit(5),
    "ordinary": lambda: None if os.sched_getscheduler(0) == os.SCHED_OTHER else refuse(),
}


@dataclass(frozen=True, kw_only=True)
class Toy:
    """Its items are names of ACTIONS, or "until PATH exists"; any other name is an item that is stored."""

    number: int
    items: tuple[str, ...]
    folder: Path
    before_end: str = ""  # done when all items are
    obeys: bool = True  # leaves lost items out

    @property
    def num_items(self) -> int:
        return len(self.items)

    @property
    def result(self) -> Path:
        return self.folder / f"{self.number}.json"

    @property
    def losses(self) -> Path:
        return self.folder / f"{self.number}.lost.json"

    @property
    def runs(self) -> Path:
        """A line, process id, begin and end, for each time that the job was run; no end if it came to none."""
        return self.folder / f"{self.number}.runs"

    def is_done(self) -> bool:
        return self.result.exists()

    def remember_loss(self, item: int, reason: str) -> None:
        with whole_file(self.losses) as file:
            file.write(json.dumps({**self.remembered(), str(item): reason}).encode())

    def remembered(self) -> dict[str, str]:
        return dict(json.loads(self.losses.read_bytes())) if self.losses.exists() else {}

    def do(self, item: str) -> None:
        if item.startswith("until "):
            while not Path(item.removeprefix("until ").removesuffix(" exists")).exists():
                time.sleep(0.02)
        ACTIONS.get(item, int)()

    def run(self, report: Callable[[int, ItemEvent], None], lost: Mapping[int, str]) -> None:
        gone = {**{int(item): reason for item, reason in self.remembered().items()}, **lost} if self.obeys else {}
        with self.runs.open("a") as runs:
            runs.write(f"\n{os.getpid()} {time.time()}")
        outcome: dict[str, str] = {}
        for place, item in enumerate(self.items):
            report(place, ItemEvent.BEGUN)
            try:
                if place in gone:
                    raise Refused(gone[place])
                self.do(item)
            except Refused as error:
                outcome[f"{place} {item}"] = str(error)
                report(place, ItemEvent.FAILED)
                continue
            outcome[f"{place} {item}"] = "stored"
            report(place, ItemEvent.STORED)
        self.do(self.before_end)
        with whole_file(self.result) as file:
            file.write(json.dumps(outcome).encode())
        with self.runs.open("a") as runs:
            runs.write(f" {time.time()}")
