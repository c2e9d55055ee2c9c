"""How GPU tests behave where there is no GPU: they skip with a reason, or fail where one is required."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
TEST = "tests/gpu/test_gpu_path.py::test_the_model_on_the_gpu_equals_the_cpus"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_required_gpu_that_is_missing_fails() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-rfs", "-p", "no:cacheprovider", TEST]
    environment = {key: value for key, value in os.environ.items() if key != "LAVILA_REQUIRE_GPU"}
    outcomes = {}
    for required in ("0", "1"):
        result = subprocess.run(
            command,
            cwd=ROOT,
            env=environment | {"LAVILA_REQUIRE_GPU": required},
            capture_output=True,
            text=True,
            check=False,
        )
        outcomes[required] = (result.returncode, result.stdout)
    assert outcomes["0"][0] == 0 and "no NVIDIA GPU here" in outcomes["0"][1]
    assert outcomes["1"][0] == 1 and "FAILED" in outcomes["1"][1]
