"""A decoder of a dozen tokens and random weights, and its scores computed the plain way."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from lavila.models.gated_gpt2 import GatedGpt2, GatedGpt2Config

VOCABULARY, END = 12, 11


def decoder_of(*, end_bias: float = 0.0) -> GatedGpt2:
    torch.manual_seed(0)
    config = GatedGpt2Config(vocab_size=VOCABULARY, positions=32, width=16, depth=2, heads=2, end_token=END)
    decoder = GatedGpt2(config).eval()
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        # A constant channel after the last norm, through which the end token is made likelier.
        decoder.transformer.ln_f.weight[0], decoder.transformer.ln_f.bias[0] = 0.0, 1.0
        decoder.lm_head.weight[:, 0] = 0.0
        decoder.lm_head.weight[END, 0] = end_bias
    return decoder


def score_all(decoder: GatedGpt2, visual: Tensor, texts: Tensor) -> Tensor:
    """Minus the log-probability of whole texts, without the library's own scoring."""
    logits = log_softmax(decoder(texts[:, :-1], decoder.look(visual)), -1)
    return -logits.gather(-1, texts[:, 1:, None])[..., 0].sum(1)
