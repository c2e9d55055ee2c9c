"""Divided space-time attention as the reference computes it, for benchmarks/model.py to compare with.

As in Frozen in Time and LaViLa: every head's tokens are moved in front, every frame (or place) gets its copy of the
class token's key and value, products are einsums, the softmax is stored, and every block works on every token. Names of
weights are those of lavila.models.timesformer, whose embedding and final norm it shares. Written from the papers.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from timm.layers import Mlp, QuickGELU
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lavila.models.timesformer import BLOCK_NORM_EPS, TimeSformer, TimeSformerConfig


class ReferenceAttention(nn.Module):
    """Divided attention with nothing fused; names of weights as in DividedAttention."""

    def __init__(self, config: TimeSformerConfig, *, over: str) -> None:
        super().__init__()
        self.heads, self.over = config.heads, over
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.proj = nn.Linear(config.width, config.width)

    def forward(self, x_BSD: Tensor, frames: int) -> Tensor:
        """[B,S,D] -> [B,S,D], both with the class token first."""
        batch, tokens, width = x_BSD.shape
        q, k, v = (self._rows(x) for x in self.qkv(x_BSD).chunk(3, dim=-1))  # [B*H, S, E]
        q = q * q.shape[-1] ** -0.5
        cls = self._attend(q[:, :1], k, v)
        cls_k, cls_v = k[:, :1], v[:, :1]
        q, k, v = (self._groups(x[:, 1:], frames) for x in (q, k, v))
        copies = len(q) // len(cls_k)
        k = torch.cat([cls_k.repeat_interleave(copies, dim=0), k], dim=1)
        v = torch.cat([cls_v.repeat_interleave(copies, dim=0), v], dim=1)
        patches = self._attend(q, k, v).unflatten(0, (-1, copies))
        if self.over == "time":
            patches = patches.transpose(1, 2)
        out = torch.cat([cls, patches.flatten(1, 2)], dim=1).unflatten(0, (batch, self.heads))
        projected: Tensor = self.proj(out.transpose(1, 2).reshape(batch, tokens, width))
        return projected

    def _rows(self, x_BSD: Tensor) -> Tensor:
        rows: Tensor = x_BSD.unflatten(-1, (self.heads, -1)).transpose(1, 2).flatten(0, 1)
        return rows

    def _groups(self, x: Tensor, frames: int) -> Tensor:
        """[B*H, T*N, E] -> [B*H*T, N, E] or [B*H*N, T, E]."""
        split: Tensor = x.unflatten(1, (frames, -1))
        return (split if self.over == "space" else split.transpose(1, 2)).flatten(0, 1)

    @staticmethod
    def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        weights = torch.einsum("gqe,gke->gqk", q, k).softmax(dim=-1)
        return torch.einsum("gqk,gke->gqe", weights, v)


class ReferenceBlock(nn.Module):
    """Names of weights as in Block."""

    def __init__(self, config: TimeSformerConfig) -> None:
        super().__init__()
        width = config.width
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width, eps=BLOCK_NORM_EPS) for _ in range(3))
        self.attn = ReferenceAttention(config, over="space")
        self.timeattn = ReferenceAttention(config, over="time")
        self.mlp = Mlp(width, int(width * config.mlp_ratio), act_layer=QuickGELU)

    def forward(self, x_BSD: Tensor, frames: int) -> Tensor:
        """[B,S,D] -> [B,S,D], both with the class token first."""
        summed = x_BSD + self.timeattn(self.norm3(x_BSD), frames)
        x_BSD = x_BSD + self.attn(self.norm1(summed), frames)
        out: Tensor = x_BSD + self.mlp(self.norm2(x_BSD))
        return out


class Reference(TimeSformer):
    """The whole tower of reference blocks; embedding and final norm are ours."""

    def __init__(self, config: TimeSformerConfig) -> None:
        assert (config.activation, config.gated_time_attention, config.drop_path) == ("quick_gelu", False, 0)
        super().__init__(replace(config, depth=1))
        self.config = config
        self.blocks = nn.ModuleList(ReferenceBlock(config) for _ in range(config.depth))

    def _tokens(self, video_BCTYX: Tensor, *, cls_only: bool = False) -> Tensor:
        x_BSD = self._embed(video_BCTYX)
        for block in self.blocks:
            if self.config.gradient_checkpointing and torch.is_grad_enabled():
                x_BSD = checkpoint(block, x_BSD, video_BCTYX.shape[2], use_reentrant=False)
            else:
                x_BSD = block(x_BSD, video_BCTYX.shape[2])
        return x_BSD


def reference_of(model: TimeSformer) -> Reference:
    """With the very weights of `model`, not copies."""
    with torch.device("meta"):
        reference = Reference(model.config)
    reference.load_state_dict(model.state_dict(), assign=True)
    return reference
