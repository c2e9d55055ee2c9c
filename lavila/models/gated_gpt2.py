"""GPT-2 that also attends to visual tokens: cross-attention in every k-th block, opened by learnt tanh gates.

Papers: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners"; the gated blocks are those of
Alayrac et al. 2022, "Flamingo", in the form LaViLa (Zhao et al. 2023) gave them. Parameter names are those of LaViLa's
published narrators, which are those of transformers' GPT-2 where the two share a module.

Shape suffixes of names: B clips, N sequences (N is a multiple of B; a clip's sequences lie next to each other), L
tokens of a sequence, M visual tokens of a clip, D width, H attention heads, E channels of a head, V vocabulary.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, gelu, linear, relu, scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from lavila.errors import listed, one_line
from lavila.models.token_cache import KeyValue, Seen, TokenCache

NORM_EPS = 1e-5
INIT_STD = 0.02
FEW_ROWS = 32  # see `product`
FIRST_CAPACITY = 20  # tokens of a new cache; most narrations are shorter
# Causal masks, and the number for masked scores. Older versions of transformers stored them with the weights.
MASK_BUFFERS = re.compile(r"transformer\.h\.\d+\.(attn|crossattention)\.(bias|masked_bias)$")
MASKED_BIAS = -1e4
CROSS_ATTENTION = ("alpha_cattn", "alpha_dense", "crossattention", "ln_cross_attn", "ln_2_crossattention")


@dataclass(frozen=True, kw_only=True)
class GatedGpt2Config:
    """Everything that decides the shape of a decoder. The defaults are GPT-2's. ValueError for impossible values."""

    vocab_size: int = 50257
    positions: int = 1024  # longest sequence, tokens
    width: int = 768  # channels of a token
    depth: int = 12  # blocks
    heads: int = 12  # attention heads; divides width
    cross_attention_every: int = 1  # blocks 0, k, 2k ... attend to the visual tokens
    gated: bool = True  # learnt tanh gates on the cross-attention and its MLP, closed at first
    end_token: int = 50256  # begins and ends every sequence
    pad_token: int = 0  # fills up targets; an ordinary token of the vocabulary, as in the reference
    dropout: float = 0.1  # chance of zeroing a channel while training, wherever GPT-2 has it
    gradient_checkpointing: bool = False  # recompute blocks in the backward pass to save memory

    def __post_init__(self) -> None:
        for name in ("vocab_size", "positions", "width", "depth", "heads", "cross_attention_every"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)}: must be greater than 0")
        if self.width % self.heads:
            raise ValueError(f"width={self.width} is not a multiple of heads={self.heads}; change one of them")
        for name in ("end_token", "pad_token"):
            if not 0 <= getattr(self, name) < self.vocab_size:
                raise ValueError(f"{name}={getattr(self, name)}: expected an id from 0 to {self.vocab_size - 1}")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout={self.dropout}: a chance of zeroing must be at least 0 and below 1")


class Conv1D(nn.Module):
    """A linear layer whose weight has the shape [in, out], as GPT-2's have.

    In memory it lies as the weight of nn.Linear does, output by output, in which order few tokens are multiplied faster
    (see `product`).
    """

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width_out, width_in).t())
        self.bias = nn.Parameter(torch.zeros(width_out))
        self.register_load_state_dict_post_hook(_lie_by_output)

    def forward(self, x: Tensor) -> Tensor:
        return product(x, self.weight.t(), self.bias)


