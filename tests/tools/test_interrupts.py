"""Ctrl-C while a command still imports PyTorch ends it as Ctrl-C does later: with a line, and without a traceback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import demo
import embed_videos
import narrate
import pytest

import evaluate
import train
from tests.test_docs import ROOT

SLOW = """
import sys, time
try:
    print("ready", flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    time.sleep(1)  # longer than subprocess.run would wait for it
    open(sys.argv[1], "w").close()
    sys.exit(130)
"""


class Interrupted(ModuleType):
    """A module during whose import somebody presses Ctrl-C."""

    def __getattr__(self, name: str) -> Any:
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("command", "module", "arguments", "status"),
    [
        (embed_videos, "lavila.engine.embedding", ["--videos", "x", "--model", "y"], 130),
        (narrate, "lavila.engine.narrating", ["--video", "x"], 130),
        (demo, "lavila.engine.asking", ["--videos", "x", "--model", "y"], 0),
        (train, "lavila.engine.trainer", ["--config", "quickstart"], 2),
        (evaluate, "lavila.engine.evaluator", ["--config", "quickstart"], 2),
    ],
)
def test_it_ends_with_a_line(
    command: Any,
    module: str,
    arguments: list[str],
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, module, Interrupted(module))
    monkeypatch.setattr(sys, "argv", [f"{command.__name__}.py", *arguments])
    try:
        found = command.main()
    except SystemExit as end:  # train.py and evaluate.py have no status to return
        found = end.code
    assert found == status
    said = capsys.readouterr()
    assert "Traceback" not in said.err and len((said.out + said.err).strip().splitlines()) == 1


def test_so_does_one_while_the_config_is_read(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("lavila.engine.command_line.load_config", interrupted)
    monkeypatch.setattr(sys, "argv", ["train.py", "--config", "quickstart"])
    with pytest.raises(SystemExit) as end:
        train.main()
    said = capsys.readouterr().err
    assert end.value.code == 2 and "Traceback" not in said and len(said.strip().splitlines()) == 1


def test_a_step_of_many_ends_in_its_own_way(tmp_path: Path) -> None:
    """A terminal sends Ctrl-C to the script of many steps and to the step."""
    (tmp_path / "slow.py").write_text(SLOW)
    command = [str(tmp_path / "slow.py"), str(tmp_path / "tidied")]
    call = f"import sys, quickstart as q; sys.exit(q.run_steps([q.Step('slow', None, {command})], stages=q.RUN))"
    process = subprocess.Popen(
        [sys.executable, "-c", call], cwd=ROOT / "tools", stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    said = ""
    while "ready" not in said:
        said = process.stdout.readline()
        assert said, "it ended before"
    os.killpg(process.pid, signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and (tmp_path / "tidied").is_file()
    assert "'slow'" in said and "Traceback" not in said
