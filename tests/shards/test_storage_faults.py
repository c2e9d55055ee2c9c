"""Storage that fails for a while, for good, slowly, or in pieces: a read is repeated, and its end names the tar."""

from __future__ import annotations

import errno
import itertools
import logging
import os
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from lavila.data.loader import ClipLoader, Pictures, clip_sizes
from lavila.plan.crops import CropChoice
from lavila.plan.frames import FrameChoice
from lavila.plan.order import Shuffle
from lavila.plan.plans import Ranks, TrainingPlan
from lavila.shards.format import ShardSetError, UnreadableClip
from lavila.shards.reader import ShardSet, open_shard_set

ROWS_OF = {0: range(6), 1: range(6, 12)}  # of the two tars of `vp9_shards`
PATIENCE = 10  # seconds until a test says that something hangs


@pytest.fixture
def shards(vp9_shards: ShardSet) -> ShardSet:
    """With no tar opened yet."""
    found = open_shard_set(vp9_shards.path)
    assert [number for number, rows in ROWS_OF.items() for _ in rows] == found.clips.column("shard").to_pylist()
    return found


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that were made, in seconds; none of them takes time."""
    found: list[float] = []
    monkeypatch.setattr("time.sleep", found.append)
    return found


class Failing:
    """Stands for a function of `os`: its first calls fail."""

    def __init__(self, real: Callable[..., Any], *, times: int, error: int) -> None:
        self._real, self._times, self._error = real, times, error
        self.calls = 0

    def __call__(self, *arguments: Any) -> Any:
        self.calls += 1
        if self.calls <= self._times:
            raise OSError(self._error, os.strerror(self._error))
        return self._real(*arguments)


def opened_tars(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each tar is opened from now on."""
    real, count = os.open, Counter[str]()

    def counting(path: Any, *arguments: Any, **others: Any) -> int:
        count[Path(path).name] += 1
        return real(path, *arguments, **others)

    monkeypatch.setattr(os, "open", counting)
    return count


@pytest.mark.parametrize("error", [errno.ESTALE, errno.EIO, errno.ETIMEDOUT, errno.EINTR])
def test_a_read_that_fails_for_a_while_is_repeated_on_a_fresh_descriptor(
    shards: ShardSet,
    monkeypatch: pytest.MonkeyPatch,
    pauses: list[float],
    caplog: pytest.LogCaptureFixture,
    error: int,
) -> None:
    wanted = shards.read_video(0)
    opened = opened_tars(monkeypatch)
    monkeypatch.setattr(os, "pread", Failing(os.pread, times=3, error=error))
    with caplog.at_level(logging.WARNING):
        assert shards.read_video(0) == wanted
    assert pauses == sorted(set(pauses)) and len(pauses) == 3  # they grow
    assert opened == {"shard-000000.tar": 3}
    assert len(caplog.records) == 1 and "shard-000000.tar" in caplog.text


def test_an_open_that_fails_for_a_while_is_repeated(
    shards: ShardSet, monkeypatch: pytest.MonkeyPatch, pauses: list[float]
) -> None:
    opening = Failing(os.open, times=2, error=errno.EIO)
    monkeypatch.setattr(os, "open", opening)
    assert shards.read_video(0) and len(pauses) == 2 and opening.calls == 3


def test_storage_that_stays_away_ends_in_an_error_that_names_the_tar(
    shards: ShardSet, monkeypatch: pytest.MonkeyPatch, pauses: list[float]
) -> None:
    reading = Failing(os.pread, times=1000, error=errno.EIO)
    monkeypatch.setattr(os, "pread", reading)
    with pytest.raises(ShardSetError, match=r"shard-000001\.tar.*Input/output error"):
        shards.read_video(ROWS_OF[1][0])
    assert reading.calls == 5 and 5 <= sum(pauses) <= 60


