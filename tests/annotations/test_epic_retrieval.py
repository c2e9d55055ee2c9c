"""EPIC-KITCHENS-100 retrieval: clips, sentences and how relevant they are to one another."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from lavila.annotations import read_annotations
from lavila.annotations.base import AnnotationError, AnnotationSet
from lavila.annotations.epic_retrieval import Meaning, read_relevancy, relevancy
from lavila.errors import shown
from tests.annotations.published import COLUMNS, row, write_csv, write_set

CLIPS = {"train": "EPIC_100_retrieval_train.csv", "val": "EPIC_100_retrieval_test.csv"}
SENTENCES = {"train": "EPIC_100_retrieval_train_sentence.csv", "val": "EPIC_100_retrieval_test_sentence.csv"}
PICKLE = "relevancy/caption_relevancy_EPIC_100_retrieval_test.pkl"
ROWS = [
    row(narration_id="a", narration="take plate", verb_class=0, noun_class=2, all_noun_classes="[2]"),
    row(narration_id="b", narration="take plate and cup", verb_class=0, noun_class=13, all_noun_classes="[13, 2]"),
    row(narration_id="c", narration="put plate", verb_class=1, noun_class=2, all_noun_classes="[2]"),
    row(narration_id="d", narration="take plate", verb_class=0, noun_class=2, all_noun_classes="[2,  2]"),
]


def write(
    folder: Path,
    rows: Sequence[Sequence[object]] = ROWS,
    sentences: Sequence[Sequence[object]] = (("c", "put plate"), ("a", "take plate"), ("b", 'take "plate", cup')),
) -> Path:
    write_set(folder, [])
    for split in ("train", "val"):
        write_csv(folder / CLIPS[split], COLUMNS, rows)
    write_csv(folder / SENTENCES["val"], ["narration_id", "narration"], sentences)
    header = ["narration_id", "narration", "verb_class", "noun_classes", "verb", "nouns"]
    written = [["x", "open door", 3, "[3]", "open", "['door']"], ["y", "cut bread", 7, "[99, 16]", "cut", "[]"]]
    write_csv(folder / SENTENCES["train"], header, written)
    return folder


def meanings(found: AnnotationSet) -> tuple[list[Meaning], list[Meaning]]:
    clips: list[Meaning] = [(clip.verb or 0, clip.labels) for clip in found.clips]
    return clips, [(row["verb"], row["nouns"]) for row in found.tables["sentences"]]


def by_the_formula(clips: Sequence[Meaning], sentences: Sequence[Meaning]) -> np.ndarray:
    """As published: relevancy[i, j] = (1[verbs equal] + |nouns_i & nouns_j| / |nouns_i | nouns_j|) / 2."""
    return np.array(
        [[((v == w) + len(set(n) & set(m)) / max(1, len(set(n) | set(m)))) / 2 for w, m in sentences] for v, n in clips]
    )


def save_relevancy(folder: Path, matrix: object) -> Path:
    (folder / "relevancy").mkdir(exist_ok=True)
    (folder / PICKLE).write_bytes(pickle.dumps(matrix, protocol=2))
    return folder / PICKLE


def test_clips_and_sentences_for_evaluation(tmp_path: Path) -> None:
    found = read_annotations("ek100_mir", write(tmp_path), split="val")
    assert [clip.clip_id for clip in found.clips] == ["a", "b", "c", "d"]
    assert [(clip.verb, clip.noun, clip.labels) for clip in found.clips] == [
        *((0, 2, (2,)), (0, 13, (2, 13)), (1, 2, (2,)), (0, 2, (2,)))
    ]
    first = found.clips[0]
    assert (first.video_path, first.start_second, first.stop_second) == ("P01/P01_01.MP4", 0.0, 1.89)
    assert first.narrations == ("take plate",)
    assert first.action is None
    assert "all_noun_classes" not in first.extra
    assert first.extra["all_nouns"] == "['plate']"
    assert found.tables["sentences"] == [  # classes come from the clip of the same narration
        {"sentence_id": "c", "narration": "put plate", "verb": 1, "nouns": [2]},
        {"sentence_id": "a", "narration": "take plate", "verb": 0, "nouns": [2]},
        {"sentence_id": "b", "narration": 'take "plate", cup', "verb": 0, "nouns": [2, 13]},
    ]
    assert list(found.classes) == list(found.class_texts) == ["verb", "noun"]
    assert (found.classes["noun"][2], found.class_texts["noun"][2]) == ("noun-2", ["noun-2"])
    assert (found.span_rule, found.failures) == ("edges", [])
    names = [CLIPS["val"], SENTENCES["val"], "EPIC_100_verb_classes.csv", "EPIC_100_noun_classes.csv"]
    assert found.files == [tmp_path / name for name in names]
    assert read_annotations("ek100_mir", tmp_path / CLIPS["val"], split="val") == found


def test_training_sentences_bring_their_classes(tmp_path: Path) -> None:
    found = read_annotations("ek100_mir", write(tmp_path), split="train")
    assert found.tables["sentences"] == [
        {"sentence_id": "x", "narration": "open door", "verb": 3, "nouns": [3]},
        {"sentence_id": "y", "narration": "cut bread", "verb": 7, "nouns": [16, 99]},
    ]
    assert found.files[:2] == [tmp_path / CLIPS["train"], tmp_path / SENTENCES["train"]]


def test_relevancy_is_the_formula(tmp_path: Path) -> None:
    found = read_annotations("ek100_mir", write(tmp_path), split="val")
    matrix = relevancy(*meanings(found))
    assert matrix.dtype == np.float32
    assert matrix.tolist() == [[0.5, 1.0, 0.75], [0.25, 0.75, 1.0], [1.0, 0.5, 0.25], [0.5, 1.0, 0.75]]
    assert (matrix == 1).any(axis=0).all()
    assert (matrix == 1).any(axis=1).all()


def test_relevancy_of_many_and_of_any_part() -> None:
    """More clips than one block, noun numbers that only one side has, and some without nouns."""
    rng = np.random.default_rng(0)

    def some(count: int, nouns: int) -> list[Meaning]:
        return [
            (int(rng.integers(4)), [int(noun) for noun in rng.choice(nouns, rng.integers(0, 4), replace=False)])
            for _ in range(count)
        ]

    clips, sentences = some(2500, 9), some(40, 6)
    whole = relevancy(clips, sentences)
    assert np.array_equal(whole, by_the_formula(clips, sentences).astype(np.float32))
    assert np.array_equal(relevancy(clips[1000:1100], sentences[5:7]), whole[1000:1100, 5:7])
    assert relevancy([], sentences).shape == (0, 40)
    assert relevancy(clips[:3], []).shape == (3, 0)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_published_relevancy_is_compared(tmp_path: Path, dtype: type) -> None:
    rebuilt = relevancy(*meanings(read_annotations("ek100_mir", write(tmp_path), split="val")))
    path = save_relevancy(tmp_path, rebuilt.astype(dtype))
    assert read_relevancy(path).dtype == np.float32
    assert np.array_equal(read_relevancy(path), rebuilt)
    assert read_annotations("ek100_mir", tmp_path, split="val").files[-1] == path
    assert path not in read_annotations("ek100_mir", tmp_path, split="train").files

    assert list(read_annotations("ek100_mir", tmp_path, split="val").tables) == ["sentences"]  # nothing to add
    save_relevancy(tmp_path, rebuilt[:, :2])
    with pytest.raises(AnnotationError, match=r"4 x 2.*4 clips.*3 sentences"):
        read_annotations("ek100_mir", tmp_path, split="val")
    write_csv(tmp_path / "mine.csv", COLUMNS, ROWS)  # a csv of another name need not be what the pickle is about
    assert len(read_annotations("ek100_mir", tmp_path / "mine.csv", split="val").clips) == 4


def test_a_published_relevancy_that_differs_counts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    other = relevancy(*meanings(read_annotations("ek100_mir", write(tmp_path), split="val")))
    other[1, 2] = other[3, 0] = 0.125
    path = save_relevancy(tmp_path, other)
    kept = read_annotations("ek100_mir", tmp_path, split="val").tables["relevancy"]
    assert [row["clip_id"] for row in kept] == ["a", "b", "c", "d"]
    assert np.array_equal(np.stack([row["relevancy"] for row in kept]), other)
    assert caplog.messages == [
        f"{path}: 2 of 12 relevancies are not those of the csvs and are kept as published; the first: clip b and "
        "sentence b have 0.125, by the csvs 1"
    ]


def test_rows_that_cannot_be_clips_keep_their_place_in_the_relevancy(tmp_path: Path) -> None:
    rows = [ROWS[0], row(narration_id="back", stop_timestamp="00:00:00.00", verb_class=5), row(narration_id="../x")]
    with pytest.raises(AnnotationError, match=r"'\.\./x'"):
        read_annotations("ek100_mir", write(tmp_path, rows), split="val")
    rows[2] = row(narration_id="out", video_id="../../x")
    write(tmp_path, rows, [("back", "go back"), ("out", "go out")])
    clips: list[Meaning] = [(0, [2]), (5, [2]), (0, [2])]
    save_relevancy(tmp_path, by_the_formula(clips, clips[1:]))
    found = read_annotations("ek100_mir", tmp_path, split="val")
    assert [clip.clip_id for clip in found.clips] == ["a"]
    assert [failure[0] for failure in found.failures] == ["back", "out"]
    assert [sentence["verb"] for sentence in found.tables["sentences"]] == [5, 0]


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        ([[1.0]], "list"),
        (np.ones(3), r"\(3,\), float64"),
        (np.array([["a"]]), r"\(1, 1\), <U1"),
        (np.array([[1.0, np.nan]]), "0 to 1"),
        (np.array([[1.5]]), "0 to 1"),
        (np.ones((0, 3)), "0 to 1"),
    ],
)
def test_what_is_no_relevancy(tmp_path: Path, matrix: object, message: str) -> None:
    path = save_relevancy(write(tmp_path), matrix)
    with pytest.raises(AnnotationError, match=rf"^{path}.*{message}"):
        read_annotations("ek100_mir", tmp_path, split="val")


BAD_NOUNS = ["", "[]", "2", "[2", "[2,]", "[300]", "[2, -1]", "[2.0]", "['plate']", "[2] ]", f"[{'9' * 5000}]"]


@pytest.mark.parametrize("cell", BAD_NOUNS)
def test_bad_nouns_are_named(tmp_path: Path, cell: str) -> None:
    write(tmp_path, [ROWS[0], row(narration_id="z", all_noun_classes=cell)])
    with pytest.raises(AnnotationError) as caught:
        read_annotations("ek100_mir", tmp_path, split="val")
    place = f"{tmp_path / CLIPS['val']}, line 3, column 'all_noun_classes'"
    expected = "is not a list of noun classes from 0 to 299; write it like [49, 36]"
    assert str(caught.value) == f"{place}: {shown(cell)} {expected}"


def test_sentences_that_cannot_be_placed_are_named(tmp_path: Path) -> None:
    write(tmp_path, sentences=[("a", "take plate"), ("nobody", "sing")])
    with pytest.raises(AnnotationError, match=rf"{SENTENCES['val']}, line 3.*'narration_id'.*'nobody'"):
        read_annotations("ek100_mir", tmp_path, split="val")
    header = ["narration_id", "narration", "verb_class", "noun_classes"]
    write_csv(tmp_path / SENTENCES["train"], header, [["a", "b", "9", "-"]])
    with pytest.raises(AnnotationError, match=r"line 2.*'noun_classes'.*'-'"):
        read_annotations("ek100_mir", tmp_path, split="train")


@pytest.mark.parametrize("name", [CLIPS["val"], SENTENCES["val"], "EPIC_100_verb_classes.csv"])
def test_missing_file_is_named(tmp_path: Path, name: str) -> None:
    (write(tmp_path) / name).unlink()
    with pytest.raises(AnnotationError, match=rf"{name}.*{name}"):
        read_annotations("ek100_mir", tmp_path, split="val")


def test_splits(tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(AnnotationError, match=rf"'val'.*'train'.*{CLIPS['train']}"):
        read_annotations("ek100_mir", tmp_path / CLIPS["val"], split="train")
    with pytest.raises(AnnotationError, match=r"'test'.*train, val"):
        read_annotations("ek100_mir", tmp_path, split="test")


def test_missing_column_is_named(tmp_path: Path) -> None:
    write(tmp_path)
    write_csv(tmp_path / CLIPS["val"], COLUMNS[:-1], [row()[:-1]])
    with pytest.raises(AnnotationError, match=rf"{CLIPS['val']}, line 1.*'all_noun_classes'"):
        read_annotations("ek100_mir", tmp_path, split="val")


def test_the_authors_repository_as_it_is_cloned(tmp_path: Path) -> None:
    """It has the csv files of retrieval in a folder, and those of the classes above it."""
    plain = read_annotations("ek100_mir", write(tmp_path / "plain"), split="val")
    root = write(tmp_path / "cloned")
    own = root / "retrieval_annotations"
    own.mkdir()
    for file in [*root.glob("EPIC_100_retrieval_*.csv")]:
        file.rename(own / file.name)
    for path in (own, root, own / CLIPS["val"]):
        found = read_annotations("ek100_mir", path, split="val")
        assert (found.clips, found.classes, found.tables) == (plain.clips, plain.classes, plain.tables)
        assert {file.name for file in found.files} == {file.name for file in plain.files}
