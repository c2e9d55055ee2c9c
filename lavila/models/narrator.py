"""A narrator: a video tower, an attention pooler and a GPT-2 that says what happens in a clip (LaViLa's VCLM).

Paper: Zhao et al. 2023, "Learning Video Representations from Large Language Models"; the pooler is that of Yu et al.
2022, "CoCa". Parameter names are those of LaViLa's published narrators.

Shape suffixes of names: B clips, C colours, T frames, Y X pixels, S tokens of the tower, M visual tokens of a clip, D
their width, L tokens of a text, V vocabulary, R sequences of a clip.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, scaled_dot_product_attention

from lavila.models import beams, generation
from lavila.models.gated_gpt2 import CROSS_ATTENTION, GatedGpt2, GatedGpt2Config
from lavila.models.generation import ClipWriter, GenerationConfig, Generators, Narrations
from lavila.models.timesformer import TimeSformer

# Constants that published narrators hold and this one lacks. They are dropped when one is loaded, and added when one is
# written for the reference (`Narrator.constant_buffers`). The zeros of the pooler's norms (beta) stay.
CONSTANT_BUFFERS = re.compile(r"^text_decoder\.transformer\.h\.\d+\.(attn|crossattention)\.(bias|masked_bias)$")
VIDEO_TIME = ("visual.temporal_embed", "visual.*.timeattn.*", "visual.*.norm3.*")  # patterns of parameters' names


class ScaleNorm(nn.Module):
    """Layer norm with a learnt scale and a constant zero shift, stored as `gamma` and `beta`."""

    beta: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))
        self.register_buffer("beta", torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return layer_norm(x, self.gamma.shape, self.gamma, self.beta)


class AttentionPooler(nn.Module):
    """Learnt queries attend to all tokens of the tower. Many heads of queries share one head of keys and values."""

    def __init__(self, width: int, *, context_width: int, heads: int, head_width: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = ScaleNorm(width)
        self.context_norm = ScaleNorm(context_width)
        self.to_q = nn.Linear(width, heads * head_width, bias=False)
        self.to_kv = nn.Linear(context_width, 2 * head_width, bias=False)
        self.to_out = nn.Linear(heads * head_width, width, bias=False)

    def forward(self, queries_MD: Tensor, tokens_BSD: Tensor) -> Tensor:
        """Queries [M,D] and tokens [B,S,D'] -> [B,M,D]."""
        q_HME = torch.unflatten(self.to_q(self.norm(queries_MD)), -1, (self.heads, -1)).transpose(0, 1)
        k_BSE, v_BSE = self.to_kv(self.context_norm(tokens_BSD)).chunk(2, dim=-1)
        # All heads share the same keys, so they form one row of queries.
        q_BQE = q_HME.flatten(0, 1).expand(len(tokens_BSD), -1, -1)
        found_BQE = scaled_dot_product_attention(q_BQE[:, None], k_BSE[:, None], v_BSE[:, None])[:, 0]
        found_BHME = torch.unflatten(found_BQE, 1, (self.heads, -1))
        out_BMD: Tensor = self.to_out(found_BHME.transpose(1, 2).flatten(2))
        return out_BMD


class Narrator(nn.Module):
    """Texts from clips.

    decoder: sizes of the language model. queries: M, the number of visual tokens of a clip. pooler_heads,
    pooler_head_width: sizes of the pooler's attention. ValueError for sizes below 1.
    """

    parts: ClassVar[Mapping[str, tuple[str, ...]]] = {  # see DualEncoder
        "video": ("visual.*",),
        "video_space": ("visual.*", *(f"!{pattern}" for pattern in VIDEO_TIME)),
        "video_time": VIDEO_TIME,
        "language_model": ("text_decoder.*", *(f"!text_decoder.*{part}*" for part in CROSS_ATTENTION)),
    }

    def __init__(
        self,
        tower: TimeSformer,
        decoder: GatedGpt2Config,
        *,
        queries: int = 256,
        pooler_heads: int = 12,
        pooler_head_width: int = 64,
    ) -> None:
        super().__init__()
        sizes = {"queries": queries, "pooler_heads": pooler_heads, "pooler_head_width": pooler_head_width}
        if wrong := [f"{name}={size}" for name, size in sizes.items() if size < 1]:
            raise ValueError(f"{', '.join(wrong)}: must be greater than 0")
        self._sizes = sizes
        width = decoder.width
        self.img_queries = nn.Parameter(torch.empty(queries, width))
        nn.init.normal_(self.img_queries, std=width**-0.5)
        self.visual = tower
        self.text_decoder = GatedGpt2(decoder)
        self.img_attn_pool = AttentionPooler(
            width, context_width=tower.width, heads=pooler_heads, head_width=pooler_head_width
        )
        self.img_attn_pool_norm = ScaleNorm(width)

    def encode_video(self, video_BCTYX: Tensor) -> Tensor:
        """Normalised video [B,3,T,Y,X] -> visual tokens [B,M,D]."""
        tokens_BSD = self.visual.forward_features(video_BCTYX)
        visual_BMD: Tensor = self.img_attn_pool_norm(self.img_attn_pool(self.img_queries, tokens_BSD))
        return visual_BMD

    def forward(self, video_BCTYX: Tensor, tokens_BL: Tensor) -> Tensor:
        """Video [B,3,T,Y,X] and token ids int64 [B,L] -> logits [B,L,V]; place i scores the token at i + 1."""
        logits_BLV: Tensor = self.text_decoder(tokens_BL, self.text_decoder.look(self.encode_video(video_BCTYX)))
        return logits_BLV

    @torch.no_grad()
    def generate(self, video: Tensor, *, generator: Generators = None, **options: Any) -> Narrations:
        """Texts of normalised clips [B,3,T,Y,X], or of visual tokens [B,M,D] that `encode_video` made of them.

        options: fields of GenerationConfig. generator: see `generation.sample`, or `beams.beam_search` for
        num_beams above 1. The decoder works in the type of its weights, which may be bfloat16 while the tower's are
        float32. ValueError for options that do not fit and in training mode.
        """
        config = GenerationConfig(**options)
        if config.max_length > (room := self.text_decoder.config.positions):
            raise ValueError(f"max_length={config.max_length}: this narrator's texts have at most {room} tokens")
        writer = ClipWriter(self.text_decoder, self._visual_tokens(video))
        choose = beams.beam_search if config.num_beams > 1 else generation.sample
        return choose(writer, config, generator=generator)

    @torch.no_grad()
    def score(self, video: Tensor, target_BL: Tensor, *, teacher_forcing: bool = True) -> Narrations:
        """The likelihood of given texts, for evaluation. video: as in `generate`; the rest: see `generation.score`."""
        visual_BMD = self._visual_tokens(video)
        return generation.score(self.text_decoder, visual_BMD, target_BL, teacher_forcing=teacher_forcing)

    def architecture(self) -> dict[str, Any]:
        """The input of `build_model` for this narrator, as plain JSON types."""
        return {
            "kind": "narrator",
            "tower": self.visual.architecture(),
            "decoder": asdict(self.text_decoder.config),
            **self._sizes,
        }

    @classmethod
    def from_architecture(cls, architecture: Mapping[str, Any]) -> Narrator:
        """The inverse of `architecture()`, with fresh weights. ValueError names wrong fields."""
        known = {"kind", "tower", "decoder", "queries", "pooler_heads", "pooler_head_width"}
        fields = set(GatedGpt2Config.__dataclass_fields__)
        if set(architecture) != known or set(architecture["decoder"]) != fields:
            raise ValueError(
                f"narrator architecture has fields {sorted(architecture)}, its decoder "
                f"{sorted(architecture.get('decoder', {}))}: expected {sorted(known)} and {sorted(fields)}; "
                "the file was written by another version of lavila"
            )
        sizes = {name: architecture[name] for name in known - {"kind", "tower", "decoder"}}
        tower = TimeSformer.from_architecture(architecture["tower"])
        return cls(tower, GatedGpt2Config(**architecture["decoder"]), **sizes)

    def constant_buffers(self) -> dict[str, Tensor]:
        """The tensors under CONSTANT_BUFFERS that the reference's form of this model holds, by name."""
        return {f"text_decoder.{name}": tensor for name, tensor in self.text_decoder.mask_buffers().items()}

    def _visual_tokens(self, video: Tensor) -> Tensor:
        if self.training:
            raise ValueError("the narrator is in training mode, where dropout would spoil its texts; call eval() first")
        if video.ndim != 3:
            # On a CPU each clip by itself, so that its last bits do not depend on the others; it takes no longer.
            at_once = 1 if video.device.type == "cpu" else max(len(video), 1)
            return torch.cat([self.encode_video(clips) for clips in video.split(at_once)])
        if video.shape[1:] != self.img_queries.shape:
            raise ValueError(
                f"visual tokens of shape {tuple(video.shape)}: expected [B, {self.img_queries.shape[0]}, "
                f"{self.img_queries.shape[1]}] from encode_video, or video [B, 3, T, Y, X]"
            )
        return video
