"""Ctrl-C while a command still imports PyTorch ends it as Ctrl-C does later: with a line, and without a traceback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import demo
import embed_videos
import narrate
import pytest

import evaluate
import train
from lavila.interrupts import LEFT_TO_PARENT, left_to_parent, run_main
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


# A module during whose import somebody presses Ctrl-C, and which loses the exception, as some compiled modules do.
CTRL_C = """
import os, signal
try:
    os.kill(os.getpid(), signal.SIGINT)
    pass
except KeyboardInterrupt:
    pass
"""
COMMANDS = [ROOT / "train.py", ROOT / "evaluate.py", *sorted((ROOT / "tools").glob("*.py"))]


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
    before = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(SystemExit) as end:
            run_main(train.main, status=2)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL  # Python's own end needs no traceback either
    finally:
        signal.signal(signal.SIGINT, before)
    said = capsys.readouterr().err
    assert end.value.code == 2 and "Traceback" not in said and len(said.strip().splitlines()) == 1


@pytest.mark.parametrize("command", COMMANDS, ids=lambda path: path.name)
def test_so_does_one_while_the_command_itself_is_imported(command: Path, tmp_path: Path) -> None:
    (tmp_path / "argparse.py").write_text(CTRL_C)  # every command imports it
    done = subprocess.run(
        [sys.executable, command], env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True,
        check=False, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    own = {"train.py": 2, "evaluate.py": 2, "demo.py": 0}
    assert done.returncode == own.get(command.name, 130), done.stderr
    assert done.stderr.split() == ["interrupted", "before", "anything", "was", "done"] and not done.stdout


def test_of_several_ranks_one_speaks(tmp_path: Path) -> None:
    (tmp_path / "argparse.py").write_text(CTRL_C)
    done = subprocess.run(
        [sys.executable, ROOT / "train.py"], env=os.environ | {"PYTHONPATH": str(tmp_path), "RANK": "1"},
        capture_output=True, text=True, check=False,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (2, "")


def test_a_command_that_was_started_to_ignore_it_ignores_it(tmp_path: Path) -> None:
    """As a shell starts a command with `&`, and nohup does."""
    (tmp_path / "argparse.py").write_text(CTRL_C + "print('imported')\nraise SystemExit(7)\n")
    done = subprocess.run(
        [sys.executable, ROOT / "train.py"], env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True,
        text=True, check=False, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (7, "imported\n", "")


def test_processes_are_started_before_it_is_heard() -> None:
    """Another thread, which has not blocked the signal, may get it; Python then interrupts the main thread."""
    begin, masks = threading.Event(), []

    def press() -> None:
        begin.wait()
        signal.raise_signal(signal.SIGINT)

    other = threading.Thread(target=press)
    other.start()
    with pytest.raises(KeyboardInterrupt):
        with left_to_parent():
            begin.set()
            other.join()
            masks += [signal.pthread_sigmask(signal.SIG_BLOCK, [])]
        masks += [set()]  # not reached
    assert len(masks) == 1 and set(LEFT_TO_PARENT) <= masks[0]
    assert not set(LEFT_TO_PARENT) & signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_a_step_of_many_ends_in_its_own_way(tmp_path: Path) -> None:
    """A terminal sends Ctrl-C to the script of many steps and to the step."""
    (tmp_path / "slow.py").write_text(SLOW)
    command = [str(tmp_path / "slow.py"), str(tmp_path / "tidied")]
    call = (
        "import sys; from pathlib import Path; from lavila.walkthroughs.steps import Step, run_steps; "
        f"sys.exit(run_steps('many', [Step('slow', None, {command})], root=Path.cwd(), stages=Path('runs')))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", call], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
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
