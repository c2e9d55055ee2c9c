"""Checkpoints of LaViLa and EgoVLP: the names and shapes of the tensors show which model a file holds.

The tensors decide. The file may also hold arguments of the training script, such as `args.model`; many lack some or all
of them. They are compared with the tensors, and a contradiction is an error.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lavila.checkpoints.errors import CheckpointError
from lavila.checkpoints.layouts import HEAD_WIDTH, architecture_of
from lavila.checkpoints.wrappers import state_of, taken_off, unwrapped
from lavila.checkpoints.zoo import CLIP_PICTURES, IMAGENET_PICTURES
from lavila.errors import listed, one_line
from lavila.models.gated_gpt2 import GatedGpt2Config
from lavila.models.text_tower import DISTILBERT_CONSTANTS, ClipTextConfig, DistilBertTextConfig
from lavila.models.timesformer import TimeSformerConfig
from lavila.pickles.errors import PickleError
from lavila.pickles.tensors import PickledFile, Record, StoredTensor, read_pickled

log = logging.getLogger(__name__)

START_TEMPERATURE = 0.07
PREFIX = "module."
MOST_VALUES, DEEPEST = 100_000, 20  # limits of an argument that is kept: number of values, depth of nesting
EGOVLP_NAMES = {
    "video_model.": "visual.",
    "text_model.": "textual.",
    "txt_proj.": "text_projection.",
    "vid_proj.": "image_projection.",
}

_TSF_B = {"image_size": 224, "patch_size": 16, "width": 768, "depth": 12, "heads": 12, "pre_norm": True}
_TSF_L = {"image_size": 224, "patch_size": 14, "width": 1024, "depth": 24, "heads": 16, "pre_norm": True}
_TSF_L_336 = {**_TSF_L, "image_size": 336}
_CLIP_B = {"vocab_size": 49408, "context_length": 77, "width": 512, "depth": 12, "heads": 8}
_CLIP_L = {**_CLIP_B, "width": 768, "heads": 12}
_DISTILBERT = {"vocab_size": 30522, "context_length": 512, "width": 768, "depth": 6, "heads": 12}
_GPT2 = {"vocab_size": 50257, "positions": 1024, "width": 768, "depth": 12, "heads": 12}
_GPT2_XL = {**_GPT2, "width": 1600, "depth": 48, "heads": 25}


def _clip(tower: dict[str, Any], text: dict[str, Any]) -> dict[str, Any]:
    return {"kind": "dual_encoder", "tower": tower, "text": text}


def _bert(tower: dict[str, Any], projection: str = "matrices") -> dict[str, Any]:
    return {"kind": "dual_encoder_distilbert", "tower": tower, "text": _DISTILBERT, "projection": projection}


def _narrator(tower: dict[str, Any], decoder: dict[str, Any], every: int) -> dict[str, Any]:
    return {"kind": "narrator", "tower": tower, "decoder": {**decoder, "cross_attention_every": every}, "queries": 256}


# LaViLa's model names (args.model) -> the part of `architecture()` that the name decides.
PUBLISHED: dict[str, dict[str, Any]] = {
    "CLIP_OPENAI_TIMESFORMER_BASE": _clip(_TSF_B, _CLIP_B),
    "CLIP_OPENAI_TIMESFORMER_LARGE": _clip(_TSF_L, _CLIP_L),
    "CLIP_OPENAI_TIMESFORMER_LARGE_336PX": _clip(_TSF_L_336, _CLIP_L),
    "CLIP_OPENAI_TIMESFORMER_BASE_DISTILBERT_BASE": _bert(_TSF_B),
    "CLIP_OPENAI_TIMESFORMER_LARGE_DISTILBERT_BASE": _bert(_TSF_L),
    "CLIP_OPENAI_TIMESFORMER_LARGE_336PX_DISTILBERT_BASE": _bert(_TSF_L_336),
    "CLIP_HF_EGOVLP_DISTILBERT_BASE": _bert({**_TSF_B, "pre_norm": False}, "frozen_in_time"),
    "VCLM_OPENAI_TIMESFORMER_BASE_GPT2": _narrator(_TSF_B, _GPT2, 1),
    "VCLM_OPENAI_TIMESFORMER_LARGE_GPT2_XL": _narrator(_TSF_L, _GPT2_XL, 2),
    "VCLM_OPENAI_TIMESFORMER_LARGE_336PX_GPT2_XL": _narrator(_TSF_L_336, _GPT2_XL, 3),
}


@dataclass(frozen=True, kw_only=True)
class Published:
    """A recognised file, before its tensors are read."""

    file: PickledFile
    architecture: dict[str, Any]
    stored: dict[str, StoredTensor]  # our name -> the tensor in the file
    file_names: dict[str, str]  # our name -> the name in the file
    supplied: dict[str, Tensor]  # tensors that the file lacks and evaluation never uses
    arguments: dict[str, Any]  # the arguments of the script that wrote the file; may be empty
    epoch: int | float | None  # number of finished training epochs

    def state(self) -> dict[str, Tensor]:
        """All tensors by our name, in their stored type. CheckpointError for damaged ones."""
        try:
            return {**self.file.tensors(self.stored), **self.supplied}
        except PickleError as error:
            raise CheckpointError(str(error)) from None

    def pictures(self) -> dict[str, Any]:
        """The form of the training pictures: `mean` and `std` of 0..255 RGB, `frames` of a clip."""
        return pictures(self.architecture)


def read_published(path: Path) -> Published:
    """Recognise a .pth file of LaViLa or EgoVLP. CheckpointError for others, for damage and for contradictions."""
    try:
        file = read_pickled(path)
    except PickleError as error:
        raise CheckpointError(str(error)) from None
    if file.records:
        log.info("%s: left unread, not needed: %s", path, ", ".join(file.records))
    try:
        state = state_of(file.content)
        names = _names(state)
        content = file.content if isinstance(file.content, dict) else {}
        stored = {ours: state[theirs] for ours, theirs in names.items()}
        arguments = _arguments(content.get("args"))
        architecture = architecture_of({name: tensor.shape for name, tensor in stored.items()})
        _check_arguments(architecture, arguments)
        if architecture["kind"] == "classifier":
            architecture["dropout"] = _chance(arguments)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
    if (frames := arguments.get("clip_length")) not in (None, architecture["tower"]["num_frames"]):
        log.warning(
            "%s: args.clip_length=%s, but the temporal embedding has %d frames; the latter counts",
            *(path, frames, architecture["tower"]["num_frames"]),
        )
    epoch = content.get("epoch")
    return Published(
        file=file,
        architecture=architecture,
        stored=stored,
        file_names=names,
        supplied=_supplied(architecture, stored),
        arguments=arguments,
        epoch=epoch if isinstance(epoch, int | float) else None,
    )


def pictures(architecture: Mapping[str, Any]) -> dict[str, Any]:
    """The form of the training pictures of a published architecture.

    Descendants of CLIP use (nearly) CLIP's numbers.
    """
    tower = architecture.get("tower", architecture)
    pixels = CLIP_PICTURES if tower["pre_norm"] else IMAGENET_PICTURES
    return {"mean": list(pixels.mean), "std": list(pixels.std), "frames": tower["num_frames"]}


def published_name(architecture: Mapping[str, Any]) -> str | None:
    """LaViLa's name of an architecture, from PUBLISHED; None for one without a name, such as a classifier."""
    fits = (name for name, expected in PUBLISHED.items() if not list(_differences(expected, architecture)))
    return next(fits, None)


