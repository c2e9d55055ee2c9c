"""Text towers: CLIP's causal transformer, and DistilBERT as transformers has it.

Papers: Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision"; Sanh et al. 2019,
"DistilBERT". Parameter names are those of LaViLa's published checkpoints.

Shape suffixes of names: B texts, L tokens of a text, D width, H attention heads, E channels of a head.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from lavila.errors import listed, one_line
from lavila.files import user_path

CLIP_MLP_RATIO = 4
# A constant buffer, 0, 1, 2, ..., that some versions of transformers saved. The models here do not have it.
DISTILBERT_CONSTANTS = ("embeddings.position_ids",)

Config = TypeVar("Config", "ClipTextConfig", "DistilBertTextConfig")


@dataclass(frozen=True, kw_only=True)
class ClipTextConfig:
    """Shape of CLIP's text transformer; the defaults are those of ViT-B. ValueError for values that cannot be built."""

    vocab_size: int = 49408  # rows of the embedding; the largest id ends a text
    context_length: int = 77  # longest text, in tokens
    width: int = 512  # channels of a token
    depth: int = 12  # blocks
    heads: int = 8  # attention heads; divides width
    gradient_checkpointing: bool = False  # recompute blocks in the backward pass to save memory

    def __post_init__(self) -> None:
        _check_sizes(self, ("vocab_size", "context_length", "width", "depth", "heads"))


@dataclass(frozen=True, kw_only=True)
class DistilBertTextConfig:
    """Shape of a DistilBERT; the defaults are distilbert-base-uncased's. ValueError for values that cannot be built."""

    vocab_size: int = 30522  # rows of the embedding
    context_length: int = 512  # longest text, in tokens
    width: int = 768  # channels of a token
    depth: int = 6  # layers
    heads: int = 12  # attention heads; divides width
    hidden_width: int = 3072  # hidden channels of a layer's MLP
    dropout: float = 0.1  # chance of zeroing a channel while training
    attention_dropout: float = 0.1  # chance of zeroing an attention weight while training
    gradient_checkpointing: bool = False  # recompute layers in the backward pass to save memory

    def __post_init__(self) -> None:
        _check_sizes(self, ("vocab_size", "context_length", "width", "depth", "heads", "hidden_width"))
        for name in ("dropout", "attention_dropout"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"{name}={getattr(self, name)}: a chance must be at least 0 and below 1")


def text_config(kind: type[Config], architecture: Mapping[str, Any]) -> Config:
    """The inverse of `asdict` on one of the configs above. ValueError names wrong fields."""
    known = {field.name for field in fields(kind)}
    if set(architecture) != known:
        raise ValueError(
            f"text architecture: missing fields {sorted(known - set(architecture))}, unknown fields "
            f"{sorted(set(architecture) - known)}; the file was written by another version of lavila"
        )
    return kind(**architecture)


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x), CLIP's approximation of GELU, on any shape."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class CausalAttention(nn.Module):
    """Multi-head attention in which a token sees itself and earlier tokens. Parameters as in nn.MultiheadAttention."""

    def __init__(self, width: int, *, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(nn.init.normal_(torch.empty(3 * width, width), std=width**-0.5))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x_BLD: Tensor) -> Tensor:
        """[B,L,D] -> [B,L,D]."""
        qkv_BLD = linear(x_BLD, self.in_proj_weight, self.in_proj_bias)
        q, k, v = torch.unflatten(qkv_BLD, -1, (3, self.heads, -1)).transpose(1, 3).unbind(2)
        out_BHLE = scaled_dot_product_attention(q, k, v, is_causal=True)
        out_BLD: Tensor = self.out_proj(out_BHLE.transpose(1, 2).flatten(2))
        return out_BLD


