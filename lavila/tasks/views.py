"""A model over the views of clips, a fixed number of them at once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def over_views(model: Callable[[Tensor], Tensor], video_BVCTHW: Tensor, *, at_once: int) -> Tensor:
    """What `model`, [N,C,T,H,W] -> [N,D], says of each view: [B,V,D] float32, where the model computes.

    at_once: views of a forward pass, counted through clips and views; the last pass has the rest. B may not be 0.
    """
    clips, views = video_BVCTHW.shape[:2]
    parts = [model(part).float() for part in video_BVCTHW.flatten(0, 1).split(at_once)]
    return torch.unflatten(torch.cat(parts), 0, (clips, views))
