"""An inspection, step by step: what it says and what it keeps."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from lavila.inspection.session import Inspection, add_missing_checksums
from lavila.shards.format import MANIFEST, QUARANTINE, ShardSetError, read_manifest
from lavila.shards.reader import ShardSet
from tests.shards.older_sets import as_format_2


@pytest.fixture
def copy(vp9_shards: ShardSet, tmp_path: Path) -> Path:
    return Path(shutil.copytree(vp9_shards.path, tmp_path / "set"))


def test_each_step_adds_to_the_text_and_to_the_facts(copy: Path) -> None:
    said: list[str] = []
    inspection = Inspection(copy, workers=1, say=said.append)
    assert len(said) == 1 and inspection.sound and "verified" not in inspection.facts
    inspection.preview(2, copy.parent / "sheet.png")
    assert len(said) == 2 and inspection.facts["preview"]["height"] > 0 and (copy.parent / "sheet.png").is_file()
    tar = copy / "shard-000000.tar"
    data = bytearray(tar.read_bytes())
    data[len(data) // 2] ^= 255
    tar.write_bytes(data)
    inspection.verify(None)
    assert len(said) == 3 and not inspection.sound and inspection.facts["verified"]["problems"]


def test_a_sound_set_has_nothing_in_quarantine(copy: Path) -> None:
    inspection = Inspection(copy, workers=1, say=lambda _: None)
    inspection.verify(None)
    assert inspection.sound and inspection.facts["quarantine"] == 0 and not (copy / QUARANTINE).exists()


def test_a_folder_that_is_no_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ShardSetError, match=MANIFEST):
        Inspection(tmp_path, workers=1, say=print)


def test_checksums_are_added_once(copy: Path) -> None:
    as_format_2(copy)
    assert add_missing_checksums(copy, threads=1)
    assert read_manifest(copy)["format"] == 3
    assert add_missing_checksums(copy, threads=0) == []
