"""A batch that is spread over the ranks of a run: features of all ranks, with gradients.

Every rank holds some clips, not all the same number, and some hold none. A loss over the whole batch is the sum of
parts, one for each rank. Each rank calls the functions here with its own clips and in the same order; all take part in
the backward pass, too. In one process without torch.distributed they do nothing.

How gradients are meant: every rank calls backward on the same loss, and the gradients of parameters are then averaged
over ranks, as DistributedDataParallel and FSDP do. The average is the gradient of that loss in one process.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable


@dataclass(frozen=True)
class Pairs:
    """Features of this rank's clips, b of them, beside those of the clips of all ranks, B of them."""

    image_bD: Tensor
    text_bD: Tensor
    image_BD: Tensor
    text_BD: Tensor
    places_b: Tensor
    """int64: which of the B clips this rank's are."""

    @property
    def total(self) -> int:
        """How many clips all ranks hold."""
        return len(self.image_BD)


def gather_pairs(image: Tensor, text: Tensor) -> Pairs:
    """The features of all ranks, [b,D] of each, at least in float32; rank 0's clips come first.

    The gradient of a gathered row goes back to the rank that holds it, summed over all ranks. ValueError for features
    that are not two matrices of one shape.
    """
    if image.ndim != 2 or image.shape != text.shape:
        raise ValueError(
            f"image has shape {tuple(image.shape)}, text {tuple(text.shape)}: expected [B, D], a row of each a clip"
        )
    kind = torch.promote_types(torch.promote_types(image.dtype, text.dtype), torch.float32)
    own = torch.cat([image.to(kind), text.to(kind)], dim=1)  # one exchange instead of two
    start, every = 0, own
    if _several():
        counts, anyone_learns = _counts(own)
        # A rank without clips may have features that come from no model. It must take part in the backward pass.
        if anyone_learns and not own.requires_grad:
            own = own.detach().requires_grad_()
        start = sum(counts[: dist.get_rank()])
        if sum(counts):
            every = _GatherRows.apply(own, counts)
    width = image.shape[1]
    return Pairs(
        image_bD=own[:, :width],
        text_bD=own[:, width:],
        image_BD=every[:, :width],
        text_BD=every[:, width:],
        places_b=torch.arange(start, start + len(own), device=own.device),
    )


@torch.no_grad()
def gather_numbers(own: Tensor) -> Tensor:
    """Whole numbers of all ranks' clips, [b] -> [B], in the order of `gather_pairs`."""
    if not _several():
        return own
    counts, _ = _counts(own)
    return _GatherRows.apply(own, counts) if sum(counts) else own


def sum_over_ranks(part: Tensor) -> Tensor:
    """The sum of all ranks' tensors, the same on each. The gradient is the sum of all ranks' gradients."""
    return _SumOverRanks.apply(part) if _several() else part


def shared(value: Tensor | float) -> Tensor | float:
    """A value that is the same on every rank, such as a temperature. Its gradient is the average over ranks.

    So each rank has the gradient of the whole batch, also where nobody averages the gradients of parameters.
    """
    return _Shared.apply(value) if _several() and isinstance(value, Tensor) else value


def _several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _counts(own: Tensor) -> tuple[list[int], bool]:
    """How many rows each rank holds, and whether anyone's need a gradient.

    The numbers are wanted on the host. Where the ranks can exchange tensors of the CPU, no one waits for the GPU.
    """
    device = torch.device("cpu") if "cpu:" in dist.get_backend_config() else own.device
    about = torch.tensor([len(own), int(torch.is_grad_enabled() and own.requires_grad)], device=device)
    of_all = [torch.empty_like(about) for _ in range(dist.get_world_size())]
    dist.all_gather(of_all, about)
    counts, learning = zip(*(one.tolist() for one in of_all), strict=True)
    return list(counts), any(learning)


class _GatherRows(torch.autograd.Function):
    """Rows of all ranks in rank order, [sum of counts, ...]."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, counts: list[int]) -> Tensor:
        rank = dist.get_rank()
        ctx.own = slice(sum(counts[:rank]), sum(counts[: rank + 1]))
        padded = own.new_zeros(max(counts), *own.shape[1:])  # all ranks must send equally much
        padded[: len(own)] = own
        received = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(received, padded)
        return torch.cat([rows[:count] for rows, count in zip(received, counts, strict=True)])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total[ctx.own], None


class _SumOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Tensor) -> Tensor:
        total = part.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        dist.all_reduce(total)
        return total


class _Shared(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        dist.all_reduce(total)
        return total / dist.get_world_size()