@pytest.mark.parametrize("error", [errno.EACCES, errno.EPERM])
def test_what_waiting_does_not_mend_is_an_error_at_once(
    shards: ShardSet, monkeypatch: pytest.MonkeyPatch, pauses: list[float], error: int
) -> None:
    monkeypatch.setattr(os, "open", Failing(os.open, times=1000, error=error))
    with pytest.raises(ShardSetError, match=r"shard-000000\.tar"):
        shards.read_video(0)
    assert pauses == []


def test_readers_of_one_tar_write_one_line_for_one_fault(
    shards: ShardSet, monkeypatch: pytest.MonkeyPatch, pauses: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(os, "pread", Failing(os.pread, times=1000, error=errno.ESTALE))
    with caplog.at_level(logging.WARNING), ThreadPoolExecutor(6) as pool:
        ends = [future.exception() for future in [pool.submit(shards.read_video, row) for row in ROWS_OF[0]]]
    assert [type(end) for end in ends] == [UnreadableClip] * 6
    assert len(caplog.records) == 1


def test_a_read_in_pieces_is_put_together(shards: ShardSet, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network file system may give less than was asked for, though the file continues."""
    wanted, real = shards.read_video(0), os.pread
    monkeypatch.setattr(os, "pread", lambda descriptor, size, offset: real(descriptor, min(size, 1000), offset))
    assert shards.read_video(0) == wanted and len(wanted) > 2000


def test_opening_a_tar_makes_only_its_own_readers_wait(shards: ShardSet, monkeypatch: pytest.MonkeyPatch) -> None:
    real, begun, proceed, opened = os.open, threading.Event(), threading.Event(), Counter[str]()

    def slow(path: Any, *arguments: Any, **others: Any) -> int:
        name = Path(path).name
        opened[name] += 1
        if name == "shard-000001.tar":
            begun.set()
            assert proceed.wait(PATIENCE)
        return real(path, *arguments, **others)

    monkeypatch.setattr(os, "open", slow)
    with ThreadPoolExecutor(4) as pool:
        try:
            waiting = [pool.submit(shards.read_video, row) for row in ROWS_OF[1][:3]]
            assert begun.wait(PATIENCE)
            others = [pool.submit(shards.read_video, row) for row in ROWS_OF[0]]
            assert all(other.result(PATIENCE / 2) for other in others)
            assert not any(one.done() for one in waiting)
        finally:
            proceed.set()
        assert all(one.result(PATIENCE) for one in waiting)
    assert opened == {"shard-000000.tar": 1, "shard-000001.tar": 1}


def ahead_loader(shards: ShardSet) -> ClipLoader:
    plan = TrainingPlan(
        clip_sizes(shards),
        frames=FrameChoice(frames=4),
        crop=CropChoice(size=32),
        batch_size=2,
        seed=3,
        ranks=Ranks(),
        shuffle=Shuffle(window=4, stretch=2, read_ahead=True),
    )
    return ClipLoader(shards, plan, pictures=Pictures(mean=(0, 0, 0), std=(255, 255, 255)), threads=2)


def test_storage_that_does_not_read_ahead_is_reported_once_for_each_error(
    shards: ShardSet, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    wanted = [batch.clip_ids for batch in ahead_loader(shards)]
    errors = itertools.cycle((errno.EINVAL, errno.ESTALE))
    asked = []

    def advise(*arguments: Any) -> None:
        asked.append(arguments)
        raise OSError(number := next(errors), os.strerror(number))

    monkeypatch.setattr(os, "posix_fadvise", advise)
    loader = ahead_loader(shards)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            loader.set_epoch(0)
            assert [batch.clip_ids for batch in loader] == wanted
    assert len(asked) > 6
    assert len(caplog.records) == 2 and all("shard-00000" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("error", [ShardSetError("shard-000001.tar: missing"), TypeError("of ours")])
def test_other_errors_of_reading_ahead_end_the_run(
    shards: ShardSet, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def read_ahead(first: int, last: int) -> None:
        raise error

    monkeypatch.setattr(shards, "read_ahead", read_ahead)
    with pytest.raises(type(error)):
        list(ahead_loader(shards))
