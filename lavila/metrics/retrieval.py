"""Scores of multi-instance retrieval: clips searched with sentences, and sentences with clips, relevancies in 0..1.

The definitions are those of EPIC-KITCHENS-100 (Damen et al., IJCV 2022), which LaViLa reports; other libraries mean
other things by the same names.

Order: the most similar item first, similarities compared as float32. Among equals the item that comes first in the
array comes first, on every machine. The reference leaves equals to numpy's sort, whose order depends on the processor.
"""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating[Any]]
Undefined = Literal["left_out", "nan"]

_NUMBERS_AT_ONCE = 1 << 19  # in a block of queries x items: a thread's arrays stay in its cache


@dataclass(frozen=True)
class RetrievalScores:
    """A score of both directions, 0..1, and how many queries had none."""

    video_to_text: float  # mean over videos that search texts
    text_to_video: float
    videos_left_out: int  # without a relevant text: no score exists
    texts_left_out: int

    @property
    def mean(self) -> float:
        """The mean over both directions, which is published."""
        return (self.video_to_text + self.text_to_video) / 2


@dataclass(frozen=True)
class QueryScores:
    """Scores of single queries, float64; NaN where a query has no relevant item."""

    average_precision: npt.NDArray[np.float64]
    ndcg: npt.NDArray[np.float64]


def mean_average_precision(
    similarity: Floats, relevancy: Floats, *, undefined: Undefined = "left_out"
) -> RetrievalScores:
    """Mean over queries of the average precision, in both directions.

    similarity, relevancy: [videos, texts]; relevancies in 0..1. Only items of relevancy 1 count as relevant, but the
    precision at their ranks is the mean relevancy of all items so far, fractions included.
    undefined: a query without an item of relevancy 1 is "left_out" and counted, or makes its mean "nan", as in the
    reference. NaN also where no query is left. ValueError for other shapes, NaN and relevancies outside 0..1.
    """
    return both_scores(similarity, relevancy, undefined=undefined)[0]


def ndcg(similarity: Floats, relevancy: Floats, *, undefined: Undefined = "left_out") -> RetrievalScores:
    """Mean over queries of the normalised discounted cumulative gain, in both directions.

    similarity, relevancy, undefined, errors: as in `mean_average_precision`. The gain is the relevancy, the discount
    log2(1 + rank). The sum goes over as many ranks as the query has items of a relevancy above 0; a query without one
    has no score.
    """
    return both_scores(similarity, relevancy, undefined=undefined)[1]


def both_scores(
    similarity: Floats, relevancy: Floats, *, undefined: Undefined = "left_out"
) -> tuple[RetrievalScores, RetrievalScores]:
    """`mean_average_precision` and `ndcg` in the time of one: what costs is the order, and both need the same."""
    _check(similarity, relevancy)
    videos, texts = _query_scores(similarity, relevancy), _query_scores(similarity.T, relevancy.T)
    return (
        _means(videos.average_precision, texts.average_precision, undefined=undefined),
        _means(videos.ndcg, texts.ndcg, undefined=undefined),
    )


def query_scores(similarity: Floats, relevancy: Floats) -> QueryScores:
    """Scores of each row's query. similarity, relevancy: [queries, items], as in `mean_average_precision`.

    Memory beside the arrays: some 20 MB a core.
    """
    _check(similarity, relevancy)
    return _query_scores(similarity, relevancy)


