"""How relevant the sentences of a multi-instance retrieval set are to its clips."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from lavila.annotations.epic_retrieval import RelevancyTo
from lavila.shards.reader import ShardSet


class Relevancy:
    """The relevancy of any rows of a set. What is said of its sentences is read at the first call, and kept."""

    def __init__(self, shard_set: ShardSet) -> None:
        self._shard_set = shard_set

    def __call__(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """[rows, sentences] float32 in 0..1, for rows of `shard_set.clips`; columns as in the table "sentences".

        As published where the set has a table "relevancy", else from verb and noun classes (Damen et al., IJCV 2022). A
        training set's matrix has a thousand million numbers: ask for the rows of a batch. Raises ShardSetError for a
        set without sentences.
        """
        clips = self._shard_set.clips.select(["clip_id", "verb", "labels"]).take(rows)
        if self._published is not None:
            places = pc.index_in(clips.column("clip_id"), self._published.column("clip_id").combine_chunks())
            kept = self._published.column("relevancy").take(places).combine_chunks()
            values: npt.NDArray[np.float32] = np.asarray(kept.flatten(), np.float32)
            return values.reshape(len(rows), -1)
        return self._by_the_formula(
            list(zip(clips.column("verb").to_pylist(), clips.column("labels").to_pylist(), strict=True))
        )

    @cached_property
    def _by_the_formula(self) -> RelevancyTo:
        """From verb class and noun classes of each sentence."""
        table = self._shard_set.table("sentences")
        return RelevancyTo(list(zip(table.column("verb").to_pylist(), table.column("nouns").to_pylist(), strict=True)))

    @cached_property
    def _published(self) -> pa.Table | None:
        there = "relevancy.parquet" in self._shard_set.manifest["tables"]
        return self._shard_set.table("relevancy") if there else None
