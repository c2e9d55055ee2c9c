"""The tables of a shard set for a task: words, labels, relevancy, questions. Each is read when a task asks for it."""

from __future__ import annotations

from functools import cache, partial

import numpy as np
import pyarrow.compute as pc

from lavila.annotations.egomcq import KINDS
from lavila.engine.relevancy import Relevancy
from lavila.shards.format import ShardSetError
from lavila.shards.reader import ShardSet
from lavila.tasks.tables import Ints, Questions, Sentences, Tables


def tables_of(shards: ShardSet) -> Tables:
    """The tables of a shard set. Reads its manifest alone; the functions read the rest at their first call.

    Those functions raise ShardSetError where the set does not have what they give.
    """
    return Tables(
        of=shards.path,
        clips=len(shards),
        dataset=str(shards.manifest.get("dataset", "")),
        split=str(shards.manifest.get("split", "")),
        classes=shards.classes,
        class_texts=shards.manifest.get("class_texts", {}),
        clip_ids=cache(lambda: list(shards.clips.column("clip_id").to_pylist())),
        labels=cache(partial(_labels, shards)),
        label_sets=cache(lambda: list(shards.clips.column("labels").to_pylist())),
        extra=cache(partial(_extra, shards)),
        groups=cache(partial(_groups, shards)),
        sentences=cache(partial(_sentences, shards)),
        relevancy=Relevancy(shards),
        questions=cache(partial(_questions, shards)),
    )


def _labels(shards: ShardSet, kind: str) -> Ints:
    column = pc.fill_null(shards.clips.column(kind), -1)
    return np.asarray(column, np.int64)


def _extra(shards: ShardSet, name: str) -> list[str]:
    found = [dict(row).get(name) for row in shards.clips.column("extra").to_pylist()]
    if None in found:
        known = sorted({key for key, _ in shards.clips.column("extra")[found.index(None)].as_py() or ()})
        raise ShardSetError(
            f"{shards.path}: its annotations have no column {name!r} for each clip; row {found.index(None)} has "
            f"{', '.join(known) or 'none'}; make the set again from annotations with it"
        )
    return [str(value) for value in found]


def _groups(shards: ShardSet, name: str) -> list[str]:
    """Entries of the table "groups"; none where the annotations had no such list."""
    if "groups.parquet" not in shards.manifest["tables"]:
        return []
    return [str(row["entry"]) for row in shards.table("groups").to_pylist() if row["group"] == name]


def _sentences(shards: ShardSet) -> Sentences:
    table = shards.table("sentences")
    return Sentences(ids=table.column("sentence_id").to_pylist(), texts=table.column("narration").to_pylist())


def _questions(shards: ShardSet) -> Questions:
    table = shards.table("questions")
    numbers = {name: number for number, name in KINDS.items()}
    choice_ids = table.column("choices").to_pylist()
    rows = {clip_id: row for row, clip_id in enumerate(shards.clips.column("clip_id").to_pylist())}
    return Questions(
        ids=table.column("question_id").to_pylist(),
        texts=table.column("text").to_pylist(),
        kinds=np.array([numbers[name] for name in table.column("kind").to_pylist()], np.int64),
        kind_names=KINDS,
        choices=np.array([[rows.get(clip_id, -1) for clip_id in choices] for choices in choice_ids], np.int64),
        choice_ids=choice_ids,
        answers=np.array(table.column("answer").to_pylist(), np.int64),
    )
