"""Batches that CPU threads draw, on their way to a GPU: page-locked memory, and a copy that nobody waits for.

The copy runs on its own CUDA stream, beside what the model computes. Only the consumer's stream waits for it. PyTorch
hands page-locked memory out again when the copy from it has ended, so nothing here has to.
"""

from __future__ import annotations

from typing import Protocol

import torch


class BatchCopy(Protocol):
    """Memory for batches on the host, and the way from there to a device."""

    def memory(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Memory for a batch on the host, not initialised."""
        ...

    def copied(self, pictures: torch.Tensor) -> torch.Tensor:
        """A copy of such a batch on the device. Work on the consumer's current stream sees it whole."""
        ...


class GpuCopy:
    """`BatchCopy` to a GPU."""

    def __init__(self, device_id: int) -> None:
        self._device = torch.device("cuda", device_id)
        self._stream: torch.cuda.Stream | None = None  # made at the first copy, since it needs the GPU

    def memory(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Page-locked memory."""
        return torch.empty(shape, dtype=dtype, pin_memory=True)

    def copied(self, pictures: torch.Tensor) -> torch.Tensor:
        """As `BatchCopy.copied`."""
        self._stream = self._stream or torch.cuda.Stream(self._device)
        consumer = torch.cuda.current_stream(self._device)
        with torch.cuda.stream(self._stream):
            there = pictures.to(self._device, non_blocking=True)
        consumer.wait_stream(self._stream)
        there.record_stream(consumer)  # so that its memory is not used again before the consumer's work on it ends
        return there
