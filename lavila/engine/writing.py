"""Writes checkpoints: a copy of the state is taken first, and then written by any thread.

`stage` looks at model and optimiser; `write` looks at the copy alone, so training may move the weights meanwhile.
"""

from __future__ import annotations

import json
import logging
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from lavila.checkpoints.errors import CheckpointError
from lavila.checkpoints.store import LATEST, WEIGHTS, model_file, write_model
from lavila.engine.checkpoint import (
    CONFIG,
    FACTS,
    FOLDER,
    FORMAT,
    LEFT_OVER,
    OPTIMIZER,
    TRAIN_STATE,
    TrainState,
    checksum_of,
    remove,
    step_folders,
    step_name,
    torn,
)
from lavila.engine.distributed import Process, on_main
from lavila.engine.optim import blank_state, own_part
from lavila.errors import UserError, one_line
from lavila.files import sync, whole_file

log = logging.getLogger(__name__)

# A run of one process is what is meant. Set once: a filter inside a block would change those of other threads.
warnings.filterwarnings("ignore", message="torch.distributed is disabled")


class SaveFailed(UserError):
    """A checkpoint that could not be written. The older ones are as they were."""


@dataclass(frozen=True, kw_only=True)
class Beside:
    """What a checkpoint holds besides the state, and which older ones stay."""

    config_yaml: str  # the run's config, for people
    extra: dict[str, str]  # what the model file says, see `save_model`
    keep: int  # newest ones that stay
    spared: str = ""  # the name of one that stays, though it is older
    meters: list[dict[str, Any]] = field(default_factory=list)  # see `Facts`
    logs: tuple[Path, ...] = ()  # files whose lines must be on the disk before a resume may count on the checkpoint


class Staging:
    """Copies of tensors in main memory. The buffers are used again, since fresh memory takes twice the time."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def copy(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copies by the same names, complete when this returns. They hold until the next call with the name."""
        copies = {
            name: self._buffer(name, tensor).copy_(tensor.detach(), non_blocking=True)
            for name, tensor in tensors.items()
        }
        if any(tensor.is_cuda for tensor in tensors.values()):
            torch.cuda.current_stream().synchronize()
        return copies

    def reserve(self, name: str, like: Tensor) -> None:
        """Have the memory for copies of a tensor of this kind."""
        self._buffer(name, like).zero_()  # the system gives memory when it is written to

    def _buffer(self, name: str, like: Tensor) -> Tensor:
        buffer = self._buffers.get(name)
        if buffer is None or (buffer.shape, buffer.dtype) != (like.shape, like.dtype):
            buffer = torch.empty(like.shape, dtype=like.dtype, pin_memory=like.is_cuda)
            self._buffers[name] = buffer
        return buffer


@dataclass(frozen=True, kw_only=True)
class Staged:
    """A state as it was at one moment, and all else that a checkpoint holds: this rank's share of it."""

    name: str  # of its folder
    facts: dict[str, Any]  # checkpoint.json but for the files
    weights: dict[str, Tensor]  # on the main rank
    metadata: dict[str, str]  # of the model file
    optimizer: dict[str, dict[str, Any]]  # parameter -> its state, each on one rank
    beside: Beside

    @property
    def bytes(self) -> int:
        """What this rank has to write."""
        slots = [value for values in self.optimizer.values() for value in values.values()]
        tensors = [*self.weights.values(), *(value for value in slots if isinstance(value, Tensor))]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def stage(state: TrainState, *, process: Process, beside: Beside, staging: Staging | None = None) -> Staged:
    """The state of this moment; every rank calls this. Without `staging` it is the memory of the state itself."""
    optimizer = _own_share(state, process)
    weights, metadata = model_file(state.model, extra=beside.extra) if process.is_main else ({}, {})
    if staging is not None:
        weights = staging.copy(weights)
        slots = {(name, slot): value for name, values in optimizer.items() for slot, value in values.items()}
        copies = staging.copy({f"{OPTIMIZER}.{n}.{s}": v for (n, s), v in slots.items() if isinstance(v, Tensor)})
        for name, slot in slots:
            optimizer[name][slot] = copies.get(f"{OPTIMIZER}.{name}.{slot}", optimizer[name][slot])
    return Staged(
        name=step_name(state.progress.updates),
        facts={
            "format": FORMAT,
            "progress": asdict(state.progress),
            "order": dict(state.order),
            "scaler": state.scaler.state_dict(),
            "meters": beside.meters,
        },
        weights=weights,
        metadata=metadata,
        optimizer=optimizer,
        beside=beside,
    )


def reserve(state: TrainState, *, process: Process, staging: Staging) -> None:
    """Have the memory for the copies of a state, so that the first save takes no longer than others."""
    if process.is_main:
        for name, tensor in model_file(state.model)[0].items():
            staging.reserve(name, tensor)
    own = own_part(state.optimizer)
    for name, parameter in _own_parameters(state, process).items():
        for slot, value in blank_state(own, parameter).items():
            staging.reserve(f"{OPTIMIZER}.{name}.{slot}", value)


