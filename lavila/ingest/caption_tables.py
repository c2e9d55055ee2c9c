"""Gathers narrations from files for a captions table, and compares them with the clips of a shard set."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from lavila.annotations.tables import read_csv
from lavila.shards.captions import CaptionError, Words
from lavila.shards.reader import ShardSet

EXAMPLES = 3  # number of clip ids that a message shows


@dataclass(kw_only=True)
class Gathered:
    """The narrations of each clip, in the order in which the clips first appear."""

    narrations: dict[str, list[str]] = field(default_factory=dict)
    scores: dict[str, list[float]] = field(default_factory=dict)  # the scores of the clips that have scores
    empty: int = 0  # number of empty narrations, which are left out
    wordless: int = 0  # number of clips that are left out, since all their narrations are empty

    def rows(self) -> Iterator[Words]:
        """The rows of the captions table."""
        for clip_id, narrations in self.narrations.items():
            yield clip_id, narrations, self.scores.get(clip_id)


def read_table(file: Path) -> Iterator[Words]:
    """The rows of a csv file, each with its one narration. AnnotationError names file, line and column."""
    for row in read_csv(file, ("clip_id", "narration")):
        clip_id, score = row.cells["clip_id"].strip(), row.cells.get("score", "").strip()
        if not clip_id:
            raise row.error("clip_id", "is empty; give the id of a clip")
        try:
            scores = (float(score),) if score else None
        except ValueError:
            raise row.error("score", f"{score!r} is not a number; give one such as 1.25, or leave it empty") from None
        yield clip_id, (row.cells["narration"],), scores


def gather(rows: Iterable[Words]) -> Gathered:
    """The narrations of each clip, without empty ones and their scores.

    Raises CaptionError for a clip of which only some narrations have scores.
    """
    found = Gathered()
    for clip_id, narrations, scores in rows:
        kept = [place for place, text in enumerate(narrations) if text.strip()]
        found.empty += len(narrations) - len(kept)
        earlier = found.narrations.setdefault(clip_id, [])
        if not kept:
            continue
        if earlier and (scores is None) == (clip_id in found.scores):
            raise CaptionError(
                f"clip {clip_id!r} has narrations with and without a score; give all of them one, or none"
            )
        earlier += [narrations[place] for place in kept]
        if scores is not None:
            found.scores.setdefault(clip_id, []).extend(scores[place] for place in kept)
    wordless = [clip_id for clip_id, narrations in found.narrations.items() if not narrations]
    for clip_id in wordless:
        del found.narrations[clip_id]
    found.wordless = len(wordless)
    return found


def coverage(shard_set: ShardSet, clip_ids: Iterable[str]) -> str:
    """Lines that say how many clips a table and a shard set share. CaptionError if they share none."""
    ours = shard_set.clips.column("clip_id")
    theirs = pa.chunked_array([pa.array(clip_ids, pa.large_string())])
    rows = np.asarray(pc.index_in(ours.cast(theirs.type), value_set=theirs).fill_null(-1), np.int64)
    bare, strangers = np.flatnonzero(rows < 0), np.setdiff1d(np.arange(len(theirs)), rows)
    if len(bare) == len(rows):
        raise CaptionError(
            f"none of the {len(theirs)} clips, such as {theirs[0].as_py()!r}, is in {shard_set.path}, whose clips are "
            f"named like {ours[0].as_py()!r}; give the narrations of this set's clips, or another --shards"
        )
    lines = [f"{len(rows) - len(bare)} of {len(rows)} clips of {shard_set.path} have captions"]
    lines += [f"  without: {_examples(ours, bare)}"] if len(bare) else []
    lines.append(f"{len(strangers)} rows are for clips that are not in the set")
    lines += [f"  such as: {_examples(theirs, strangers)}"] if len(strangers) else []
    return "\n".join(lines)


def _examples(ids: pa.ChunkedArray, rows: npt.NDArray[np.int64]) -> str:
    shown = ", ".join(ids[row].as_py() for row in rows[:EXAMPLES].tolist())
    return f"{shown} ..." if len(rows) > EXAMPLES else shown
