"""Relevancy of a stored retrieval set: by the formula, or as published where that differs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lavila.engine.relevancy import Relevancy
from lavila.shards.format import ShardFile, ShardSetError
from lavila.shards.reader import ShardSet, open_shard_set
from lavila.shards.writer import SetContents, ShardWriter, write_manifest
from tests.shard_sets import CLASSES

CLIPS = [("a", 0, [2]), ("b", 0, [2, 5]), ("c", 1, [7])]
SENTENCES = [
    {"sentence_id": "a", "narration": "take plate", "verb": 0, "nouns": [2]},
    {"sentence_id": "c", "narration": "put cup", "verb": 1, "nouns": [7, 2]},
]
BY_THE_FORMULA = [[1.0, 0.25], [0.75, 1 / 6], [0.0, 0.75]]


def a_set(folder: Path, **more: list[dict[str, object]]) -> ShardSet:
    folder.mkdir()
    rows = []
    with ShardWriter(folder, 0) as writer:
        for clip_id, verb, nouns in CLIPS:
            fixed = {
                "num_frames": 1,
                "first_frame": 0,
                "frames_after": 0,
                "fps": 25.0,
                "source_fps": 25.0,
                "chunk": None,
            }
            sizes = {f"{kind}{side}": 16 for kind in ("", "source_", "scaled_") for side in ("height", "width")}
            times = {"start_second": 0.0, "stop_second": 1.0, "video_id": "v", "extra": {}, "narrations": []}
            labels = {"verb": verb, "noun": nouns[0], "action": None, "labels": nouns, "clip_id": clip_id}
            rows.append(writer.add(clip_id, b"no video is needed here", {**fixed, **sizes, **times, **labels}))
    files: list[ShardFile] = [writer.file] if writer.file else []
    contents = SetContents(
        classes=CLASSES, facts={"encoder": {"codec": "vp9"}}, tables={"sentences": SENTENCES, **more}
    )
    write_manifest(folder, rows=rows, shards=files, contents=contents)
    return open_shard_set(folder)


def test_by_verbs_and_nouns(tmp_path: Path) -> None:
    shards = a_set(tmp_path / "set")
    assert Relevancy(shards)(np.arange(3)).tolist() == np.float32(BY_THE_FORMULA).tolist()
    assert Relevancy(shards)(np.array([2, 0])).tolist() == np.float32(BY_THE_FORMULA)[[2, 0]].tolist()


def test_as_published_by_clip_id_whatever_the_order(tmp_path: Path) -> None:
    published = {"c": [0.5, 1.0], "lost": [0.0, 0.0], "a": [1.0, 0.125], "b": [0.25, 0.0]}
    table = [{"clip_id": name, "relevancy": np.array(row, np.float32)} for name, row in published.items()]
    shards = a_set(tmp_path / "set", relevancy=table)  # type: ignore[arg-type]
    assert Relevancy(shards)(np.arange(3)).tolist() == [published[name] for name in "abc"]
    assert Relevancy(shards)(np.array([1])).tolist() == [[0.25, 0.0]]


def test_a_set_without_sentences_is_named(vp9_shards: ShardSet) -> None:
    with pytest.raises(ShardSetError, match="'sentences'"):
        Relevancy(vp9_shards)(np.arange(2))