def _own_share(state: TrainState, process: Process) -> dict[str, dict[str, Any]]:
    """The state of the optimiser that this rank writes, by names of parameters, so any number of ranks can read it."""
    kept = own_part(state.optimizer).state
    return {name: dict(kept[p]) for name, p in _own_parameters(state, process).items() if kept.get(p)}


def _own_parameters(state: TrainState, process: Process) -> dict[str, nn.Parameter]:
    """Ranks with a sharded optimiser write what they keep.

    Where every rank has all of it, each writes every n-th parameter, the largest first, so that shares are about equal.
    """
    trained = {name: p for name, p in state.model.named_parameters() if p.requires_grad}
    own = own_part(state.optimizer)
    if own is not state.optimizer:
        kept = {id(p) for group in own.param_groups for p in group["params"]}
        return {name: p for name, p in trained.items() if id(p) in kept}
    names = sorted(trained, key=lambda name: (-trained[name].numel(), name))
    return {name: trained[name] for name in names[process.rank :: process.world]}


def write(run_dir: Path, staged: Staged, *, process: Process, group: ProcessGroup | None = None) -> Path:
    """Write a checkpoint from any thread; every rank calls this. Returns its folder when it is whole on the disk.

    group: of all ranks, if they use the common one meanwhile. On every rank: SaveFailed where the disk or its file
    system refuses, with nothing left of the attempt; CheckpointError where a whole checkpoint of this name is there.
    """
    from torch.distributed.checkpoint import state_dict_saver  # imported here, as in checkpoint.py
    from torch.distributed.checkpoint.api import CheckpointException

    folder = run_dir / FOLDER
    final = folder / staged.name
    temporary = folder / f".{final.name}.tmp"
    try:
        on_main(lambda: _make_room(temporary, final), group=group)
        state_dict_saver.save(
            {OPTIMIZER: staged.optimizer},
            checkpoint_id=temporary / TRAIN_STATE,
            process_group=group,
            no_dist=process.world == 1,
        )
        on_main(lambda: _complete(temporary, final, staged), group=group)
    except (OSError, SafetensorError, CheckpointException) as error:
        if process.is_main:
            shutil.rmtree(temporary, ignore_errors=True)
        raise SaveFailed(f"{final} could not be written ({_reason(error)})") from error
    return final


def save(run_dir: Path, state: TrainState, *, process: Process, beside: Beside) -> Path:
    """`stage` and `write` at once, without a copy; the state must not change meanwhile."""
    return write(run_dir, stage(state, process=process, beside=beside), process=process)


def _complete(temporary: Path, final: Path, staged: Staged) -> None:
    """On the main rank, when the optimiser's state is written: all else, and the name that says that it is whole."""
    beside, folder = staged.beside, final.parent
    write_model(temporary / WEIGHTS, staged.weights, staged.metadata)
    files = sorted(path for path in temporary.rglob("*") if path.is_file())
    listed = {str(path.relative_to(temporary)): [path.stat().st_size, checksum_of(path)] for path in files}
    (temporary / FACTS).write_text(json.dumps(staged.facts | {"files": listed}, indent=1) + "\n", encoding="utf-8")
    (temporary / CONFIG).write_text(beside.config_yaml, encoding="utf-8")
    for path in [*temporary.rglob("*"), temporary, *beside.logs]:
        sync(path)
    temporary.rename(final)
    sync(folder)
    with whole_file(folder / LATEST) as file:
        file.write(f"{final.name}\n".encode())
    for old in [path for path in step_folders(folder) if path.name <= final.name][: -beside.keep]:
        if old.name != beside.spared:
            remove(old)
    log.info("checkpoint: %s", final)


def _make_room(temporary: Path, final: Path) -> None:
    """Remove what killed saves left, and a torn folder that has the new checkpoint's name."""
    temporary.parent.mkdir(parents=True, exist_ok=True)
    for path in list(temporary.parent.iterdir()):
        if LEFT_OVER.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()
    if final.exists():
        if torn(final) is None:
            raise CheckpointError(f"{final}: is there already; does another process train into this run_dir?")
        remove(final)
    temporary.mkdir()


def _reason(error: BaseException) -> str:
    from torch.distributed.checkpoint.api import CheckpointException

    if isinstance(error, CheckpointException):
        return "; ".join(f"rank {rank}: {_reason(failure[0])}" for rank, failure in error.failures.items())
    # PyTorch reports the place in a file where a write was refused, and keeps the refusal as what came before.
    first: BaseException | None = error
    while first is not None and not isinstance(first, OSError):
        first = first.__context__
    return one_line(first or error)
