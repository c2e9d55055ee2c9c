"""Checkpoints of a run: written whole or not at all, resumed from the newest, the oldest removed.

<run>/checkpoints/latest                     text: the name of the newest whole checkpoint
<run>/checkpoints/step-00000480/model.safetensors   the model, enough for `load_model`
                               /config.yaml         the run's resolved config
                               /train_state/        optimiser, loss scaler, place in the epoch (torch DCP)
"""

from __future__ import annotations

import logging
import re
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

from lavila.engine.distributed import Process, barrier
from lavila.files import sync, whole_file
from lavila.models.checkpoints import LATEST, WEIGHTS, CheckpointError, load_model, save_model

log = logging.getLogger(__name__)

FOLDER = "checkpoints"
STEP = re.compile(r"step-(\d{8})")


@dataclass(frozen=True, kw_only=True)
class TrainState:
    """All that a run's future depends on, besides its config and its data."""

    model: nn.Module  # without wrappers
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    progress: dict[str, int]  # epoch, step (passes of this epoch that are done), updates (optimiser steps of the run)


def step_name(updates: int) -> str:
    """The folder name of a checkpoint after so many optimiser steps."""
    return f"step-{updates:08d}"


def save(
    run_dir: Path, state: TrainState, *, process: Process, config_yaml: str, extra: dict[str, str], keep: int
) -> Path:
    """Write a checkpoint; every rank calls this. The folder appears, and `latest` names it, only when it is whole."""
    folder = run_dir / FOLDER
    final = folder / step_name(state.progress["updates"])
    temporary = folder / f".{final.name}.tmp"
    if process.is_main:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    barrier()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # one process: that is meant
        state_dict_saver.save(_train_state(state), checkpoint_id=temporary / "train_state", no_dist=process.world == 1)
    if process.is_main:
        save_model(state.model, temporary / WEIGHTS, extra=extra)
        (temporary / "config.yaml").write_text(config_yaml, encoding="utf-8")
        _sync_tree(temporary)
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
        with whole_file(folder / LATEST) as file:  # syncs the folder too, and with it the rename above
            file.write(f"{final.name}\n".encode())
        for old in _whole_checkpoints(folder)[:-keep]:
            if old != final:
                shutil.rmtree(old, ignore_errors=True)
        log.info("checkpoint: %s", final)
    barrier()
    return final


def find(run_dir: Path, resume: str) -> Path | None:
    """The checkpoint folder that `resume` (auto, none, or a path) means; None = start afresh."""
    if resume == "none":
        return None
    if resume != "auto":
        path = Path(resume)
        path = path / (path / LATEST).read_text().strip() if (path / LATEST).is_file() else path
        if not (path / "train_state").is_dir():
            raise CheckpointError(
                f"resume={resume}: no train_state folder in it; give a step-* folder or a run's checkpoints folder"
            )
        return path
    latest = run_dir / FOLDER / LATEST
    if not latest.is_file():
        return None
    path = run_dir / FOLDER / latest.read_text(encoding="utf-8").strip()
    if not (path / "train_state").is_dir():
        raise CheckpointError(
            f"{latest}: names {path.name}, which is not there; write the name of a whole checkpoint into it, "
            "or start afresh with resume=none"
        )
    return path


def load(path: Path, state: TrainState, *, process: Process) -> None:
    """Put a checkpoint's weights and training state into `state`, in place."""
    weights = load_model(path).state_dict()
    state.model.load_state_dict(weights)
    values = _train_state(state)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        state_dict_loader.load(values, checkpoint_id=path / "train_state", no_dist=process.world == 1)
    set_optimizer_state_dict(state.model, state.optimizer, values["optimizer"])
    state.scaler.load_state_dict(values["scaler"])
    state.progress.update(values["progress"])
    log.info("resumed from %s: epoch %d, step %d", path, state.progress["epoch"], state.progress["step"])


def _train_state(state: TrainState) -> dict[str, Any]:
    return {
        "optimizer": get_optimizer_state_dict(state.model, state.optimizer),
        "scaler": state.scaler.state_dict(),
        "progress": dict(state.progress),
    }


def _whole_checkpoints(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if STEP.fullmatch(path.name))


def _sync_tree(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        sync(path)