def published_architecture(name: str, *, num_frames: int = 4, embed_dim: int = 256) -> dict[str, Any]:
    """The whole architecture of one of LaViLa's model names, for `build_model`: gated in the decoder, not in time.

    num_frames: frames of the longest clip. embed_dim: width of a dual encoder's embedding; all published ones have 256.
    ValueError for another name.
    """
    if name not in PUBLISHED:
        raise ValueError(f"no published model {name!r}; there are {', '.join(PUBLISHED)}")
    known = PUBLISHED[name]
    activation = "quick_gelu" if known["tower"]["pre_norm"] else "gelu"
    tower = TimeSformerConfig(**known["tower"], activation=activation, num_frames=num_frames)
    whole = {**known, "tower": {"kind": "timesformer", **asdict(tower)}}
    if known["kind"] == "narrator":
        decoder = GatedGpt2Config(**known["decoder"])
        return {**whole, "decoder": asdict(decoder), "pooler_heads": decoder.heads, "pooler_head_width": HEAD_WIDTH}
    texts = {"dual_encoder": ClipTextConfig, "dual_encoder_distilbert": DistilBertTextConfig}
    return {**whole, "text": asdict(texts[known["kind"]](**known["text"])), "embed_dim": embed_dim}


def constants_of(model: nn.Module) -> dict[str, Tensor]:
    """Buffers that a file may hold although the model has none, since their values never change."""
    found: dict[str, Tensor] = {}
    if hasattr(model, "constant_buffers"):
        found.update(model.constant_buffers())  # type: ignore[operator]
    if isinstance(text := getattr(model, "text", None), DistilBertTextConfig):
        places = torch.arange(text.context_length)[None]
        found.update({f"textual.{name}": places for name in DISTILBERT_CONSTANTS})
    return found


