"""Names, paths, texts and times that annotation files may hold, and those they may not."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from lavila.annotations.base import AnnotationError
from lavila.annotations.checks import (
    ClipNames,
    as_seconds,
    as_text,
    clip_id_problem,
    interval_problem,
    video_path_problem,
)
from lavila.annotations.tables import decimal_seconds, read_csv, read_text, whole_number
from lavila.errors import shown
from lavila.shards.format import KEY

INSIDE = ["a.mp4", "P01/P01_01.MP4", "a/b/c.mp4", "..a/b..mp4", "...mp4", "ü/食.mp4", "a b.mp4", "./a.mp4", "a//b"]
OUTSIDE = ["/etc/passwd", "//host/a", "../a", "a/../../b", "a/..", "..", "a\\b", "..\\a", "\\\\host\\a", "C:/a", "c:a"]


@pytest.mark.parametrize("path", INSIDE)
def test_paths_below_the_root(path: str) -> None:
    assert video_path_problem(path) == ""


@pytest.mark.parametrize("path", OUTSIDE)
def test_paths_that_leave_the_root(path: str) -> None:
    assert video_path_problem(path) == f"video path {path!r} leaves the video root"


@pytest.mark.parametrize("path", ["a\0.mp4", "a\nb", "\x7f"])
def test_paths_no_system_should_see(path: str) -> None:
    assert video_path_problem(path) == f"video path {path!r} holds control characters"


@pytest.mark.parametrize("name", ["", "a.b", "a/b", "a\\b", "a b", "a\tb", "a\0b", "a\x1bb", ".", ".."])
def test_names_that_no_tar_member_can_have(name: str) -> None:
    assert clip_id_problem(name) == f"{name!r} must be a name without dots, slashes and spaces"


def test_made_names_can_name_tar_members_and_differ() -> None:
    videos = ["a", "a.b", "a%2Eb", "a/b", "a\\b", "a b", "a\u3000b", "a\nb", "a\0b", "../a", "食", "", "a_00000000"]
    names = ClipNames()
    ids = [names.make(video, 0.0, 1.0) for video in videos]
    assert len(set(ids)) == len(videos)
    assert [clip_id_problem(name) for name in ids] == [""] * len(ids)
    assert all(KEY.fullmatch(name) for name in ids)
    assert ids[:2] == ["a_00000000_00001000", "a%2Eb_00000000_00001000"]


def test_made_names_number_those_of_the_same_times() -> None:
    names = ClipNames()
    assert [names.make("v", 1.0004, 2.0) for _ in range(3)] == [
        "v_00001000_00002000",
        "v_00001000_00002000_2",
        "v_00001000_00002000_3",
    ]
    assert names.make("v", 1.0001, 2.0) == "v_00001000_00002000_4"
    assert names.make("w", 1.0, 2.0) == "w_00001000_00002000"
    assert names.make("v", 123456.7891, 200000.0) == "v_123456789_200000000"


@pytest.mark.parametrize("value", [3, 3.0, np.float32(3), np.float64(3), np.int64(3), np.uint8(3)])
def test_numbers_that_are_seconds(value: object) -> None:
    seconds = as_seconds(value)
    assert seconds == 3.0
    assert type(seconds) is float


@pytest.mark.parametrize("value", [None, "3", True, np.bool_(True), math.nan, math.inf, -math.inf, 10**400, 1e8, [3.0]])
def test_what_is_no_seconds(value: object) -> None:
    assert as_seconds(value) is None


def test_texts() -> None:
    assert as_text("ünï 🍲\n") == "ünï 🍲\n"
    assert type(as_text(np.str_("a"))) is str
    assert [as_text(value) for value in (b"a", None, 1, "half \ud83c")] == [None] * 4
    assert [decimal_seconds(text) for text in (" 1.50 ", "1e2", "nan", "inf", "", "1,5", "1e999")] == [
        *(1.5, 100.0),
        *[None] * 5,
    ]
    assert [whole_number(text) for text in ("0", " 12 ", "007", "-1", "1.0", "²", "", "9" * 5000)] == [
        *(0, 12, 7),
        *[None] * 5,
    ]


def test_intervals() -> None:
    assert interval_problem(0.0, 0.1) == ""
    assert interval_problem(-0.5, 0.1) == "start -0.5 s is before the video begins"
    assert interval_problem(2.0, 2.0) == "stop 2 s is not after start 2 s"


def test_what_is_shown_is_one_short_line() -> None:
    deep: list[object] = []
    deep.append(deep)
    for value in ("a\nb" * 100, b"\n" * 200, 10**5000, -(10**30), deep, {1: deep}, None, 1.5, np.float32(1), "\ud800"):
        text = shown(value)
        assert len(text) <= 90
        assert "\n" not in text
        text.encode()
    assert shown("it") == "'it'"
    assert shown(deep) == "a list"


def test_folders_and_unreadable_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.csv").mkdir()
    with pytest.raises(AnnotationError, match=r"a\.csv.*a\.csv.*a\.csv"):
        read_text(tmp_path / "a.csv")
    (tmp_path / "b.csv").write_text("id\n")

    def refuse(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(AnnotationError, match=r"b\.csv.*Permission denied"):
        read_csv(tmp_path / "b.csv", ("id",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "line 1: no column 'id'; found nothing; needed are id"),
        ('id\n"a', "line 2: not valid csv (unexpected end of data); correct the line"),
        ("id\n" + "a" * 200_000, "line 2: not valid csv (field larger than field limit (131072)); correct the line"),
        ("id,b\n1\n", "line 2: 1 cells, but the header has 2"),
    ],
)
def test_csv_files_that_are_none(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(AnnotationError) as caught:
        read_csv(tmp_path / "a.csv", ("id",))
    assert message in str(caught.value)
