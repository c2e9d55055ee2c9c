"""TimeSformer: a video transformer whose blocks attend over time first and over space second.

Papers: Bertasius et al. 2021, "Is Space-Time Attention All You Need for Video Understanding?"; the order of the
residual sums is that of Bain et al. 2021, "Frozen in Time", which LaViLa (Zhao et al. 2023) builds on. Parameter names
are those of LaViLa's published checkpoints.

Shape suffixes of names: B clips, C colours, T frames, Y X pixels, N patches of a frame, S tokens of a clip (1 + T*N:
the class token, then frame by frame), D width, H attention heads, E channels of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention, silu
from torch.nn.init import trunc_normal_
from torch.utils.checkpoint import checkpoint


def quick_gelu(x: Tensor) -> Tensor:
    """x * sigmoid(1.702 x), any shape. Without gradients, `x` is overwritten and returned."""
    if torch.is_grad_enabled():
        return silu(1.702 * x) / 1.702
    return silu(x.mul_(1.702), inplace=True).div_(1.702)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"quick_gelu": quick_gelu, "gelu": gelu}
# Position embeddings start at the scale of the patch tokens to which they are added. At the usual 0.02 a small model
# sees neither place nor time at first: it needed over 300 steps, instead of under 50, to separate left pans from right.
EMBED_INIT_STD = 0.5
# The two epsilons differ in the reference, and published weights were trained with them.
PRE_NORM_EPS = 1e-5
BLOCK_NORM_EPS = 1e-6
# Of smaller tensors, what the backward pass needs is kept: computing it again takes longer than it saves memory. It
# lies between a batch of a model that fits a CPU (0.6 MB) and one clip of TimeSformer-B (29 MB).
SMALL_BYTES = 4 << 20


@dataclass(frozen=True, kw_only=True)
class TimeSformerConfig:
    """Everything that decides the shape and the start of a TimeSformer. ValueError for values that cannot be built."""

    image_size: int = 224  # side of the square picture, pixels
    patch_size: int = 16  # side of a square patch, pixels; divides image_size
    width: int = 768  # channels of a token
    depth: int = 12  # blocks
    heads: int = 12  # attention heads; divides width
    num_frames: int = 16  # longest clip, in frames
    mlp_ratio: float = 4.0  # hidden width of a block's MLP over its width
    activation: str = "quick_gelu"  # activation of the MLP: quick_gelu (x * sigmoid(1.702 x), as CLIP) or gelu (exact)
    pre_norm: bool = True  # layer norm after the embedding and no patch bias (CLIP); false: patch bias, no norm
    gated_time_attention: bool = False  # a learnt tanh gate on every block's temporal attention
    zero_time_attention: bool = True  # temporal branch and embedding start at zero: for image weights, not from scratch
    drop_path: float = 0.0  # chance of skipping a branch of the last block; grows linearly from 0 in the first
    gradient_checkpointing: bool = False  # recompute blocks in the backward pass to save memory

    def __post_init__(self) -> None:
        for name in ("image_size", "patch_size", "width", "depth", "heads", "num_frames", "mlp_ratio"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)}: must be greater than 0")
        if self.image_size % self.patch_size:
            raise ValueError(
                f"image_size={self.image_size} is not a multiple of patch_size={self.patch_size}; "
                f"try image_size={max(1, self.image_size // self.patch_size) * self.patch_size}"
            )
        if self.width % self.heads:
            raise ValueError(f"width={self.width} is not a multiple of heads={self.heads}; change one of them")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation={self.activation!r}: expected one of {sorted(ACTIVATIONS)}")
        if not 0.0 <= self.drop_path < 1.0:
            raise ValueError(f"drop_path={self.drop_path}: a chance of skipping must be at least 0 and below 1")

    @property
    def grid(self) -> int:
        """Patches along one side of the picture."""
        return self.image_size // self.patch_size


class PatchEmbed(nn.Module):
    """One linear map from the pixels of a patch to a token."""

    def __init__(self, config: TimeSformerConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, config.width, config.patch_size, config.patch_size, bias=not config.pre_norm)

    def forward(self, video_BCTYX: Tensor) -> Tensor:
        """[B,3,T,Y,X] -> [B,T,N,D]."""
        frames = video_BCTYX.shape[2]
        patches: Tensor = self.proj(video_BCTYX.transpose(1, 2).flatten(0, 1))
        return torch.unflatten(patches.flatten(2).transpose(1, 2), 0, (-1, frames))


def kept_by_input(function: Callable[..., Tensor], x: Tensor, *args: Any) -> Tensor:
    """function(x, *args). Only `x` stays in memory for the backward pass, unless it is small.

    The backward pass computes everything else in `function` again, up to the input of its last matrix product. So this
    is for functions whose only expensive part is that product. They may not draw random numbers.
    """
    if torch.is_grad_enabled() and x.numel() * x.element_size() >= SMALL_BYTES:  # nbytes cannot be compiled
        out: Tensor = checkpoint(function, x, *args, use_reentrant=False, preserve_rng_state=False)
        return out
    return function(x, *args)


def attention(q_BSHE: Tensor, k_BSHE: Tensor, v_BSHE: Tensor) -> Tensor:
    """softmax(q k / sqrt(E)) v over the tokens S. q may have other tokens than k and v."""
    return scaled_dot_product_attention(
        q_BSHE.transpose(1, 2), k_BSHE.transpose(1, 2), v_BSHE.transpose(1, 2)
    ).transpose(1, 2)


class DividedAttention(nn.Module):
    """Multi-head attention over one axis of a clip.

    The class token attends to every token. A patch token attends to the class token and to the patches of its frame
    (`over="space"`) or those at its own place in all frames (`over="time"`).
    """

    def __init__(self, width: int, *, heads: int, over: Literal["space", "time"]) -> None:
        super().__init__()
        self.heads = heads
        self.over = over
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x_BSD: Tensor, norm: nn.Module, *, frames: int, cls_only: bool = False) -> Tensor:
        """[B,S,D] -> [B,S,D], both with the class token first; or [B,1,D], only the class token.

        `norm` is applied to the input here, so that its output is freed before the attention takes memory.
        """
        return kept_by_input(self._attend, self.qkv(norm(x_BSD)), frames, cls_only)

    def _attend(self, qkv_BSK: Tensor, frames: int, cls_only: bool) -> Tensor:
        # The gradients of split tensors are joined in one piece; those of sliced tensors are not.
        q_BSHE, k_BSHE, v_BSHE = torch.unflatten(qkv_BSK, -1, (3, self.heads, -1)).unbind(2)
        q_cls, q_patches = q_BSHE.split([1, q_BSHE.shape[1] - 1], dim=1)
        out_BSHE = attention(q_cls, k_BSHE, v_BSHE)
        if not cls_only:
            q_BTNHE = torch.unflatten(q_patches, 1, (frames, -1))
            # Places are folded into the heads and not into the batch. Then tokens keep their order in memory, and the
            # call has no dimension B*N: for large batches that is above 65535, the limit of a CUDA grid's second one.
            fold = (0, 1) if self.over == "space" else (2, 3)
            patches = attention(
                q_BTNHE.flatten(*fold),
                self._with_cls(k_BSHE, frames).flatten(*fold),
                self._with_cls(v_BSHE, frames).flatten(*fold),
            )
            out_BSHE = torch.cat([out_BSHE, patches.reshape(q_patches.shape)], dim=1)
            del patches
        out: Tensor = self.proj(out_BSHE.flatten(2))
        return out

    def _with_cls(self, x_BSHE: Tensor, frames: int) -> Tensor:
        """Patches [B,T,N,H,E] with the class token before the places of each frame, or before the frames."""
        cls, patches = x_BSHE.split([1, x_BSHE.shape[1] - 1], dim=1)
        patches = torch.unflatten(patches, 1, (frames, -1))
        if self.over == "space":
            return torch.cat([cls[:, None].expand(-1, frames, -1, -1, -1), patches], dim=2)
        return torch.cat([cls[:, None].expand(-1, -1, patches.shape[2], -1, -1), patches], dim=1)


class Mlp(nn.Module):
    """Two linear maps with an activation between."""

    def __init__(self, config: TimeSformerConfig) -> None:
        super().__init__()
        hidden = int(config.width * config.mlp_ratio)
        self.fc1 = nn.Linear(config.width, hidden)
        self.fc2 = nn.Linear(hidden, config.width)
        self.activation = config.activation

    def forward(self, x_BSD: Tensor, norm: nn.Module) -> Tensor:
        """[B,S,D] -> [B,S,D]; `norm` is applied to the input here, for the reason given in DividedAttention."""
        return kept_by_input(self._finish, self.fc1(norm(x_BSD)))

    def _finish(self, hidden: Tensor) -> Tensor:
        out: Tensor = self.fc2(ACTIVATIONS[self.activation](hidden))
        return out


class DropPath(nn.Module):
    """Stochastic depth (Huang et al. 2016): in training, drops a branch for some clips and scales it up for the others.

    timm has this layer, but to import timm takes as long again as to import PyTorch, at every start of a command.
    """

    def __init__(self, drop_prob: float) -> None:
        super().__init__()
        self.drop_prob = drop_prob  # chance that a clip goes without the branch

    def forward(self, x_BSD: Tensor) -> Tensor:
        """[B,S,D] -> [B,S,D], with the same mean."""
        if not self.training or self.drop_prob == 0.0:
            return x_BSD
        keep = 1 - self.drop_prob
        return x_BSD * x_BSD.new_empty(x_BSD.shape[0], 1, 1).bernoulli_(keep).div_(keep)


class Block(nn.Module):
    """Time attention, space attention, MLP, each on a layer-normed input."""

    def __init__(self, config: TimeSformerConfig, *, drop_path: float) -> None:
        super().__init__()
        width = config.width
        self.norm1 = nn.LayerNorm(width, eps=BLOCK_NORM_EPS)
        self.attn = DividedAttention(width, heads=config.heads, over="space")
        self.timeattn = DividedAttention(width, heads=config.heads, over="time")
        self.norm2 = nn.LayerNorm(width, eps=BLOCK_NORM_EPS)
        self.mlp = Mlp(config)
        self.norm3 = nn.LayerNorm(width, eps=BLOCK_NORM_EPS)
        self.alpha_timeattn = nn.Parameter(torch.zeros([])) if config.gated_time_attention else None
        self.drop_path = DropPath(drop_path)

    def forward(self, x_BSD: Tensor, frames: int, cls_only: bool = False) -> Tensor:
        """[B,S,D] -> [B,S,D], both with the class token first; or [B,1,D], only the class token."""
        summed_BSD = x_BSD + self._time(x_BSD, frames)
        space_BSD = self.attn(summed_BSD, self.norm1, frames=frames, cls_only=cls_only)
        del summed_BSD
        if cls_only:
            x_BSD = x_BSD[:, :1]
        # As in Frozen in Time, the output of space attention is added to the block's input. The sum with time attention
        # is only the input of space attention.
        x_BSD = x_BSD + self.drop_path(space_BSD)
        del space_BSD
        out_BSD: Tensor = x_BSD + self.drop_path(self.mlp(x_BSD, self.norm2))
        return out_BSD

    def _time(self, x_BSD: Tensor, frames: int) -> Tensor:
        time_BSD: Tensor = self.timeattn(x_BSD, self.norm3, frames=frames)
        return time_BSD if self.alpha_timeattn is None else self.alpha_timeattn.tanh() * time_BSD


class TimeSformer(nn.Module):
    """Divided space-time attention over clips of up to `num_frames` square pictures."""

    def __init__(self, config: TimeSformerConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + config.grid**2, width))
        self.temporal_embed = nn.Parameter(torch.zeros(1, config.num_frames, width))
        self.patch_embed = PatchEmbed(config)
        self.ln_pre = nn.LayerNorm(width, eps=PRE_NORM_EPS) if config.pre_norm else nn.Identity()
        last = max(1, config.depth - 1)
        self.blocks = nn.ModuleList(Block(config, drop_path=config.drop_path * i / last) for i in range(config.depth))
        self.norm = nn.LayerNorm(width, eps=BLOCK_NORM_EPS)
        self._initialise()

    @property
    def width(self) -> int:
        """The number of channels D of the output."""
        return self.config.width

    def forward(self, video_BCTYX: Tensor) -> Tensor:
        """Normalised video [B,3,T,Y,X] -> class token [B,D] after the final layer norm.

        A clip of T < num_frames frames uses the first T temporal embeddings. ValueError for any other wrong shape.
        """
        cls_BD: Tensor = self.norm(self._tokens(video_BCTYX, cls_only=True)[:, 0])
        return cls_BD

    def forward_features(self, video_BCTYX: Tensor) -> Tensor:
        """As `forward`, but with all tokens [B, 1 + T*N, D]: the class token, then the patches frame by frame."""
        tokens_BSD: Tensor = self.norm(self._tokens(video_BCTYX))
        return tokens_BSD

    def architecture(self) -> dict[str, Any]:
        """The input of `build_model` for this tower, as plain JSON types."""
        return {"kind": "timesformer", **asdict(self.config)}

    @classmethod
    def from_architecture(cls, architecture: Mapping[str, Any]) -> TimeSformer:
        """The inverse of `architecture()`, with fresh weights. ValueError names wrong fields."""
        given = set(architecture) - {"kind"}
        known = {field.name for field in fields(TimeSformerConfig)}
        if given != known:
            raise ValueError(
                f"timesformer architecture: missing fields {sorted(known - given)}, unknown fields "
                f"{sorted(given - known)}; the file was written by another version of lavila"
            )
        return cls(TimeSformerConfig(**{name: architecture[name] for name in known}))

    def _tokens(self, video_BCTYX: Tensor, *, cls_only: bool = False) -> Tensor:
        self._check(video_BCTYX)
        frames = video_BCTYX.shape[2]
        x_BSD = self._embed(video_BCTYX)
        for place, block in enumerate(self.blocks, start=1):
            # After the last space attention nothing uses the other tokens.
            args = (x_BSD, frames, cls_only and place == len(self.blocks))
            if self.config.gradient_checkpointing and torch.is_grad_enabled():
                x_BSD = checkpoint(block, *args, use_reentrant=False)
            else:
                x_BSD = block(*args)
        return x_BSD

    def _embed(self, video_BCTYX: Tensor) -> Tensor:
        frames = video_BCTYX.shape[2]
        where_1TND = self.pos_embed[:, None, 1:] + self.temporal_embed[:, :frames, None]
        patches_BSD = (self.patch_embed(video_BCTYX) + where_1TND).flatten(1, 2)
        cls_11D = self.cls_token + self.pos_embed[:, :1]
        # Under autocast the patches have half precision. The residual stream has the weights' type from here on.
        patches_BSD = patches_BSD.to(cls_11D.dtype)
        x_BSD: Tensor = self.ln_pre(torch.cat([cls_11D.expand(len(patches_BSD), -1, -1), patches_BSD], dim=1))
        return x_BSD

    def _check(self, video_BCTYX: Tensor) -> None:
        config, size = self.config, self.config.image_size
        if video_BCTYX.ndim != 5 or video_BCTYX.shape[1] != 3:
            raise ValueError(f"video has shape {tuple(video_BCTYX.shape)}: expected [B, 3, T, {size}, {size}]")
        frames, *picture = video_BCTYX.shape[2:]
        if not 1 <= frames <= config.num_frames:
            raise ValueError(
                f"video has {frames} frames: this model takes 1 to {config.num_frames}; give it shorter clips or load "
                f"it with load_model(..., num_frames={max(1, frames)})"
            )
        if picture != [size, size]:
            raise ValueError(
                f"video has pictures of {picture[0]}x{picture[1]} pixels: this model takes {size}x{size}; crop to that "
                "or load it with load_model(..., image_size=N)"
            )

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                # Unit variance in, unit variance out at any width; the usual fixed 0.02 suits widths near 1000 only.
                trunc_normal_(module.weight, std=module.weight[0].numel() ** -0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        trunc_normal_(self.cls_token, std=EMBED_INIT_STD)
        trunc_normal_(self.pos_embed, std=EMBED_INIT_STD)
        if not self.config.zero_time_attention:
            trunc_normal_(self.temporal_embed, std=EMBED_INIT_STD)
        for block in self.blocks:
            assert isinstance(block, Block)
            if block.alpha_timeattn is not None:
                # A closed gate alone makes the branch zero. With a zero projection behind it neither would ever learn:
                # the gradient of each is a multiple of the other.
                nn.init.constant_(block.alpha_timeattn, 0.0 if self.config.zero_time_attention else 1.0)
            elif self.config.zero_time_attention:
                # The reference zeroes qkv and sets the projection to ones: the same function at the start, but queries
                # and keys then never get a gradient. A zero projection behind random qkv learns from the second step.
                nn.init.zeros_(block.timeattn.proj.weight)
