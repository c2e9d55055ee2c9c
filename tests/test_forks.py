"""Forked commands behave as started ones do: output, status, environment, folder, signals, and an end in time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import forks


@pytest.fixture
def script(tmp_path: Path) -> Path:
    file = tmp_path / "script.py"
    file.write_text(
        "import os, sys, time\n"
        "assert __name__ == '__main__' and 'torch' in sys.modules\n"
        "print(sys.argv[1:], os.environ.get('OF_THIS_TEST'), os.getcwd(), os.environ.get('RANK'), flush=True)\n"
        "print('beside', file=sys.stderr, flush=True)\n"
        "time.sleep(float(sys.argv[1]))\n"
        "sys.exit(int(sys.argv[2]))\n"
    )
    return file


def test_output_and_status(script: Path, tmp_path: Path) -> None:
    done = forks.run(script, 0, 3, environment={"OF_THIS_TEST": "x"}, folder=tmp_path)
    assert (done.returncode, done.stdout) == (3, f"['0', '3'] x {tmp_path} None\n") and done.stderr == "beside\n"
    assert "OF_THIS_TEST" not in os.environ
    assert forks.run(script, "no number", 0).returncode == 1


def test_a_signal_ends_it(script: Path) -> None:
    fork = forks.start(script, 600, 0)
    while not fork.said():
        assert fork.poll() is None
        time.sleep(0.01)
    fork.send_signal(signal.SIGTERM)
    assert fork.communicate(timeout=60).returncode == -signal.SIGTERM


def test_a_signal_ends_it_though_the_server_was_started_with_signals_blocked(script: Path) -> None:
    """As by a pool of workers. In another process, since this one has a server."""
    code = (
        "import signal, sys, time\n"
        "from lavila.interrupts import left_to_parent\n"
        "from tests import forks\n"
        "with left_to_parent():\n"
        "    fork = forks.start(sys.argv[1], 600, 0)\n"
        "while not fork.said():\n"
        "    time.sleep(0.01)\n"
        "fork.send_signal(signal.SIGTERM)\n"
        "print(fork.communicate(timeout=20).returncode)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(script)], cwd=forks.ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.stdout == f"{-signal.SIGTERM}\n", done.stderr


def test_what_takes_too_long_is_killed(script: Path) -> None:
    fork = forks.start(script, 600, 0)
    with pytest.raises(subprocess.TimeoutExpired):
        fork.communicate(timeout=0.1)
    assert fork.poll() == -signal.SIGKILL


def test_ranks_know_their_numbers(script: Path) -> None:
    done = forks.run_ranks(2, script, 0, 0)
    assert [one.stdout.split()[-1] for one in done] == ["0", "1"]


def test_a_module_is_run_as_with_m() -> None:
    done = forks.run("-m", "json.tool", "--help")
    assert done.returncode == 0 and "usage" in done.stdout
