"""Video models and their checkpoints. A model describes itself with `architecture()`; `build_model` is the way back.

The names are looked up on first use, so that `python -m lavila.models.zoo` is quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lavila.models.checkpoints import build_model, load_model, read_extra, save_model
    from lavila.models.classifier import VideoClassifier
    from lavila.models.dual_encoder import ClipDualEncoder, DistilBertDualEncoder, DualEncoder
    from lavila.models.errors import CheckpointError
    from lavila.models.narrator import Narrator
    from lavila.models.timesformer import TimeSformer, TimeSformerConfig

_HOME = {
    "CheckpointError": "errors",
    "ClipDualEncoder": "dual_encoder",
    "DistilBertDualEncoder": "dual_encoder",
    "DualEncoder": "dual_encoder",
    "Narrator": "narrator",
    "TimeSformer": "timesformer",
    "TimeSformerConfig": "timesformer",
    "VideoClassifier": "classifier",
    "build_model": "checkpoints",
    "load_model": "checkpoints",
    "read_extra": "checkpoints",
    "save_model": "checkpoints",
}
__all__ = [
    "CheckpointError",
    "ClipDualEncoder",
    "DistilBertDualEncoder",
    "DualEncoder",
    "Narrator",
    "TimeSformer",
    "TimeSformerConfig",
    "VideoClassifier",
    "build_model",
    "load_model",
    "read_extra",
    "save_model",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'lavila.models' has no attribute '{name}'; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(f"lavila.models.{_HOME[name]}"), name)
