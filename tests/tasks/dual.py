"""A tiny dual encoder with its batches, for tests of tasks that have one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from lavila.models.dual_encoder import DualEncoder
from lavila.models.timesformer import TimeSformer, TimeSformerConfig
from lavila.records import HUMAN, VideoBatch
from lavila.tasks import TaskOptions, TextOptions
from lavila.tasks.dual_encoders import fresh

TEXT = TextOptions(width=16, depth=1, heads=2, context=16, batch_size=3)
FRAMES, SIZE = 2, 16


def tiny_tower(**changes: Any) -> TimeSformer:
    shape = {"image_size": SIZE, "patch_size": 8, "width": 16, "depth": 1, "heads": 2, "num_frames": FRAMES}
    return TimeSformer(TimeSformerConfig(**{**shape, "zero_time_attention": False, **changes}))


def tiny_options(**changes: Any) -> TaskOptions:
    return TaskOptions(**{"text": TEXT, "embed_dim": 8, **changes})


def tiny_model(options: TaskOptions | None = None, *, seed: int = 0) -> DualEncoder:
    torch.manual_seed(seed)
    return fresh(tiny_tower(), options or tiny_options()).eval()


def word_batch(
    words: Sequence[Sequence[str]], *, views: int = 1, sources: Sequence[Sequence[str]] | None = None, **more: Any
) -> VideoBatch:
    """A clip of random pictures for each of `words`, its narrations; the first of them is chosen."""
    clips = len(words)
    video = torch.randn(clips, views, 3, FRAMES, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    values: dict[str, Any] = {
        "video": video,
        "rows": np.arange(clips),
        "positions": np.arange(clips),
        "clip_ids": tuple(f"c{i}" for i in range(clips)),
        "labels": {},
        "label_sets": ((),) * clips,
        "narrations": tuple(tuple(texts) for texts in words),
        "sources": tuple(map(tuple, sources)) if sources else tuple((HUMAN,) * len(texts) for texts in words),
        "chosen": np.array([0 if texts else -1 for texts in words], np.int64),
        "draws": np.zeros(clips),
    }
    return VideoBatch(**values | more)
