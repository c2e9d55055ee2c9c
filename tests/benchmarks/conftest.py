"""Tiny footage that the tests of several benchmarks share."""

from __future__ import annotations

import pytest

from benchmarks.loader.footage import Material


@pytest.fixture(scope="session")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    """Four clips of two seconds in two codecs; rendering, coding and sharding them takes most of these tests' time."""
    return Material.tiny(tmp_path_factory.mktemp("material"))
