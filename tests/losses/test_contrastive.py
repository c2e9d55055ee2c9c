"""Contrastive losses in one process, against the reference and against a plain loop."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lavila.losses import (
    contrastive_accuracy,
    contrastive_loss,
    pseudo_label_contrastive_accuracy,
    pseudo_label_contrastive_loss,
)
from tests.losses.golden_losses import FIGURES, TENSORS, assert_close, learned

PLAIN = {
    "clip.normed": ("in.image", "in.text", None),
    "clip.raw": ("in.image_raw", "in.text_raw", None),
    "clip.max_scale": ("in.image", "in.text", None),
    "clip.single_pair": ("in.image", "in.text", slice(1)),
}
# The reference's file leaves this out. One number explains both losses and all gradients of both cases.
OTHER_LOG_SCALE = {"ssl.mixed.frozen_pseudo_scale": 2.2, "ssl.mixed.different_scales": 2.2}
PSEUDO = [name for name in FIGURES["cases"] if name.startswith("ssl.")]


@pytest.mark.parametrize("name", PLAIN)
def test_it_equals_the_reference(name: str) -> None:
    figures, (image_name, text_name, rows) = FIGURES["cases"][name], PLAIN[name]
    image, text = learned(image_name, rows), learned(text_name, rows)
    log_scale = learned("in.log_logit_scale")
    if name == "clip.max_scale":
        log_scale = torch.tensor(4.6052, requires_grad=True)
    loss = contrastive_loss(image, text, logit_scale=log_scale.exp())
    loss.backward()
    assert_close(loss.detach(), figures["loss"])
    assert_close(image.grad, TENSORS[f"grad.{name}.image"])
    assert_close(text.grad, TENSORS[f"grad.{name}.text"])
    assert_close(log_scale.grad, figures["grad_log_logit_scale"])
    assert_close(contrastive_accuracy(image, text)["image_to_text"].float(), figures["clip_acc"])


def human_of(name: str) -> Tensor:
    human = TENSORS["in.gt_indicators"].bool()
    return {"ssl.all_ground_truth": torch.ones_like(human), "ssl.all_pseudo": torch.zeros_like(human)}.get(name, human)


@pytest.mark.parametrize("name", PSEUDO)
def test_three_temperatures_equal_the_reference(name: str) -> None:
    figures = FIGURES["cases"][name]
    image, text = learned("in.image"), learned("in.text")
    log_scale = torch.tensor(OTHER_LOG_SCALE.get(name, float(TENSORS["in.log_logit_scale"])), requires_grad=True)
    frozen = figures["grad_log_logit_scale_pseudo"] is None
    log_pseudo = torch.tensor(figures["log_logit_scale_pseudo"], requires_grad=not frozen)
    scales = {"logit_scale": log_scale.exp(), "pseudo_logit_scale": log_pseudo.exp(), "human": human_of(name)}
    loss = pseudo_label_contrastive_loss(image, text, **scales)  # type: ignore[arg-type]
    loss.backward()
    assert_close(loss.detach(), figures["loss"])
    assert_close(image.grad, TENSORS[f"grad.{name}.image"])
    assert_close(text.grad, TENSORS[f"grad.{name}.text"])
    assert_close(log_scale.grad, figures["grad_log_logit_scale"])
    if not frozen:
        assert_close(log_pseudo.grad, figures["grad_log_logit_scale_pseudo"])
    accuracy = pseudo_label_contrastive_accuracy(image, text, **scales)  # type: ignore[arg-type]
    for key, ours in (("clip_acc", ""), ("clip_acc_gt", "_human"), ("clip_acc_pseudo", "_pseudo")):
        assert_close(accuracy[f"image_to_text{ours}"], float(figures[key]))


def in_a_loop(image: Tensor, text: Tensor, scale_of: list[float], words: list[int] | None = None) -> float:
    """Each clip and each text by itself, in float64; the scale of a pair is the root of both sides' product."""
    words = words or list(range(len(image)))
    image, text = image.double(), text.double()
    total, count = 0.0, len(image)
    for i in range(count):
        for anchor, others in ((image[i], text), (text[i], image)):
            logits = [math.sqrt(scale_of[i] * scale_of[j]) * float(anchor @ others[j]) for j in range(count)]
            right = [math.exp(logit) for logit, word in zip(logits, words, strict=True) if word == words[i]]
            total += math.log(sum(math.exp(logit) for logit in logits)) - math.log(sum(right))
    return total / (2 * count)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31), human=st.lists(st.booleans(), min_size=1, max_size=7), pseudo=st.floats(1.0, 100.0))