class ClipTextBlock(nn.Module):
    """Causal attention and MLP, each on a layer-normed input."""

    def __init__(self, config: ClipTextConfig) -> None:
        super().__init__()
        width, hidden = config.width, CLIP_MLP_RATIO * config.width
        residual_std = (2 * config.depth * width) ** -0.5  # each block adds two branches to the residual stream
        self.attn = CausalAttention(width, heads=config.heads)
        self.ln_1 = nn.LayerNorm(width)
        widen, narrow = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.mlp = nn.Sequential(OrderedDict[str, nn.Module](c_fc=widen, gelu=QuickGELU(), c_proj=narrow))
        self.ln_2 = nn.LayerNorm(width)
        nn.init.normal_(self.attn.out_proj.weight, std=residual_std)
        nn.init.normal_(widen.weight, std=(2 * width) ** -0.5)
        nn.init.normal_(narrow.weight, std=residual_std)

    def forward(self, x_BLD: Tensor) -> Tensor:
        """[B,L,D] -> [B,L,D]."""
        x_BLD = x_BLD + self.attn(self.ln_1(x_BLD))
        out_BLD: Tensor = x_BLD + self.mlp(self.ln_2(x_BLD))
        return out_BLD


class ClipTextTransformer(nn.Module):
    """The blocks of CLIP's text tower. The dual encoder holds the embeddings before them and the norm after them."""

    def __init__(self, config: ClipTextConfig) -> None:
        super().__init__()
        self.config = config
        self.resblocks = nn.ModuleList(ClipTextBlock(config) for _ in range(config.depth))

    def forward(self, x_BLD: Tensor) -> Tensor:
        """[B,L,D] -> [B,L,D]."""
        for block in self.resblocks:
            if self.config.gradient_checkpointing and torch.is_grad_enabled():
                x_BLD = checkpoint(block, x_BLD, use_reentrant=False)
            else:
                x_BLD = block(x_BLD)
        return x_BLD


def distilbert(config: DistilBertTextConfig) -> nn.Module:
    """A DistilBertModel of transformers with fresh weights.

    Nothing is fetched. It has no buffers that are not saved.
    """
    import transformers

    model: Any = transformers.DistilBertModel(
        transformers.DistilBertConfig(
            vocab_size=config.vocab_size,
            max_position_embeddings=config.context_length,
            dim=config.width,
            n_layers=config.depth,
            n_heads=config.heads,
            hidden_dim=config.hidden_width,
            dropout=config.dropout,
            attention_dropout=config.attention_dropout,
        )
    )
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    for name in DISTILBERT_CONSTANTS:
        # A model that is built on the meta device would keep this buffer there when it gets its weights.
        owner, _, buffer = name.rpartition(".")
        model.get_submodule(owner).register_buffer(buffer, None, persistent=False)
    textual: nn.Module = model
    return textual


def load_distilbert(textual: nn.Module, source: str | Path) -> None:
    """Fill a model of `distilbert` with trained weights.

    source: a folder written by transformers' `save_pretrained`, or a name on the hub such as distilbert-base-uncased.
    ValueError if nothing is found, if weights are missing or if sizes differ; the model is then unchanged.
    """
    import transformers

    try:
        stored, info = transformers.DistilBertModel.from_pretrained(str(user_path(source)), output_loading_info=True)
    except OSError as error:
        cause = one_line(error)
        raise ValueError(
            f"DistilBERT weights {str(source)!r}: expected a local folder or a hub name; {cause}"
        ) from error
    # transformers only warns when a file lacks weights, and gives them random values.
    wrong = [f"no {name}" for name in sorted(info["missing_keys"]) if name not in DISTILBERT_CONSTANTS]
    state = {name: tensor for name, tensor in stored.state_dict().items() if name not in DISTILBERT_CONSTANTS}
    ours = textual.state_dict()
    wrong += sorted(state.keys() ^ ours.keys()) + [
        f"{name} {list(state[name].shape)} instead of {list(ours[name].shape)}"
        for name in ours
        if name in state and state[name].shape != ours[name].shape
    ]
    if wrong:
        raise ValueError(f"DistilBERT weights {str(source)!r} do not fit: {listed(wrong)}; set the model's sizes")
    textual.load_state_dict(state)


def _check_sizes(config: ClipTextConfig | DistilBertTextConfig, sizes: tuple[str, ...]) -> None:
    for name in sizes:
        if not getattr(config, name) > 0:
            raise ValueError(f"{name}={getattr(config, name)}: must be greater than 0")
    if config.width % config.heads:
        raise ValueError(f"width={config.width} is not a multiple of heads={config.heads}; change one of them")
