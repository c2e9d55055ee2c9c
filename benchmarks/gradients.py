"""What it costs that an update is skipped where the gradient is not finite.

    python -m benchmarks.gradients [--model base|tiny] [--clips 2] [--updates 4] [--rounds 3]

Two ways to end an update take turns, on a TimeSformer classifier with AdamW and random clips on this machine's device:

* checked: `lavila.engine.updates.Mover`, as training has it. It computes the norm of the gradient and waits for it;
* unchecked: the optimizer's step alone.

Seconds of an update, forward and backward pass included, as medians of the rounds: CPU time of all threads on a CPU,
wall time on a GPU, which is waited for after each round. `norm` is the time of the norm by itself.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.nn.utils import get_total_norm

from benchmarks.common import RESULTS, machine
from benchmarks.saving import SIZES, state_of
from lavila.config.schema import OptimConfig
from lavila.engine.checkpoint import TrainState
from lavila.engine.optim import LearningRate
from lavila.engine.updates import Mover


def seconds_of(work: Callable[[], object], device: torch.device, *, times: int) -> float:
    """What one call takes, as a mean over `times`."""
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    began = clock()
    for _ in range(times):
        work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (clock() - began) / times


def passing(state: TrainState, size: str, clips: int, device: torch.device) -> Callable[[], None]:
    """A forward and a backward pass of random clips."""
    shape = SIZES[size]
    video = torch.randn(clips, 3, shape.num_frames, shape.image_size, shape.image_size, device=device)

    def make() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = torch.stack([logits.float().square().mean() for logits in state.model(video)]).sum()
        loss.backward()

    return make


def measure(size: str, *, clips: int, updates: int, rounds: int) -> dict[str, Any]:
    """All figures, in seconds of an update."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    state = state_of(size, device)
    make = passing(state, size, clips, device)
    rate = LearningRate(np.full(1, 1e-6), (1.0,) * len(state.optimizer.param_groups))
    mover = Mover(state=state, rate=rate, optim=OptimConfig(optimizer="adamw"))
    ways: dict[str, Callable[[], object]] = {"checked": lambda: mover.move(0), "unchecked": state.optimizer.step}
    spent: dict[str, list[float]] = {name: [] for name in ways}
    for round_ in range(rounds + 1):
        for name, end in ways.items():

            def update(end: Callable[[], object] = end) -> None:
                make()
                end()
                state.optimizer.zero_grad(set_to_none=True)

            taken = seconds_of(update, device, times=updates)
            if round_:  # the first one warms up
                spent[name].append(taken)
    make()
    gradients = [parameter.grad for parameter in state.model.parameters() if parameter.grad is not None]
    found = {name: statistics.median(seconds) for name, seconds in spent.items()}
    found["norm"] = seconds_of(lambda: get_total_norm(gradients), device, times=updates)
    return {
        "model": size,
        "parameters": sum(gradient.numel() for gradient in gradients),
        "clips": clips,
        **found,
        "norm_share": found["norm"] / found["unchecked"],
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=SIZES, default="base")
    parser.add_argument("--clips", type=int, default=2, help="of an update")
    parser.add_argument("--updates", type=int, default=4, help="of a round")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args(arguments)
    found = measure(given.model, clips=given.clips, updates=given.updates, rounds=given.rounds)
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    found["machine"] = machine("torch", gpu=gpu)
    sys.stdout.write(json.dumps(found, indent=1) + "\n")
    if given.model == "base":
        (RESULTS / "gradients.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
