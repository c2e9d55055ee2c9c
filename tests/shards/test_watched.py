"""Reads that have no answer: the caller continues, others are spared the wait, and the process can end."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from lavila.shards.format import UnreadableClip
from lavila.shards.reader import Patience, ShardSet, open_shard_set
from lavila.shards.watched import MOST_STUCK, StorageHangsError, WatchedCalls
from tests.shards.test_storage_faults import PATIENCE, ROWS_OF


@pytest.fixture
def answer() -> Iterator[threading.Event]:
    """What hanging reads wait for. It comes at the end at the latest."""
    event = threading.Event()
    yield event
    event.set()


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("storage")]


def test_results_and_errors_pass_through() -> None:
    call, before = WatchedCalls(PATIENCE), set(threads())
    assert call(0, lambda: 3) == 3
    with pytest.raises(FileNotFoundError):
        call(0, lambda: os.stat("/nowhere"))  # noqa: PTH116
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda number: call(number, lambda: number**2), range(200))) == [n**2 for n in range(200)]
    assert 1 <= len(set(threads()) - before) <= 8
    call.rest()
    assert not set(threads()) - before and call(0, lambda: 4) == 4
    call.rest()


def test_a_call_that_hangs_is_left_and_those_beside_it_are_made(answer: threading.Event) -> None:
    call = WatchedCalls(0.05)
    with pytest.raises(StorageHangsError):
        call(1, answer.wait)
    patient = time.perf_counter()
    for _ in range(50):
        with pytest.raises(StorageHangsError):
            call(1, lambda: 0)  # does not wait, since one of its kind hangs
    assert call(2, lambda: 7) == 7 and time.perf_counter() - patient < PATIENCE / 4
    answer.set()
    for _ in range(PATIENCE * 100):
        if not call._stuck.total():
            break
        time.sleep(0.01)
    assert call(1, lambda: 8) == 8
    call.rest()


def test_where_all_hangs_few_threads_are_lost(answer: threading.Event) -> None:
    call, before = WatchedCalls(0.02), set(threads())
    for key in range(20):
        with pytest.raises(StorageHangsError):
            call(key, answer.wait)
    assert len(set(threads()) - before) == MOST_STUCK


def hanging_reads(monkeypatch: pytest.MonkeyPatch, answer: threading.Event, *, shard: int) -> None:
    """From now on no read of a tar comes back."""
    real, name = os.pread, f"shard-{shard:06d}.tar"

    def read(descriptor: int, *arguments: Any) -> bytes:
        if Path(f"/proc/self/fd/{descriptor}").readlink().name == name:
            answer.wait()
        return real(descriptor, *arguments)

    monkeypatch.setattr(os, "pread", read)


def test_a_hung_read_of_a_tar_names_it(
    vp9_shards: ShardSet, monkeypatch: pytest.MonkeyPatch, answer: threading.Event
) -> None:
    shards = open_shard_set(vp9_shards.path, patience=Patience(read_seconds=0.1))
    wanted = [shards.read_video(row) for row in ROWS_OF[0]]
    hanging_reads(monkeypatch, answer, shard=1)
    for row in ROWS_OF[1]:
        with pytest.raises(UnreadableClip, match=r"shard-000001\.tar: its storage hangs.*data\.read_seconds"):
            shards.read_video(row)
    shards.read_ahead(ROWS_OF[1][0], ROWS_OF[1][-1])  # says nothing
    assert [shards.read_video(row) for row in ROWS_OF[0]] == wanted


def test_a_process_ends_though_a_read_hangs() -> None:
    script = """
        import threading
        from lavila.shards.watched import StorageHangsError, WatchedCalls
        try:
            WatchedCalls(0.05)(0, threading.Event().wait)
        except StorageHangsError:
            print("left")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "left\n"