def product(x: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """nn.Linear's product, [.., in] -> [.., out]."""
    rows = x.numel() // max(x.shape[-1], 1)
    many = rows > FEW_ROWS and x.dtype != torch.bfloat16
    if x.device.type != "cpu" or many or torch.is_grad_enabled():
        return linear(x, weight_OI, bias_O)
    # A step of generation multiplies few rows by every weight, and reading the weights takes the time. With the tokens
    # as columns, the matrix library reads them a quarter faster. In bfloat16 that is so for any number of rows, and a
    # row's product does not depend on how many there are, which linear's does from 33 rows on.
    x_IN = x.reshape(rows, -1).t()
    out_ON = torch.mm(weight_OI, x_IN) if bias_O is None else torch.addmm(bias_O[:, None], weight_OI, x_IN)
    out: Tensor = out_ON.t().unflatten(0, x.shape[:-1])
    return out


class SelfAttention(nn.Module):
    """Causal multi-head attention among the tokens of a sequence."""

    def __init__(self, config: GatedGpt2Config) -> None:
        super().__init__()
        self.heads = config.heads
        self.dropout = config.dropout
        self.c_attn = Conv1D(config.width, 3 * config.width)
        self.c_proj = Conv1D(config.width, config.width)

    def forward(self, x_NLD: Tensor, *, past: KeyValue | None, length: int) -> Tensor:
        """[N,L,D] -> [N,L,D]. past: keys and values of `length` earlier tokens, to which the new ones are added."""
        q, k, v = split_heads(self.c_attn(x_NLD), 3, self.heads)
        if past is not None:
            seen = length + x_NLD.shape[1]
            past[0][:, :, length:seen], past[1][:, :, length:seen] = k, v
            k, v = past[0][:, :, :seen], past[1][:, :, :seen]
        chance = self.dropout if self.training else 0.0
        out = scaled_dot_product_attention(q, k, v, dropout_p=chance, is_causal=length == 0)
        out = self.c_proj(out.transpose(1, 2).flatten(2))
        return dropout(out, self.dropout, self.training)


class CrossAttention(nn.Module):
    """Multi-head attention from the tokens of every sequence to the visual tokens of its clip."""

    def __init__(self, config: GatedGpt2Config) -> None:
        super().__init__()
        self.heads = config.heads
        self.dropout = config.dropout
        self.c_attn = Conv1D(config.width, 2 * config.width)
        self.q_attn = Conv1D(config.width, config.width)
        self.c_proj = Conv1D(config.width, config.width)

    def look(self, visual_BMD: Tensor) -> KeyValue:
        """Keys and values [B,H,M,E] of a clip, the same for all its tokens and sequences."""
        k, v = split_heads(self.c_attn(visual_BMD), 2, self.heads)
        return k, v

    def forward(self, x_NLD: Tensor, seen: Seen, clip: KeyValue) -> Tensor:
        """[N,L,D] -> [N,L,D]. clip: the result of `look` for the B clips; seen: which sequence sees which clip."""
        # The sequences of a clip form one row of queries, so that its keys and values are not copied for each.
        (q,) = split_heads(seen.to_grid(self.q_attn(x_NLD)), 1, self.heads)
        out = scaled_dot_product_attention(q, *clip, dropout_p=self.dropout if self.training else 0.0)
        out = self.c_proj(seen.from_grid(out.transpose(1, 2).flatten(2), x_NLD.shape[1]))
        return dropout(out, self.dropout, self.training)


class GptMlp(nn.Module):
    """Two linear layers with GPT-2's GELU, or a squared ReLU, in between."""

    def __init__(self, config: GatedGpt2Config, *, squared_relu: bool = False) -> None:
        super().__init__()
        self.squared_relu = squared_relu
        self.dropout = config.dropout
        self.c_fc = Conv1D(config.width, 4 * config.width)
        self.c_proj = Conv1D(4 * config.width, config.width)

    def forward(self, x_NLD: Tensor) -> Tensor:
        x = self.c_fc(x_NLD)
        x = relu(x).square() if self.squared_relu else gelu(x, approximate="tanh")
        return dropout(self.c_proj(x), self.dropout, self.training)


class GptBlock(nn.Module):
    """Self-attention and MLP; some blocks have cross-attention and another MLP before. Inputs are layer-normed."""

    alpha_cattn: nn.Parameter | None
    alpha_dense: nn.Parameter | None

    def __init__(self, config: GatedGpt2Config, *, cross: bool) -> None:
        super().__init__()
        gates = (
            (nn.Parameter(torch.zeros([])), nn.Parameter(torch.zeros([]))) if cross and config.gated else (None, None)
        )
        self.register_parameter("alpha_cattn", gates[0])
        self.register_parameter("alpha_dense", gates[1])
        self.ln_1 = nn.LayerNorm(config.width, eps=NORM_EPS)
        self.attn = SelfAttention(config)
        self.ln_2 = nn.LayerNorm(config.width, eps=NORM_EPS)
        self.cross = cross
        if cross:
            self.crossattention = CrossAttention(config)
            self.ln_cross_attn = nn.LayerNorm(config.width, eps=NORM_EPS)
            self.mlp_crossattention = GptMlp(config, squared_relu=True)
            self.ln_2_crossattention = nn.LayerNorm(config.width, eps=NORM_EPS)
        self.mlp = GptMlp(config)

    def forward(
        self, x_NLD: Tensor, seen: Seen, clip: KeyValue | None, past: KeyValue | None = None, length: int = 0
    ) -> Tensor:
        """[N,L,D] -> [N,L,D]. seen, clip: see CrossAttention; past, length: see SelfAttention."""
        if self.cross:
            assert clip is not None
            x_NLD = x_NLD + gate(self.alpha_cattn, self.crossattention(self.ln_cross_attn(x_NLD), seen, clip))
            x_NLD = x_NLD + gate(self.alpha_dense, self.mlp_crossattention(self.ln_2_crossattention(x_NLD)))
        x_NLD = x_NLD + self.attn(self.ln_1(x_NLD), past=past, length=length)
        out_NLD: Tensor = x_NLD + self.mlp(self.ln_2(x_NLD))
        return out_NLD


class GptBody(nn.Module):
    """Embeddings, blocks and the final layer norm; transformers calls this part `transformer`."""

    def __init__(self, config: GatedGpt2Config) -> None:
        super().__init__()
        self.wte = nn.Embedding(config.vocab_size, config.width)
        self.wpe = nn.Embedding(config.positions, config.width)
        self.h = nn.ModuleList(
            GptBlock(config, cross=block % config.cross_attention_every == 0) for block in range(config.depth)
        )
        self.ln_f = nn.LayerNorm(config.width, eps=NORM_EPS)


class GatedGpt2(nn.Module):
    """Scores of the next token, given the tokens before it and the visual tokens of the clip."""

    def __init__(self, config: GatedGpt2Config) -> None:
        super().__init__()
        self.config = config
        self.transformer = GptBody(config)
        self.lm_head = nn.Linear(config.width, config.vocab_size, bias=False)
        self._initialise()
        self.lm_head.weight = self.transformer.wte.weight
        self.register_load_state_dict_pre_hook(_refuse_two_embeddings)
        self.register_load_state_dict_post_hook(_tie)

    def look(self, visual_BMD: Tensor) -> Seen:
        """Visual tokens [B,M,D] -> keys and values of each block's cross-attention, in the type of the weights."""
        visual_BMD = visual_BMD.to(self.lm_head.weight.dtype)
        return Seen([block.crossattention.look(visual_BMD) if block.cross else None for block in self.blocks])

    def forward(self, tokens_NL: Tensor, seen: Seen, cache: TokenCache | None = None) -> Tensor:
        """Token ids int64 [N,L] -> logits [N,L,V].

        seen: the result of `look` for B clips; N is a multiple of B unless `seen.take` said which sequences are left.
        cache: earlier tokens of the same sequences. While it is empty, L may be more than 1. ValueError for sequences
        longer than the decoder or the cache can hold.
        """
        length = 0 if cache is None else cache.length
        room = self.config.positions if cache is None else cache.limit
        fits = len(tokens_NL) % seen.clips == 0 if seen.place_N is None else len(tokens_NL) == len(seen.place_N)
        if tokens_NL.ndim != 2 or not 1 <= length + tokens_NL.shape[1] <= room or not fits:
            raise ValueError(
                f"tokens of shape {tuple(tokens_NL.shape)} after {length} others, for {seen.clips} clips: "
                f"expected [N, L] with N a multiple of the clips and at most {room} tokens in all"
            )
        wanted = length + tokens_NL.shape[1]
        assert length == 0 or tokens_NL.shape[1] == 1
        body = self.transformer
        places_L = torch.arange(length, wanted, device=tokens_NL.device)
        x_NLD = dropout(body.wte(tokens_NL) + body.wpe(places_L), self.config.dropout, self.training)
        if cache is not None:
            cache.make_room(wanted)
        for index, block in enumerate(body.h):
            if cache is not None:
                x_NLD = block(x_NLD, seen, seen.blocks[index], cache.blocks[index], length)
            elif self.config.gradient_checkpointing and torch.is_grad_enabled():
                x_NLD = checkpoint(block, x_NLD, seen, seen.blocks[index], use_reentrant=False)
            else:
                x_NLD = block(x_NLD, seen, seen.blocks[index])
        if cache is not None:
            cache.length = wanted
        return product(body.ln_f(x_NLD), self.lm_head.weight).contiguous()

    def new_cache(self, sequences: int, limit: int) -> TokenCache:
        """An empty cache for `sequences` sequences of up to `limit` tokens, of the weights' type and device."""
        config, weight, limit = self.config, self.lm_head.weight, min(limit, self.config.positions)
        shape = (sequences, config.heads, min(limit, FIRST_CAPACITY), config.width // config.heads)
        blocks = [(weight.new_empty(shape), weight.new_empty(shape)) for _ in range(config.depth)]
        return TokenCache(blocks, limit)

    @property
    def blocks(self) -> list[GptBlock]:
        return [block for block in self.transformer.h if isinstance(block, GptBlock)]

    def is_cross_attention(self, name: str) -> bool:
        """Whether a parameter (its name in this module's state dict) is one that plain GPT-2 lacks."""
        return any(part.endswith(CROSS_ATTENTION) for part in name.split("."))

    def mask_buffers(self) -> dict[str, Tensor]:
        """The constant buffers that only the reference has, by their names there."""
        size = self.config.positions
        causal = torch.ones(size, size, dtype=torch.uint8).tril().view(1, 1, size, size)
        found = {}
        for index, block in enumerate(self.blocks):
            for attention in ("attn", "crossattention") if block.cross else ("attn",):
                found[f"transformer.h.{index}.{attention}.bias"] = causal
                found[f"transformer.h.{index}.{attention}.masked_bias"] = torch.tensor(MASKED_BIAS)
        return found

    def _initialise(self) -> None:
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Embedding | Conv1D):
                # GPT-2 scales down the weights of branches that add to the residual stream, by their number.
                shrink = (2 * self.config.depth) ** -0.5 if name.endswith("c_proj") else 1.0
                nn.init.normal_(module.weight, std=INIT_STD * shrink)


def load_gpt2(decoder: GatedGpt2, source: str | Path) -> None:
    """Fill the decoder with GPT-2's weights; cross-attention keeps its start.

    source: a folder written by transformers' `save_pretrained`, or a hub name. ValueError if nothing is found, if
    weights are missing, or if the sizes are not the decoder's.
    """
    from transformers import GPT2LMHeadModel  # slow to import

    try:
        stored, info = GPT2LMHeadModel.from_pretrained(str(source), output_loading_info=True)
    except OSError as error:
        cause = one_line(error)
        raise ValueError(f"GPT-2 weights {str(source)!r}: expected a local folder or a hub name; {cause}") from error
    state = {name: tensor for name, tensor in stored.state_dict().items() if not MASK_BUFFERS.search(name)}
    ours = {name: tensor for name, tensor in decoder.state_dict().items() if not decoder.is_cross_attention(name)}
    # transformers only warns when a file lacks weights, and gives them random values.
    wrong = [f"no {name}" for name in sorted(info["missing_keys"]) if not MASK_BUFFERS.search(name)]
    wrong += sorted(state.keys() ^ ours.keys()) + [
        f"{name} {list(state[name].shape)} instead of {list(ours[name].shape)}"
        for name in ours
        if name in state and state[name].shape != ours[name].shape
    ]
    if wrong:
        raise ValueError(f"GPT-2 weights {str(source)!r} do not fit the decoder: {listed(wrong)}; set its sizes")
    decoder.load_state_dict(state, strict=False)


def split_heads(x: Tensor, parts: int, heads: int) -> tuple[Tensor, ...]:
    """[N,L,parts*H*E] -> `parts` tensors [N,H,L,E], whose channels lie together: else attention takes its slow way."""
    return torch.unflatten(x.contiguous(), -1, (parts, heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)


def gate(alpha: Tensor | None, x: Tensor) -> Tensor:
    return x if alpha is None else alpha.tanh() * x


def _lie_by_output(layer: nn.Module, _incompatible: Any) -> None:
    """Lay the weight out anew: loading with assign=True takes the order of the file."""
    assert isinstance(layer, Conv1D)
    if layer.weight.stride(0) != 1:
        layer.weight.data = layer.weight.data.t().contiguous().t()


def _tie(decoder: nn.Module, _incompatible: Any) -> None:
    """Make both names one tensor again: loading with assign=True gives each its own."""
    assert isinstance(decoder, GatedGpt2)
    decoder.lm_head.weight = decoder.transformer.wte.weight


def _refuse_two_embeddings(
    decoder: nn.Module,
    state: Mapping[str, Tensor],
    prefix: str,
    _metadata: Any,
    _strict: bool,
    _missing: list[str],
    _unexpected: list[str],
    errors: list[str],
) -> None:
    head, embedding = (state.get(prefix + name) for name in ("lm_head.weight", "transformer.wte.weight"))
    if head is not None and embedding is not None and head.shape == embedding.shape and not head.is_meta:
        if head is not embedding and not torch.equal(head, embedding):
            errors.append(
                f"{prefix}lm_head.weight and {prefix}transformer.wte.weight differ: expected one tensor, twice"
            )
