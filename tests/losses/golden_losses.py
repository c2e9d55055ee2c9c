"""The reference's figures of losses, and how close ours must come."""

from __future__ import annotations

from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.golden_files import GOLDEN, golden_json

FIGURES: dict[str, Any] = golden_json("losses")
TENSORS = load_file(GOLDEN / "losses.safetensors")
CLOSE = 1e-6  # of the largest value, or of 1: both sides add up float32


def learned(name: str, rows: slice | None = None) -> Tensor:
    """An input that takes gradients."""
    return (TENSORS[name] if rows is None else TENSORS[name][rows]).clone().requires_grad_()


def assert_close(found: Tensor | float | None, wanted: Tensor | float) -> None:
    assert found is not None
    found, wanted = torch.as_tensor(found).double(), torch.as_tensor(wanted).double()
    assert found.shape == wanted.shape
    assert (found.isnan() == wanted.isnan()).all()
    assert ((found - wanted).nan_to_num().abs() <= CLOSE * wanted.nan_to_num().abs().max().clamp(min=1)).all()
