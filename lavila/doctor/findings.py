"""The findings of tools/doctor.py, the machine as checks see it, and the report and exit status made from findings."""

from __future__ import annotations

import ctypes
import functools
import importlib.metadata
import os
import shutil
import subprocess
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from lavila.errors import UserError, one_line

Status = Literal["ok", "note", "missing", "broken"]
SEVERITY: dict[Status, int] = {"broken": 0, "missing": 1, "note": 2, "ok": 3}
OPTIONAL = ("java", "slurm", "vocabularies", "cache")  # findings that only some work needs
WIDTH = 118  # columns of the text


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The outcome of one check."""

    name: str
    status: Status  # ok; note: works, but slowly, or worth knowing; missing: not there and not needed; broken
    found: str  # the finding in plain words, one line
    fix: tuple[str, ...] = ()  # commands or changes that help, the most effective first
    facts: dict[str, Any] = field(default_factory=dict)  # the finding as plain values, for --json


@dataclass(frozen=True, kw_only=True)
class Ran:
    """A command that has ended."""

    status: int | None  # exit status; None: there is no such command
    out: str = ""
    err: str = ""

    def said(self) -> str:
        """The first line of its error message."""
        return one_line((self.err.strip() or self.out.strip() or f"status {self.status}").splitlines()[0])


def run_command(*command: str, timeout: float = 10.0) -> Ran:
    """Run a command. After `timeout` seconds it is killed, and TimeoutExpired is raised."""
    if shutil.which(command[0]) is None:
        return Ran(status=None)
    done = subprocess.run(
        command, capture_output=True, text=True, errors="replace", timeout=timeout, stdin=subprocess.DEVNULL
    )
    return Ran(status=done.returncode, out=done.stdout, err=done.stderr)


def installed_versions() -> dict[str, str]:
    """Lower-case name of each installed Python distribution -> its version."""
    found = {}
    for one in importlib.metadata.distributions():
        name = one.metadata["Name"]
        if name and name.lower() not in found:  # Python imports the first one on the path
            found[name.lower()] = one.version
    return found


def requirements_of(name: str) -> list[str]:
    """What an installed distribution requires, as its own metadata says; none where it is not installed."""
    try:
        return importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:
        return []


@dataclass(frozen=True, kw_only=True)
class TorchFacts:
    """What PyTorch sees."""

    cuda: str | None  # the CUDA release it was built for, such as "13.0"; None: a build without CUDA
    devices: int  # usable GPUs


@functools.cache
def torch_facts() -> TorchFacts:
    """Import PyTorch and ask it. If it cannot be imported, there are no devices; `check_versions` reports that."""
    try:
        import torch
    except (ImportError, OSError):
        return TorchFacts(cuda=None, devices=0)
    return TorchFacts(cuda=torch.version.cuda, devices=torch.cuda.device_count() if torch.cuda.is_available() else 0)


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Everything that checks look at. Tests replace it."""

    root: Path = Path("/")  # the folder of /proc, /sys and /dev
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)
    run: Callable[..., Ran] = run_command
    load: Callable[[str], Any] = ctypes.CDLL  # loads a library, or raises OSError
    versions: Callable[[], dict[str, str]] = installed_versions
    requirements: Callable[[str], list[str]] = requirements_of
    torch: Callable[[], TorchFacts] = torch_facts
    affinity: Callable[[], int] = lambda: len(os.sched_getaffinity(0))

    def read(self, path: str) -> str | None:
        """The text of a file below the root; None if it cannot be read."""
        try:
            return (self.root / path).read_text(errors="replace")
        except OSError:
            return None


def checked(name: str, check: Callable[[], Finding]) -> Finding:
    """The finding of a check. A check that fails gives a finding that is broken, and does not stop the others."""
    try:
        return check()
    except subprocess.TimeoutExpired as error:
        command = error.cmd[0] if isinstance(error.cmd, list | tuple) else str(error.cmd).split()[0]
        return Finding(
            name=name,
            status="broken",
            found=f"{command} did not answer within {error.timeout:g} s",
            fix=(f"run {command} by hand; if it hangs, the node needs an administrator: use another one",),
        )
    except Exception as error:  # a probe of an unknown machine can meet anything
        reason = one_line(error)
        if isinstance(error, UserError):  # its message says everything in one line
            return Finding(name=name, status="broken", found=reason)
        return Finding(name=name, status="broken", found=f"the check failed: {type(error).__name__}: {reason}")


def exit_status(findings: Sequence[Finding]) -> int:
    """1 if anything is broken, else 0."""
    return int(any(one.status == "broken" for one in findings))


def verdict(findings: Sequence[Finding]) -> str:
    """The first line, with what matters most."""
    named = {status: ", ".join(one.name for one in findings if one.status == status) for status in SEVERITY}
    rest = [one.found for one in findings if one.name == "step" and one.status != "broken"]
    rest += [f"missing, not needed: {named['missing']}"] if named["missing"] else []
    rest += [f"slower than necessary, or worth knowing: {named['note']}"] if named["note"] else []
    cpu_only = any(one.name == "gpu" and one.status == "missing" for one in findings)
    works = "works, on the CPU only" if cpu_only else "works"
    broken = next((f"BROKEN: {named['broken']} ({one.found})" for one in findings if one.status == "broken"), works)
    return "; ".join([broken, *rest])


def table(findings: Sequence[Finding]) -> list[str]:
    """A line for each finding; long ones are folded."""
    wide = max(len(one.name) for one in findings)
    indent = wide + 13
    lines = []
    for one in findings:
        start = f"  {one.name:<{wide}}  {one.status:<8} "
        lines += textwrap.wrap(
            start + one.found,
            WIDTH,
            subsequent_indent=" " * indent,
            break_long_words=False,
            break_on_hyphens=False,
            drop_whitespace=True,
        )
    return lines


def fixes(findings: Sequence[Finding]) -> list[str]:
    """The cures, the most effective first: for broken things, the training step, missing things, slow things.

    Cures for things that only some work needs come last.
    """

    def order(one: Finding) -> tuple[bool, bool, bool, int]:
        return one.status != "broken", one.name in OPTIONAL, one.name != "step", SEVERITY[one.status]

    ordered = sorted(findings, key=order)
    names: dict[str, str] = {}
    for one in ordered:
        for text in one.fix:
            names.setdefault(text, one.name)  # one cure may serve several findings
    return [f"{place}. {name}: {text}" for place, (text, name) in enumerate(names.items(), start=1)]


def report(findings: Sequence[Finding], extra: Sequence[str] = ()) -> str:
    """The whole text: verdict, table, `extra` lines, fixes."""
    cures = fixes(findings)
    lines = [verdict(findings), "", *table(findings), *extra]
    lines += ["", "What to type or change, most effect first:"] * bool(cures)
    return "\n".join(
        [*lines, *(f"  {cure}" for cure in cures)]
    )  # not folded, so that a command can be copied as one line


def as_json(findings: Sequence[Finding]) -> dict[str, Any]:
    """The findings as plain values."""
    return {
        "verdict": verdict(findings),
        "exit_status": exit_status(findings),
        **{status: [one.name for one in findings if one.status == status] for status in SEVERITY},
        "findings": [asdict(one) for one in findings],
    }
