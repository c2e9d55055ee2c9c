"""This process among the processes of a run: `torchrun` starts several, `python train.py` is the only one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store
from torch.distributed import distributed_c10d
from torch.distributed.rendezvous import rendezvous

from lavila.errors import UserError, one_line

T = TypeVar("T")


class DeviceError(UserError):
    """A device that was asked for and is not there."""


class RendezvousError(UserError):
    """The processes of a run do not find each other."""


@dataclass(frozen=True, kw_only=True)
class Process:
    """Who this process is and which device it owns."""

    rank: int
    world: int
    local_world: int  # processes on this machine
    device: torch.device
    alive: Callable[[], None] = lambda: None  # long work calls it as it gets on, and it may raise to end the work

    @property
    def is_main(self) -> bool:
        """Whether this rank writes files and logs."""
        return self.rank == 0


@contextmanager
def join(device: str) -> Iterator[Process]:
    """Join the processes that torchrun started, if it did, and leave them at the end.

    device: auto, cpu or cuda. NCCL carries GPU tensors and gloo CPU tensors. Raises DeviceError for cuda without a GPU,
    and RendezvousError where rank 0 cannot listen at MASTER_PORT or the others do not reach it.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise DeviceError(
            "device=cuda, but PyTorch finds no usable GPU and driver; use device=auto or cpu, or check nvidia-smi"
        )
    on_gpu = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    local_rank, local_world = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if on_gpu:
        if local_rank >= torch.cuda.device_count():
            raise DeviceError(
                f"process {local_rank} of this machine has no GPU for itself ({torch.cuda.device_count()} found); "
                f"start torchrun with --nproc-per-node {torch.cuda.device_count()}"
            )
        torch.cuda.set_device(local_rank)
    if world > 1:
        backends = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
        dist.init_process_group(backends, store=_store(), rank=rank, world_size=world)
    try:
        yield Process(
            rank=rank,
            world=world,
            local_world=local_world,
            device=torch.device("cuda", local_rank) if on_gpu else torch.device("cpu"),
        )
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _store() -> PrefixStore:
    """Where the processes of a run find each other, apart from those of earlier starts.

    torchrun keeps one store for all its restarts. With PyTorch 2.14, restarted processes often find the addresses of
    dead ones in it, and wait for them (findings/torchrun_restart_store.sh).
    """
    try:
        store, _, _ = next(rendezvous("env://"))
    except dist.DistNetworkError as error:
        place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise RendezvousError(
            f"the processes of this run cannot meet at MASTER_ADDR:MASTER_PORT, {place}: {one_line(error)}; "
            "set MASTER_PORT to a port that is free on the machine of rank 0 and that the others reach"
        ) from error
    return PrefixStore(f"start-{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)


def second_group() -> dist.ProcessGroup | None:
    """A group of all ranks for another thread, so that its messages and those of training do not mix.

    Every rank calls this. None where there is one process.
    """
    if not dist.is_initialized():
        return None
    group = dist.new_group(backend="gloo")
    assert isinstance(group, dist.ProcessGroup), "every rank belongs to it"
    return group


def shared_store() -> Store | None:
    """Where the ranks can leave one another short texts, for use by another thread; None where there is one process."""
    if not dist.is_initialized():
        return None
    store: Store = PrefixStore("lavila", distributed_c10d._get_default_store().clone())
    return store


def leave(group: dist.ProcessGroup | None) -> None:
    """End this rank's part in a group of `second_group`."""
    if group is not None and dist.is_initialized():
        dist.destroy_process_group(group)


def barrier() -> None:
    """Wait for all processes."""
    if dist.is_initialized():
        dist.barrier()


def mean_over_ranks(values: dict[str, float], *, device: torch.device) -> dict[str, float]:
    """The mean of each value over the ranks where it is not NaN (NaN where it is nowhere)."""
    if not dist.is_initialized():
        return values
    numbers = torch.tensor(list(values.values()), dtype=torch.float64, device=device)
    known = ~numbers.isnan()
    totals = torch.stack([torch.where(known, numbers, 0.0), known.double()])
    dist.all_reduce(totals)
    return dict(zip(values, (totals[0] / totals[1]).tolist(), strict=True))


def sum_over_ranks(values: dict[str, float], *, device: torch.device) -> dict[str, float]:
    """The sum of each value over all ranks, float64, the same on every rank."""
    if not dist.is_initialized():
        return values
    numbers = torch.tensor(list(values.values()), dtype=torch.float64, device=device)
    dist.all_reduce(numbers)
    return dict(zip(values, numbers.tolist(), strict=True))


def on_main(work: Callable[[], T], *, group: dist.ProcessGroup | None = None) -> T:
    """What `work` gives on the main rank, the only one that does it; every rank calls this.

    What is decided by looking at files must come out the same everywhere. An error is raised on every rank as well, so
    that no rank waits for one that has stopped. group: another group of all ranks than the one that all use.
    """
    if not dist.is_initialized():
        return work()
    outcome: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            outcome = [work(), None]
        except Exception as error:
            outcome = [None, error]
    dist.broadcast_object_list(outcome, group=group)
    if outcome[1] is not None:
        raise outcome[1]
    result: T = outcome[0]
    return result


def ask_ranks(number: torch.Tensor) -> Callable[[], list[int]]:
    """A small number of every rank, in rank order: the function that is returned waits for the answer and gives it.

    number: a scalar 0..255 on this rank's device. What the device was given to do after this call is not waited for, so
    that it has work while this process decides.
    """
    numbers = number.detach().to(torch.uint8).reshape(1)
    if dist.is_initialized():
        own, numbers = numbers, numbers.new_empty(dist.get_world_size())
        dist.all_gather_into_tensor(numbers, own)
    if numbers.device.type != "cuda":
        return lambda: list(map(int, numbers.tolist()))
    answer = torch.empty_like(numbers, device="cpu", pin_memory=True)
    answer.copy_(numbers, non_blocking=True)
    there = torch.cuda.Event()
    there.record()

    def wait() -> list[int]:
        there.synchronize()
        return list(map(int, answer.tolist()))

    return wait


def gather_to_all(value: T) -> list[T]:
    """Every rank's value on every rank, in rank order."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def gather_to_main(value: Any) -> list[Any] | None:
    """Every rank's value on the main rank, in rank order; None on the others."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] | None = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
    dist.gather_object(value, values)
    return values
