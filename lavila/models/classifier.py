"""A video tower under one or several linear classification heads (LaViLa's VideoClassifier and its multi-head form).

Parameter names are those of LaViLa's fine-tuned checkpoints: `visual.*`, and `fc_cls.*` for one head or `fc_cls.<i>.*`.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lavila.models.timesformer import TimeSformer

HEAD_INIT_STD = 0.01


class VideoClassifier(nn.Module):
    """Class scores from the tower's class token.

    num_classes: K of each head; there is at least one head (EK-100 uses verb, noun, action). dropout: chance in [0, 1)
    of zeroing a channel of the class token in training. ValueError for other values.
    """

    parts: ClassVar[Mapping[str, tuple[str, ...]]] = {"video": ("visual.*",), "heads": ("fc_cls.*",)}  # see DualEncoder

    def __init__(self, tower: TimeSformer, *, num_classes: tuple[int, ...], dropout: float) -> None:
        super().__init__()
        if not num_classes or min(num_classes) < 1:
            raise ValueError(f"num_classes={num_classes}: expected one positive class count for each head")
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"dropout={dropout}: a chance of zeroing must be at least 0 and below 1")
        self.num_classes = tuple(num_classes)
        self.visual = tower
        self.dropout = nn.Dropout(dropout)
        heads = [nn.Linear(tower.width, classes) for classes in num_classes]
        for head in heads:
            nn.init.normal_(head.weight, std=HEAD_INIT_STD)
            nn.init.zeros_(head.bias)
        self.fc_cls: nn.Module = heads[0] if len(heads) == 1 else nn.ModuleList(heads)

    def forward(self, video: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Normalised video [B,3,T,H,W] -> logits [B,K] of the only head, or a tuple of them, one for each head.

        The logits have the weights' type, under autocast, too: in bf16, with its 8 bits, the best classes often tie.
        """
        feature_BD = self.dropout(self.visual(video))
        heads = self.fc_cls if isinstance(self.fc_cls, nn.ModuleList) else [self.fc_cls]
        kind = feature_BD.device.type
        with torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext():
            logits = tuple(head(feature_BD.to(head.weight.dtype)) for head in heads)
        return logits if isinstance(self.fc_cls, nn.ModuleList) else logits[0]

    def architecture(self) -> dict[str, Any]:
        """The input of `build_model` for this classifier, as plain JSON types."""
        return {
            "kind": "classifier",
            "tower": self.visual.architecture(),
            "num_classes": list(self.num_classes),
            "dropout": self.dropout.p,
        }

    @classmethod
    def from_architecture(cls, architecture: Mapping[str, Any]) -> VideoClassifier:
        """The inverse of `architecture()`, with fresh weights. ValueError names wrong fields."""
        known = {"kind", "tower", "num_classes", "dropout"}
        if set(architecture) != known:
            raise ValueError(
                f"classifier architecture has fields {sorted(architecture)}: expected {sorted(known)}; "
                "the file was written by another version of lavila"
            )
        tower = TimeSformer.from_architecture(architecture["tower"])
        return cls(tower, num_classes=tuple(architecture["num_classes"]), dropout=architecture["dropout"])
