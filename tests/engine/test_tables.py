"""The tables of a shard set as a task gets them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lavila.engine.tables import tables_of
from lavila.shards.format import ShardSetError
from lavila.shards.reader import ShardSet
from tests.engine.test_relevancy import BY_THE_FORMULA, a_set
from tests.shard_sets import CLASSES


def question(number: int, **changes: Any) -> dict[str, Any]:
    whole = {"question_id": str(number), "kind": "intra", "text": "C takes", "choices": ["a", "b", "c"], "answer": 1}
    return whole | changes


def test_labels_and_ids_by_row(vp9_shards: ShardSet) -> None:
    tables = tables_of(vp9_shards)
    assert (tables.of, tables.clips, tables.classes) == (vp9_shards.path, 12, CLASSES)
    assert (tables.dataset, tables.split) == ("synthetic", "train")
    assert tables.labels("noun").tolist() == vp9_shards.clips.column("noun").to_pylist()
    assert tables.clip_ids() == vp9_shards.clips.column("clip_id").to_pylist()
    assert tables.clip_ids() is tables.clip_ids()  # read once
    for missing in (tables.sentences, tables.questions):
        with pytest.raises(ShardSetError):
            missing()
    with pytest.raises(ShardSetError, match="participant_id"):
        tables.extra("participant_id")


def test_sentences_with_their_relevancy(tmp_path: Path) -> None:
    tables = tables_of(a_set(tmp_path / "set"))
    assert tables.labels("action").tolist() == [-1, -1, -1] and tables.label_sets() == [[2], [2, 5], [7]]
    assert (tables.sentences().ids, tables.sentences().texts) == (["a", "c"], ["take plate", "put cup"])
    assert tables.relevancy(np.array([2, 0])).tolist() == np.float32(BY_THE_FORMULA)[[2, 0]].tolist()


def test_questions_with_the_rows_of_their_choices(tmp_path: Path) -> None:
    """A choice that the set does not hold, because it could not be stored, is -1."""
    lost = question(2, kind="inter", choices=["c", "lost", "a"], answer=0)
    questions = tables_of(a_set(tmp_path / "set", questions=[question(1), lost])).questions()
    assert questions.choices.tolist() == [[0, 1, 2], [2, -1, 0]] and questions.answers.tolist() == [1, 0]
    assert questions.kinds.tolist() == [2, 1] and questions.kind_names == {1: "inter", 2: "intra"}
    assert questions.choice_ids[1] == ["c", "lost", "a"] and questions.ids == ["1", "2"]
