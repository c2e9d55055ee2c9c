"""Turns a published checkpoint into our form, or a model of ours into LaViLa's.

    python tools/convert_checkpoint.py lavila_tsf_b_ep5 --out models/tsf_b
    python tools/convert_checkpoint.py egovlp.pth --out models/egovlp
    python tools/convert_checkpoint.py runs/mine/checkpoints --to lavila --out mine.pth

The first argument is anything that load_model takes: a .pth file of LaViLa or EgoVLP, a name of the zoo, a file or
folder of ours. Our form is a folder with model.safetensors, from which load_model needs nothing else, and config.yaml,
which says the same for people: architecture, pictures (mean and std of 0..255 RGB, frames), zoo name. LaViLa's form is
a .pth file of {epoch, state_dict with the prefix "module.", args}. Weights are bit for bit those of the input, as
float32. The report names what was renamed, dropped because it is constant, or supplied.

Exit status: 0 written, 1 not, 2 wrong arguments.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from lavila.files import whole_path
from lavila.models.checkpoints import (
    WEIGHTS,
    CheckpointError,
    find_model,
    load_model,
    read_extra,
    save_model,
)
from lavila.models.layouts import architecture_of
from lavila.models.pickles import SUFFIXES
from lavila.models.published import PREFIX, published_name, read_published
from lavila.models.zoo import zoo_name

SHOWN = 6  # names shown of each sort
# What tensors do not tell: chances while training, and how much is recomputed. They do not change a loaded model.
TRAINING_ONLY = {"drop_path", "dropout", "attention_dropout", "gradient_checkpointing", "zero_time_attention"}


def report(file: Path, model: nn.Module) -> list[str]:
    """Lines about the names: how many tensors came over, and those that did not come over as they were."""
    ours = model.state_dict()
    lines = [f"{file}: {architecture_line(model)}", f"{len(ours)} tensors"]
    if file.suffix not in SUFFIXES:
        return lines
    published = read_published(file)
    prefixed = sum(name.startswith(PREFIX) for name in published.file_names.values())
    renamed = [f"{old} -> {new}" for new, old in published.file_names.items() if old.removeprefix(PREFIX) != new]
    dropped = [name for name in published.stored if name not in ours]
    halved = [name for name, one in published.stored.items() if one.storage.dtype in (torch.float16, torch.bfloat16)]
    lines += [f'{prefixed} names lose the prefix "{PREFIX}"'] if prefixed else []
    for what, names in (
        ("renamed", renamed),
        ("constant, dropped", dropped),
        ("not in the file, supplied", list(published.supplied)),
        ("half precision, as float32", halved),
    ):
        lines += [f"{len(names)} {what}: {shorten(names)}"] if names else []
    return lines


def architecture_line(model: nn.Module) -> str:
    """The kind of a model and LaViLa's name for it, if it has one."""
    architecture = model.architecture()  # type: ignore[operator]
    return f"{architecture['kind']}, in LaViLa: {published_name(architecture) or 'no model name'}"


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


def parser() -> argparse.ArgumentParser:
    """The command line."""
    description, epilog = (__doc__ or "").split("\n\n", 1)
    p = argparse.ArgumentParser(
        description=description, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("checkpoint", metavar="CHECKPOINT", help="a file, a folder or a name of the zoo")
    p.add_argument("--out", type=Path, required=True, metavar="PATH", help="a folder; with --to lavila a .pth file")
    p.add_argument("--to", choices=("ours", "lavila"), default="ours", help="the form to write (ours)")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns the exit status."""
    p = parser()
    args = p.parse_args(argv)
    target = args.out if args.to == "lavila" else args.out / WEIGHTS
    if args.to == "lavila" and args.out.suffix != ".pth":
        p.error(f"--out {args.out}: LaViLa's form is a file; give a name that ends in .pth")
    if args.to == "ours" and args.out.suffix in {*SUFFIXES, ".safetensors"}:
        p.error(f"--out {args.out}: our form is a folder; give a name without {args.out.suffix}")
    if target.exists():
        p.error(f"--out {args.out}: {target} is there already; remove it or give another name")
    try:
        file = find_model(args.checkpoint)
        model = load_model(file)
        lines = report(file, model)
        written = (to_lavila if args.to == "lavila" else to_ours)(file, model, args.out)
    except (CheckpointError, OSError) as error:
        print(f"convert_checkpoint: error: {error}", file=sys.stderr)
        return 1
    print("\n".join([*lines, f"written: {', '.join(map(str, written))}"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
