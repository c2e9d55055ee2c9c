"""Commands of a checkout, one after another. Each is shown before it runs, and what is there already is kept."""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from lavila.report.files import append_stage

INTERRUPTED = 130  # exit status
END_SECONDS = 10  # for which an interrupted command may end by itself


class Step(NamedTuple):
    """One command on the way."""

    name: str
    output: Path | None  # the folder that it makes; None for train.py and evaluate.py, which find out what is left
    command: list[str]  # a script of the repository and its arguments


def show(command: Sequence[str]) -> None:
    """Print a command as a user would type it."""
    sys.stdout.write(f"\n$ python {shlex.join(command)}\n")
    sys.stdout.flush()


def run_command(command: Sequence[str], *, root: Path) -> int:
    """The exit status of a command. root: the checkout, whose scripts it names.

    A terminal sends Ctrl-C to the command as well: it may end in its own way before KeyboardInterrupt is raised here.
    """
    with subprocess.Popen([sys.executable, *command], cwd=root) as process:
        try:
            return process.wait()
        except KeyboardInterrupt:
            try:
                process.wait(timeout=END_SECONDS)
            except subprocess.TimeoutExpired:  # the signal was for this process alone
                process.terminate()
            raise


def run_steps(program: str, steps: Sequence[Step], *, root: Path, stages: Path) -> int:
    """Show and run each command, up to the first that fails. Returns its exit status, or 0.

    program: who speaks in messages. root: the checkout, from which paths count. stages: a run's folder, whose
    stages.jsonl gets the seconds of the steps that make data.
    """
    for name, output, command in steps:
        fresh = output is not None and not (root / output).exists()
        if output is not None and name.startswith("shard") and not fresh:
            command = [*command, "--resume"]  # an earlier run may have been interrupted
        show(command)
        started = time.perf_counter()
        try:
            status = run_command(command, root=root)
        except KeyboardInterrupt:
            sys.stderr.write(f"\n{program}: interrupted in the step '{name}'; the same command continues\n")
            return INTERRUPTED
        if status:
            sys.stderr.write(f"\n{program} stopped: the step '{name}' failed (status {status}); see above\n")
            return status
        if fresh:  # train.py and evaluate.py record their times themselves
            append_stage(root / stages, name, time.perf_counter() - started)
    return 0
