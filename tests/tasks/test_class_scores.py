"""EPIC-KITCHENS-100 both ways: verbs and nouns as sums over joint actions, and the challenge's product."""

from __future__ import annotations

import json
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lavila.metrics.epic_submissions import SupervisionLevels
from lavila.tasks import Predictions, TaskError
from lavila.tasks.class_scores import ClassScores, joint_actions
from lavila.tasks.tables import Tables

CLASSES = {"verb": ["cut", "wash"], "noun": ["leek", "pan", "tap"], "action": ["cut leek", "wash leek", "wash pan"]}
GROUPS = {"unseen_participants": ["P02"], "tail_verbs": ["0"], "tail_nouns": ["1"]}
TABLES = Tables(
    of="set",
    clips=3,
    dataset="ek100_cls",
    classes=CLASSES,
    clip_ids=lambda: ["P01_1_0", "P02_1_0", "P02_1_1"],
    groups=lambda name: GROUPS[name],
)
ACTIONS = np.array([[0.4, 0.3, 0.3], [0.1, 0.3, 0.6], [0.6, 0.2, 0.2]], np.float32)
ONE_HEAD = Predictions(rows=np.arange(3), columns={"scores.action": ACTIONS, "target.action": np.array([1, 2, 0])})


def test_verbs_and_nouns_are_sums_over_actions() -> None:
    """Clip 0: action wrong, but wash (0.6) and leek (0.7) are right by their sums."""
    found = ClassScores({"action": CLASSES["action"]}, TABLES).score([ONE_HEAD]).metrics
    assert found["action_top1"].value == pytest.approx(200 / 3)
    assert found["verb_top1"].value == pytest.approx(100 * 3 / 3)
    assert found["noun_top1"].value == pytest.approx(100 * 3 / 3)
    assert found["challenge_verb_top1"].value == pytest.approx(100)


def test_the_challenge_multiplies_verbs_and_nouns_and_has_groups() -> None:
    columns = {
        "scores.verb": np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]]),
        "scores.noun": np.array([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4]]),
        "target.verb": np.array([0, 1, 1]),
        "target.noun": np.array([0, 1, 2]),
    }
    part = Predictions(rows=np.arange(3), columns=columns)
    heads = {kind: CLASSES[kind] for kind in ("verb", "noun")}
    found = {name: metric.value for name, metric in ClassScores(heads, TABLES).score([part]).metrics.items()}
    assert found["challenge_action_top1"] == pytest.approx(200 / 3)
    assert found["challenge_unseen_verb_top1"] == 50 and found["challenge_unseen_noun_top1"] == 100
    assert found["challenge_tail_verb_top1"] == 100 and found["challenge_tail_action_top1"] == 100
    elsewhere = ClassScores(heads, replace(TABLES, dataset="egtea")).score([part]).metrics
    assert not any(name.startswith("challenge") for name in elsewhere)
    without = replace(TABLES, groups=lambda name: [])
    assert "challenge_tail_verb_top1" not in ClassScores(heads, without).score([part]).metrics


@pytest.mark.parametrize("heads", [("action",), ("noun", "verb")])
def test_the_challenge_gets_all_segments(tmp_path: Path, heads: tuple[str, ...]) -> None:
    verbs = np.array([[0.4, 0.6], [0.1, 0.9], [0.6, 0.4]])
    nouns = np.array([[0.7, 0.3, 0], [0.4, 0.6, 0], [0.8, 0.2, 0]])
    none = np.zeros(3, np.int64)
    columns = {"scores.verb": verbs, "scores.noun": nouns, "target.verb": none, "target.noun": none}
    part = ONE_HEAD if heads == ("action",) else Predictions(rows=np.arange(3), columns=columns)
    levels = SupervisionLevels(pretraining=2, training_labels=3, training_data=3)
    file = ClassScores({head: CLASSES[head] for head in heads}, TABLES).submit([part], tmp_path, levels)
    with zipfile.ZipFile(file) as archive:
        results = json.loads(archive.read("test.json"))["results"]
    assert list(results) == ["P01_1_0", "P02_1_0", "P02_1_1"]
    for place, entry in enumerate(results.values()):
        assert list(entry["verb"].values()) == pytest.approx(verbs[place].tolist())
        assert list(entry["noun"].values()) == pytest.approx(nouns[place].tolist())
        assert entry["action"]["1,0"] == pytest.approx(verbs[place, 1] * nouns[place, 0])


def test_a_file_for_the_challenge_needs_verbs_and_nouns(tmp_path: Path) -> None:
    levels = SupervisionLevels(pretraining=2, training_labels=3, training_data=3)
    with pytest.raises(TaskError, match="verb"):
        ClassScores({"verb": CLASSES["verb"]}, TABLES).submit([ONE_HEAD], tmp_path, levels)


def test_actions_are_pairs_or_nothing() -> None:
    found = joint_actions(CLASSES)
    assert found is not None and found.verbs.tolist() == [0, 1, 1] and found.nouns.tolist() == [0, 0, 1]
    assert joint_actions(CLASSES | {"action": ["Cut the leek"]}) is None
    assert joint_actions({"verb": ["a", "a b"], "noun": ["b c", "c"], "action": ["a b c"]}) is None  # two readings
    assert joint_actions({"action": ["Cut the leek"]}) is None
