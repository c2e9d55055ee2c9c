"""Finished windows survive a kill at any moment; work with other settings is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lavila.journal import Journal, JournalError

SETTINGS: dict[str, Any] = {"of": 5, "seed": 0, "size": (1, 2)}
ENTRIES = [{"n": n, "text": "切る"} for n in range(5)]


def opened(path: Path, **changes: Any) -> Journal:
    return Journal(path, settings={**SETTINGS, **changes}, group=2, total=SETTINGS["of"])


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    path = tmp_path / "folder" / "windows.jsonl"
    journal = opened(path)
    for first in (0, 2, 4):
        journal.add(ENTRIES[first : first + 2])
    journal.close()
    return path


def test_what_was_added_is_there(whole: Path) -> None:
    journal = opened(whole)
    assert list(journal.entries()) == ENTRIES and journal.done == len(ENTRIES)


def test_after_a_kill_at_any_byte_whole_groups_are_there_and_more_can_follow(whole: Path) -> None:
    content = whole.read_bytes()
    ends = [place for place, byte in enumerate(content) if byte == ord("\n")]
    for size in sorted({0, *range(5, len(content), 40), *(end + more for end in ends[:-1] for more in (0, 1))}):
        whole.write_bytes(content[:size])
        journal = opened(whole)
        kept = list(journal.entries())
        assert journal.done == len(kept)
        assert kept == ENTRIES[: len(kept)] and len(kept) in (0, 2, 4)
        for first in range(len(kept), 5, 2):
            journal.add(ENTRIES[first : first + 2])
        journal.close()
        assert whole.read_bytes() == content


def test_a_line_of_garbage_and_what_follows_are_made_again(whole: Path) -> None:
    lines = whole.read_bytes().split(b"\n")
    lines[4] = b"\0" * len(lines[4])
    whole.write_bytes(b"\n".join(lines))
    assert list(opened(whole).entries()) == ENTRIES[:2]


def test_other_settings_are_refused_and_nothing_is_lost(whole: Path) -> None:
    before = whole.read_bytes()
    with pytest.raises(JournalError, match="seed was 0, is 1") as error:
        opened(whole, seed=1)
    assert "size" not in str(error.value) and "--out" in str(error.value)
    assert whole.read_bytes() == before


def test_a_file_that_is_no_journal_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps([1, 2]) + "\n")
    with pytest.raises(JournalError, match="other settings"):
        opened(path)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(JournalError, match="file"):
        opened(tmp_path / "file" / "windows.jsonl")
