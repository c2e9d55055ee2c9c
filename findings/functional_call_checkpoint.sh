#!/usr/bin/env bash
# Gradients are wrong, without a word, where torch.func.functional_call meets activation checkpointing.
#
# Versions: torch 2.14.1 (CPU).
# A good guess: functional_call(model, parameters, x) computes with the given parameters, and its backward pass gives
#   their gradients. Activation checkpointing (use_reentrant=False, the recommended kind) changes memory, not numbers.
# What happens: functional_call puts the model's own parameters back when the forward pass ends. Backward comes after
#   that, and a checkpointed block recomputes its forward pass with what the module holds then: the model's own
#   parameters. The outputs are right. The gradients mix two sets of weights, and no error is raised: shapes and dtypes
#   agree, which is all that the check of recomputed tensors compares.
# Source: torch/nn/utils/stateless.py, _functional_call (the swap is a context manager around the forward pass);
#   torch/utils/checkpoint.py, _CheckpointFrame and check_recomputed_tensors_match (metadata alone).
# Remedy: run forward and backward inside one functional_call, for instance in a wrapper module whose forward returns
#   torch.autograd.grad(loss, parameters). Then the given parameters are in place while blocks are recomputed.
#
# Output seen (sums of absolute gradients of the given parameters):
#   plain                      a.weight 68.830  a.bias 30.636  b.weight 13.606  b.bias 12.000
#   checkpointed               a.weight  7.455  a.bias  3.454  b.weight 12.180  b.bias 12.000
#   checkpointed, one call     a.weight 68.830  a.bias 30.636  b.weight 13.606  b.bias 12.000
#   outputs equal: True
#   as described

set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.14.1 numpy==2.4.6
"$work/venv/bin/python" - <<'EOF'
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint


class Net(nn.Module):
    def __init__(self, checkpointed: bool) -> None:
        super().__init__()
        self.a, self.b, self.checkpointed = nn.Linear(4, 4), nn.Linear(4, 4), checkpointed

    def block(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(x)))

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.block, x, use_reentrant=False) if self.checkpointed else self.block(x)


class ForwardAndBackward(nn.Module):
    def __init__(self, net: Net) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        out = self.net(x)
        return out.detach(), *torch.autograd.grad(out.sum(), list(self.net.parameters()))


def others(net: Net) -> dict[str, Tensor]:
    """Parameters that differ from the net's own."""
    return {name: (2 * value.detach() + 1).requires_grad_() for name, value in net.named_parameters()}


def show(title: str, gradients: dict[str, Tensor]) -> list[float]:
    sums = {name: float(gradient.abs().sum()) for name, gradient in gradients.items()}
    print(f"{title:<25}", "  ".join(f"{name} {value:6.3f}" for name, value in sums.items()))
    return list(sums.values())


torch.manual_seed(0)
x = torch.randn(3, 4)
outputs, found = [], []
for title, checkpointed in (("plain", False), ("checkpointed", True)):
    torch.manual_seed(1)
    net = Net(checkpointed)
    given = others(net)
    out = functional_call(net, given, (x,))
    out.sum().backward()
    outputs.append(out.detach())
    found.append(show(title, {name: value.grad for name, value in given.items()}))
torch.manual_seed(1)
net = Net(True)
given = others(net)
_, *gradients = functional_call(ForwardAndBackward(net), {f"net.{name}": value for name, value in given.items()}, (x,))
remedy = show("checkpointed, one call", dict(zip(given, gradients, strict=True)))
same_outputs = torch.equal(*outputs)
print("outputs equal:", same_outputs)
plain, wrong = found
as_described = same_outputs and wrong[0] < 0.5 * plain[0] and torch.allclose(torch.tensor(remedy), torch.tensor(plain))
print("as described" if as_described else "CHANGED")
raise SystemExit(not as_described)
EOF
