from __future__ import annotations

import threading
import time

import pytest

from lavila.demo.chores import Chore, Chores, Progress
from lavila.demo.footage import FootageError


def ended(chores: Chores, key: str) -> Chore:
    ends = time.monotonic() + 20
    while (chore := chores.state(key)) is None or chore.state in {"waiting", "running"}:
        assert time.monotonic() < ends
        time.sleep(0.01)
    return chore


def test_work_is_done_once_in_order_and_says_how_far_it_is() -> None:
    chores, may_end, done = Chores("test"), threading.Event(), []
    seen = threading.Event()

    def work(progress: Progress) -> None:
        progress(0.25)
        seen.set()
        may_end.wait(20)
        done.append("slow")

    assert chores.state("slow") is None
    first = chores.start("slow", work)
    assert chores.start("slow", work) is first
    chores.start("quick", lambda progress: done.append("quick"))
    assert seen.wait(20)
    assert (first.state, first.share) == ("running", 0.25) and ended_not(chores, "quick")
    may_end.set()
    assert ended(chores, "quick").state == "done" and first.share == 1.0
    chores.start("slow", work)
    assert done == ["slow", "quick"]
    chores.close()


def ended_not(chores: Chores, key: str) -> bool:
    chore = chores.state(key)
    return chore is not None and chore.state == "waiting"


@pytest.mark.parametrize("error", [FootageError("no such frame"), OSError(28, "no room"), ZeroDivisionError("ours")])
def test_a_failure_keeps_its_reason_and_may_be_tried_again(error: Exception) -> None:
    chores, turns = Chores("test"), []

    def work(progress: Progress) -> None:
        turns.append(1)
        if len(turns) == 1:
            raise error

    chores.start("x", work)
    assert ended(chores, "x").state == "failed"
    chore = chores.state("x")
    assert chore is not None and str(error) in chore.reason
    chores.start("x", work)
    assert ended(chores, "x").state == "done"
    chores.close()


def test_the_end_of_the_program_stops_work_at_its_next_progress() -> None:
    chores, began = Chores("test"), threading.Event()

    def work(progress: Progress) -> None:
        while True:
            began.set()
            progress(0.5)

    chore = chores.start("x", work)
    waits = chores.start("y", work)
    assert began.wait(20)
    chores.close()
    assert chore.state == "failed" and waits.state == "waiting"
