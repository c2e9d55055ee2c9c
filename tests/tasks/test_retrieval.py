"""Retrieval: scores of both directions, what the report shows, and the challenge's file."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from lavila.metrics.epic_submissions import SupervisionLevels
from lavila.metrics.retrieval import both_scores
from lavila.tasks import NoModel, Predictions
from lavila.tasks.registry import task_kind
from lavila.tasks.retrieval import RetrievalTask
from lavila.tasks.tables import Sentences, Tables
from tests.tasks.dual import tiny_model, tiny_options, word_batch

TEXTS = ["cut the onion", "wash a knife", "open the tap"]
RELEVANCY = np.array([[1, 0, 0.5], [0, 1, 0], [0.5, 0, 1], [1, 0.5, 0]], np.float32)
SENTENCES = np.eye(3, dtype=np.float32)
LEVELS = SupervisionLevels(pretraining=2, training_labels=3, training_data=0)


def task(model: Any = None) -> RetrievalTask:
    tables = Tables(
        of="set",
        clips=4,
        clip_ids=lambda: [f"P01_0_{row}" for row in range(4)],
        sentences=lambda: Sentences(ids=["s0", "s1", "s2"], texts=TEXTS),
        relevancy=lambda rows: RELEVANCY[rows],
    )
    made = task_kind("retrieval").task(model or NoModel(), {}, tiny_options(), tables)
    assert isinstance(made, RetrievalTask)
    return made


def predictions(*rows: int, values: Any) -> Predictions:
    return Predictions(rows=np.array(rows), columns={"video": np.array(values, np.float32)})


# Clip 0 finds its sentence, clip 1 takes another's, clip 2 the one that half fits, clip 3 its own.
PARTS = [
    predictions(1, 3, values=[[0.9, 0.1, 0], [0.8, 0, 0.1]]),
    predictions(0, 2, values=[[0.7, 0, 0.1], [0.6, 0, 0.5]]),
]
SIMILARITY = np.array([[0.7, 0, 0.1], [0.9, 0.1, 0], [0.6, 0, 0.5], [0.8, 0, 0.1]], np.float32)


def test_scores_are_those_of_all_clips_and_sentences() -> None:
    one = task()
    one.know_texts({"sentences": SENTENCES})
    found = one.score(PARTS)
    precision, gain = both_scores(SIMILARITY, RELEVANCY)
    values = {name: metric.value for name, metric in found.metrics.items()}
    assert values == {
        "map": 100 * precision.mean, "map_video_to_text": 100 * precision.video_to_text,
        "map_text_to_video": 100 * precision.text_to_video, "ndcg": 100 * gain.mean,
        "ndcg_video_to_text": 100 * gain.video_to_text, "ndcg_text_to_video": 100 * gain.text_to_video,
    }  # fmt: skip
    assert {f"{headline.metric}" for headline in found.headlines} == {"map", "ndcg"}
    assert all(0 < found.controls[f"chance_{name}"].value < 100 for name in ("map", "ndcg"))


def test_the_report_gets_queries_with_the_nearest_clips_and_their_relevancy() -> None:
    one = task()
    one.know_texts({"sentences": SENTENCES})
    (section,) = one.score(PARTS).sections
    assert section.type == "galleries"
    sentence, clip = section.values[0], section.values[len(TEXTS)]
    assert sentence["title"] == TEXTS[0]
    assert [(found["row"], found["right"]) for found in sentence["clips"]] == [
        (1, False), (3, True), (0, True), (2, None),
    ]  # fmt: skip
    assert "1.00" in sentence["clips"][1]["note"] and "0.80" in sentence["clips"][1]["note"]
    assert clip["clips"][0]["row"] == 0 and clip["texts"][0]["text"] == TEXTS[0]


def test_the_least_fitting_answers_are_the_worst() -> None:
    one = task()
    one.know_texts({"sentences": SENTENCES})
    whole = predictions(0, 1, 2, 3, values=SIMILARITY)
    worth = one.wrongness(whole)
    assert worth[1] > worth[2] > worth[0] == worth[3] == -np.inf
    assert one.case(whole, 1)["truth"] == {"sentence": TEXTS[1]}
    assert one.case(whole, 1)["predicted"] == {"sentence": TEXTS[0]}


def test_sentences_are_encoded_once_and_clips_over_their_views() -> None:
    one = task(tiny_model())
    known = one.know_texts(None)
    assert known["sentences"].shape == (3, 8)
    batch = word_batch([["a"], ["b"]], views=3)
    video = one.predict(batch).columns["video"]
    assert np.allclose(np.linalg.norm(video, axis=1), 1, atol=1e-6)
    views = one.encoders.views(batch.video).mean(1).numpy()
    assert np.allclose(video, views / np.linalg.norm(views, axis=1, keepdims=True), atol=1e-6)
    again = task()
    again.know_texts(known)
    part = Predictions(rows=batch.rows, columns={"video": video})
    assert again.score([part]).metrics == one.score([part]).metrics


def test_the_challenge_gets_similarities_by_the_published_ids(tmp_path: Path) -> None:
    one = task()
    one.know_texts({"sentences": SENTENCES})
    file = one.submit(PARTS, tmp_path, LEVELS)
    with zipfile.ZipFile(file) as archive:
        content = pickle.loads(archive.read("test.pkl"))
    assert content["vis_ids"] == [f"P01_0_{row}" for row in range(4)] and content["txt_ids"] == ["s0", "s1", "s2"]
    assert np.allclose(content["sim_mat"], (1 + SIMILARITY) / 2) and content["sls_td"] == 0


def test_sentences_without_a_fitting_clip_are_counted() -> None:
    one = task()
    one.know_texts({"sentences": SENTENCES})
    found = one.score([predictions(0, values=[[1, 0, 0]])])
    assert found.metrics["sentences_without_match"].value == 2
