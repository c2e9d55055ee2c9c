"""Writes a published checkpoint in our form, and a model of ours in LaViLa's form."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from lavila.checkpoints.errors import CheckpointError
from lavila.checkpoints.layouts import architecture_of
from lavila.checkpoints.published import PREFIX, published_name, read_published
from lavila.checkpoints.store import WEIGHTS, read_extra, save_model
from lavila.checkpoints.zoo import zoo_name
from lavila.files import whole_path
from lavila.pickles.tensors import is_pickled

# The parts of an architecture that tensors do not show. They matter in training only and do not change a loaded model.
TRAINING_ONLY = {"drop_path", "dropout", "attention_dropout", "gradient_checkpointing", "zero_time_attention"}


def to_ours(file: Path, model: nn.Module, out: Path) -> list[Path]:
    """Write model.safetensors and config.yaml into the folder `out`."""
    extra = read_extra(file)
    if is_pickled(file):
        published = read_published(file)
        extra |= {"epoch": json.dumps(published.epoch), "args": json.dumps(published.arguments)}
        extra |= {"zoo": zoo_name(file)} if zoo_name(file) else {}
    out.mkdir(parents=True, exist_ok=True)
    save_model(model, out / WEIGHTS, extra=extra)
    facts = {
        "zoo": extra.get("zoo"),
        "pictures": json.loads(extra.get("pictures", "null")),
        "architecture": model.architecture(),  # type: ignore[operator]
    }
    with whole_path(out / "config.yaml") as temporary:
        temporary.write_text(yaml.safe_dump(facts, sort_keys=False), encoding="utf-8")
    return [out / WEIGHTS, out / "config.yaml"]


def to_lavila(file: Path, model: nn.Module, out: Path) -> list[Path]:
    """Write a .pth file that LaViLa's scripts and `load_model` read. CheckpointError if it cannot hold the model."""
    # LaViLa does not load a narrator without its constant buffers.
    constants: dict[str, torch.Tensor] = getattr(model, "constant_buffers", dict)()
    tensors = {**model.state_dict(), **constants}
    check_readable(model, {name: tuple(tensor.shape) for name, tensor in tensors.items()})
    architecture, extra = model.architecture(), read_extra(file)  # type: ignore[operator]
    kept = json.loads(extra.get("args", "{}"))
    if is_pickled(file):
        kept = read_published(file).arguments
    content = {
        "epoch": json.loads(extra.get("epoch", "0")) or 0,
        "state_dict": {f"{PREFIX}{name}": tensor for name, tensor in tensors.items()},
        "args": argparse.Namespace(**{**kept, **arguments_of(architecture)}),
    }
    with whole_path(out) as temporary:
        torch.save(content, temporary)
    return [out]


def check_readable(model: nn.Module, shapes: dict[str, tuple[int, ...]]) -> None:
    """Raise CheckpointError if names and shapes would be read as another architecture than the model's."""
    wanted = model.architecture()  # type: ignore[operator]
    try:
        found = architecture_of(shapes)
    except ValueError as error:
        raise CheckpointError(f"LaViLa's form cannot hold this model: {error}") from error
    if different := list(differences(wanted, found)):
        raise CheckpointError(f"LaViLa's form cannot hold this model, whose {'; '.join(different)}")


def differences(wanted: dict[str, Any], found: dict[str, Any], place: str = "") -> list[str]:
    """The differences of two architectures, except those that matter in training only."""
    lines = []
    for name, value in wanted.items():
        other = found.get(name)
        if isinstance(value, dict):
            lines += differences(value, other if isinstance(other, dict) else {}, f"{place}{name}.")
        elif value != other and name not in TRAINING_ONLY:
            lines.append(f"{place}{name} is {value!r} and would be read as {other!r}")
    return lines


def arguments_of(architecture: dict[str, Any]) -> dict[str, Any]:
    """The arguments from which LaViLa's scripts build the model again."""
    tower = architecture["tower"]
    arguments: dict[str, Any] = {"clip_length": tower["num_frames"], "use_cls_token": False}
    arguments["timesformer_gated_xattn"] = tower["gated_time_attention"]
    if (name := published_name(architecture)) is not None:
        arguments["model"] = name
    if "embed_dim" in architecture:
        arguments["project_embed_dim"] = architecture["embed_dim"]
    if "decoder" in architecture:
        arguments |= {"gated_xattn": architecture["decoder"]["gated"], "project_embed_dim": 256}
    if "num_classes" in architecture:
        arguments["num_classes"] = list(architecture["num_classes"])
        arguments["use_vn_classifier"] = len(arguments["num_classes"]) > 1
        arguments["dropout_ratio"] = architecture["dropout"]
    return arguments
