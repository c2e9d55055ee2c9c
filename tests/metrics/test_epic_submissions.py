"""Submission files: what the challenges' programs would read in them."""

from __future__ import annotations

import json
import pickle
import pickletools
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lavila.metrics.epic_submissions import (
    SubmissionError,
    SupervisionLevels,
    write_recognition_submission,
    write_retrieval_submission,
)
from lavila.metrics.retrieval import both_scores

LEVELS = SupervisionLevels(pretraining=2, training_labels=3, training_data=4)
KEYS = {"sls_pt": 2, "sls_tl": 3, "sls_td": 4}
IDS = ["P01_101_0", "P01_101_1", "P02_9_12"]


def only_member(path: Path, name: str) -> bytes:
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == [name] and archive.testzip() is None
        return archive.read(name)


def test_recognition(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lavila.metrics.epic_submissions._SEGMENTS_AT_ONCE", 2)
    random = np.random.default_rng(0)
    verbs, nouns = (random.dirichlet(np.ones(count), 3).astype(np.float32) for count in (97, 300))
    path = tmp_path / "recognition.zip"
    write_recognition_submission(
        path, narration_ids=IDS, verb_probabilities=verbs, noun_probabilities=nouns, levels=LEVELS
    )
    found = json.loads(only_member(path, "test.json"))
    results = found.pop("results")
    assert found == {"version": "0.2", "challenge": "action_recognition", **KEYS}
    assert list(results) == IDS
    for row, name in enumerate(IDS):
        entry = results[name]
        assert set(entry) == {"verb", "noun", "action"}
        for kind, scores in (("verb", verbs), ("noun", nouns)):
            assert list(entry[kind]) == [str(number) for number in range(scores.shape[1])]
            assert (np.array(list(entry[kind].values()), np.float32) == scores[row]).all()  # nothing lost
        assert len(entry["action"]) == 100
        products = np.outer(verbs[row].astype(float), nouns[row])
        for pair, score in entry["action"].items():
            verb, noun = map(int, pair.split(","))
            assert score == pytest.approx(products[verb, noun], rel=1e-6)
        assert min(entry["action"].values()) == pytest.approx(np.sort(products.ravel())[-100], rel=1e-6)


def test_retrieval(tmp_path: Path) -> None:
    similarity = np.random.default_rng(0).uniform(-1, 1, (3, 4)).astype(np.float32)
    path = tmp_path / "retrieval.zip"
    texts = ["P01_101_0", "P03_1_1", "P03_1_2", "P03_1_3"]
    write_retrieval_submission(path, similarity=similarity, video_ids=IDS, text_ids=texts, levels=LEVELS)
    content = only_member(path, "test.pkl")
    found = pickle.loads(content)
    matrix = found.pop("sim_mat")
    assert found == {
        "version": "0.1",
        "challenge": "multi_instance_retrieval",
        "vis_ids": IDS,
        "txt_ids": texts,
        **KEYS,
    }
    assert matrix.dtype == np.float32 and matrix.shape == (3, 4) and matrix.flags.writeable
    np.testing.assert_allclose(matrix, (1 + similarity) / 2, atol=1e-7)
    relevancy = np.eye(3, 4)
    assert both_scores(matrix, relevancy) == both_scores(similarity, relevancy)
    # Only what every numpy has: numpy 2 alone would name numpy._core, which older ones lack.
    assert named(content) == {("numpy", "ndarray"), ("builtins", "bytearray")}


def named(content: bytes) -> set[tuple[Any, Any]]:
    """Modules and names that a pickle asks for."""
    texts: list[Any] = []
    found = set()
    for operation, argument, _ in pickletools.genops(content):
        if operation.name == "STACK_GLOBAL":
            found.add((texts[-2], texts[-1]))
        elif operation.name == "GLOBAL":
            found.add(tuple(argument.split(" ")))
        elif isinstance(argument, str):
            texts.append(argument)
    return found


def recognition(path: Path, **changes: Any) -> None:
    given: dict[str, Any] = {"narration_ids": IDS, "levels": LEVELS}
    given |= {"verb_probabilities": np.full((3, 5), 0.2), "noun_probabilities": np.full((3, 4), 0.25)}
    write_recognition_submission(path, **(given | changes))


def retrieval(path: Path, **changes: Any) -> None:
    given = {"similarity": np.zeros((3, 1)), "video_ids": IDS, "text_ids": ["P01_101_0"], "levels": LEVELS}
    write_retrieval_submission(path, **(given | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("write", "changes", "named"),
    [
        (recognition, {"narration_ids": [*IDS[:2], IDS[0]]}, "P01_101_0"),
        (recognition, {"narration_ids": IDS[:2]}, r"verb_probabilities.*2 rows"),
        (recognition, {"noun_probabilities": np.full((3, 4), np.nan)}, "noun_probabilities"),
        (retrieval, {"similarity": np.full((3, 1), 14.3)}, "14.3"),
        (retrieval, {"similarity": np.zeros((3, 2))}, "2 columns"),
        (retrieval, {"video_ids": IDS[:1] * 3}, "video_ids"),
        (retrieval, {"similarity": np.full((3, 1), np.inf)}, "similarity"),
    ],
)
def test_what_a_challenge_would_not_take_is_refused_and_leaves_no_file(
    tmp_path: Path, write: Any, changes: dict[str, Any], named: str
) -> None:
    with pytest.raises(SubmissionError, match=named):
        write(tmp_path / "x.zip", **changes)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("level", [-1, 6, 2.0, True])
def test_levels_are_whole_numbers_from_0_to_5(level: Any) -> None:
    with pytest.raises(SubmissionError, match="training_labels"):
        SupervisionLevels(pretraining=0, training_labels=level, training_data=5)
