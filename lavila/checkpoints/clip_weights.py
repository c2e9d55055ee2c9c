"""OpenAI's CLIP weights as the start of a model: the picture tower of a TimeSformer, both towers of a dual encoder.

Tensors without a counterpart in CLIP (attention over time, `temporal_embed`) keep the values of their constructor.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from lavila.errors import UserError, listed, one_line
from lavila.files import user_path
from lavila.models.dual_encoder import ClipDualEncoder
from lavila.models.timesformer import TimeSformer, TimeSformerConfig
from lavila.pickles.errors import PickleError
from lavila.pickles.tensors import read_tensors

log = logging.getLogger(__name__)

OPENAI = "openai"  # open_clip's tag for the original weights
# Entries of OpenAI's archives that are not weights: sizes, and a constant mask.
NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size", "attn_mask")
VISUAL = "visual."
OF_TIME = ("temporal_embed", ".timeattn.", ".norm3.", ".alpha_timeattn")  # parts of the names of tensors for time
VISUAL_NAMES = {
    "class_embedding": "cls_token",
    "positional_embedding": "pos_embed",
    "conv1.": "patch_embed.proj.",
    "ln_post.": "norm.",
    "transformer.resblocks.": "blocks.",
    ".attn.in_proj_": ".attn.qkv.",
    ".attn.out_proj.": ".attn.proj.",
    ".ln_1.": ".norm1.",
    ".ln_2.": ".norm2.",
    ".mlp.c_fc.": ".mlp.fc1.",
    ".mlp.c_proj.": ".mlp.fc2.",
}
BATCHED = ("cls_token", "pos_embed")  # tensors with leading dimensions of 1 in the tower


class ClipWeightsError(UserError):
    """CLIP weights that are missing, cannot be read or do not fit."""


def read_clip_weights(source: str | Path) -> dict[str, Tensor]:
    """OpenAI's CLIP as name -> tensor, float32, on the CPU.

    source: a .safetensors file; a .pt file, which is a plain state dict or OpenAI's TorchScript archive (nothing in it
    is executed); or open_clip's name of a model, such as ViT-B-16, whose weights open_clip fetches once.
    ClipWeightsError if the source is none of these.
    """
    path = user_path(source)
    state = _read_file(path) if path.is_file() else _from_open_clip(str(source))
    return {name: tensor.float() for name, tensor in state.items() if name not in NOT_WEIGHTS}


def visual_name(name: str) -> str | None:
    """The tower's name of a tensor of CLIP's `visual.`, without that prefix; None for a tensor that a tower lacks."""
    if name == "proj":
        return None
    for theirs, ours in VISUAL_NAMES.items():
        name = name.replace(theirs, ours)
    return name


def init_tower(tower: TimeSformer, weights: Mapping[str, Tensor]) -> None:
    """Fill a video tower from CLIP's picture tower, except its tensors for time.

    weights: from `read_clip_weights`. ClipWeightsError if names or shapes differ; the tower is then unchanged.
    """
    _fill(tower, _tower_state(tower.config, weights), keep=_is_for_time)


def init_dual_encoder(model: ClipDualEncoder, weights: Mapping[str, Tensor]) -> None:
    """Fill both towers from CLIP's, as `init_tower` does.

    If CLIP's embedding is as wide as the model's, the projections and the temperature become CLIP's. If not, they keep
    their start, as in LaViLa. ClipWeightsError if names or shapes differ; the model is then unchanged.
    """
    state = {name: tensor for name, tensor in weights.items() if not name.startswith(VISUAL)}
    state |= {VISUAL + name: tensor for name, tensor in _tower_state(model.visual.config, weights).items()}
    shared = {"image_projection", "text_projection", "logit_scale"}
    projection = weights.get(f"{VISUAL}proj")
    if projection is not None and projection.shape[1] == model.embed_dim:
        state["image_projection"], shared = projection, set()
    else:
        log.info("projections and temperature keep their start: CLIP's embedding is not %d wide", model.embed_dim)
    state = {name: tensor for name, tensor in state.items() if name not in shared}
    _fill(model, state, keep=lambda name: name in shared or _is_for_time(name))


def _tower_state(config: TimeSformerConfig, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if not config.pre_norm or config.activation != "quick_gelu":
        raise ClipWeightsError(
            f"a tower with pre_norm={config.pre_norm} and activation={config.activation!r} computes something else "
            "than CLIP: set pre_norm=True and activation='quick_gelu'"
        )
    state = {}
    for name, tensor in weights.items():
        ours = visual_name(name.removeprefix(VISUAL)) if name.startswith(VISUAL) else None
        if ours is not None:
            state[ours] = tensor.reshape(1, -1, tensor.shape[-1]) if ours in BATCHED else tensor
    return state


def _is_for_time(name: str) -> bool:
    return any(part in name for part in OF_TIME)


def _fill(model: nn.Module, state: Mapping[str, Tensor], *, keep: Callable[[str], bool]) -> None:
    """Load `state` strictly, apart from the model's tensors whose name `keep` is true for."""
    wanted = {name: tensor for name, tensor in model.state_dict().items() if not keep(name)}
    wrong = [f"no {name}" for name in wanted if name not in state]
    wrong += [f"{name} left over" for name in state if name not in wanted]
    wrong += [
        f"{name} {list(state[name].shape)} instead of {list(wanted[name].shape)}"
        for name in wanted
        if name in state and state[name].shape != wanted[name].shape
    ]
    if wrong:
        raise ClipWeightsError(f"CLIP weights do not fit this model: {listed(wrong)}; take the CLIP of its size")
    model.load_state_dict(dict(state), strict=False)


def _read_file(path: Path) -> Mapping[str, Tensor]:
    try:
        return load_file(path) if path.suffix == ".safetensors" else read_tensors(path)
    except (SafetensorError, PickleError) as error:
        cause = one_line(str(error).removeprefix(f"{path}: "))
        raise ClipWeightsError(f"{path}: no weights of CLIP: {cause}") from error


def _from_open_clip(name: str) -> Mapping[str, Tensor]:
    import open_clip  # slow to import

    known = sorted(model for model in open_clip.list_pretrained_models_by_tag(OPENAI) if model.startswith("ViT"))
    if name not in known:
        raise ClipWeightsError(f"CLIP weights {name!r}: neither a file nor one of open_clip's {', '.join(known)}")
    try:
        model = open_clip.create_model(name, pretrained=OPENAI, precision="fp32", device="cpu")
    except (OSError, RuntimeError) as error:
        raise ClipWeightsError(
            f"CLIP weights {name!r} are not in open_clip's cache and cannot be fetched ({one_line(error)}): save "
            f"open_clip.create_model({name!r}, pretrained='openai').state_dict() where there is a network, and give "
            "that file"
        ) from error
    state: dict[str, Tensor] = model.state_dict()
    return state
