"""A whole training run, made once for all tests."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from lavila.config.load import load_config
from lavila.config.schema import RunConfig
from lavila.engine.trainer import train
from lavila.shards.reader import ShardSet
from tests.engine.test_runs import config_file
from tests.shared import made_once


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, vp9_shards: ShardSet) -> Path:
    """A folder with tiny.yaml and a whole run of it in `run`: steps 3 (kept), 6 and 9, one line of metrics a step."""

    def make(folder: Path) -> None:
        train(load_config(config_file(folder, vp9_shards, keep_checkpoints=3)))

    return made_once(tmp_path_factory, "trained", make)


@pytest.fixture
def finished(trained: Path, tmp_path: Path, vp9_shards: ShardSet) -> RunConfig:
    """The config of a run that is trained; its folder is a copy that a test may change."""
    shutil.copytree(trained / "run", tmp_path / "run")
    return load_config(config_file(tmp_path, vp9_shards, keep_checkpoints=3))
