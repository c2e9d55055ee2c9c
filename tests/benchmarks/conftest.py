"""Tiny footage that the tests of several benchmarks share."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.loader.footage import Material, SetSpec
from tests.shared import made_once


@pytest.fixture(scope="session")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    """Four clips of two seconds in two codecs, with all that they are made from."""

    def make(folder: Path) -> None:
        for codec in ("vp9", "h264"):
            Material.tiny(folder).shard_set(SetSpec(seconds=2, codec=codec))

    return Material.tiny(made_once(tmp_path_factory, "material", make))
