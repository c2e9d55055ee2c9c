"""EPIC-KITCHENS-100 csvs -> clips: the published parsing to the letter, and the errors for odd files."""

from __future__ import annotations

from pathlib import Path

import pytest

from lavila.annotations import DATASETS, read_annotations
from lavila.annotations.base import AnnotationError
from lavila.annotations.epic_kitchens import parse_timestamp
from lavila.plan.frames import frame_span
from tests.annotations.published import COLUMNS, GOLDEN, TRAIN, VALIDATION, row, write_csv, write_set


@pytest.mark.parametrize(("text", "seconds"), GOLDEN["datetime2sec"])
def test_timestamp_matches_reference(text: str, seconds: float) -> None:
    assert parse_timestamp(text) == seconds


def test_clips_match_reference_samples(tmp_path: Path) -> None:
    golden = GOLDEN["ek100"]
    found = read_annotations("ek100_cls", write_set(tmp_path, golden["rows"]), split="train")
    samples = [
        [
            clip.video_path,
            *frame_span(clip.start_second, clip.stop_second or -1.0, golden["fps"][clip.video_id]),
            clip.narrations[0],
            clip.verb,
            clip.noun,
        ]
        for clip in found.clips
    ]
    assert samples == golden["samples"]
    assert [clip.clip_id for clip in found.clips] == [cells[0] for cells in golden["rows"]]
    assert found.failures == []


def test_action_map_matches_reference(tmp_path: Path) -> None:
    golden = GOLDEN["label_map_ek100_cls"]
    folder = write_set(tmp_path, golden["train_rows"], golden["val_rows"])
    mapping: dict[str, int | None] = {}
    for split in ("train", "val"):
        found = read_annotations("ek100_cls", folder, split=split)
        mapping |= {f"{clip.verb}:{clip.noun}": clip.action for clip in found.clips}
        for pair, index in golden["mapping"].items():
            verb, noun = pair.split(":")
            assert found.classes["action"][index] == f"verb-{verb} noun-{noun}"
        assert found.class_texts["action"] == golden["labels_sorted_within_class"]
        assert found.class_texts["verb"][:2] == [["verb-0"], ["verb-1"]]
        assert [len(found.class_texts[kind]) for kind in ("verb", "noun")] == [97, 300]
    assert mapping == golden["mapping"]


def test_action_texts_are_all_that_was_said_of_it_in_either_split(tmp_path: Path) -> None:
    train = [row(narration_id=f"a{i}", narration=text) for i, text in enumerate(("take plate", "grab plate", " "))]
    val = [row(narration="pick up plate"), row(narration_id="other", verb_class=1, narration="put plate")]
    for split in ("train", "val"):
        found = read_annotations("ek100_cls", write_set(tmp_path, train, val), split=split)
        assert found.class_texts["action"] == [["grab plate", "pick up plate", "take plate"], ["put plate"]]
    assert read_annotations("ek100_cls", tmp_path, split="train").clips[2].narrations == ()


def test_actions_sort_as_text(tmp_path: Path) -> None:
    rows = [row(narration_id=f"P01_{i}", verb_class=verb, noun_class=5) for i, verb in enumerate((2, 10))]
    found = read_annotations("ek100_cls", write_set(tmp_path, rows), split="train")
    assert [clip.action for clip in found.clips] == [1, 0]


@pytest.mark.parametrize("split", ["train", "val"])
def test_one_csv_file_finds_its_siblings(tmp_path: Path, split: str) -> None:
    folder = write_set(tmp_path, [row()], [row(narration_id="P01_02_7", verb_class=5)])
    file = folder / (TRAIN if split == "train" else VALIDATION)
    from_folder = read_annotations("ek100_cls", folder, split=split)
    assert read_annotations("ek100_cls", file, split=split) == from_folder
    names = (TRAIN, VALIDATION, "EPIC_100_verb_classes.csv", "EPIC_100_noun_classes.csv")
    assert set(from_folder.files) == {folder / name for name in names}
    assert from_folder.clips[0].verb == (0 if split == "train" else 5)


