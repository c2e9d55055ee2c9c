"""How relevant the sentences of a multi-instance retrieval set are to its clips."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from lavila.annotations.epic_retrieval import relevancy
from lavila.shards.reader import ShardSet


def relevancy_of(shard_set: ShardSet, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """[rows, sentences] float32 in 0..1, for rows of `shard_set.clips`; columns in the order of the table "sentences".

    As published where the set has a table "relevancy", else from verb and noun classes (Damen et al., IJCV 2022). A
    training set's matrix has a thousand million numbers: ask for the rows of a batch. Raises ShardSetError for a set
    without sentences.
    """
    sentences = shard_set.table("sentences")
    clips = shard_set.clips.select(["clip_id", "verb", "labels"]).take(rows)
    if "relevancy.parquet" in shard_set.manifest["tables"]:
        published = shard_set.table("relevancy")
        places = pc.index_in(clips.column("clip_id"), published.column("clip_id").combine_chunks())
        kept = published.column("relevancy").take(places).combine_chunks()
        values: npt.NDArray[np.float32] = np.asarray(kept.flatten(), np.float32).reshape(len(rows), len(sentences))
        return values
    meanings = zip(clips.column("verb").to_pylist(), clips.column("labels").to_pylist(), strict=True)
    said = zip(sentences.column("verb").to_pylist(), sentences.column("nouns").to_pylist(), strict=True)
    return relevancy(list(meanings), list(said))
