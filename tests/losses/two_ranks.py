"""What test_ranks.py has two processes do, one thing after another: each computes losses of its share of a batch.

    python -m tests.losses.two_ranks RANK FOLDER

Writes FOLDER/rank-RANK.pt: scenario -> what it gave.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from lavila.losses import (
    contrastive_accuracy,
    contrastive_loss,
    max_margin_loss,
    pseudo_label_contrastive_accuracy,
    pseudo_label_contrastive_loss,
)
from tests.losses.golden_losses import TENSORS, learned

SHARES = {"halves": (6, 6), "5 and 7": (5, 7), "none and 12": (0, 12), "12 and none": (12, 0), "nothing": (0, 0)}
LARGE = 256  # clips of a rank, many more than numbers of a feature


class Sizes(TorchDispatchMode):
    """The most numbers that any result has."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.largest = max(self.largest, result.numel())
        return result


def losses(rows: slice) -> dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]]:
    """Of features and a log scale."""
    human, relevancy = TENSORS["in.dist.gt_indicators"].bool()[rows], TENSORS["in.dist.relevancy"][rows]
    return {
        "clip_vissl": lambda image, text, scale: contrastive_loss(image, text, logit_scale=scale.exp()),
        "ssl_vissl": lambda image, text, scale: pseudo_label_contrastive_loss(
            image, text, logit_scale=scale.exp(), pseudo_logit_scale=torch.tensor(1 / 0.08), human=human
        ),
        "max_margin": lambda image, text, scale: max_margin_loss(image, text, margin=0.2),
        "adaptive_max_margin": lambda image, text, scale: max_margin_loss(image, text, margin=0.4, relevancy=relevancy),
    }


def share_of_batch(rank: int, counts: tuple[int, int]) -> slice:
    return slice(0, counts[0]) if rank == 0 else slice(counts[0], sum(counts))


def losses_of_shares(rank: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for share, counts in SHARES.items():
        rows = share_of_batch(rank, counts)
        for name, loss_of in losses(rows).items():
            image, text = learned("in.dist.image", rows), learned("in.dist.text", rows)
            log_scale = learned("in.log_logit_scale")
            loss = loss_of(image, text, log_scale)
            loss.backward()
            found[f"{share}: {name}"] = (loss.detach(), image.grad, text.grad, log_scale.grad)
    return found


def accuracies(rank: int, counts: tuple[int, int]) -> dict[str, Tensor]:
    rows = share_of_batch(rank, counts)
    image, text = TENSORS["in.dist.image"][rows], TENSORS["in.dist.text"][rows]
    scales = {"logit_scale": TENSORS["in.log_logit_scale"].exp(), "pseudo_logit_scale": 1 / 0.08}
    human = TENSORS["in.dist.gt_indicators"].bool()[rows]
    kinds = pseudo_label_contrastive_accuracy(image, text, human=human, **scales)  # type: ignore[arg-type]
    return kinds | {f"plain_{name}": value for name, value in contrastive_accuracy(image, text).items()}


def a_rank_without_features_of_a_model(rank: int) -> Tensor | None:
    """Rank 1's features are constants: it must still do its part of the backward pass."""
    image, text = torch.empty(0, 16), torch.empty(0, 16)
    if rank == 0:
        image, text = learned("in.dist.image"), learned("in.dist.text")
    contrastive_loss(image, text, logit_scale=10.0).backward()
    return image.grad


def parameters_under_ddp(rank: int, *, equal_words: bool) -> list[Tensor]:
    """Gradients of a small dual encoder whose clips are spread 4 to 8; equal_words: some clips have the same words."""
    torch.manual_seed(0)
    towers = nn.ModuleDict({"image": nn.Linear(16, 8), "text": nn.Linear(16, 8)})
    towers.register_parameter("scale", nn.Parameter(torch.tensor(2.0)))

    class Dual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.towers = towers

        def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            return self.towers["image"](image), self.towers["text"](text), self.towers.scale.exp()  # type: ignore

    rows = share_of_batch(rank, (4, 8)) if dist.is_initialized() else slice(None)
    model = DistributedDataParallel(Dual()) if dist.is_initialized() else Dual()
    image, text, scale = model(TENSORS["in.dist.image"][rows], TENSORS["in.dist.text"][rows])
    words = torch.tensor([0, 1, 0, 2, 3, 1, 4, 5, 0, 6, 6, 7])[rows]  # some are equal across ranks
    contrastive_loss(image, text, logit_scale=scale, words=words if equal_words else None).backward()
    return [parameter.grad for parameter in model.parameters()]  # type: ignore[misc]


def largest_result(rank: int) -> dict[str, int]:
    """Numbers in the largest tensor of a loss and its backward pass."""
    torch.manual_seed(rank)
    found = {}
    for name, loss_of in (("contrastive", contrastive_loss), ("max_margin", max_margin_loss)):
        image, text = (torch.randn(LARGE, 4, requires_grad=True) for _ in range(2))
        with Sizes() as sizes:
            loss_of(image, text, **({"logit_scale": 10.0} if name == "contrastive" else {"margin": 0.2})).backward()
        found[name] = sizes.largest
    return found


def main(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    # A rank that waits for one that does not come fails after this time, and the test with it.
    store = f"file://{folder / 'store'}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2, timeout=timedelta(seconds=60))
    found = losses_of_shares(rank)
    for share in ("halves", "none and 12", "nothing"):
        found[f"accuracies: {share}"] = accuracies(rank, SHARES[share])
    found["constants"] = a_rank_without_features_of_a_model(rank)
    found["ddp"] = {equal: parameters_under_ddp(rank, equal_words=equal) for equal in (False, True)}
    found["largest"] = largest_result(rank)
    torch.save(found, folder / f"rank-{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
