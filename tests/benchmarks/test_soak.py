"""What the soak concludes from its figures, and that the kept ones are sound. The soak itself takes minutes."""

from __future__ import annotations

import copy
import json
import os
from typing import Any

import pytest

from benchmarks import common, soak
from benchmarks.soak import Usage, growth, is_sound, table


@pytest.fixture
def kept() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((common.RESULTS / "soak.json").read_text())
    return found


def test_the_kept_figures_are_sound_and_in_the_docs(kept: dict[str, Any]) -> None:
    assert is_sound(kept) and table(kept) in soak.DOCS.read_text()
    assert len(kept["faults"]) == 6 and all(kept["faults"].values())


@pytest.mark.parametrize(
    "change",
    [
        {"lost_or_doubled": 1},
        {"different_losses": 1},
        {"compared_updates": 0},
        {"left_over": [".step-00000001.tmp"]},
        {"memory_growth_mib": 100.0},
        {"files_growth": 3},
        {"threads_growth": 3},
        {"children": 1},
    ],
)
def test_each_loss_and_each_leak_counts(kept: dict[str, Any], change: dict[str, Any]) -> None:
    found = copy.deepcopy(kept)
    ((name, value),) = change.items()
    (found if name in found else found["ranks"][1])[name] = value
    assert not is_sound(found)


def test_a_process_is_looked_at() -> None:
    usage = Usage()
    for _ in range(8):
        usage.look(os.getpid())
    with open(os.devnull) as first, open(os.devnull) as second:  # noqa: PTH123
        assert first != second
        usage.look(os.getpid())
    assert len(usage.memory) == 9 and usage.memory[0] > 10 and usage.threads[0] >= 1
    assert usage.files[-1] - usage.files[-2] == 2
    usage.look(2**22 + 1)  # no such process
    assert len(usage.memory) == 9


def test_growth_is_from_warm_to_last() -> None:
    numbers = [10.0] * 5 + [100.0] * 10 + [130.0] * 5
    whole = [round(number) for number in numbers]
    found = growth(Usage(memory=numbers, files=whole, threads=whole, children=[0] * 20))
    assert (found["memory_mib"], found["memory_growth_mib"], found["files_growth"]) == (130.0, 30.0, 30)