def test_csv_of_another_name_uses_the_published_action_numbers(tmp_path: Path) -> None:
    folder = write_set(tmp_path, [row(), row(narration_id="b", verb_class=7)])
    write_csv(folder / "mine.csv", COLUMNS, [row(verb_class=7)])
    assert [clip.action for clip in read_annotations("ek100_cls", folder / "mine.csv", split="val").clips] == [1]
    write_csv(folder / "mine.csv", COLUMNS, [row(verb_class=8)])
    with pytest.raises(AnnotationError, match=r"mine.csv, line 2.*'verb_class'.*8:2"):
        read_annotations("ek100_cls", folder / "mine.csv", split="val")


def test_odd_but_valid_files_read_the_same(tmp_path: Path) -> None:
    rows = [row(narration='take the crème brûlée, then "wait"\nand 食べる'), row(narration_id="P01_01_1")]
    plain = read_annotations("ek100_cls", write_set(tmp_path / "plain", rows), split="train")
    folder = write_set(tmp_path / "odd", [])
    shuffled = [[i, "fine", *cells[::-1]] for i, cells in enumerate(rows)]
    write_csv(folder / TRAIN, ["", "mood", *COLUMNS[::-1]], shuffled, line_end="\r\n")
    (folder / TRAIN).write_bytes(b"\xef\xbb\xbf" + (folder / TRAIN).read_bytes() + b"\r\n\r\n")
    odd = read_annotations("ek100_cls", folder, split="train")
    assert odd.clips[0].narrations == ('take the crème brûlée, then "wait"\nand 食べる',)
    assert odd.clips[0].extra.pop("mood") == odd.clips[1].extra.pop("mood") == "fine"
    assert odd.clips == plain.clips
    assert odd.clips[0].extra["all_nouns"] == "['plate']"


def test_rows_that_cannot_be_clips_are_listed_and_the_rest_is_read(tmp_path: Path) -> None:
    rows = [
        row(narration_id="backwards", start_timestamp="00:00:02.00", stop_timestamp="00:00:01.50"),
        row(narration_id="empty", stop_timestamp="00:00:00.00"),
        row(narration_id="climbs", participant_id=".."),
        row(narration_id="climbs_too", video_id="a\\..\\..\\b"),
        row(narration_id="absolute", participant_id="/etc"),
        row(narration_id="nobody", participant_id=""),
        row(narration_id="drive", participant_id="C:"),
        row(narration_id="null", video_id="a\0b"),
        row(narration_id="good"),
    ]
    found = read_annotations("ek100_cls", write_set(tmp_path, rows), split="train")
    assert [clip.clip_id for clip in found.clips] == ["good"]
    assert found.failures[0] == (
        "backwards",
        "P01/P01_01.MP4",
        f"{TRAIN}, line 2: stop 1.5 s is not after start 2 s; correct stop_timestamp",
    )
    assert [failure[0] for failure in found.failures] == [cells[0] for cells in rows[:-1]]
    assert all("leaves the video root" in reason for _, _, reason in found.failures[2:-1])
    assert "'P01/a\\x00b.MP4' holds control characters; correct participant_id or video_id" in found.failures[-1][2]


BAD_CELLS = [
    ("verb_class", "1" * 5000, "is not a class"),
    ("verb_class", "97", "'97' is not a class; allowed are whole numbers from 0 to 96"),
    ("noun_class", "-1", "'-1' is not a class; allowed are whole numbers from 0 to 299"),
    ("noun_class", "2.0", "'2.0' is not a class"),
    ("narration_id", "P01.01", "'P01.01' must be a name without dots, slashes and spaces"),
    ("narration_id", "../P01", "must be a name without dots"),
    ("narration_id", "P01 01", "must be a name without dots"),
    ("narration_id", "P01\0", "must be a name without dots"),
    ("narration_id", "", "must be a name without dots"),
    ("narration_id", "P01_01_0", "'P01_01_0' was already on line 2; ids must be unique"),
]


