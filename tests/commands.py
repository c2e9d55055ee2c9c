"""Commands in the process of the test, which spares the seconds that an interpreter with PyTorch takes to start."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout

import pytest


def run_here(main: Callable[[], int | None], arguments: Sequence[object]) -> subprocess.CompletedProcess[str]:
    """What `main` does with these arguments on its command line: its exit status and what it prints."""
    out, err = io.StringIO(), io.StringIO()
    words = [f"{main.__module__}.py", *map(str, arguments)]
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", words)
        try:
            status = main() or 0
        except SystemExit as end:
            status = int(end.code or 0)
    return subprocess.CompletedProcess(words, status, out.getvalue(), err.getvalue())
