"""Which numbers a model computes in, decided here for training, validation and evaluation alike.

Weights are float32 always. In bf16 and fp16 autocast runs the matrix products of a forward pass in half precision.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from lavila.config.schema import ConfigError, Precision, RunConfig
from lavila.records import VideoBatch

TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class Arithmetic:
    """The number type of forward passes on a device."""

    precision: Precision  # fp32, bf16 or fp16; never auto
    device: torch.device

    @classmethod
    def of_training(cls, config: RunConfig, device: torch.device) -> Arithmetic:
        """What `optim.precision` means on this device. ConfigError for fp16 without a GPU."""
        return cls(precision=_resolve("optim.precision", config.optim.precision, device), device=device)

    @classmethod
    def of_evaluation(cls, config: RunConfig, device: torch.device) -> Arithmetic:
        """What `views.precision` means on this device. ConfigError for fp16 without a GPU.

        auto: as in training, so that a model is judged as it was trained. Where this device cannot compute in that
        (fp16 on a CPU), as training would by itself.
        """
        wanted = config.views.precision
        if wanted == "auto":
            wanted = config.optim.precision if _works(config.optim.precision, device) else "auto"
        return cls(precision=_resolve("views.precision", wanted, device), device=device)

    @property
    def scales_loss(self) -> bool:
        """Whether gradients need a loss scaler: those of fp16 become zero without it."""
        return self.precision == "fp16"

    def autocast(self) -> torch.autocast:
        """The context of a forward pass."""
        on = self.precision != "fp32"
        return torch.autocast(self.device.type, dtype=TYPES[self.precision] if on else None, enabled=on)

    def fitted(self, batch: VideoBatch) -> VideoBatch:
        """The batch with pictures that the model takes: float16 ones become float32 where autocast is off."""
        if self.precision != "fp32" or batch.video.dtype == torch.float32:
            return batch
        return replace(batch, video=batch.video.float())


def _works(precision: Precision, device: torch.device) -> bool:
    return precision != "fp16" or device.type == "cuda"


def _resolve(field: str, precision: Precision, device: torch.device) -> Precision:
    """auto: bf16 where the GPU computes in it, else fp16; fp32 on the CPU."""
    if not _works(precision, device):
        raise ConfigError(f"{field}=fp16 needs a GPU, the device is {device.type}; use fp32 or bf16")
    if precision != "auto":
        return precision
    if device.type != "cuda":
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported() else "fp16"
