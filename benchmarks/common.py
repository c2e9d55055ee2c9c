"""What all benchmarks share: the machine a figure belongs to, and where figures go."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks/results"
SCRATCH = ROOT / "data/benchmark"  # footage and shard sets that are made once
DOCS = ROOT / "docs/PERFORMANCE.md"
TABLES = ROOT / "docs/PERFORMANCE_TABLES.md"  # the long tables, all of them generated


def machine(*packages: str, gpu: str | None = None) -> dict[str, Any]:
    """Processor, cores of this process, versions of Python, lavila and the given packages (None: not installed)."""
    processor = platform.machine()
    if Path("/proc/cpuinfo").is_file():
        names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        processor = names[0].partition(":")[2].strip() if names else processor
    about = {"processor": processor, "cores": len(os.sched_getaffinity(0)), "gpu": gpu}
    return about | {"python": platform.python_version()} | {name: _version(name) for name in ("lavila", *packages)}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def fill_docs(section: str, text: str, docs: Path = DOCS) -> None:
    """Put generated text between `<!-- section: begin -->` and `<!-- section: end -->` of the docs."""
    begin, end = f"<!-- {section}: begin -->", f"<!-- {section}: end -->"
    before, found, rest = docs.read_text(encoding="utf-8").partition(begin)
    _, closed, after = rest.partition(end)
    assert found and closed, f"{docs} lacks {begin} or {end}"
    docs.write_text(f"{before}{begin}\n{text.strip()}\n{end}{after}", encoding="utf-8")


def earlier_tree(revision: str, folder: Path) -> Path:
    """The files of an earlier commit, unpacked into a new folder. SystemExit for what git does not know."""
    packed = subprocess.run(["git", "archive", revision], cwd=ROOT, check=False, capture_output=True)
    if packed.returncode:
        sys.exit(f"revision {revision}: {packed.stderr.decode().strip()}; give a commit that `git log` shows")
    folder.mkdir()
    subprocess.run(["tar", "-x", "-C", folder], input=packed.stdout, check=True)
    return folder