@pytest.mark.parametrize(("column", "cell", "message"), BAD_CELLS)
def test_bad_cell_is_named(tmp_path: Path, column: str, cell: str, message: str) -> None:
    folder = write_set(tmp_path, [row(), row(**{"narration_id": "b", column: cell})])
    with pytest.raises(AnnotationError) as caught:
        read_annotations("ek100_cls", folder, split="train")
    assert str(caught.value).startswith(f"{folder / TRAIN}, line 3, column {column!r}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_column_is_named(tmp_path: Path) -> None:
    folder = write_set(tmp_path, [], columns=[name for name in COLUMNS if name not in ("narration", "noun_class")])
    with pytest.raises(AnnotationError, match=rf"{TRAIN}, line 1.*'narration', 'noun_class'"):
        read_annotations("ek100_cls", folder, split="train")


def test_doubled_column_is_named(tmp_path: Path) -> None:
    write_csv(write_set(tmp_path, []) / TRAIN, [*COLUMNS, "narration"], [[*row(), "again"]])
    with pytest.raises(AnnotationError, match=rf"{TRAIN}, line 1.*'narration'"):
        read_annotations("ek100_cls", tmp_path, split="train")


def test_missing_path_is_named(tmp_path: Path) -> None:
    for dataset in DATASETS:
        with pytest.raises(AnnotationError, match=rf"nowhere.*{dataset}"):
            read_annotations(dataset, tmp_path / "nowhere", split="val")


def test_ragged_row_is_named(tmp_path: Path) -> None:
    folder = write_set(tmp_path, [row(), row()[:-1]])
    with pytest.raises(AnnotationError, match=rf"{TRAIN}, line 3.*14.*15"):
        read_annotations("ek100_cls", folder, split="train")


@pytest.mark.parametrize("name", [TRAIN, VALIDATION, "EPIC_100_verb_classes.csv", "EPIC_100_noun_classes.csv"])
def test_missing_file_is_named(tmp_path: Path, name: str) -> None:
    folder = write_set(tmp_path, [row()])
    (folder / name).rename(folder / "elsewhere.csv")
    with pytest.raises(AnnotationError, match=rf"{name}.*elsewhere.csv.*{name}"):
        read_annotations("ek100_cls", folder, split="train")


@pytest.mark.parametrize(("ids", "message"), [((0, 2), "line 3.*'id'.*'2'"), ((0, 0), "0.*'verb-0'")])
def test_class_numbers_must_be_complete(tmp_path: Path, ids: tuple[int, int], message: str) -> None:
    folder = write_set(tmp_path, [])
    write_csv(folder / "EPIC_100_verb_classes.csv", ["id", "key"], [[i, f"verb-{i}"] for i in ids])
    with pytest.raises(AnnotationError, match=message):
        read_annotations("ek100_cls", folder, split="train")


def test_bytes_that_are_not_text(tmp_path: Path) -> None:
    folder = write_set(tmp_path, [row()])
    (folder / TRAIN).write_bytes((folder / TRAIN).read_bytes() + b"\xff\xfe")
    with pytest.raises(AnnotationError, match=rf"{TRAIN}.*UTF-8"):
        read_annotations("ek100_cls", folder, split="train")


def test_unknown_names(tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match=r"'ek100cls'.*'ek100_cls'"):
        read_annotations("ek100cls", tmp_path, split="train")
    with pytest.raises(AnnotationError, match=r"'test'.*train, val"):
        read_annotations("ek100_cls", tmp_path, split="test")
    folder = write_set(tmp_path, [row()])
    with pytest.raises(AnnotationError, match=r"'val'.*'train'.*EPIC_100_train.csv"):
        read_annotations("ek100_cls", folder / VALIDATION, split="train")
    assert "ek100_cls" in DATASETS


def test_frame_span_rounds_halves_to_even_and_stops_up() -> None:
    assert frame_span(0.25, 0.41, 10.0) == (2, 5)
    assert frame_span(0.35, 0.5, 10.0) == (4, 5)


def test_groups_of_the_challenge_are_read_where_they_are(tmp_path: Path) -> None:
    """The lists are of the validation set; without the files there is no table."""
    folder = write_set(tmp_path / "set", [row()], [row(narration_id="P18_01_0")])
    assert read_annotations("ek100_cls", folder, split="val").tables == {}
    write_csv(folder / "EPIC_100_unseen_participant_ids_validation.csv", ["participant_id"], [["P18"], ["P32"]])
    write_csv(folder / "EPIC_100_tail_verbs.csv", ["verb"], [[13], [7]])
    found = read_annotations("ek100_cls", folder, split="val")
    assert [(entry["group"], entry["entry"]) for entry in found.tables["groups"]] == [
        ("unseen_participants", "P18"), ("unseen_participants", "P32"), ("tail_verbs", "13"), ("tail_verbs", "7"),
    ]  # fmt: skip
    assert {file.name for file in found.files} >= {"EPIC_100_tail_verbs.csv"}
    assert read_annotations("ek100_cls", folder, split="train").tables == {}
