"""How GPU tests behave where there is no GPU: they skip with a reason, or fail where one is required."""

from __future__ import annotations

import os

import pytest
import torch

from tests import forks
from tests.conftest import skip_without_gpu

TEST = "tests/gpu/test_gpu_path.py::test_the_model_on_the_gpu_equals_the_cpus"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(("required", "skips"), [("0", True), ("1", False)])
def test_gpu_tests_skip_unless_a_gpu_is_required(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, required: str, skips: bool
) -> None:
    monkeypatch.setenv("LAVILA_REQUIRE_GPU", required)
    items = [
        pytest.Function.from_parent(request.node.parent, name=name, callobj=lambda: None) for name in ("gpu", "cpu")
    ]
    items[0].add_marker(pytest.mark.gpu)
    skip_without_gpu([*items])
    reasons = [[mark.kwargs["reason"] for mark in item.iter_markers("skip")] for item in items]
    assert bool(reasons[0]) == skips and not reasons[1]
    assert not skips or "no NVIDIA GPU here" in reasons[0][0]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_required_gpu_that_is_missing_fails() -> None:
    command = ["-m", "pytest", "-q", "-rfs", "-p", "no:cacheprovider", TEST]
    result = forks.run(*command, environment=os.environ | {"LAVILA_REQUIRE_GPU": "1"})
    assert result.returncode == 1 and "FAILED" in result.stdout
