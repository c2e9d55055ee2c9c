"""A T5 of random weights with a vocabulary of single letters, as a folder of transformers."""

from __future__ import annotations

import string
from pathlib import Path

import torch
from transformers import T5Config, T5ForConditionalGeneration, T5Tokenizer


def save_paraphraser(folder: Path) -> Path:
    """Write the folder."""
    pieces = ["▁", *string.ascii_letters, *string.digits, "#", ".", ",", ":", "'", "-"]
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((piece, -2.0) for piece in pieces)]
    tokenizer = T5Tokenizer(vocab=vocabulary, extra_ids=0)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, decoder_start_token_id=0
    )
    model = T5ForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return folder
