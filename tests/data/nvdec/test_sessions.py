"""Decoder sessions are shared by all loaders and processes, and come back when their holder ends in any way."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lavila.data.nvdec.sessions import sessions

HOLDER = """
import sys, time
from pathlib import Path
from lavila.data.nvdec.sessions import sessions
with sessions("gpu", 7, folder=Path(sys.argv[1])) as taken:
    print(taken, flush=True)
    time.sleep(60)
"""


def test_loaders_of_a_process_share_a_gpu(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "places"
    with sessions("gpu", 7, folder=folder) as first, sessions("gpu", 7, folder=folder) as second:
        assert (first, second) == (7, 7)
        with sessions("another", 5, folder=folder) as elsewhere:
            assert elsewhere == 5
        assert not caplog.records
        with caplog.at_level(logging.WARNING), sessions("gpu", 7, folder=folder) as third:
            assert third == 1 and "14" in caplog.text
    with sessions("gpu", 7, folder=folder) as again:
        assert again == 7


def test_what_is_left_is_taken(tmp_path: Path) -> None:
    with sessions("gpu", 2, folder=tmp_path), sessions("gpu", 3, folder=tmp_path) as second:
        assert second == 3
        with sessions("gpu", 3, folder=tmp_path) as third:
            assert third == 1  # of six places, five are taken


def test_processes_share_a_gpu_and_a_killed_one_leaves_its_share(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "7\n"
        with sessions("gpu", 7, folder=tmp_path) as beside, sessions("gpu", 7, folder=tmp_path) as more:
            assert (beside, more) == (7, 1)
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait(20)
        with sessions("gpu", 7, folder=tmp_path) as beside, sessions("gpu", 7, folder=tmp_path) as more:
            assert (beside, more) == (7, 7)
    finally:
        holder.kill()
        holder.communicate()


def test_a_folder_that_cannot_be_made_costs_the_sharing_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    with sessions("gpu", 7, folder=tmp_path / "file" / "places") as taken:
        assert taken == 7
    assert "cannot hold locks" in caplog.text
