"""A rank that stands still is named, with the place where it is and its stacks; others that wait for it are not."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest
from torch._C._distributed_c10d import HashStore

from lavila.engine.stalls import StallWatch


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def watch(rank: int, world: int, seconds: float, store: HashStore | None = None) -> StallWatch:
    return StallWatch(rank=rank, world=world, seconds=seconds, store=store)


def test_a_process_that_hangs_is_named_once_with_its_stack(caplog: pytest.LogCaptureFixture) -> None:
    one = watch(0, 1, 0.2)
    one.at("reads clip 17")
    one.start()

    def hang_here() -> None:
        until(lambda: "no progress" in caplog.text)
        time.sleep(0.5)

    hang_here()
    (report,) = caplog.messages
    assert "rank 0 (reads clip 17)" in report and "in hang_here" in report
    assert report.index("hang_here") < report.index("thread MainThread") + 10_000
    with caplog.at_level("WARNING"):
        one.at("makes update 3")
        until(lambda: len(caplog.messages) == 2)
    assert "makes update 3" in caplog.messages[1]
    one.end()
    assert not [thread for thread in threading.enumerate() if thread.name == "stall-watch"]


def test_the_rank_that_is_behind_is_named_on_all_ranks(caplog: pytest.LogCaptureFixture) -> None:
    store = HashStore()
    ranks = [watch(rank, 3, 0.3, store) for rank in range(3)]
    for rank, places in ((0, 5), (1, 4), (2, 5)):
        for place in range(places):
            ranks[rank].at(f"is at place {place}")
        ranks[rank].start()
    until(lambda: len(caplog.messages) == 3)
    for one in ranks:
        one.end()
    assert all("Behind all others: rank 1 (is at place 3)" in message for message in caplog.messages)
    with_stacks = [message for message in caplog.messages if "MainThread" in message]
    assert len(with_stacks) == 1 and "rank 1 is at" in with_stacks[0]


@pytest.mark.parametrize("seconds", [0.3, 0.0])
def test_one_that_gets_on_or_is_not_watched_is_not_named(caplog: pytest.LogCaptureFixture, seconds: float) -> None:
    one = watch(0, 1, seconds)
    one.start()
    for _ in range(30):
        one.alive()
        time.sleep(0.02)
    one.end()
    assert not caplog.messages
