"""Checkpoints of a run: what they hold, which one is whole, and how a run takes up its state. `writing` writes them.

<run>/checkpoints/step-00000480/checkpoint.json     place in the run, and size and checksum of the files below
                               /model.safetensors   the model, enough for `load_model`
                               /train_state/        the optimiser's state (torch DCP)
                               /config.yaml         the run's resolved config, for people
<run>/checkpoints/latest                            text: the name of the newest, for `load_model`
<run>/checkpoints/best.json                         the name of the best by `keep_best`, and its value

A folder gets its name only when everything in it is on the disk, and loses it before anything in it is removed. So a
run that is killed at any moment leaves whole checkpoints, and beside them temporary folders (`.step-*.tmp`) that the
next save removes. Resuming asks the folders themselves which is the newest whole one, not `latest`.
"""

from __future__ import annotations

import json
import logging
import math
import re
import shutil
import warnings
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lavila.checkpoints.errors import CheckpointError
from lavila.checkpoints.store import LATEST, OF_A_RUN, WEIGHTS, load_model
from lavila.engine.distributed import Process
from lavila.engine.optim import blank_state, own_part
from lavila.errors import listed
from lavila.files import whole_file

log = logging.getLogger(__name__)

FOLDER = OF_A_RUN
FACTS, TRAIN_STATE, CONFIG = "checkpoint.json", "train_state", "config.yaml"
BEST = "best.json"
OPTIMIZER = "optimizer.state"  # before the names of parameters in train_state
FORMAT = 1  # the format of checkpoint.json
STEP = re.compile(r"step-\d{8}")
LEFT_OVER = re.compile(rf"\.step-\d{{8}}\..*tmp|{LATEST}\..*\.tmp")


@dataclass(kw_only=True)
class Progress:
    """A place in a run, counted in updates: how many passes make one may differ when the run is resumed."""

    epoch: int = 0  # epochs that are done
    epoch_updates: int = 0  # updates of the current epoch that are done
    updates: int = 0  # updates of the run that are done
    good_clips: int = 0  # clips of the current epoch so far, over all ranks
    bad_clips: int = 0  # clips of the current epoch that could not be read or decoded, over all ranks
    seconds: float = 0.0  # spent on training


@dataclass(frozen=True, kw_only=True)
class TrainState:
    """All that a run's future depends on, besides its config and its data."""

    model: nn.Module  # without wrappers
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    progress: Progress
    order: dict[str, int]  # what decides which clips the updates of an epoch see: `TrainingPlan.order`


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What checkpoint.json says."""

    progress: Progress
    order: dict[str, int]
    scaler: dict[str, Any]
    files: dict[str, tuple[int, int]]  # path in the checkpoint -> bytes, CRC-32
    meters: list[dict[str, Any]]  # for each rank what it had summed up for the next line of the log, see `Meter`


def _misfits(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    """Tensors that are missing, left over, or of another shape."""

    def shape(tensors: Mapping[str, Tensor], name: str) -> str:
        return str(list(tensors[name].shape)) if name in tensors else "absent"

    names = dict.fromkeys([*wanted, *found])
    shapes = [(name, shape(found, name), shape(wanted, name)) for name in names]
    return [f"{name} is {there}, should be {here}" for name, there, here in shapes if there != here]


def step_name(updates: int) -> str:
    """The folder name of a checkpoint after so many updates."""
    return f"step-{updates:08d}"


def step_folders(folder: Path) -> list[Path]:
    """Everything in a folder of checkpoints that has a checkpoint's name, whole or not, the newest last."""
    return sorted(path for path in folder.glob("step-*") if STEP.fullmatch(path.name))


