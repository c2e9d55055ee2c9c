"""Tiny models of every published kind, and files of them in LaViLa's form."""

from __future__ import annotations

import argparse
import functools
import json
import lzma
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lavila.checkpoints.store import build_model
from tests.golden_files import GOLDEN

FILES = GOLDEN / "checkpoints"
SAMPLES = sorted(path.name for path in FILES.glob("*.pt"))
TOWER = {
    "kind": "timesformer",
    "image_size": 16,
    "patch_size": 8,
    "width": 64,
    "depth": 2,
    "heads": 1,
    "num_frames": 4,
    "mlp_ratio": 4.0,
    "activation": "quick_gelu",
    "pre_norm": True,
    "gated_time_attention": False,
    "zero_time_attention": True,
    "drop_path": 0.0,
    "gradient_checkpointing": False,
}
FROZEN_IN_TIME = {**TOWER, "activation": "gelu", "pre_norm": False}
CLIP = {"vocab_size": 50, "context_length": 7, "width": 64, "depth": 2, "heads": 1, "gradient_checkpointing": False}
BERT = {
    "vocab_size": 40,
    "context_length": 9,
    "width": 64,
    "depth": 2,
    "heads": 1,
    "hidden_width": 96,
    "dropout": 0.1,
    "attention_dropout": 0.1,
    "gradient_checkpointing": False,
}
GPT2 = {
    "vocab_size": 30,
    "positions": 12,
    "width": 64,
    "depth": 4,
    "heads": 1,
    "cross_attention_every": 2,
    "gated": True,
    "end_token": 29,
    "pad_token": 0,
    "dropout": 0.1,
    "gradient_checkpointing": False,
}
DISTILBERT = {"kind": "dual_encoder_distilbert", "text": BERT, "embed_dim": 24}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "one head": {"kind": "classifier", "tower": TOWER, "num_classes": [5], "dropout": 0.5},
    "three heads": {"kind": "classifier", "tower": TOWER, "num_classes": [3, 4, 6], "dropout": 0.5},
    "clip": {"kind": "dual_encoder", "tower": TOWER, "text": CLIP, "embed_dim": 24},
    "distilbert": {**DISTILBERT, "tower": TOWER, "projection": "matrices"},
    "egovlp": {**DISTILBERT, "tower": FROZEN_IN_TIME, "projection": "frozen_in_time"},
    "gated egovlp": {
        **DISTILBERT,
        "tower": {**FROZEN_IN_TIME, "gated_time_attention": True},
        "projection": "frozen_in_time",
    },
    "narrator": {
        "kind": "narrator",
        "tower": TOWER,
        "decoder": GPT2,
        "queries": 5,
        "pooler_heads": 2,
        "pooler_head_width": 32,
    },
}
ARCHITECTURES["ungated narrator"] = {**ARCHITECTURES["narrator"], "decoder": {**GPT2, "gated": False}}


@functools.cache
def layouts() -> dict[str, dict[str, Any]]:
    """Layout -> args.model and the shape of every tensor, of all published models and of OpenAI's CLIP."""
    found: dict[str, dict[str, Any]] = json.loads(lzma.decompress((FILES / "layouts.json.xz").read_bytes()))
    return found


def tiny(kind: str) -> nn.Module:
    """A model of ARCHITECTURES in which every weight matters."""
    torch.manual_seed(0)
    model = build_model(ARCHITECTURES[kind])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def outputs(model: Any) -> list[Tensor]:
    """What a model makes of a clip, and of a text where it takes one."""
    video = torch.randn(2, 3, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    tokens = torch.tensor([[1, 5, 9, 0], [2, 7, 3, 8]])
    with torch.no_grad():
        if hasattr(model, "encode_text"):
            return [model.encode_video(video), model.encode_text(tokens)]
        if hasattr(model, "generate"):
            return [model(video, tokens)]
        found = model(video)
        return [found] if isinstance(found, Tensor) else list(found)


def published_state(model: Any, *, prefix: str = "module.") -> dict[str, Tensor]:
    """A model's tensors as LaViLa stores them, constants of narrators included."""
    constants = model.constant_buffers() if hasattr(model, "constant_buffers") else {}
    return {prefix + name: tensor for name, tensor in {**model.state_dict(), **constants}.items()}


def write(path: Path, state: dict[str, Tensor], **args: Any) -> Path:
    """A file as LaViLa's scripts write it; without arguments, one without args."""
    content: dict[str, Any] = {"epoch": 3, "state_dict": state, "optimizer": {"state": {}}, "best_acc1": 0}
    if args:
        content["args"] = argparse.Namespace(**args)
    torch.save(content, path)
    return path
