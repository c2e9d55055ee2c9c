"""Strips of frames are kept on the disk, and not more of them than fit the limit."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lavila.demo import strips
from lavila.demo.strips import MOST_BYTES, Strips
from tests.footage import write_numbered_video

SIZE = 1000  # bytes of each strip here


@pytest.fixture
def video(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(strips, "draw_strip", lambda video, seconds: bytes(SIZE))
    return write_numbered_video(tmp_path / "a.mp4", 3)


def files(folder: Path) -> set[Path]:
    return set(folder.rglob("*.jpg"))


def test_those_that_nobody_asked_for_longest_go(tmp_path: Path, video: Path) -> None:
    kept = Strips(tmp_path / "strips", most_bytes=3 * SIZE)
    a, b, c = (kept.strip(video, start, 9, frames=1) for start in (0, 1, 2))
    assert kept.strip(video, 0, 9, frames=1) == a  # asked for again, so b is now the oldest
    d = kept.strip(video, 3, 9, frames=1)
    assert files(tmp_path / "strips") == {a, c, d}
    assert kept.strip(video, 1, 9, frames=1) == b and files(tmp_path / "strips") == {a, d, b}  # it is drawn again


def test_a_later_run_knows_what_the_earlier_ones_left(tmp_path: Path, video: Path) -> None:
    first = Strips(tmp_path / "strips", most_bytes=3 * SIZE)
    a, b, c = (first.strip(video, start, 9, frames=1) for start in (0, 1, 2))
    changed = a.stat().st_mtime_ns
    for number, file in enumerate((b, c, a)):
        os.utime(file, ns=(number, file.stat().st_mtime_ns))
    later = Strips(tmp_path / "strips", most_bytes=3 * SIZE)
    d = later.strip(video, 3, 9, frames=1)
    assert files(tmp_path / "strips") == {c, a, d}
    later.strip(video, 0, 9, frames=1)
    assert a.stat().st_mtime_ns == changed  # what browsers have of it stays valid


def test_the_strip_that_was_asked_for_is_always_there(tmp_path: Path, video: Path) -> None:
    kept = Strips(tmp_path / "strips", most_bytes=SIZE // 2)
    for start in range(3):
        file = kept.strip(video, start, 9, frames=1)
        assert files(tmp_path / "strips") == {file}


def test_the_page_has_a_limit() -> None:
    assert MOST_BYTES == 2**30
