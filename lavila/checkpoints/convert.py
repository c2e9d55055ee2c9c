"""A published checkpoint in our form, and a model of ours in LaViLa's."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
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
from lavila.pickles.tensors import SUFFIXES

SHOWN = 6  # names shown of each sort
# What tensors do not tell: chances while training, and how much is recomputed. They do not change a loaded model.
TRAINING_ONLY = {"drop_path", "dropout", "attention_dropout", "gradient_checkpointing", "zero_time_attention"}


def shorten(names: Sequence[str]) -> str:
    """Some of many names."""
    rest = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def to_ours(file: Path, model: nn.Module, out: Path) -> list[Path]:
    """Write model.safetensors and config.yaml into the folder `out`."""
    extra = read_extra(file)
    if file.suffix in SUFFIXES:
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
    """Write a .pth file that LaViLa's scripts and `load_model` read. CheckpointError where it cannot say all."""
    # Without its constants LaViLa does not load a narrator.
    constants: dict[str, torch.Tensor] = getattr(model, "constant_buffers", dict)()
    tensors = {**model.state_dict(), **constants}
    check_readable(model, {name: tuple(tensor.shape) for name, tensor in tensors.items()})
    architecture, extra = model.architecture(), read_extra(file)  # type: ignore[operator]
    kept = json.loads(extra.get("args", "{}"))
    if file.suffix in SUFFIXES:
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
    """CheckpointError where names and shapes would be taken for another architecture than the model's."""
    wanted = model.architecture()  # type: ignore[operator]
    try:
        found = architecture_of(shapes)
    except ValueError as error:
        raise CheckpointError(f"LaViLa's form cannot hold this model: {error}") from error
    if different := list(differences(wanted, found)):
        raise CheckpointError(f"LaViLa's form cannot hold this model, whose {'; '.join(different)}")


def differences(wanted: dict[str, Any], found: dict[str, Any], place: str = "") -> list[str]:
    """What is not the same in two architectures, training aside."""
    told = []
    for name, value in wanted.items():
        other = found.get(name)
        if isinstance(value, dict):
            told += differences(value, other if isinstance(other, dict) else {}, f"{place}{name}.")
        elif value != other and name not in TRAINING_ONLY:
            told.append(f"{place}{name} is {value!r} and would be read as {other!r}")
    return told


def arguments_of(architecture: dict[str, Any]) -> dict[str, Any]:
    """The arguments from which LaViLa's scripts build the model again."""
    tower = architecture["tower"]
    told: dict[str, Any] = {"clip_length": tower["num_frames"], "use_cls_token": False}
    told["timesformer_gated_xattn"] = tower["gated_time_attention"]
    if (name := published_name(architecture)) is not None:
        told["model"] = name
    if "embed_dim" in architecture:
        told["project_embed_dim"] = architecture["embed_dim"]
    if "decoder" in architecture:
        told |= {"gated_xattn": architecture["decoder"]["gated"], "project_embed_dim": 256}
    if "num_classes" in architecture:
        told["num_classes"] = list(architecture["num_classes"])
        told["use_vn_classifier"] = len(told["num_classes"]) > 1
        told["dropout_ratio"] = architecture["dropout"]
    return told
