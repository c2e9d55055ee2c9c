"""Finds the architecture from the names and shapes of its tensors: names as in LaViLa's state dicts, without prefix.

Shapes do not show everything, but the rest is the same in all published models: 64 channels in each head, quick GELU in
towers with a norm after the embedding, exact GELU in the others.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from lavila.models.gated_gpt2 import GatedGpt2Config
from lavila.models.text_tower import ClipTextConfig, DistilBertTextConfig
from lavila.models.timesformer import TimeSformerConfig

Shapes = Mapping[str, tuple[int, ...]]

HEAD_WIDTH = 64  # number of channels of an attention head, in every published tower and decoder


def architecture_of(shapes: Shapes) -> dict[str, Any]:
    """The architecture whose tensors have these names and shapes, as `model.architecture()` gives it.

    A narrator's constant buffers may be among them. ValueError if they belong to no model of this package.
    """
    if any(name.startswith("visual.conv1.") for name in shapes):
        raise ValueError("holds OpenAI's CLIP, from which a dual encoder can start but which is no video model")
    if "fc_cls.weight" in shapes or "fc_cls.0.weight" in shapes:
        return _classifier_of(shapes)
    if "img_queries" in shapes:
        return _narrator_of(shapes)
    if "token_embedding.weight" in shapes:
        return _clip_of(shapes)
    if "textual.embeddings.word_embeddings.weight" in shapes:
        return _bert_of(shapes)
    found = sorted({name.partition(".")[0] for name in shapes})
    raise ValueError(
        f"holds the tensors of no model here: found {', '.join(found[:8]) or 'none'}; expected visual with fc_cls (a "
        "classifier), img_queries (a narrator), token_embedding or textual (dual encoders)"
    )


def _shape(shapes: Shapes, name: str, dims: int) -> tuple[int, ...]:
    if name not in shapes:
        raise ValueError(f"has no tensor {name}, from which the size of the model follows")
    if len(shapes[name]) != dims or not all(shapes[name]):
        raise ValueError(f"{name} has shape {list(shapes[name])}: expected {dims} sizes above 0")
    return shapes[name]


def _count(shapes: Shapes, stem: str) -> int:
    """The number of numbered parts: one more than the highest number."""
    numbers = (re.match(rf"{re.escape(stem)}(\d{{1,4}})\.", name) for name in shapes)
    return max((int(found[1]) + 1 for found in numbers if found), default=0)


def _heads(width: int, what: str) -> int:
    if width % HEAD_WIDTH:
        raise ValueError(f"{what} is {width} wide: expected a multiple of {HEAD_WIDTH}, the published width of a head")
    return width // HEAD_WIDTH


def _tower_of(shapes: Shapes) -> dict[str, Any]:
    prefix = "visual."
    width, _, patch, _ = _shape(shapes, f"{prefix}patch_embed.proj.weight", 4)
    _, positions, _ = _shape(shapes, f"{prefix}pos_embed", 3)
    _, frames, _ = _shape(shapes, f"{prefix}temporal_embed", 3)
    hidden, _ = _shape(shapes, f"{prefix}blocks.0.mlp.fc1.weight", 2)
    pre_norm = f"{prefix}ln_pre.weight" in shapes
    config = TimeSformerConfig(
        image_size=math.isqrt(positions - 1) * patch,
        patch_size=patch,
        width=width,
        depth=_count(shapes, f"{prefix}blocks."),
        heads=_heads(width, "the video tower"),
        num_frames=frames,
        mlp_ratio=hidden / width,
        activation="quick_gelu" if pre_norm else "gelu",
        pre_norm=pre_norm,
        gated_time_attention=f"{prefix}blocks.0.alpha_timeattn" in shapes,
    )
    return {"kind": "timesformer", **asdict(config)}


def _classifier_of(shapes: Shapes) -> dict[str, Any]:
    heads = _count(shapes, "fc_cls.")
    names = [f"fc_cls.{head}.weight" for head in range(heads)] or ["fc_cls.weight"]
    classes = [_shape(shapes, name, 2)[0] for name in names]
    return {"kind": "classifier", "tower": _tower_of(shapes), "num_classes": classes, "dropout": 0.0}


def _clip_of(shapes: Shapes) -> dict[str, Any]:
    vocabulary, width = _shape(shapes, "token_embedding.weight", 2)
    text = ClipTextConfig(
        vocab_size=vocabulary,
        context_length=_shape(shapes, "positional_embedding", 2)[0],
        width=width,
        depth=_count(shapes, "transformer.resblocks."),
        heads=_heads(width, "the text tower"),
    )
    embed_dim = _shape(shapes, "image_projection", 2)[1]
    return {"kind": "dual_encoder", "tower": _tower_of(shapes), "text": asdict(text), "embed_dim": embed_dim}


def _bert_of(shapes: Shapes) -> dict[str, Any]:
    vocabulary, width = _shape(shapes, "textual.embeddings.word_embeddings.weight", 2)
    text = DistilBertTextConfig(
        vocab_size=vocabulary,
        context_length=_shape(shapes, "textual.embeddings.position_embeddings.weight", 2)[0],
        width=width,
        depth=_count(shapes, "textual.transformer.layer."),
        heads=_heads(width, "the text tower"),
        hidden_width=_shape(shapes, "textual.transformer.layer.0.ffn.lin1.weight", 2)[0],
    )
    frozen_in_time = "image_projection.0.weight" in shapes
    return {
        "kind": "dual_encoder_distilbert",
        "tower": _tower_of(shapes),
        "text": asdict(text),
        "embed_dim": _shape(shapes, "image_projection.0.weight" if frozen_in_time else "image_projection", 2)[
            0 if frozen_in_time else 1
        ],
        "projection": "frozen_in_time" if frozen_in_time else "matrices",
    }


def _narrator_of(shapes: Shapes) -> dict[str, Any]:
    stem = "text_decoder.transformer."
    vocabulary, width = _shape(shapes, f"{stem}wte.weight", 2)
    depth = _count(shapes, f"{stem}h.")
    crossing = [block for block in range(depth) if f"{stem}h.{block}.crossattention.c_proj.weight" in shapes]
    every = crossing[1] if len(crossing) > 1 else max(1, depth)
    if crossing != list(range(0, depth, every)):
        raise ValueError(f"cross-attention is in blocks {crossing} of {depth}: expected every first, second or k-th")
    decoder = GatedGpt2Config(
        vocab_size=vocabulary,
        positions=_shape(shapes, f"{stem}wpe.weight", 2)[0],
        width=width,
        depth=depth,
        heads=_heads(width, "the text decoder"),
        cross_attention_every=every,
        gated=f"{stem}h.0.alpha_cattn" in shapes,
        end_token=vocabulary - 1,
    )
    head_width = _shape(shapes, "img_attn_pool.to_kv.weight", 2)[0] // 2
    return {
        "kind": "narrator",
        "tower": _tower_of(shapes),
        "decoder": asdict(decoder),
        "queries": _shape(shapes, "img_queries", 2)[0],
        "pooler_heads": _shape(shapes, "img_attn_pool.to_q.weight", 2)[0] // max(1, head_width),
        "pooler_head_width": head_width,
    }
