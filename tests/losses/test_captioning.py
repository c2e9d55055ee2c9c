"""The narrator's loss against the reference and against a plain loop."""

from __future__ import annotations

import math

import pytest
import torch

from lavila.losses import captioning_loss
from lavila.losses.captioning import caption_perplexity, token_accuracy
from tests.losses.golden_losses import FIGURES, TENSORS, assert_close

TOKENS = TENSORS["in.caption.labels"]


def test_it_equals_the_reference() -> None:
    figures = FIGURES["cases"]["caption"]
    stored = TENSORS["in.caption.logits"].clone().requires_grad_()  # [B, vocabulary, L]
    logits = stored.movedim(1, -1)
    loss = captioning_loss(logits, TOKENS, padding_id=0)
    loss.backward()
    assert_close(loss.detach(), figures["loss"])
    assert_close(stored.grad, TENSORS["grad.caption.logits"])
    assert_close(caption_perplexity(logits, TOKENS, padding_id=0), figures["ppl"])
    assert_close(token_accuracy(logits, TOKENS, padding_id=0), figures["caption_acc"])


def test_both_averages_equal_a_loop() -> None:
    logits = TENSORS["in.caption.logits"].movedim(1, -1)
    surprises = [
        -math.log(float(logits[row, place].double().softmax(0)[token]))
        for row, tokens in enumerate(TOKENS.tolist())
        for place, token in enumerate(tokens)
        if token != 0
    ]
    assert len(surprises) < TOKENS.numel()
    by_positions = captioning_loss(logits, TOKENS, padding_id=0)
    assert float(by_positions) == pytest.approx(sum(surprises) / TOKENS.numel(), rel=1e-5)
    by_tokens = captioning_loss(logits, TOKENS, padding_id=0, average="tokens")
    assert float(by_tokens) == pytest.approx(sum(surprises) / len(surprises), rel=1e-5)


@pytest.mark.parametrize("average", ["positions", "tokens"])
def test_captions_without_tokens_give_nothing_but_take_part(average: str) -> None:
    logits = torch.randn(2, 3, 5, requires_grad=True)
    nothing = torch.full((2, 3), 4)
    loss = captioning_loss(logits, nothing, padding_id=4, average=average)  # type: ignore[arg-type]
    loss.backward()
    assert loss.item() == 0 and logits.grad is not None and (logits.grad == 0).all()
    assert token_accuracy(logits, nothing, padding_id=4).isnan()
    nothing[0, 0] = 1
    assert caption_perplexity(logits, nothing, padding_id=4) > 1  # of the caption that has a token


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="average='rows'"):
        captioning_loss(torch.zeros(1, 2, 3), torch.zeros(1, 2).long(), padding_id=0, average="rows")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"\(1, 3, 2\)"):
        captioning_loss(torch.zeros(1, 3, 2), torch.zeros(1, 2).long(), padding_id=0)
