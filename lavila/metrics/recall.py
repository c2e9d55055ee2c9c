"""How often the right one is among the first of a ranking, for pairs of features."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

BLOCK = 1024  # queries whose similarities are held at a time


def recall_at(
    queries: npt.NDArray[np.float32], gallery: npt.NDArray[np.float32], *, places: Sequence[int]
) -> dict[int, float]:
    """Percent of the queries [N,D] whose own entry of the gallery [N,D] is among the first k, for each k of `places`.

    Ranked by inner product. Of equal ones that with the smaller index comes first, so that features which are all the
    same score as chance does. NaN without a query.
    """
    ranks = np.empty(len(queries), np.int64)
    for first in range(0, len(queries), BLOCK):
        similarity = queries[first : first + BLOCK] @ gallery.T
        index = np.arange(first, first + len(similarity))
        own = similarity[np.arange(len(similarity)), index][:, None]
        before = (similarity == own) & (np.arange(len(gallery)) < index[:, None])
        ranks[first : first + BLOCK] = (similarity > own).sum(1) + before.sum(1)
    return {place: 100 * float((ranks < place).mean()) if len(ranks) else float("nan") for place in places}
