"""A training step, and the share of it that waits for data. Needs neither DALI nor torchvision."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from lavila.models.timesformer import TimeSformer, TimeSformerConfig


class TrainingStep:
    """A step of a TimeSformer on a batch: forward, backward, AdamW; in bfloat16 autocast."""

    def __init__(self, config: TimeSformerConfig, *, device: str):
        with torch.device(device):
            self.model = TimeSformer(config)
        self.optimiser = torch.optim.AdamW(self.model.parameters(), lr=1e-5, fused=device != "cpu")
        self.device = device.partition(":")[0]

    def __call__(self, video: Tensor) -> None:
        """[B, 1, C, T, H, W]"""
        with torch.autocast(self.device, torch.bfloat16):
            loss = self.model(video.flatten(0, 1)).float().square().mean()
        loss.backward()
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)


def data_wait(epochs: Callable[[int], Iterator[Tensor]], step: Callable[[Tensor], None], number: int) -> float:
    """Share of an epoch in which the loop waits for the next batch and the GPU has nothing to do.

    The step is waited for before the next batch is asked for: time in next() is then time that the GPU lacks.
    """
    began, waited, batches = time.perf_counter(), 0.0, iter(epochs(number))
    while True:
        asked = time.perf_counter()
        batch = next(batches, None)
        waited += time.perf_counter() - asked
        if batch is None:
            return waited / (time.perf_counter() - began)
        step(batch)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
