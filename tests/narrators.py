"""Tiny narrators with random weights, and a byte-level vocabulary that is trained on the spot."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from lavila.checkpoints.store import save_model
from lavila.models.gated_gpt2 import GatedGpt2Config
from lavila.models.narrator import Narrator
from lavila.models.timesformer import TimeSformer, TimeSformerConfig
from lavila.models.tokenizers import Gpt2Tokenizer, learn_vocabulary

SENTENCES = (
    "#C C opens the fridge",
    "#C C sweeps left across the meadow",
    "#C C turns clockwise above the burrow",
    "#C C keeps the view on the tree",
    "#O a man picks the knife",
)
PICTURES = {"mean": [108.0, 117.0, 104.0], "std": [69.0, 67.0, 70.0], "frames": 4}
SIDE = 32  # pixels of a tiny narrator's pictures


def tiny_narrator(vocabulary: Path, *, seed: int = 0) -> Narrator:
    """A narrator for a vocabulary. Its gates are open, so that what it says depends on the pictures."""
    tokenizer = Gpt2Tokenizer(vocabulary)
    torch.manual_seed(seed)
    tower = TimeSformer(TimeSformerConfig(image_size=SIDE, patch_size=16, width=32, depth=1, heads=2, num_frames=4))
    decoder = GatedGpt2Config(
        vocab_size=tokenizer.vocab_size, positions=32, width=32, depth=2, heads=2, end_token=tokenizer.end_id
    )
    narrator = Narrator(tower, decoder, queries=4, pooler_heads=2, pooler_head_width=8)
    with torch.no_grad():
        for name, parameter in narrator.named_parameters():
            if "alpha" in name:
                parameter.fill_(2.0)
            elif "wte" in name:
                parameter.mul_(20.0)  # so that some tokens are much likelier than others
            elif "wpe" in name or "img_queries" in name:
                parameter.normal_(std=2.0)  # and the last token does not say which
    return narrator.eval()


def save_tiny_narrator(folder: Path, *, seed: int = 0) -> tuple[Path, Path]:
    """A checkpoint, and the folder of its vocabulary."""
    vocabulary = folder / "vocabulary"
    learn_vocabulary(2 * SENTENCES, vocabulary, size=300)
    checkpoint = folder / f"narrator-{seed}.safetensors"
    save_model(tiny_narrator(vocabulary, seed=seed), checkpoint, extra={"pictures": json.dumps(PICTURES)})
    return checkpoint, vocabulary
