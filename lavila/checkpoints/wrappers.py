"""Takes the names of wrappers off the names of tensors: those of DistributedDataParallel, torch.compile, FSDP ...

A wrapper holds a model as its part, so the names of all its tensors get longer when it is saved: `_orig_mod.fc.weight`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

# Parts of a name that are a wrapper's wherever they stand. A part of a model can be wrapped, too.
ANYWHERE = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"}
OUTSIDE = {"model", "net", "network", "ema_model"}  # a trainer's attribute, if the name of every tensor begins with it
OWN_TENSORS = {"n_averaged"}  # of torch's AveragedModel, which no model needs
STATES = ("state_dict", "model_state_dict", "model_state", "model", "module", "net", "weights")  # keys in checkpoints


def unwrapped(names: Iterable[str]) -> dict[str, str]:
    """Name in the file -> name without wrappers, in the same order. Tensors of a wrapper are left out."""
    found = {
        name: [part for part in name.split(".") if part not in ANYWHERE] for name in names if name not in OWN_TENSORS
    }
    while found and all(len(parts) > 1 for parts in found.values()):
        first = {parts[0] for parts in found.values()}
        if len(first) > 1 or not first <= OUTSIDE:
            break
        found = {name: parts[1:] for name, parts in found.items()}
    return {name: ".".join(parts) for name, parts in found.items()}


def taken_off(names: Mapping[str, str]) -> list[str]:
    """The wrappers' parts of the names that `unwrapped` shortened, each once, such as ["module.", "_orig_mod."]."""
    lost: dict[str, None] = {}
    for name, ours in names.items():
        kept = ours.split(".")
        for part in name.split("."):
            if kept and part == kept[0]:
                kept.pop(0)
            else:
                lost[f"{part}."] = None
    return list(lost)


def state_of(content: Any) -> Any:
    """The state dict in the content of a checkpoint: under one of the usual keys, or the content itself."""
    if not isinstance(content, dict):
        return None
    return next((content[key] for key in STATES if isinstance(content.get(key), dict) and content[key]), content)
