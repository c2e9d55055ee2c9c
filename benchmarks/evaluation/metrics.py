"""How fast the scores of EPIC-KITCHENS-100 multi-instance retrieval are, beside a loop over queries.

    python -m benchmarks.evaluation metrics [--rounds 5] [--sample 20]
    python -m benchmarks.evaluation metrics --dry-run

The size is that of the validation set: 9,668 clips, 3,842 sentences. Verbs and nouns are drawn as unevenly as in real
narrations, relevancies follow from them by the dataset's rule, similarities are relevancies with noise. Sides, all of
them mAP and nDCG in both directions:

- ours: `lavila.metrics.retrieval.both_scores`.
- loop: each metric query by query, as its definition reads, in plain Python.
- numpy loop: the same with a sort and sums of numpy for each query.
- limit: numpy's fastest sort of all similarities, once for each direction. No exact score can do without an order.

The loops are timed on every --sample-th query and their times multiplied; --sample 1 times them all. Medians, wall time
and processor time. Ours uses all cores, the loops one, so that other work on the machine tilts the wall time; the ratio
of processor times is beside it. The highest memory is that of the whole process after ours, inputs included.

Writes benchmarks/results/evaluation_metrics.json and the table of docs/PERFORMANCE.md between its markers.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks import common
from benchmarks.common import fill_docs, machine
from lavila.annotations.epic_retrieval import relevancy as relevancy_of
from lavila.metrics.retrieval import both_scores

CLIPS, SENTENCES = 9668, 3842
VERBS, NOUNS = 97, 300
MUST, AIM = 50, 100

Floats = npt.NDArray[np.float32]
Score = Callable[[Any, Any], float]


def average_precision_of(similarity: Sequence[float], relevancy: Sequence[float]) -> float:
    """The definition for one query, in plain Python. NaN without an item of relevancy 1."""
    total, running, hits = 0.0, 0.0, 0
    for rank, item in enumerate(best_first(similarity), 1):
        running += relevancy[item]
        if relevancy[item] == 1:
            hits += 1
            total += running / rank
    return total / hits if hits else math.nan


def ndcg_of(similarity: Sequence[float], relevancy: Sequence[float]) -> float:
    """The definition for one query, in plain Python. NaN without a relevant item."""
    ranks = range(sum(gain > 0 for gain in relevancy))
    order, ideal = best_first(similarity), sorted(relevancy, reverse=True)
    gained = sum(relevancy[order[rank]] / math.log2(rank + 2) for rank in ranks)
    most = sum(ideal[rank] / math.log2(rank + 2) for rank in ranks)
    return gained / most if ranks else math.nan


def best_first(similarity: Sequence[float]) -> list[int]:
    return sorted(range(len(similarity)), key=lambda item: -similarity[item])


def numpy_average_precision_of(similarity: Floats, relevancy: Floats) -> float:
    ranked = relevancy[np.argsort(-similarity, kind="stable")].astype(np.float64)
    exact = ranked == 1
    precision = np.cumsum(ranked) / np.arange(1, len(ranked) + 1)
    return float(precision[exact].mean()) if exact.any() else math.nan


def numpy_ndcg_of(similarity: Floats, relevancy: Floats) -> float:
    ranks = np.count_nonzero(relevancy)
    discount = 1 / np.log2(np.arange(2, ranks + 2))
    gains = relevancy[np.argsort(-similarity, kind="stable")[:ranks]]
    ideal = np.sort(relevancy)[::-1][:ranks]
    return float((gains * discount).sum() / (ideal * discount).sum()) if ranks else math.nan


LOOPS: dict[str, tuple[tuple[Score, Score], Callable[[Floats], Any]]] = {
    "loop": ((average_precision_of, ndcg_of), lambda row: row.tolist()),
    "numpy loop": ((numpy_average_precision_of, numpy_ndcg_of), lambda row: row),
}


def matrices(clips: int, sentences: int) -> tuple[Floats, Floats]:
    """Similarities and relevancies [clips, sentences] float32; each sentence is that of a clip."""
    random = np.random.default_rng(0)
    # The most frequent class has a fifth of all, as "take" has in EPIC-KITCHENS-100.
    verb_shares, noun_shares = (1 / (np.arange(count) + 1.2) for count in (VERBS, NOUNS))
    verbs = random.choice(VERBS, clips, p=verb_shares / verb_shares.sum())
    nouns = [
        random.choice(NOUNS, size, p=noun_shares / noun_shares.sum()).tolist()
        for size in random.choice([1, 2, 3], clips, p=[0.8, 0.15, 0.05])
    ]
    meanings = list(zip(verbs.tolist(), nouns, strict=True))
    said = [meanings[clip] for clip in random.choice(clips, sentences, replace=False)]
    relevancy = relevancy_of(meanings, said)
    similarity = relevancy + random.standard_normal(relevancy.shape, dtype=np.float32)
    return similarity, relevancy


def loop_scores(name: str, similarity: Floats, relevancy: Floats, sample: int) -> list[npt.NDArray[np.float64]]:
    """[queries of the sample, mAP and nDCG] of both directions."""
    functions, taken = LOOPS[name]
    found = []
    for items, gains in ((similarity, relevancy), (similarity.T, relevancy.T)):
        queries = zip(items[::sample], gains[::sample], strict=True)
        found.append(np.array([[score(taken(s), taken(r)) for score in functions] for s, r in queries]))
    return found


def sort_once(similarity: Floats, columns: Floats) -> None:
    for rows in (similarity, columns):
        for start in range(0, len(rows), 64):
            np.sort(rows[start : start + 64], axis=1)


def measure(clips: int, sentences: int, *, rounds: int, sample: int) -> dict[str, Any]:
    similarity, relevancy = matrices(clips, sentences)
    precision, gain = both_scores(similarity, relevancy)  # also warms up
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    columns = np.ascontiguousarray(similarity.T)
    jobs: dict[str, Callable[[], object]] = {"ours": lambda: both_scores(similarity, relevancy)}
    jobs |= {name: lambda name=name: loop_scores(name, similarity, relevancy, sample) for name in LOOPS}  # type: ignore[misc]
    jobs["limit"] = lambda: sort_once(similarity, columns)
    timed_queries = len(similarity[::sample]) + len(columns[::sample])
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in jobs}
    for _ in range(rounds):
        for name, job in jobs.items():
            wall, cpu = time.perf_counter(), time.process_time()
            job()
            times = (clips + sentences) / timed_queries if name in LOOPS else 1.0
            spent[name].append(((time.perf_counter() - wall) * times, (time.process_time() - cpu) * times))
    seconds = {
        name: dict(zip(("wall", "cpu"), map(statistics.median, zip(*both, strict=True)), strict=True))
        for name, both in spent.items()
    }
    return {
        "clips": clips,
        "sentences": sentences,
        "relevant_share": float(np.count_nonzero(relevancy) / relevancy.size),
        "mean_average_precision": precision.mean,
        "ndcg": gain.mean,
        "seconds": seconds,
        "times_as_fast": {
            name: {clock: seconds[name][clock] / seconds["ours"][clock] for clock in ("wall", "cpu")} for name in LOOPS
        },
        "of_the_limit": {clock: seconds["limit"][clock] / seconds["ours"][clock] for clock in ("wall", "cpu")},
        "peak_bytes": peak,
        "input_bytes": similarity.nbytes + relevancy.nbytes,
        "rounds": rounds,
        "loop_queries_timed": timed_queries,
        "machine": machine("numpy"),
    }


def table(row: dict[str, Any]) -> str:
    """The Markdown of docs/PERFORMANCE.md."""
    times, seconds = row["times_as_fast"], row["seconds"]
    cores = row["machine"]["cores"]
    lines = [
        f"`python -m benchmarks.evaluation metrics`, {row['clips']:,} clips x {row['sentences']:,} sentences, mAP and "
        f"nDCG in both directions, {cores} cores of {row['machine']['processor']}; medians of {row['rounds']} rounds.",
        "",
        "| | wall seconds | processor seconds | ours is times as fast, wall | in processor time |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name in ("ours", *LOOPS, "limit"):
        ratios = [f"{times[name][clock]:.0f}" for clock in ("wall", "cpu")] if name in times else ["", ""]
        label = "sorting alone (the limit)" if name == "limit" else name
        cells = [label, *(f"{seconds[name][clock]:.2f}" for clock in ("wall", "cpu")), *ratios]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        f"Highest memory of the process: {row['peak_bytes'] / 1e9:.2f} GB, of which the two inputs are "
        f"{row['input_bytes'] / 1e9:.2f} GB. Against the plain loop {MUST}x is a must, {AIM}x the aim.",
    ]
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="timings of each side (5)")
    parser.add_argument("--sample", type=int, default=20, help="loops take every n-th query (20)")
    parser.add_argument("--dry-run", action="store_true", help="a small matrix once; writes nothing")
    args = parser.parse_args(argv)
    if args.dry_run:
        print(json.dumps(measure(60, 40, rounds=1, sample=1)))
        return 0
    row = measure(CLIPS, SENTENCES, rounds=args.rounds, sample=args.sample)
    text = table(row)
    print(text)
    common.RESULTS.mkdir(parents=True, exist_ok=True)
    (common.RESULTS / "evaluation_metrics.json").write_text(json.dumps(row, indent=1) + "\n")
    fill_docs("evaluation-metrics", text)
    return 0
