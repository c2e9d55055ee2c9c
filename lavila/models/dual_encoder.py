"""Dual encoders: a video tower and a text tower that meet in one embedding space (LaViLa's CLIP and CLIP_HF).

Parameter names are those of LaViLa's published checkpoints: `visual.*`, the CLIP text transformer directly in the model
(`transformer.*`, `token_embedding.*`, ...) or a DistilBERT under `textual.*`, `image_projection`, `text_projection`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, ClassVar, Literal, Self, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from lavila.models.text_tower import (
    ClipTextConfig,
    ClipTextTransformer,
    DistilBertTextConfig,
    distilbert,
    text_config,
)
from lavila.models.timesformer import TimeSformer

# matrices: one bare matrix for each modality. frozen_in_time: a linear layer on the video, ReLU and one on the text.
Projection = Literal["matrices", "frozen_in_time"]
START_TEMPERATURE = 0.07
PSEUDO = "pseudo_temperature"  # in an architecture: whether the model has learned one


class PseudoTemperature(nn.Module):
    """A learned temperature for pairs whose words no person wrote. `logit_scale`: the logarithm of the factor."""

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.logit_scale = nn.Parameter(torch.tensor(-math.log(temperature)))


class DualEncoder(nn.Module, ABC):
    """The base of all dual encoders. The stored `logit_scale` is the logarithm of the factor on cosine similarities."""

    visual: TimeSformer
    image_projection: nn.Parameter | nn.Module
    text_projection: nn.Parameter | nn.Module
    logit_scale: nn.Parameter
    embed_dim: int
    vocabulary: int  # token ids are below this
    longest_text: int  # tokens
    parts: ClassVar[Mapping[str, tuple[str, ...]]] = {  # what can be frozen: its name -> patterns of parameters' names
        "video": ("visual.*",),
        "text": (
            "transformer.*", "token_embedding.*", "positional_embedding", "ln_final.*",  # CLIP's
            "textual.*",  # DistilBERT
        ),
        "projections": ("image_projection*", "text_projection*"),
        "temperature": ("logit_scale", "pseudo.logit_scale"),
    }  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self.pseudo: PseudoTemperature | None = None

    @abstractmethod
    def architecture(self) -> dict[str, Any]:
        """What `build_model` needs to make this model again, as plain JSON types."""

    @classmethod
    @abstractmethod
    def from_architecture(cls, architecture: Mapping[str, Any]) -> Self:
        """The inverse of `architecture()`, with fresh weights. ValueError names the fields that are off."""

    def encode_video(self, video: Tensor) -> Tensor:
        """Normalised video [B,3,T,H,W] -> embedding [B,D], projected, but not of unit length."""
        return _project(self.visual(video), self.image_projection)

    @abstractmethod
    def encode_text(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Token ids [B,L] int64 -> embedding [B,D], projected, but not of unit length.

        mask: [B,L], non-zero at tokens that count, zero at padding; None: all count. ValueError for another shape.
        """

    def temperature_scale(self) -> Tensor:
        """The factor on cosine similarities, a scalar: exp(logit_scale)."""
        return self.logit_scale.exp()

    def learn_pseudo_temperature(self, start: float = START_TEMPERATURE) -> None:
        """Add a second temperature, unless there is one; start: of 1 / pseudo_temperature_scale, above 0."""
        _check(self.embed_dim, start)
        if self.pseudo is None:
            self.pseudo = PseudoTemperature(start)

    def forward(self, video: Tensor, tokens: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
        """The input of a contrastive loss: `video_embed` and `text_embed` [B,D] of unit length, `temperature_scale`.

        Also `pseudo_temperature_scale` where that is learned. The embeddings have the type of the weights, under
        autocast, too.
        """
        kind = self.logit_scale.dtype
        found = {
            "video_embed": normalize(self.encode_video(video).to(kind), dim=-1),
            "text_embed": normalize(self.encode_text(tokens, mask).to(kind), dim=-1),
            "temperature_scale": self.temperature_scale(),
        }
        if self.pseudo is not None:
            found["pseudo_temperature_scale"] = self.pseudo.logit_scale.exp()
        return found

    def _described(self, architecture: dict[str, Any]) -> dict[str, Any]:
        """With what few models have, and older files do not say."""
        return architecture if self.pseudo is None else architecture | {PSEUDO: True}

    def _with_extras(self, architecture: Mapping[str, Any]) -> Self:
        if architecture.get(PSEUDO):
            self.learn_pseudo_temperature()
        return self


class ClipDualEncoder(DualEncoder):
    """A video tower and CLIP's text transformer (CLIP_OPENAI_TIMESFORMER_{BASE,LARGE,LARGE_336PX}).

    embed_dim: D of both embeddings, at least 1. temperature: start of 1 / temperature_scale(), above 0.
    """

    def __init__(
        self, tower: TimeSformer, *, text: ClipTextConfig, embed_dim: int, temperature: float = START_TEMPERATURE
    ) -> None:
        super().__init__()
        _check(embed_dim, temperature)
        self.embed_dim, self.vocabulary, self.longest_text = embed_dim, text.vocab_size, text.context_length
        self.positional_embedding = nn.Parameter(torch.empty(text.context_length, text.width))
        self.image_projection = _matrix(tower.width, embed_dim)
        self.text_projection = _matrix(text.width, embed_dim)
        self.logit_scale = nn.Parameter(torch.tensor(-math.log(temperature)))
        self.visual = tower
        self.transformer = ClipTextTransformer(text)
        self.token_embedding = nn.Embedding(text.vocab_size, text.width)
        self.ln_final = nn.LayerNorm(text.width)
        nn.init.normal_(self.positional_embedding, std=0.01)
        nn.init.normal_(self.token_embedding.weight, std=0.02)

    def encode_text(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Token ids [B,L] int64 -> embedding [B,D], projected, but not of unit length.

        The embedding is the feature of the first token with the largest id, which ends a text that was not cut. `mask`
        is ignored, since that token cannot see what follows it. ValueError for a text that is too long.
        """
        _check_tokens(tokens, None, longest=self.transformer.config.context_length)
        x_BLD = self.token_embedding(tokens) + self.positional_embedding[: tokens.shape[1]]
        x_BLD = self.transformer(x_BLD)
        end_BD = x_BLD[torch.arange(len(tokens), device=tokens.device), tokens.argmax(-1)]
        return _project(self.ln_final(end_BD), self.text_projection)

    def architecture(self) -> dict[str, Any]:
        return self._described(
            {
                "kind": "dual_encoder",
                "tower": self.visual.architecture(),
                "text": asdict(self.transformer.config),
                "embed_dim": self.embed_dim,
            }
        )

    @classmethod
    def from_architecture(cls, architecture: Mapping[str, Any]) -> Self:
        _check_fields(architecture, {"kind", "tower", "text", "embed_dim"})
        model = cls(
            TimeSformer.from_architecture(architecture["tower"]),
            text=text_config(ClipTextConfig, architecture["text"]),
            embed_dim=architecture["embed_dim"],
        )
        return model._with_extras(architecture)


class DistilBertDualEncoder(DualEncoder):
    """A video tower and a DistilBERT, read at its first token (..._DISTILBERT_BASE and EgoVLP's form).

    projection: see `Projection`. embed_dim: D of both embeddings, at least 1. temperature: start of
    1 / temperature_scale(), above 0. ValueError for values outside these.
    """

    def __init__(
        self,
        tower: TimeSformer,
        *,
        text: DistilBertTextConfig,
        embed_dim: int,
        projection: Projection,
        temperature: float = START_TEMPERATURE,
    ) -> None:
        super().__init__()
        _check(embed_dim, temperature)
        if projection not in get_args(Projection):
            raise ValueError(f"projection={projection!r}: expected one of {sorted(get_args(Projection))}")
        self.embed_dim, self.vocabulary, self.longest_text = embed_dim, text.vocab_size, text.context_length
        self.projection = projection
        self.text = text
        if projection == "matrices":
            self.image_projection = _matrix(tower.width, embed_dim)
            self.text_projection = _matrix(text.width, embed_dim)
        self.logit_scale = nn.Parameter(torch.tensor(-math.log(temperature)))
        self.visual = tower
        self.textual = distilbert(text)
        if projection == "frozen_in_time":
            self.image_projection = nn.Sequential(nn.Linear(tower.width, embed_dim))
            self.text_projection = nn.Sequential(nn.ReLU(), nn.Linear(text.width, embed_dim))

    def encode_text(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        _check_tokens(tokens, mask, longest=self.text.context_length)
        places_1L = torch.arange(tokens.shape[1], device=tokens.device)[None]
        mask = None if mask is None else mask != 0
        hidden_BLD = self.textual(tokens, attention_mask=mask, position_ids=places_1L).last_hidden_state
        return _project(hidden_BLD[:, 0], self.text_projection)

    def architecture(self) -> dict[str, Any]:
        return self._described(
            {
                "kind": "dual_encoder_distilbert",
                "tower": self.visual.architecture(),
                "text": asdict(self.text),
                "embed_dim": self.embed_dim,
                "projection": self.projection,
            }
        )

    @classmethod
    def from_architecture(cls, architecture: Mapping[str, Any]) -> Self:
        _check_fields(architecture, {"kind", "tower", "text", "embed_dim", "projection"})
        model = cls(
            TimeSformer.from_architecture(architecture["tower"]),
            text=text_config(DistilBertTextConfig, architecture["text"]),
            embed_dim=architecture["embed_dim"],
            projection=architecture["projection"],
        )
        return model._with_extras(architecture)


def _matrix(rows: int, columns: int) -> nn.Parameter:
    return nn.Parameter(nn.init.normal_(torch.empty(rows, columns), std=rows**-0.5))


def _project(feature_BD: Tensor, projection: nn.Parameter | nn.Module) -> Tensor:
    projected: Tensor = projection(feature_BD) if isinstance(projection, nn.Module) else feature_BD @ projection
    return projected


def _check(embed_dim: int, temperature: float) -> None:
    if embed_dim < 1:
        raise ValueError(f"embed_dim={embed_dim}: must be at least 1")
    if not temperature > 0:
        raise ValueError(f"temperature={temperature}: must be above 0")


def _check_tokens(tokens: Tensor, mask: Tensor | None, *, longest: int) -> None:
    if tokens.ndim != 2 or not 1 <= tokens.shape[1] <= longest:
        raise ValueError(
            f"tokens have shape {tuple(tokens.shape)}: expected [B, L] with L from 1 to {longest}; cut longer texts"
        )
    if mask is not None and mask.shape != tokens.shape:
        raise ValueError(f"mask has shape {tuple(mask.shape)}: expected that of the tokens, {tuple(tokens.shape)}")


def _check_fields(architecture: Mapping[str, Any], known: set[str]) -> None:
    if set(architecture) - {PSEUDO} != known:
        raise ValueError(
            f"dual encoder architecture has fields {sorted(architecture)}: expected {sorted(known)}; "
            "the file was written by another version of lavila"
        )
