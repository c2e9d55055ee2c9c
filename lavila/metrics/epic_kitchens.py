"""Scores of EPIC-KITCHENS-100 action recognition (Damen et al., IJCV 2022), LaViLa's way and the challenge's way.

LaViLa has one class for each pair of verb and noun that occurs, 3,806 of them; a verb's score is the sum over the
actions that have it. The challenge asks for verbs and nouns; an action's score is the product of both, over all pairs
of 97 verbs and 300 nouns. The groups and the product follow the challenge's published scoring code (challenge C1,
version 0.2 of its submissions), which was read, not run.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lavila.metrics.classification import marginalize, topk_hits

Floats = npt.NDArray[np.floating[Any]]
Integers = npt.NDArray[np.integer[Any]]

_NUMBERS_AT_ONCE = 1 << 21  # products of a block of segments


@dataclass(frozen=True, kw_only=True)
class Segments:
    """The truth of N segments, and which of them form the challenge's groups."""

    verbs: Integers
    """[N] verb classes."""
    nouns: Integers
    """[N] noun classes."""
    participants: Sequence[str]
    """N names such as P01."""
    unseen_participants: Collection[str] = ()
    """Those without a video in training (EPIC_100_unseen_participant_ids_validation.csv)."""
    tail_verbs: Collection[int] = ()
    """Rare verb classes (EPIC_100_tail_verbs.csv)."""
    tail_nouns: Collection[int] = ()
    """Rare noun classes (EPIC_100_tail_nouns.csv)."""


CHALLENGE_ACCURACIES = tuple(
    f"{group}{kind}_{rank}"
    for group, ranks in (("", ("top1", "top5")), ("unseen_", ("top1",)), ("tail_", ("top1",)))
    for kind in ("verb", "noun", "action")
    for rank in ranks
)
"""Keys of `challenge_accuracies`."""


@dataclass(frozen=True, kw_only=True)
class JointActions:
    """The classes of a classifier of actions: class k is a pair of verb and noun."""

    verbs: Integers
    """[K] each action's verb class."""
    nouns: Integers
    """[K] each action's noun class."""
    num_verbs: int = 97
    num_nouns: int = 300


def verbs_and_nouns(
    action_probabilities: Floats, actions: JointActions, *, unused_as_first_action: bool = False
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Probabilities of actions [N,K] -> of verbs [N,num_verbs] and of nouns [N,num_nouns]: sums over actions.

    unused_as_first_action, errors: see `marginalize`. LaViLa's verb and noun accuracies of a single head are those of
    these sums; its action accuracy is that of the K classes.
    """
    pairs = ((actions.verbs, actions.num_verbs), (actions.nouns, actions.num_nouns))
    verbs, nouns = (
        marginalize(action_probabilities, classes, num_classes=count, unused_as_first_action=unused_as_first_action)
        for classes, count in pairs
    )
    return verbs, nouns


def challenge_accuracies(
    verb_probabilities: Floats, noun_probabilities: Floats, segments: Segments
) -> dict[str, float]:
    """The challenge's accuracies in percent, all of them over segments, none over classes.

    verb_probabilities: [N,verbs], noun_probabilities: [N,nouns]. Keys: {verb,noun,action}_{top1,top5}; of groups
    unseen_{verb,noun,action}_top1 and tail_{verb,noun,action}_top1, NaN where the group has no segment. A segment is
    of the tail for verbs if its verb is, for nouns if its noun is, for actions if either is.

    An action is right if verb and noun are. Ties count against the truth, so that no sort decides; the challenge's code
    leaves them to numpy's sort. ValueError for shapes that do not fit, NaN, and classes that do not exist.
    """
    hits = _hits(verb_probabilities, noun_probabilities, segments)
    tail_verb = np.isin(segments.verbs, list(segments.tail_verbs))
    tail_noun = np.isin(segments.nouns, list(segments.tail_nouns))
    unseen = np.isin(np.asarray(segments.participants), list(segments.unseen_participants))
    tails = {"verb": tail_verb, "noun": tail_noun, "action": tail_verb | tail_noun}
    everyone = np.ones(len(unseen), np.bool_)
    return (
        {f"{kind}_{rank}": _percent(right, among=everyone) for (kind, rank), right in hits.items()}
        | {f"unseen_{kind}_top1": _percent(hits[kind, "top1"], among=unseen) for kind in tails}
        | {f"tail_{kind}_top1": _percent(hits[kind, "top1"], among=tail) for kind, tail in tails.items()}
    )


def top_actions(
    verb_probabilities: Floats, noun_probabilities: Floats, *, count: int = 100
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """The pairs of the highest products: verbs, nouns and products, [N,count] each, best first.

    Where there are fewer pairs than count, all of them. Among equals that with the better verb comes first; among equal
    verbs or nouns the lower class.
    """
    verbs, nouns = (np.argsort(-scores, axis=1, kind="stable") for scores in (verb_probabilities, noun_probabilities))
    # The pair of the a-th verb and the b-th noun is beaten by all pairs of better ones: its rank is at least a x b.
    places = [(a, b) for a in range(verbs.shape[1]) for b in range(nouns.shape[1]) if (a + 1) * (b + 1) <= count]
    verbs, nouns = verbs[:, [a for a, _ in places]], nouns[:, [b for _, b in places]]
    products = np.take_along_axis(verb_probabilities.astype(np.float64), verbs, axis=1)
    products = products * np.take_along_axis(noun_probabilities, nouns, axis=1)
    best = np.argsort(-products, axis=1, kind="stable")[:, :count]
    chosen = (np.take_along_axis(values, best, axis=1) for values in (verbs, nouns, products))
    return tuple(chosen)  # type: ignore[return-value]


def _hits(
    verb_probabilities: Floats, noun_probabilities: Floats, segments: Segments
) -> dict[tuple[str, str], npt.NDArray[np.bool_]]:
    """(verb, noun or action; top1 or top5) -> [N]: whether the truth is among the first so many."""
    if len(verb_probabilities) != len(noun_probabilities) or len(segments.participants) != len(verb_probabilities):
        raise ValueError(
            f"verb_probabilities has {len(verb_probabilities)} rows, noun_probabilities {len(noun_probabilities)}, "
            f"participants {len(segments.participants)}: expected one for each segment"
        )
    singles = (("verb", verb_probabilities, segments.verbs), ("noun", noun_probabilities, segments.nouns))
    hits = {
        (kind, f"top{k}"): topk_hits(scores, targets, k=min(k, scores.shape[1]))
        for kind, scores, targets in singles
        for k in (1, 5)
    }
    as_high = _pairs_as_high(verb_probabilities.astype(np.float64), noun_probabilities.astype(np.float64), segments)
    return hits | {("action", f"top{k}"): as_high <= k for k in (1, 5)}


def _pairs_as_high(verbs: Floats, nouns: Floats, segments: Segments) -> npt.NDArray[np.int64]:
    """[N]: how many pairs of verb and noun have a product as high as the true pair's, itself included."""
    step = max(1, _NUMBERS_AT_ONCE // (verbs.shape[1] * nouns.shape[1]))
    counts = []
    for start in range(0, len(verbs), step):
        block = slice(start, start + step)
        products = verbs[block, :, None] * nouns[block, None, :]
        rows = np.arange(len(products))
        own = products[rows, segments.verbs[block], segments.nouns[block]]
        counts.append(np.count_nonzero(products >= own[:, None, None], axis=(1, 2)))
    return np.concatenate(counts)


def _percent(right: npt.NDArray[np.bool_], *, among: npt.NDArray[np.bool_]) -> float:
    return float(100 * right[among].mean()) if among.any() else float("nan")