def load(path: Path, state: TrainState, *, process: Process) -> Facts:
    """Put a whole checkpoint's weights, optimiser state and place into `state`, in place.

    Settings of the optimiser (rates, decay, betas) stay those of `state`. CheckpointError where the model or the
    optimiser is of another kind than the checkpoint's.
    """
    facts = read_facts(path)
    found = load_model(path).state_dict()
    if wrong := _misfits(found, state.model.state_dict()):
        raise CheckpointError(
            f"{path}: its model is not the one of this config ({listed(wrong, most=3)}); resume with the model, the "
            f"frames, the picture size and the classes that it was trained with, which {CONFIG} there says, or start "
            f"another run from its weights (model.init={path} run_dir=...)"
        )
    state.model.load_state_dict(found)
    _load_optimizer(path, state, process=process)
    if facts.scaler and state.scaler.is_enabled():
        state.scaler.load_state_dict(facts.scaler)
    for name, value in asdict(facts.progress).items():
        setattr(state.progress, name, value)
    log.info("resumed from %s: epoch %d, update %d of it", path, facts.progress.epoch, facts.progress.epoch_updates)
    return facts


def _load_optimizer(path: Path, state: TrainState, *, process: Process) -> None:
    """Fill in the state of the parameters that this rank keeps."""
    # Imported here, since it takes a second, and evaluations need none of it.
    from torch.distributed.checkpoint import state_dict_loader
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.filesystem import FileSystemReader

    folder = path / TRAIN_STATE
    trained = {name: p for name, p in state.model.named_parameters() if p.requires_grad}
    try:
        stored: dict[str, set[str]] = {}
        for key in FileSystemReader(folder).read_metadata().state_dict_metadata:
            name, _, slot = key.removeprefix(f"{OPTIMIZER}.").rpartition(".")
            stored.setdefault(name, set()).add(slot)
        # Of all parameters, not of those of this rank alone: all ranks find the same, and none waits for the others.
        own = own_part(state.optimizer)
        wanted = set(blank_state(own, nn.Parameter(torch.empty(0))))
        if wrong := [name for name in trained if stored.get(name, wanted) - wanted]:
            has, wants = (", ".join(sorted(slots)) for slots in (stored[wrong[0]], wanted))
            raise ValueError(f"{wrong[0]} has {has}, and this one wants {wants}")
        kept = {p for group in own.param_groups for p in group["params"]}
        blank = {name: blank_state(own, p) for name, p in trained.items() if p in kept and name in stored}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            state_dict_loader.load({OPTIMIZER: blank}, checkpoint_id=folder, no_dist=process.world == 1)
    except (CheckpointException, RuntimeError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[-300:]
        raise CheckpointError(
            f"{folder}: does not fit this config's optimiser ({reason}); resume with the optim.optimizer "
            f"that it was trained with, or start another run from its weights (model.init={path} run_dir=...)"
        ) from error
    for name, values in blank.items():
        own.state[trained[name]] = values
    if new := [name for name in trained if name not in stored]:
        log.info("%d parameter(s) were not trained before: the optimiser begins anew with %s", len(new), ", ".join(new))


@dataclass(frozen=True, kw_only=True)
class Best:
    """The best checkpoint of a run so far."""

    checkpoint: str  # name of its folder
    metric: str  # NAME/METRIC, as `keep_best` has it
    value: float
    lower_is_better: bool = False

    def beats(self, other: Best | None) -> bool:
        """Whether it takes the other's place; NaN never does, and an equal one stays."""
        if other is None or math.isnan(self.value):
            return other is None and not math.isnan(self.value)
        return self.value < other.value if self.lower_is_better else self.value > other.value


def best_of(folder: Path, *, metric: str = "") -> Best | None:
    """What `best.json` in a folder of checkpoints says; None where it says nothing, or names one that is gone.

    metric: None too where it is of another one; empty = of any.
    """
    try:
        best = Best(**json.loads((folder / BEST).read_bytes()))
    except (OSError, ValueError, TypeError):
        return None
    there = (folder / best.checkpoint / FACTS).is_file()
    return best if there and metric in ("", best.metric) else None


def note_if_best(folder: Path, best: Best) -> None:
    """Write `best.json`, whole or not at all, if the value is better than that of the same metric there."""
    if not best.beats(best_of(folder, metric=best.metric)):
        return
    with whole_file(folder / BEST) as file:
        file.write(f"{json.dumps(vars(best))}\n".encode())
    log.info("best so far: %s with %s %.4g", best.checkpoint, best.metric, best.value)


def check_same_order(path: Path, facts: Facts, *, now: dict[str, int]) -> None:
    """CheckpointError where another order of clips would make a resume in mid-epoch repeat some and miss others."""
    names = [name for name in facts.order | now if facts.order.get(name) != now.get(name)]
    if not names:
        return
    changes = ", ".join(f"{name} is {now.get(name)} and was {facts.order.get(name)}" for name in names)
    end = newest_epoch_end(path.parent)
    elsewhere = f"; or start another run from the end of an epoch (resume={end} run_dir=...)" if end else ""
    raise CheckpointError(
        f"{path}: was saved after {facts.progress.epoch_updates} updates of an epoch, and {changes}: the rest "
        f"of the epoch would repeat clips and miss others. Continue with what was until an epoch ends{elsewhere}; "
        "or start afresh (resume=aside). optim.accumulate and the number of ranks may change at any time"
    )


def newest(folder: Path) -> Path | None:
    """The newest whole checkpoint of a folder of checkpoints; None where there is none at all.

    CheckpointError where there are some and not one is whole.
    """
    reasons: list[str] = []
    for path in reversed(step_folders(folder)):
        if (reason := torn(path)) is None:
            if reasons:
                log.warning("passed over what is not whole: %s", "; ".join(reasons))
            return path
        reasons.append(f"{path}: {reason}")
    if reasons:
        raise CheckpointError(
            f"not one checkpoint to continue from is whole: {'; '.join(reasons)}; start afresh with resume=aside, "
            "which keeps the folder under another name, or start from weights with model.init=..."
        )
    return None


def newest_epoch_end(folder: Path) -> Path | None:
    """The newest whole checkpoint of a folder that was saved between two epochs."""
    for path in reversed(step_folders(folder)):
        if torn(path) is None and not read_facts(path).progress.epoch_updates:
            return path
    return None


def torn(path: Path) -> str | None:
    """Why a folder is no whole checkpoint, judged by all that its files hold; None where it is one."""
    try:
        facts = read_facts(path)
    except CheckpointError as error:
        return str(error).removeprefix(f"{path}: ")
    for name, (size, _) in facts.files.items():
        found = (path / name).stat().st_size if (path / name).is_file() else None
        if found != size:
            return f"{name} is missing" if found is None else f"{name} has {found} bytes instead of {size}"
    for name, (_, checksum) in facts.files.items():
        if checksum_of(path / name) != checksum:
            return f"{name} has other content than was written"
    return None


def read_facts(path: Path) -> Facts:
    """checkpoint.json of a checkpoint folder. CheckpointError where there is none, or not all in it."""
    try:
        values = json.loads((path / FACTS).read_bytes())
    except FileNotFoundError:
        raise CheckpointError(f"{path}: has no {FACTS}") from None
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{path}: {FACTS} cannot be read ({error})") from None
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise CheckpointError(f"{path}: {FACTS} is not of format {FORMAT}, the one that this version reads")
    try:
        facts = Facts(
            progress=Progress(**values["progress"]),
            order=dict(values["order"]),
            scaler=dict(values["scaler"]),
            files={name: (int(size), int(checksum)) for name, (size, checksum) in values["files"].items()},
            meters=list(values.get("meters", [])),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path}: {FACTS} lacks what a checkpoint's says ({error!r})") from None
    if missing := [name for name in (WEIGHTS, f"{TRAIN_STATE}/.metadata") if name not in facts.files]:
        raise CheckpointError(f"{path}: {FACTS} does not list {', '.join(missing)}")
    return facts


def checksum_of(path: Path) -> int:
    checksum = 0
    with path.open("rb") as file:
        while part := file.read(1 << 23):
            checksum = zlib.crc32(part, checksum)
    return checksum


def remove(path: Path) -> None:
    """Remove a checkpoint."""
    gone = path.with_name(f".{path.name}.old.tmp")  # a name under which nobody takes a half for a whole
    path.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)  # what a network file system keeps a while is left to the next save
