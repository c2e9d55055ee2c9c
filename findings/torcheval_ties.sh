#!/usr/bin/env bash
# torcheval gives a broken model the full score: 100 % top-5 accuracy, hit rate 1 and reciprocal rank 1.
#
# Versions: torcheval 0.0.7, torch 2.14.1 (a plain pip install: several GB), CPU.
# A good guess: scores that hold no information score as chance, or as nothing. A model that diverged (NaN), or whose
#   embeddings collapsed to one point, shows in the first validation.
# What happens: it has the highest score that there is. multiclass_accuracy with k > 1, hit_rate and reciprocal_rank
#   count the classes with a *greater* score than the right one. A tie and a NaN are not greater, so the right class is
#   always first. "Keep the best checkpoint" then keeps the broken one. Scores that bfloat16 rounds to ties gain the
#   same way: random ones from 0.042 to 0.116 below. multiclass_accuracy with k=1 goes by argmax and shows nothing.
# Source: torcheval/metrics/functional/classification/accuracy.py (_multiclass_accuracy_update), ranking/hit_rate.py and
#   ranking/reciprocal_rank.py: torch.gt(scores, score of the target).sum() is taken as the rank.
# Remedy: check torch.isfinite(scores).all(), and take as rank the number of others that are greater *or equal*.
#
# Output seen (1000 clips, 100 classes; chance is 0.01, 0.05, 0.01 and 0.05):
#                         top-1  top-5  hit rate at 1  reciprocal rank  top-5, ties lost
#   random scores         0.011  0.042  0.011          0.050            0.042
#   all scores equal      0.010  1.000  1.000          1.000            0.000
#   all scores NaN        0.010  1.000  1.000          1.000            0.000
#   in bfloat16, near 1   0.009  0.116  0.022          0.086            0.019
#   as described

set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check torcheval==0.0.7 torch==2.14.1 numpy==2.4.6
"$work/venv/bin/python" -W ignore - <<'EOF'
import sys

import torch
from torch import Tensor
from torcheval.metrics.functional import hit_rate, multiclass_accuracy, reciprocal_rank

CLIPS, CLASSES = 1000, 100
generator = torch.Generator().manual_seed(0)
targets = torch.randint(CLASSES, (CLIPS,), generator=generator)
noise = torch.randn(CLIPS, CLASSES, generator=generator)


def ties_lost(scores: Tensor) -> float:
    """Top-5 accuracy in which a class with the same score, or none, goes before the right one."""
    right = scores.gather(1, targets[:, None])
    before = (~(scores < right)).sum(1) - 1  # not lower: greater, equal or NaN
    return float((before < 5).float().mean())


cases = {
    "random scores": noise,
    "all scores equal": torch.zeros(CLIPS, CLASSES),
    "all scores NaN": torch.full((CLIPS, CLASSES), torch.nan),
    "in bfloat16, near 1": (1 + 0.01 * noise).bfloat16().float(),
}
titles = ("top-1", "top-5", "hit rate at 1", "reciprocal rank", "top-5, ties lost")
print(f"{'':<20}  {'  '.join(titles)}")
found: dict[str, list[float]] = {}
for name, scores in cases.items():
    values = [multiclass_accuracy(scores, targets, k=k) for k in (1, 5)]
    values += [hit_rate(scores, targets, k=1).mean(), reciprocal_rank(scores, targets).mean()]
    found[name] = [*map(float, values), ties_lost(scores)]
    row = (f"{value:<{len(title)}.3f}" for value, title in zip(found[name], titles, strict=True))
    print(f"{name:<20}  {'  '.join(row)}".rstrip())
random, equal, nan, rounded = found.values()
full = [1.0, 1.0, 1.0]
as_described = max(random[:4]) < 0.1 and equal[1:4] == nan[1:4] == full and rounded[1] > 1.5 * random[1]
print("as described" if as_described else "CHANGED")
sys.exit(not as_described)
EOF