def _names(state: Any) -> dict[str, str]:
    """Our name -> the file's name, for every entry of its state dict."""
    if not isinstance(state, dict) or not state:
        raise ValueError("holds no state_dict; expected a checkpoint of LaViLa or EgoVLP")
    if strangers := [str(name) for name, value in state.items() if not isinstance(value, StoredTensor)]:
        raise ValueError(f"its state_dict holds more than tensors: {listed(strangers)}")
    names: dict[str, str] = {}
    originals = {str(name): name for name in state}
    shortened = unwrapped(originals)
    if wrappers := [part for part in taken_off(shortened) if part != PREFIX]:
        log.info("names lose what wrappers added to them: %s", " ".join(wrappers))
    for name, ours in shortened.items():
        theirs = next((old for old in EGOVLP_NAMES if ours.startswith(old)), "")
        ours = EGOVLP_NAMES.get(theirs, "") + ours.removeprefix(theirs)
        if ours in names:
            raise ValueError(f"holds {ours} twice, as {names[ours]} and as {name}")
        names[ours] = originals[name]
    return names


def _arguments(args: Any) -> dict[str, Any]:
    """The arguments that are plain data, without paths and tables."""
    found = args.state if isinstance(args, Record) else args
    if not isinstance(found, dict):
        return {}
    return {str(name): value for name, value in found.items() if _is_plain(value)}


def _is_plain(value: Any) -> bool:
    """Whether a value is text, numbers or containers of them, within limits.

    A few lists can hold each other 2**30 times.
    """
    waiting, count = [(value, 0)], 0
    while waiting:
        part, depth = waiting.pop()
        count += 1
        if count > MOST_VALUES or depth > DEEPEST:
            return False
        if isinstance(part, dict):
            if not all(isinstance(key, str) for key in part):
                return False
            waiting += [(inner, depth + 1) for inner in part.values()]
        elif isinstance(part, list | tuple):
            waiting += [(inner, depth + 1) for inner in part]
        elif not isinstance(part, str | int | float | None):
            return False
    return True


def _check_arguments(architecture: Mapping[str, Any], arguments: Mapping[str, Any]) -> None:
    """Raise ValueError, with both values, if arguments contradict the tensors."""
    wrong = [
        f"args.{argument}={_plain_text(arguments[argument])} means {place}={_plain_text(expected)}, "
        f"the tensors say {found!r}"
        for argument, expectations in _expectations(architecture["kind"], arguments)
        for place, expected, found in _differences(expectations, architecture)
    ]
    if wrong:
        raise ValueError(f"its arguments and its tensors contradict each other: {'; '.join(wrong)}")


def _plain_text(value: Any) -> str:
    """A value that `_is_plain`, for a message."""
    return one_line(repr(value), most=60)


def _chance(arguments: Mapping[str, Any]) -> float:
    value = arguments.get("dropout_ratio", 0.0)
    if not isinstance(value, int | float) or not 0 <= value < 1:
        raise ValueError(f"args.dropout_ratio={_plain_text(value)}: expected a chance of at least 0 and below 1")
    return float(value)


def _expectations(kind: str, arguments: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(argument, the part of the architecture that it decides) for every argument that is there."""
    model = arguments.get("model")
    if isinstance(model, str) and model in PUBLISHED:
        expected = PUBLISHED[model]
        yield "model", {"tower": expected["tower"]} if kind == "classifier" else expected
    elif model is not None:
        log.warning("args.model=%r is not among the published names; names and shapes of the tensors decide", model)
    if "project_embed_dim" in arguments and kind.startswith("dual_encoder"):
        yield "project_embed_dim", {"embed_dim": arguments["project_embed_dim"]}
    if "timesformer_gated_xattn" in arguments:
        yield "timesformer_gated_xattn", {"tower": {"gated_time_attention": arguments["timesformer_gated_xattn"]}}
    if "gated_xattn" in arguments and kind == "narrator":
        yield "gated_xattn", {"decoder": {"gated": arguments["gated_xattn"]}}
    if "num_classes" in arguments and kind == "classifier":
        classes = arguments["num_classes"]
        yield "num_classes", {"num_classes": classes if isinstance(classes, list) else [classes]}


def _differences(expected: Mapping[str, Any], found: Any, place: str = "") -> Iterator[tuple[str, Any, Any]]:
    for name, value in expected.items():
        other = found.get(name) if isinstance(found, Mapping) else None
        if isinstance(value, Mapping):
            yield from _differences(value, other, f"{place}{name}.")
        elif value != other:
            yield f"{place}{name}", value, other


def _supplied(architecture: Mapping[str, Any], stored: Mapping[str, StoredTensor]) -> dict[str, Tensor]:
    if architecture.get("projection") == "frozen_in_time" and "logit_scale" not in stored:
        log.info("logit_scale: EgoVLP's files have none; set to that of temperature %s", START_TEMPERATURE)
        return {"logit_scale": torch.tensor(-math.log(START_TEMPERATURE))}
    return {}
