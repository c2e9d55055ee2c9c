"""Checks that the versions of Python, PyTorch, torchvision and DALI fit. `gpu.check_driver` checks the driver."""

from __future__ import annotations

import re
import sys

from packaging.requirements import Requirement
from packaging.version import Version

from lavila.doctor.findings import Finding, Machine

DALI = re.compile(r"nvidia-dali-(?:nightly-|weekly-)?cuda(\d\d)0")
FIRST_DALI = (2, 1)  # the first version with fn.decoders.video on the CPU
FIRST_PYTHON = (3, 11)


def check_versions(machine: Machine) -> Finding:
    """Check that the versions of Python, PyTorch, torchvision and DALI fit."""
    versions, built = machine.versions(), machine.torch().cuda
    dali = {name: int(match[1]) for name in versions if (match := DALI.fullmatch(name))}
    parts = [f"Python {'.'.join(map(str, sys.version_info[:3]))}"]
    parts += [f"torch {versions.get('torch', 'missing')}{f' (CUDA {built})' if built else ' (CPU)'}"]
    parts += [f"torchvision {versions.get('torchvision', 'missing')}"]
    parts += [f"{name} {versions[name]}" for name in dali] or ["no DALI"]
    parts += [f"PyAV {versions.get('av', 'missing')}"]
    problems = [*_dali_problems(versions, dali, built), *_other_problems(machine)]
    found = ", ".join(parts) + "".join(f"; {problem}" for problem, _ in problems)
    facts = {
        "python": list(sys.version_info[:3]),
        "torch_cuda": built,
        **{name: version for name, version in versions.items() if name in ("torch", "torchvision", "av", *dali)},
    }
    return Finding(
        name="versions",
        status="broken" if problems else "ok",
        found=found,
        fix=tuple(cure for _, cure in problems if cure),
        facts=facts,
    )


def _dali_problems(versions: dict[str, str], dali: dict[str, int], built: str | None) -> list[tuple[str, str]]:
    """The problems of DALI, each with its cure."""
    major = int(built.split(".")[0]) if built else 13
    wanted = f"nvidia-dali-cuda{major}0"
    problems = []
    if "nvidia-dali" in versions:
        problems.append(
            (
                "the package nvidia-dali of PyPI is a placeholder, not DALI",
                f"pip uninstall -y nvidia-dali && pip install --force-reinstall '{wanted}>=2.1'",
            )
        )
    if not dali:
        return [*problems, ("DALI is not installed", f"pip install '{wanted}>=2.1'")]
    if len(dali) > 1:
        names = " ".join(sorted(dali))
        problems.append(
            (
                "two builds of DALI overwrite each other's files",
                f"pip uninstall -y {names} && pip install '{wanted}>=2.1'",
            )
        )
    for name, cuda in dali.items():
        if built and cuda != major and len(dali) == 1:
            problems.append(
                (
                    f"{name} is for CUDA {cuda}, torch for CUDA {built}",
                    f"pip uninstall -y {name} && pip install '{wanted}>=2.1'",
                )
            )
        if _numbers(versions[name])[:2] < FIRST_DALI:
            problems.append(
                (f"DALI {versions[name]} does not decode on the CPU; 2.1 and newer do", f"pip install -U '{name}>=2.1'")
            )
    return problems


def _other_problems(machine: Machine) -> list[tuple[str, str]]:
    versions = machine.versions()
    problems = [
        (f"{name} is not installed", "pip install -e .")
        for name in ("torch", "torchvision", "av")
        if name not in versions
    ]
    if sys.version_info[:2] < FIRST_PYTHON:
        problems.append((f"Python must be {'.'.join(map(str, FIRST_PYTHON))} or newer", "make PYTHON=python3.12 venv"))
    if "torch" in versions and "torchvision" in versions:
        # Up to 0.28 torchvision pinned one release of torch; 0.29 names a range. So its metadata is asked.
        wanted = [one for one in map(Requirement, machine.requirements("torchvision")) if one.name == "torch"]
        torch = Version(versions["torch"]).base_version
        if any(not one.specifier.contains(torch, prereleases=True) for one in wanted):
            problems.append(
                (
                    f"torchvision {versions['torchvision']} is not one for torch {versions['torch']}: "
                    f"it requires {', '.join(map(str, wanted))}",
                    f"pip install -U torchvision torch=={torch}",
                )
            )
    return problems


def _numbers(version: str) -> tuple[int, ...]:
    """2.14.1+cu130 -> (2, 14, 1)."""
    return tuple(int(part) for part in re.findall(r"\d+", version.split("+")[0])[:3])
