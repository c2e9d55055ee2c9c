#!/usr/bin/env bash
# torch.distributed.checkpoint changes the training that follows when it only reads a fresh optimiser's state.
#
# Versions: torch 2.14.1 (a plain pip install: several GB), one process, CPU.
# A good guess: get_optimizer_state_dict is a getter. A run that saves a checkpoint before its first step (step 0, to
#   compare with or to test the disk early) trains exactly as one that does not.
# What happens: for an optimiser that has no state yet, the getter takes a step with zero gradients and a zero rate. The
#   weights stay, the optimiser does not: Adam's step count starts at 1, so the bias correction of every later step is
#   off by one (the first real step of AdamW is about a quarter smaller); SGD's momentum buffer starts from zero, so
#   dampening applies to the first gradient too. Nothing undoes it unless a saved state is loaded over it.
# Source: torch/distributed/checkpoint/state_dict.py: _get_optim_state_dict calls _init_optim_state, which fills zero
#   gradients and calls optim.step(). Its comments assume that a checkpoint is loaded afterwards. The documentation of
#   the getter does not mention it.
# Remedy: where optimizer.state is empty and nothing is loaded, do not call the getter; or make a new optimiser.
#
# Output seen:
#   AdamW                            untouched         entries before step 1: 0  moved: ['0.001005', '0.002009', '0.003014']
#   AdamW                            state read first  entries before step 1: 2  moved: ['0.000749', '0.001612', '0.002526']
#   SGD, momentum and dampening 0.9  untouched         entries before step 1: 0  moved: ['0.485655', '0.874178', '1.097579']
#   SGD, momentum and dampening 0.9  state read first  entries before step 1: 2  moved: ['0.048565', '0.131127', '0.227772']
#   as described

set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.14.1 numpy==2.4.6
"$work/venv/bin/python" -W ignore - <<'EOF'
import sys

import torch
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

OPTIMIZERS = {
    "AdamW": lambda weights: torch.optim.AdamW(weights, lr=1e-3),
    "SGD, momentum and dampening 0.9": lambda weights: torch.optim.SGD(weights, lr=0.1, momentum=0.9, dampening=0.9),
}


def train(name: str, read_first: bool) -> tuple[list[float], int]:
    """How far a weight is from its beginning after steps 1, 2, 3, and what the getter left in the optimiser."""
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 4)
    optimizer = OPTIMIZERS[name](model.parameters())
    if read_first:
        get_optimizer_state_dict(model, optimizer)
    left_behind, start, moved = len(optimizer.state), model.weight.detach().clone(), []
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.ones(2, 4)).square().sum().backward()
        optimizer.step()
        moved.append(float((model.weight.detach() - start).abs().max()))
    return moved, left_behind


as_described = True
for name in OPTIMIZERS:
    for read_first in (False, True):
        moved, left_behind = train(name, read_first)
        how = "state read first" if read_first else "untouched"
        print(f"{name:<32} {how:<17} entries before step 1: {left_behind}  moved: {[f'{m:.6f}' for m in moved]}")
    plain, again, read = (train(name, read_first)[0] for read_first in (False, False, True))
    as_described &= plain == again and abs(read[0] / plain[0] - 1) > 0.05
print("as described" if as_described else "CHANGED")
sys.exit(not as_described)
EOF
