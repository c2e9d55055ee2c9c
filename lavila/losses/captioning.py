"""The narrator's loss, and what is logged beside it. Nothing here waits for the GPU."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy


def captioning_loss(
    logits: Tensor, tokens: Tensor, *, padding_id: int, average: Literal["positions", "tokens"] = "positions"
) -> Tensor:
    """Mean cross-entropy of the next token, a scalar.

    logits: [B,L,V]. tokens: [B,L] int64, what each position should predict: the caption from its second token on.
    Positions whose token is padding_id count as 0. average: over all "positions", padding included, as LaViLa does
    (Zhao et al., CVPR 2023), or over the "tokens" that are no padding. 0 with a gradient of 0 where there are none. Of
    this rank's captions only. Computed in float32. ValueError for another average.
    """
    if average not in ("positions", "tokens"):
        raise ValueError(f"average={average!r}: expected one of ['positions', 'tokens']")
    total = _surprise(logits, tokens, padding_id).sum()
    if average == "positions":
        return total / max(tokens.numel(), 1)
    return total / (tokens != padding_id).sum().clamp(min=1)


@torch.no_grad()
def caption_perplexity(logits: Tensor, tokens: Tensor, *, padding_id: int) -> Tensor:
    """Mean over captions of e to the mean cross-entropy of a caption's tokens, a scalar, as the reference logs it.

    Arguments as in `captioning_loss`. A caption without tokens is left out; NaN where all are such.
    """
    counts = (tokens != padding_id).sum(1)
    perplexity = (_surprise(logits, tokens, padding_id).sum(1) / counts).exp()
    return perplexity.nansum() / (counts > 0).sum()


@torch.no_grad()
def token_accuracy(logits: Tensor, tokens: Tensor, *, padding_id: int) -> Tensor:
    """Percent of the tokens that have the highest logit, a scalar; padding counts for nothing; NaN without tokens."""
    counted = tokens != padding_id
    return 100 * ((logits.argmax(-1) == tokens) & counted).sum() / counted.sum()


def _surprise(logits: Tensor, tokens: Tensor, padding_id: int) -> Tensor:
    """[B,L] cross-entropy of each position, 0 for padding."""
    if logits.shape[:-1] != tokens.shape:
        raise ValueError(
            f"logits has shape {tuple(logits.shape)}, tokens {tuple(tokens.shape)}: expected [B, L, V] and [B, L]"
        )
    return cross_entropy(logits.float().movedim(-1, 1), tokens, ignore_index=padding_id, reduction="none")
