"""How random an epoch in windows is, beside a full shuffle: part of benchmarks/scale.

The clips of an invented set lie by video, as in layout "chunks". Each video prefers some of 97 classes, and often
repeats its last one. The measures of an epoch are:

- the autocorrelation of labels, (P(two clips `lag` places apart have one label) - p) / (1 - p), p being that chance for
  two clips taken at random: 0 in a full shuffle, up to 1;
- how unlike the set the labels of a batch are: mean chi-square over its degrees of freedom: 1 in a full shuffle;
- pairs of clips of one video in a batch.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lavila.plan.order import EpochOrder, Shuffle
from lavila.records import Ints

CLASSES, PER_VIDEO, AGAIN, BATCH = 97, 400, 0.3, 1024
LAGS = (1, 8, 64)


def made_up_labels(clips: int) -> Ints:
    """[clips] class of each, in storage order."""
    random = np.random.default_rng(0)
    prior = 1 / np.arange(1, CLASSES + 1)
    labels = np.empty((-(-clips // PER_VIDEO), PER_VIDEO), np.int64)
    for row in labels:
        row[:] = random.choice(CLASSES, PER_VIDEO, p=random.dirichlet(20 * prior / prior.sum()))
        for place in np.flatnonzero(random.random(PER_VIDEO) < AGAIN).tolist():
            row[place] = row[max(place - 1, 0)]
    return labels.ravel()[:clips]


def randomness(order: Ints, labels: Ints) -> dict[str, float]:
    """The three measures of an epoch."""
    seen, share = labels[order], np.bincount(labels, minlength=CLASSES) / len(labels)
    chance = float((share**2).sum())
    lags = {
        f"autocorrelation_{lag}": (float((seen[lag:] == seen[:-lag]).mean()) - chance) / (1 - chance) for lag in LAGS
    }
    whole = len(order) // BATCH * BATCH
    counts = np.stack([np.bincount(batch, minlength=CLASSES) for batch in seen[:whole].reshape(-1, BATCH)])
    chi_square = ((counts - BATCH * share) ** 2 / (BATCH * share)).sum(axis=1).mean() / (CLASSES - 1)
    pairs = []
    for batch in (order[:whole] // PER_VIDEO).reshape(-1, BATCH)[:200]:
        of_video = np.unique(batch, return_counts=True)[1]
        pairs.append(float((of_video * (of_video - 1) / 2).sum()))
    return {**lags, "batch_chi_square": float(chi_square), "pairs_of_a_video": float(np.mean(pairs))}


def compare(clips: int, windows: tuple[int, ...], stretches: tuple[int, ...]) -> list[dict[str, Any]]:
    """Storage order, a full shuffle, and windows."""
    labels = made_up_labels(clips)
    rows: list[dict[str, Any]] = [
        {"order": "storage order", **randomness(np.arange(clips), labels)},
        {"order": "full shuffle", **randomness(np.random.default_rng(1).permutation(clips), labels)},
    ]
    for stretch in stretches:
        for window in windows:
            order = EpochOrder(clips, seed=0, epoch=0, shuffle=Shuffle(window=window, stretch=stretch))
            epoch = np.concatenate([order.window(number) for number in range(order.windows)])
            name = f"windows of {window:,}, stretches of {stretch}"
            rows.append({"order": name, "window": window, "stretch": stretch, **randomness(epoch, labels)})
    return rows
