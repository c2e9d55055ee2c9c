"""Turns a published checkpoint into our form, or a model of ours into LaViLa's.

    python tools/convert_checkpoint.py lavila_tsf_b_ep5 --out models/tsf_b
    python tools/convert_checkpoint.py egovlp.pth --out models/egovlp
    python tools/convert_checkpoint.py runs/mine/checkpoints --to lavila --out mine.pth

The first argument is anything that load_model takes: a .pth file of LaViLa or EgoVLP, a name of the zoo, or a file or
folder of ours.

Our form is a folder. load_model needs only its model.safetensors. config.yaml says the same for people: architecture,
pictures (mean and std of 0..255 RGB, frames), zoo name. LaViLa's form is a .pth file of {epoch, state_dict with the
prefix "module.", args}. The weights are bit for bit those of the input, as float32. The command prints which tensors it
renamed, dropped because they are constant, or supplied.

Exit status: 0 written, 1 not, 2 wrong arguments.
"""

from __future__ import annotations

if __name__ == "__main__":
    from lavila.interrupts import end_early, run_main

    end_early()

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from lavila.arguments import parser_of
from lavila.checkpoints.convert import to_lavila, to_ours
from lavila.checkpoints.published import published_name, read_published
from lavila.checkpoints.store import WEIGHTS, find_model, load_model
from lavila.checkpoints.wrappers import taken_off, unwrapped
from lavila.errors import UserError, listed
from lavila.files import explained, user_path
from lavila.pickles.tensors import is_pickled


def report(file: Path, model: nn.Module) -> list[str]:
    """Lines about the tensors: how many there are, and those whose name or type has changed."""
    ours = model.state_dict()
    lines = [f"{file}: {architecture_line(model)}", f"{len(ours)} tensors"]
    if not is_pickled(file):
        return lines
    published = read_published(file)
    shortened = unwrapped(published.file_names.values())
    prefixed = sum(old != short for old, short in shortened.items())
    renamed = [f"{old} -> {new}" for new, old in published.file_names.items() if shortened[old] != new]
    dropped = [name for name in published.stored if name not in ours]
    halved = [name for name, one in published.stored.items() if one.storage.dtype in (torch.float16, torch.bfloat16)]
    lines += [f'{prefixed} names lose the prefix "{"".join(taken_off(shortened))}"'] if prefixed else []
    for what, names in (
        ("renamed", renamed),
        ("constant, dropped", dropped),
        ("not in the file, supplied", list(published.supplied)),
        ("half precision, as float32", halved),
    ):
        lines += [f"{len(names)} {what}: {listed(names, most=6)}"] if names else []
    return lines


def architecture_line(model: nn.Module) -> str:
    """The kind of a model and LaViLa's name for it, if it has one."""
    architecture = model.architecture()  # type: ignore[operator]
    return f"{architecture['kind']}, in LaViLa: {published_name(architecture) or 'no model name'}"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = parser_of(__doc__)
    p.add_argument("checkpoint", metavar="CHECKPOINT", help="a file, a folder, or a name of the zoo")
    p.add_argument(
        "--out", type=user_path, required=True, metavar="PATH", help="a folder; with --to lavila a .pth file"
    )
    p.add_argument("--to", choices=("ours", "lavila"), default="ours", help="the form to write (ours)")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool. Returns the exit status."""
    p = parser()
    args = p.parse_args(argv)
    target = args.out if args.to == "lavila" else args.out / WEIGHTS
    if args.to == "lavila" and args.out.suffix != ".pth":
        p.error(f"--out {args.out}: LaViLa's form is a file; give a name that ends in .pth")
    if args.to == "ours" and (is_pickled(args.out) or args.out.suffix == ".safetensors"):
        p.error(f"--out {args.out}: our form is a folder; give a name without {args.out.suffix}")
    if target.exists():
        p.error(f"--out {args.out}: {target} is there already; remove it or give another name")
    try:
        file = find_model(args.checkpoint)
        model = load_model(file)
        lines = report(file, model)
        written = (to_lavila if args.to == "lavila" else to_ours)(file, model, args.out)
    except UserError as error:
        problem = str(error)
    except OSError as error:
        problem = explained(error)
    else:
        print("\n".join([*lines, f"written: {', '.join(map(str, written))}"]))
        return 0
    print(f"convert_checkpoint: error: {problem}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    run_main(main)
