"""How far apart pictures may be that are made in two ways, and why."""

from __future__ import annotations

from collections.abc import Sequence

import torch

# Levels of 0..255. Both sides start from the same uint8 colours. DALI's linear resize takes its weights in fixed steps,
# ours and torchvision's in float32: the largest difference seen is 0.004 of a level.
RESIZE_LEVELS = 0.01


def assert_same_pictures(a: torch.Tensor, b: torch.Tensor, *, std: Sequence[float]) -> None:
    """Normalised pictures [..., C, T, H, W] of the same colours, resized by two implementations."""
    assert a.shape == b.shape and a.dtype == b.dtype
    levels = (a.double() - b.double()).abs() * torch.tensor(std, dtype=torch.float64)[:, None, None, None]
    assert levels.max() < RESIZE_LEVELS, f"up to {levels.max():.3f} levels apart"