def _query_scores(similarity: Floats, relevancy: Floats) -> QueryScores:
    queries, items = similarity.shape
    step = max(1, _NUMBERS_AT_ONCE // items)
    blocks = [slice(start, start + step) for start in range(0, queries, step)]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:  # numpy sorts without Python's lock
        found = list(pool.map(lambda block: _block_scores(similarity[block], relevancy[block]), blocks))
    precisions, gains = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return QueryScores(average_precision=precisions, ndcg=gains)


def _block_scores(similarity: Floats, relevancy: Floats) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Average precision and nDCG of each query of a block.

    Few items are relevant, so all but the sort is done for those alone: a list of the relevant items of all queries,
    query by query, best first.
    """
    queries, items = similarity.shape
    ranked = _best_first(similarity, relevancy)
    place = np.flatnonzero((ranked.astype(np.uint8) & 1).view(np.bool_))  # query * items + rank
    ends = np.searchsorted(place, np.arange(1, queries + 1) * items)
    counts = np.diff(ends, prepend=0)
    query = np.repeat(np.arange(queries), counts)
    rank = place - query * items
    item = (ranked.ravel()[place] & 0xFFFFFFFF) >> 1
    gain = relevancy[query, item].astype(np.float64)

    running = np.concatenate([[0.0], np.cumsum(gain)])
    exact = np.flatnonzero(gain == 1)
    asked = query[exact]
    precision = (running[exact + 1] - running[ends - counts][asked]) / (rank[exact] + 1)
    average_precision = _divided(np.bincount(asked, precision, queries), np.bincount(asked, minlength=queries))

    discount = 1 / np.log2(np.arange(2, items + 2))
    counted = np.flatnonzero(rank < counts[query])
    gained = np.bincount(query[counted], gain[counted] * discount[rank[counted]], queries)
    # The best order: each query's gains from the largest down. Gains are at most 1, so query - gain sorts by both.
    ideal = query - np.sort(query - gain)
    most = np.bincount(query, ideal * discount[np.arange(len(query)) - (ends - counts)[query]], queries)
    return average_precision, _divided(gained, most)


def _best_first(similarity: Floats, relevancy: Floats) -> npt.NDArray[np.int64]:
    """[queries, items], best first: in the low half, twice the number of the item, and 1 more where it is relevant.

    The high half is the similarity. So the sort of whole numbers, the fastest that numpy has, orders by similarity and
    among equals by number. A block of columns is read as it lies and then turned, three times as fast as at once.
    """
    values = np.ascontiguousarray(similarity.astype(np.float32, copy=False) + np.float32(0))  # -0 becomes 0
    relevant = np.ascontiguousarray(relevancy != 0)
    bits = values.view(np.int32)
    key = np.empty(bits.shape, np.int64)
    halves = key.view(np.int32)
    high, low = (halves[:, 1::2], halves[:, 0::2]) if sys.byteorder == "little" else (halves[:, 0::2], halves[:, 1::2])
    # The bits of floats sort as whole numbers do, but negative ones backwards. Inverted: the largest comes first.
    backwards = bits >> 31
    backwards &= 0x7FFFFFFF
    backwards ^= bits
    np.invert(backwards, out=high)
    np.bitwise_or(np.arange(0, 2 * bits.shape[1], 2, dtype=np.int32), relevant, out=low)
    key.sort(axis=1)
    return key


def _means(videos: npt.NDArray[np.float64], texts: npt.NDArray[np.float64], *, undefined: Undefined) -> RetrievalScores:
    if undefined not in ("left_out", "nan"):
        raise ValueError(f"undefined={undefined!r}: expected one of ['left_out', 'nan']")
    means, left_out = [], []
    for scores in (videos, texts):
        known = scores if undefined == "nan" else scores[~np.isnan(scores)]
        means.append(float(known.mean()) if len(known) else float("nan"))
        left_out.append(len(scores) - len(known))
    return RetrievalScores(
        video_to_text=means[0], text_to_video=means[1], videos_left_out=left_out[0], texts_left_out=left_out[1]
    )


def _divided(sums: npt.NDArray[Any], by: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """NaN where both are 0."""
    quotients = np.full(len(sums), np.nan)
    np.divide(sums, by, out=quotients, where=by > 0)
    return quotients


def _check(similarity: Floats, relevancy: Floats) -> None:
    if similarity.ndim != 2 or similarity.size == 0 or relevancy.shape != similarity.shape:
        raise ValueError(
            f"similarity has shape {similarity.shape}, relevancy {relevancy.shape}: expected [videos, texts] of both, "
            "none of them 0"
        )
    if np.isnan(similarity.min()):
        raise ValueError("similarity holds NaN, which has no rank; look for the features that made it")
    lowest, highest = relevancy.min(), relevancy.max()
    if not 0 <= lowest <= highest <= 1:
        raise ValueError(f"relevancy holds numbers from {lowest} to {highest}: expected 0 to 1, without NaN")
