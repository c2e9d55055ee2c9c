"""Training losses against the reference."""

from __future__ import annotations

import torch
from safetensors.torch import load_file

from lavila.losses.classification import batch_accuracy, classification_loss
from tests.golden_files import GOLDEN, golden_json


def test_cross_entropy_equals_the_reference() -> None:
    tensors = load_file(GOLDEN / "losses.safetensors")
    logits = tensors["in.ce.logits"].clone().requires_grad_()
    loss = classification_loss(logits, tensors["in.ce.target"], label_smoothing=0.1)
    loss.backward()
    assert abs(loss.item() - golden_json("losses")["cases"]["cross_entropy.label_smoothing_0.1"]["loss"]) < 1e-6
    assert torch.allclose(logits.grad, tensors["grad.ce.logits"], atol=1e-6)  # type: ignore[arg-type]


def test_clips_without_a_label_count_for_nothing() -> None:
    logits, targets = torch.randn(4, 5, requires_grad=True), torch.tensor([1, -1, 3, -1])
    loss = classification_loss(logits, targets, label_smoothing=0.1)
    assert torch.isclose(loss, classification_loss(logits[[0, 2]], targets[[0, 2]], label_smoothing=0.1))
    loss.backward()
    assert logits.grad is not None and (logits.grad[[1, 3]] == 0).all() and (logits.grad[[0, 2]] != 0).any()


def test_a_batch_without_labels_gives_nothing_but_takes_part() -> None:
    logits = torch.randn(2, 5, requires_grad=True)
    loss = classification_loss(logits, torch.tensor([-1, -1]))
    loss.backward()
    assert float(loss) == 0 and logits.grad is not None and (logits.grad == 0).all()


def test_accuracy_is_over_labelled_clips() -> None:
    logits = torch.eye(4)
    assert abs(float(batch_accuracy(logits, torch.tensor([0, 1, 0, -1]))) - 200 / 3) < 1e-4
    assert batch_accuracy(logits, torch.full((4,), -1)).isnan()
