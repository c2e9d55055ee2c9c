"""How much memory a step takes, estimated without taking it.

Weights, gradients and the optimizer's state are counted. Activations are those of a pass of fake tensors, which have
sizes but no memory, through the towers: the most bytes that are in use at once, the pictures among them. An estimate
leaves out PyTorch's own buffers, fragments, the loss and the heads, and the pictures of batches that are on their way.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lavila.engine.optim import MOMENTS, own_part
from lavila.engine.precision import Arithmetic

GIB = 1 << 30


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Bytes on one rank."""

    weights: int
    gradients: int
    optimizer: int
    activations: int  # those kept for the backward pass at their most; in an evaluation those of a forward pass

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.gradients + self.optimizer + self.activations

    def __str__(self) -> str:
        parts = ("weights", "gradients", "optimizer", "activations")
        shown = ", ".join(f"{name} {getattr(self, name) / GIB:.2f}" for name in parts if getattr(self, name))
        return f"about {self.total / GIB:.2f} GiB on each rank, an estimate ({shown})"


@dataclass(frozen=True, kw_only=True)
class PassSize:
    """What one forward pass of a rank takes in."""

    clips: int  # views count as clips
    video: tuple[int, int, int, int]  # [C, T, H, W] of each
    texts: int = 0  # texts of the longest length; 0 = none
    text_tokens: int = 0  # tokens of the longest text


def training_memory(
    model: nn.Module, optimizer: torch.optim.Optimizer, size: PassSize, arithmetic: Arithmetic, *, ranks: int
) -> MemoryEstimate:
    """The memory of training steps.

    model: without a wrapper, with its frozen parts frozen. optimizer: what `build_optimizer` made.
    """
    trained = _bytes(p for p in model.parameters() if p.requires_grad)
    own = own_part(optimizer)
    kept = sum(
        _bytes(group["params"]) * len(MOMENTS[type(own)]) * (group.get("momentum") != 0.0) for group in own.param_groups
    )
    return MemoryEstimate(
        weights=_bytes([*model.parameters(), *model.buffers()]),
        gradients=trained * (2 if ranks > 1 else 1),  # DistributedDataParallel sends copies of them
        optimizer=kept,
        activations=_activations(model, size, arithmetic, backward=True),
    )


def evaluation_memory(model: nn.Module, size: PassSize, arithmetic: Arithmetic) -> MemoryEstimate:
    """The memory of forward passes without gradients."""
    return MemoryEstimate(
        weights=_bytes([*model.parameters(), *model.buffers()]),
        gradients=0,
        optimizer=0,
        activations=_activations(model, size, arithmetic, backward=False),
    )


def _bytes(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _activations(model: nn.Module, size: PassSize, arithmetic: Arithmetic, *, backward: bool) -> int:
    device = next(model.parameters()).device
    video = functools.partial(torch.zeros, size.clips, *size.video, device=device)
    total = _peak(model.get_submodule("visual"), video, arithmetic, backward=backward)
    reader = _Text if hasattr(model, "encode_text") else _Decoder if hasattr(model, "text_decoder") else None
    if reader is not None and size.texts and size.text_tokens:
        text = functools.partial(torch.zeros, size.texts, size.text_tokens, dtype=torch.int64, device=device)
        total += _peak(reader(model), text, arithmetic, backward=backward)
    return total


class _Text(nn.Module):
    """The text tower of a dual encoder as a module."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        found: Tensor = self.model.encode_text(tokens)  # type: ignore[operator]
        return found


class _Decoder(nn.Module):
    """The language model of a narrator, given texts and the visual tokens of as many clips."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        decoder: Any = self.model.text_decoder
        visual: Any = self.model.img_queries
        found: Tensor = decoder(tokens, decoder.look(visual.expand(len(tokens), -1, -1)))
        return found


class _Pass(nn.Module):
    """Forward and backward of a module in one call, so that both meet the parameters that the call is given."""

    def __init__(self, module: nn.Module, *, backward: bool) -> None:
        super().__init__()
        self.module, self.backward = module, backward

    def forward(self, *inputs: Tensor) -> None:
        out = self.module(*inputs)
        if self.backward and out.requires_grad:
            # Of the parameter that gradients reach last: the pass goes all the way, and makes few other gradients.
            first = next(p for p in self.module.parameters() if p.requires_grad)
            torch.autograd.grad(out.sum(), first, allow_unused=True)


def _peak(module: nn.Module, given: Callable[[], Tensor], arithmetic: Arithmetic, *, backward: bool) -> int:
    """The most bytes that a pass has in use at once, beside the parameters and their gradients."""
    whole = _Pass(module, backward=backward)
    with FakeTensorMode() as fake:
        real = [*whole.named_parameters(), *whole.named_buffers()]
        state: dict[str, Tensor] = {name: fake.from_tensor(tensor) for name, tensor in real}
        with _InUse() as use, torch.set_grad_enabled(backward), arithmetic.autocast():
            functional_call(whole, state, (given(),))
        return int(use.most)


class _InUse(TorchDispatchMode):
    """Counts the bytes of all storages that operations make, from when they are made until nothing refers to them."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.most = 0, 0
        self._known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(found):
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage())
        return found

    def _add(self, storage: torch.UntypedStorage) -> None:
        if storage in self._known:
            return
        self._known.add(storage)
        size = storage.nbytes()
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._gone, size)

    def _gone(self, size: int) -> None:
        self.now -= size
