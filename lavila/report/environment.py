"""What a number was made with: the machine and the versions. Nothing here can fail: a result of hours depends on it."""

from __future__ import annotations

import logging
import os
import platform
import re
import sys
from collections.abc import Callable
from importlib.metadata import Distribution
from pathlib import Path
from typing import Any, TypeVar

import torch

from lavila.version import __version__

log = logging.getLogger(__name__)

DALI = re.compile(r"nvidia[-_]dali[-_](?:(?:nightly|weekly)[-_])?cuda\d+", re.IGNORECASE)  # the wheels' names

Found = TypeVar("Found")


def best_effort(what: str, find: Callable[[], Found], instead: Found) -> Found:
    """What `find` returns. Where it raises, a warning that names `what` and the reason, and `instead`.

    For what stands beside a result and must not cost it.
    """
    try:
        return find()
    except Exception as error:  # whatever a strange machine has to say
        log.warning("%s could not be found out (%s: %s)", what, type(error).__name__, " ".join(str(error).split()))
        return instead


def environment(device: torch.device, *, ranks: int) -> dict[str, Any]:
    """Versions and machine of a run on so many ranks; None for what could not be found out or is not there."""
    facts: dict[str, Callable[[], Any]] = {
        "lavila": lambda: __version__,
        "python": platform.python_version,
        "torch": lambda: torch.__version__,
        "dali": _dali,
        "device": lambda: torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "cpu": _cpu_name,
        "cores": lambda: len(os.sched_getaffinity(0)),
        "ranks": lambda: ranks,
    }
    return {name: best_effort(f"environment: {name}", find, None) for name, find in facts.items()}


def _dali() -> str | None:
    """Version and name of the installed wheel of DALI, or of each: two overwrite one another."""
    named = ((one.metadata["Name"] or "", one.version) for one in dali_wheels())
    found = {f"{version} ({name})" for name, version in named if DALI.fullmatch(name)}
    return ", ".join(sorted(found)) or None


def dali_wheels() -> list[Distribution]:
    """What is installed under a name like DALI's. To read the names of all packages takes a quarter of a second."""
    folders = [folder for entry in sys.path for folder in Path(entry).glob("nvidia_dali*.dist-info")]
    return [Distribution.at(folder) for folder in folders]


def _cpu_name() -> str:
    file = Path("/proc/cpuinfo")
    for line in file.read_text(errors="replace").splitlines() if file.is_file() else []:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