def test_it_equals_a_loop_and_does_not_mind_the_order(seed: int, human: list[bool], pseudo: float) -> None:
    random = torch.Generator().manual_seed(seed)
    image, text = (torch.nn.functional.normalize(torch.randn(len(human), 4, generator=random)) for _ in range(2))
    flags = torch.tensor(human)
    loss = pseudo_label_contrastive_loss(image, text, logit_scale=14.3, pseudo_logit_scale=pseudo, human=flags)
    assert float(loss) == pytest.approx(in_a_loop(image, text, [14.3 if h else pseudo for h in human]), abs=1e-4)
    order = torch.randperm(len(human), generator=random)
    shuffled = pseudo_label_contrastive_loss(
        image[order], text[order], logit_scale=14.3, pseudo_logit_scale=pseudo, human=flags[order]
    )
    assert float(shuffled) == pytest.approx(float(loss), rel=1e-4, abs=1e-5)
    swapped = pseudo_label_contrastive_loss(text, image, logit_scale=14.3, pseudo_logit_scale=pseudo, human=flags)
    assert float(swapped) == pytest.approx(float(loss), rel=1e-4, abs=1e-5)


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 2**31), words=st.lists(st.integers(-(2**63), 2**63 - 1) | st.just(3), min_size=1, max_size=7)
)
def test_equal_words_are_right_for_each_other(seed: int, words: list[int]) -> None:
    random = torch.Generator().manual_seed(seed)
    image, text = (torch.nn.functional.normalize(torch.randn(len(words), 4, generator=random)) for _ in range(2))
    loss = contrastive_loss(image, text, logit_scale=14.3, words=torch.tensor(words))
    assert float(loss) == pytest.approx(in_a_loop(image, text, [14.3] * len(words), words), abs=1e-4)
    different = contrastive_loss(image, text, logit_scale=14.3, words=torch.arange(len(words)))
    assert_close(different, contrastive_loss(image, text, logit_scale=14.3))


def test_a_batch_of_one_sentence_has_no_loss_and_no_gradient() -> None:
    image = torch.randn(3, 4, requires_grad=True)
    loss = contrastive_loss(image, torch.randn(3, 4), logit_scale=10.0, words=torch.zeros(3, dtype=torch.int64))
    loss.backward()
    assert float(loss) == 0 and image.grad is not None and float(image.grad.abs().max()) < 1e-6
    with pytest.raises(ValueError, match=r"words is torch.float32 .*\[3\]"):
        contrastive_loss(image, torch.randn(3, 4), logit_scale=10.0, words=torch.zeros(3))


def test_one_temperature_for_both_kinds_is_the_plain_loss() -> None:
    image, text, human = TENSORS["in.image"], TENSORS["in.text"], TENSORS["in.gt_indicators"].bool()
    plain = contrastive_loss(image, text, logit_scale=20.0)
    assert_close(
        pseudo_label_contrastive_loss(image, text, logit_scale=20.0, pseudo_logit_scale=20.0, human=human), plain
    )


def test_similarities_are_float32_under_autocast() -> None:
    image, text = TENSORS["in.image"], TENSORS["in.text"]
    with torch.autocast("cpu", torch.bfloat16):
        assert_close(contrastive_loss(image, text, logit_scale=14.3), contrastive_loss(image, text, logit_scale=14.3))
        half = contrastive_loss(image.bfloat16(), text.bfloat16(), logit_scale=14.3)
    rounded = contrastive_loss(image.bfloat16().float(), text.bfloat16().float(), logit_scale=14.3)
    assert half.dtype == torch.float32
    assert_close(half, rounded)


def test_no_clips_give_nothing_but_take_part() -> None:
    image, text = (torch.randn(0, 4, requires_grad=True) for _ in range(2))
    loss = contrastive_loss(image, text, logit_scale=14.3)
    loss.backward()
    assert loss.item() == 0 and image.grad is not None and text.grad is not None
    assert contrastive_accuracy(image, text)["text_to_image"].isnan()


def test_wrong_shapes_are_named() -> None:
    with pytest.raises(ValueError, match=r"\(3, 4\).*\(2, 4\)"):
        contrastive_loss(torch.ones(3, 4), torch.ones(2, 4), logit_scale=1.0)
    with pytest.raises(ValueError, match="human"):
        pseudo_label_contrastive_loss(
            torch.ones(3, 4), torch.ones(3, 4), logit_scale=1.0, pseudo_logit_scale=1.0, human=torch.ones(3)
        )
