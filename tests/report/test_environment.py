"""What a report says of the machine never costs the report."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from typing import Any

import pytest
import torch

from lavila.report import environment as module
from lavila.report.environment import environment

FACTS = {"lavila", "python", "torch", "dali", "device", "cpu", "cores", "ranks"}


class Wheel:
    """An installed distribution."""

    def __init__(self, name: str | None, version: str) -> None:
        self.metadata, self.version = {"Name": name}, version


@pytest.mark.parametrize(
    ("wheels", "dali"),
    [
        ([("nvidia-dali-cuda130", "2.4.0")], "2.4.0 (nvidia-dali-cuda130)"),
        ([("nvidia-dali-cuda120", "2.3.1")], "2.3.1 (nvidia-dali-cuda120)"),
        ([("nvidia_dali_nightly_cuda130", "2.5.0.dev1")], "2.5.0.dev1 (nvidia_dali_nightly_cuda130)"),
        (
            [("nvidia-dali-cuda120", "1"), ("nvidia-dali-cuda130", "2")],
            "1 (nvidia-dali-cuda120), 2 (nvidia-dali-cuda130)",
        ),
        ([("torch", "2.14.1"), (None, "0"), ("nvidia-dali", "1.0")], None),  # the last is PyPI's placeholder
        ([], None),
    ],
)
def test_any_wheel_of_dali_is_named_and_none_is_none(
    wheels: list[tuple[str | None, str]], dali: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "dali_wheels", lambda: [Wheel(*wheel) for wheel in wheels])
    found = environment(torch.device("cpu"), ranks=2)
    assert set(found) == FACTS and found["dali"] == dali and found["lavila"] and found["ranks"] == 2


def test_the_wheel_that_is_installed_here_is_found() -> None:
    pytest.importorskip("nvidia.dali")
    (wheel,) = module.dali_wheels()
    assert wheel.version == metadata.version(wheel.metadata["Name"])


def test_lavila_need_not_be_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    monkeypatch.setattr(metadata.Distribution, "from_name", missing)
    assert environment(torch.device("cpu"), ranks=2)["lavila"] is not None


def test_a_fact_that_cannot_be_found_out_is_null_and_the_others_stay(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any) -> Any:
        raise OSError("not on this machine")

    monkeypatch.setattr(module, "dali_wheels", broken)
    monkeypatch.setattr(platform, "python_version", broken)
    monkeypatch.setattr(os, "sched_getaffinity", broken)
    monkeypatch.setattr(torch.cuda, "get_device_name", broken)
    found = environment(torch.device("cuda", 0), ranks=1)
    assert set(found) == FACTS
    assert {name for name, value in found.items() if value is None} == {"python", "dali", "device", "cores"}
    assert found["torch"] == torch.__version__ and "environment: dali" in caplog.text
