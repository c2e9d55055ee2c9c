"""Videos of plain colours, and a tiny dual encoder that learns the names of these colours in seconds.

So a search in them has a right answer, and nothing of it is made up: real weights, real files.
"""

from __future__ import annotations

import json
from fractions import Fraction
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import cross_entropy, normalize

from lavila.checkpoints.store import save_model
from lavila.models.dual_encoder import ClipDualEncoder
from lavila.models.text_tower import ClipTextConfig
from lavila.models.timesformer import TimeSformer, TimeSformerConfig
from lavila.tasks import TextOptions
from lavila.tasks.dual_encoders import make_tokenizer
from tests.footage import Coding, Picture, write_video

COLOURS = {
    "red": (200, 40, 40),
    "green": (40, 160, 60),
    "blue": (40, 60, 200),
    "yellow": (220, 200, 40),
    "purple": (140, 50, 160),
    "white": (225, 225, 225),
}
MEAN, STD, FRAMES, SIDE = 110.0, 70.0, 2, 32
FPS = 10
SECONDS = 4  # of a colour in a video
STEPS = 80


def sentence(colour: str) -> str:
    """What the encoder learns to be said of a colour."""
    return f"everything is {colour}"


def picture(colour: str, number: int, *, height: int = 144, width: int = 256) -> Picture:
    """A colour with a darker bar that wanders over it."""
    made = np.full((height, width, 3), COLOURS[colour], np.uint8)
    left = number * 6 % width
    made[:, left : left + 16] //= 2
    return made


def write_colours(path: Path, *colours: str, coding: Coding | None = None) -> Path:
    """A video of SECONDS of each colour, one after another."""
    pictures = (picture(colour, number) for colour in colours for number in range(SECONDS * FPS))
    return write_video(path, pictures, coding or Coding(fps=Fraction(FPS)))


def write_library(folder: Path) -> Path:
    """Videos that a browser plays, one that it does not, and one that nobody can read."""
    write_colours(folder / "walks/morning.mp4", "red", "green", "blue")
    write_colours(
        folder / "walks/evening.webm", "yellow", "purple", coding=Coding(codec="libvpx-vp9", fps=Fraction(FPS))
    )
    write_colours(folder / "old <camera>.avi", "white", coding=Coding(codec="mpeg4", fps=Fraction(FPS), sound=True))
    (folder / "broken.mp4").write_bytes(b"no video at all" * 100)
    return folder


def save_encoder(path: Path) -> Path:
    """Train the encoder, and write it as a checkpoint."""
    torch.manual_seed(0)
    tower = TimeSformerConfig(image_size=SIDE, patch_size=16, width=32, depth=1, heads=2, num_frames=FRAMES)
    text = ClipTextConfig(width=32, depth=1, heads=2, context_length=16)
    model = ClipDualEncoder(TimeSformer(tower), text=text, embed_dim=16)
    tokens = make_tokenizer(TextOptions(kind="clip", context=16))([sentence(colour) for colour in COLOURS])
    optimizer = torch.optim.AdamW(chain(model.parameters()), lr=3e-3)
    plain = torch.tensor(list(COLOURS.values()), dtype=torch.float32)
    for _ in range(STEPS):
        shade = plain + 12 * torch.randn(len(plain), 3)
        video = ((shade - MEAN) / STD)[:, :, None, None, None].expand(-1, -1, FRAMES, SIDE, SIDE)
        video = video + 0.1 * torch.randn(video.shape)
        scores = normalize(model.encode_video(video), dim=-1) @ normalize(model.encode_text(tokens.ids), dim=-1).T
        loss = cross_entropy(scores / 0.1, torch.arange(len(plain)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.5, "it has not learned the colours"
    pictures = {"mean": [MEAN] * 3, "std": [STD] * 3, "frames": FRAMES}
    save_model(model, path, extra={"pictures": json.dumps(pictures), "context_length": "16"})
    return path
