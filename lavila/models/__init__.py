"""Video models and their checkpoints. A model describes itself with `architecture()`; `build_model` is the way back."""

from lavila.models.checkpoints import CheckpointError, build_model, load_model, read_extra, save_model
from lavila.models.classifier import VideoClassifier
from lavila.models.timesformer import TimeSformer, TimeSformerConfig

__all__ = [
    "CheckpointError",
    "TimeSformer",
    "TimeSformerConfig",
    "VideoClassifier",
    "build_model",
    "load_model",
    "read_extra",
    "save_model",
]
