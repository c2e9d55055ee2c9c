"""Charades-Ego's csvs and pickles -> whole videos with their labels, and trimmed clips."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path

import pytest

from lavila.annotations import read_annotations
from lavila.annotations.base import AnnotationError, AnnotationSet
from lavila.plan.frames import frame_span
from tests.annotations.published import GOLDEN, write_csv

COLUMNS: list[str] = GOLDEN["charades_ego"]["columns"]
CLASS_LINES: list[str] = GOLDEN["label_map_charades_ego"]["lines"]
TRAIN, VAL = "CharadesEgo_v1_train_only1st.csv", "CharadesEgo_v1_test_only1st.csv"
CLASSES = "Charades_v1_classes.txt"


def row(**cells: object) -> list[object]:
    """A valid csv row, but for `cells`."""
    values = dict(zip(COLUMNS, GOLDEN["charades_ego"]["rows"][0], strict=True))
    return [{**values, **cells}[name] for name in COLUMNS]


def write(folder: Path, *rows: Sequence[object], name: str = VAL, columns: list[str] = COLUMNS) -> Path:
    folder.mkdir(exist_ok=True)
    write_csv(folder / name, columns, rows)
    (folder / CLASSES).write_text("".join(f"{line}\n" for line in CLASS_LINES))
    return folder / name


def read(folder: Path, *rows: Sequence[object], split: str = "val") -> AnnotationSet:
    write(folder, *rows, name=TRAIN if split == "train" else VAL)
    return read_annotations("charades_ego", folder, split=split)


def test_label_map_matches_reference(tmp_path: Path) -> None:
    found = read(tmp_path, row())
    golden = GOLDEN["label_map_charades_ego"]
    assert found.classes == {"labels": golden["labels"]}
    assert found.class_texts == {"labels": [[text] for text in golden["labels"]]}
    codes = {line[:4]: index for index, line in enumerate(golden["lines"])}
    assert codes == golden["mapping"]
    actions = ";".join(f"{code} 0.0 1.0" for code in golden["mapping"])
    assert read(tmp_path, row(actions=actions)).clips[0].labels == tuple(golden["mapping"].values())


def test_untrimmed_samples_match_reference(tmp_path: Path) -> None:
    golden = GOLDEN["charades_ego"]
    found = read(tmp_path, *golden["rows"])
    codes = [line[:4] for line in CLASS_LINES]
    samples = [
        [
            clip.video_path,
            int(clip.start_second),
            golden["fps"][clip.video_id] * (clip.stop_second or -1.0),
            [codes[label] for label in clip.labels],
        ]
        for clip in found.clips
    ]
    assert samples == golden["samples_untrimmed"]
    assert [clip.clip_id for clip in found.clips] == [cells[0] for cells in golden["rows"]]
    assert (found.span_rule, found.failures) == ("fractional", [])
    assert found.files == [tmp_path / VAL, tmp_path / CLASSES]
    assert found.clips[0].extra["scene"] == "k"


def test_trimmed_samples_match_reference(tmp_path: Path) -> None:
    golden = GOLDEN["charades_ego"]
    found = read(tmp_path, *golden["rows"], split="train")
    codes = [line[:4] for line in CLASS_LINES]
    samples = [
        [
            clip.video_path,
            *frame_span(
                clip.start_second, clip.stop_second or -1.0, golden["fps"][clip.video_id], rule=found.span_rule
            ),
            codes[clip.labels[0]],
        ]
        for clip in found.clips
    ]
    assert samples == golden["samples_trimmed"]
    assert found.span_rule == "edges"
    assert [clip.clip_id for clip in found.clips] == [
        "005BUEGO_c010_00000000_00012300",
        "005BUEGO_c001_00003550_00009210",
        "0BNMLEGO_c002_00007700_00031000",
    ]


def test_the_same_action_at_the_same_time_keeps_its_own_id(tmp_path: Path) -> None:
    cells = row(actions="c010 0.00 1.00;c010 0.00 1.00;c010 2.00 3.00")
    ids = [clip.clip_id for clip in read(tmp_path, cells, split="train").clips]
    one = "005BUEGO_c010_00000000_00001000"
    assert ids == [one, f"{one}_2", "005BUEGO_c010_00002000_00003000"]
    assert read(tmp_path, cells).clips[0].labels == (3,)


def test_odd_but_valid_files_read_the_same(tmp_path: Path) -> None:
    text = 'She said "wait",\nthen 食べる; left'
    rows = [row(script=text), row(id="B", actions=""), row(id="C", actions="c001 3.55 9.21")]
    plain = read(tmp_path / "plain", *rows)
    needed = ["length", "actions", "script", "id"]
    cells = [[dict(zip(COLUMNS, cells, strict=True))[name] for name in needed] for cells in rows]
    cells[0][1] = f" {cells[0][1]} ; "
    path = write(tmp_path / "odd", columns=needed)
    write_csv(path, [f" {name}" for name in needed], cells, line_end="\r\n")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes() + b"\r\n\r\n")
    classes = path.parent / CLASSES
    classes.write_bytes(b"\xef\xbb\xbf" + classes.read_bytes().replace(b"\n", b"\r\n") + b"\r\n")
    odd = read_annotations("charades_ego", path, split="val")
    assert odd.classes == plain.classes
    key = [(clip.clip_id, clip.stop_second, clip.labels, clip.extra["script"]) for clip in odd.clips]
    assert key == [(clip.clip_id, clip.stop_second, clip.labels, clip.extra["script"]) for clip in plain.clips]
    assert key[0][3] == text


def test_training_needs_no_length(tmp_path: Path) -> None:
    path = write(tmp_path, ["A", "c000 1 2"], name=TRAIN, columns=["id", "actions"])
    assert [clip.labels for clip in read_annotations("charades_ego", path, split="train").clips] == [(0,)]
    write(tmp_path, ["A", "c000 1 2"], name=VAL, columns=["id", "actions"])
    with pytest.raises(AnnotationError, match=rf"{VAL}, line 1.*'length'.*id, actions"):
        read_annotations("charades_ego", tmp_path, split="val")


def test_pickles(tmp_path: Path) -> None:
    data = [("005BUEGO", 0.5, 2.25, "person opens a door"), ("005BUEGO", 0.5, 2.25, "again"), ("../x", 0.0, 1.0, "")]
    path = tmp_path / "metadata_filtered_train.pkl"
    path.write_bytes(pickle.dumps(data))
    found = read_annotations("charades_ego", path, split="train")
    first = found.clips[0]
    assert (first.video_path, first.start_second, first.stop_second) == ("005BUEGO.mp4", 0.5, 2.25)
    assert first.narrations == ("person opens a door",)
    assert [clip.clip_id for clip in found.clips] == ["005BUEGO_00000500_00002250", "005BUEGO_00000500_00002250_2"]
    assert (found.span_rule, found.classes, found.class_texts, found.files) == ("duration", {}, {}, [path])
    assert [failure[1] for failure in found.failures] == ["../x.mp4"]
    write(tmp_path, row(), name=TRAIN)
    with_classes = read_annotations("charades_ego", tmp_path, split="train")  # the pickle goes before the csv
    assert with_classes.clips == found.clips
    assert with_classes.classes == {"labels": GOLDEN["label_map_charades_ego"]["labels"]}
    assert with_classes.class_texts["labels"][0] == ["Holding some clothes"]
    assert with_classes.files == [path, tmp_path / CLASSES]
    with pytest.raises(AnnotationError, match=r"'train'.*'val'.*metadata_filtered_val"):
        read_annotations("charades_ego", path, split="val")
    path.rename(tmp_path / "metadata_filtered_val.pkl")
    assert read_annotations("charades_ego", tmp_path / "metadata_filtered_val.pkl", split="val").clips == found.clips
    assert read_annotations("charades_ego", tmp_path, split="train").span_rule == "edges"


def test_rows_that_cannot_be_clips_are_listed_and_the_rest_is_read(tmp_path: Path) -> None:
    rows = [
        row(id="../a"),
        row(id="a\\b"),
        row(id="third", egocentric="No"),
        row(id="zero", length="0"),
        row(id="below", length="-3"),
        row(id="good"),
    ]
    found = read(tmp_path, *rows)
    assert [clip.clip_id for clip in found.clips] == ["good"]
    assert found.failures == [
        ("../a", "../a.mp4", f"{VAL}, line 2: video path '../a.mp4' leaves the video root; correct id"),
        ("a\\b", "a\\b.mp4", f"{VAL}, line 3: video path 'a\\\\b.mp4' leaves the video root; correct id"),
        (
            "third",
            "third.mp4",
            f"{VAL}, line 4: not an egocentric video; give the csv whose name ends in _only1st",
        ),
        ("zero", "zero.mp4", f"{VAL}, line 5: stop 0 s is not after start 0 s; correct length"),
        ("below", "below.mp4", f"{VAL}, line 6: stop -3 s is not after start 0 s; correct length"),
    ]
    trimmed = read(tmp_path, row(actions="c000 2.0 1.0;c001 0.0 1.0;c002 -1 1"), split="train")
    assert [clip.labels for clip in trimmed.clips] == [(1,)]
    assert trimmed.failures[0] == (
        "005BUEGO_c000_00002000_00001000",
        "005BUEGO.mp4",
        f"{TRAIN}, line 2: stop 1 s is not after start 2 s; correct actions",
    )
    assert "start -1 s is before the video begins" in trimmed.failures[1][2]


BAD_CELLS = [
    ("id", "a.b", "'a.b' must be a name without dots, slashes and spaces; rename it"),
    ("id", "", "'' must be a name without dots"),
    ("id", "005BUEGO", "'005BUEGO' was already on line 2; remove one"),
    ("actions", "c999 1.0 2.0", f"class 'c999' is not in {CLASSES}; correct the one or the other"),
]


@pytest.mark.parametrize(("column", "cell", "message"), BAD_CELLS)
def test_bad_cell_is_named(tmp_path: Path, column: str, cell: str, message: str) -> None:
    with pytest.raises(AnnotationError) as caught:
        read(tmp_path, row(), row(**{"id": "b", column: cell}))
    assert str(caught.value).startswith(f"{tmp_path / VAL}, line 3, column {column!r}: {message}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", ""),
        ("c000 One\nc000 Two\n", ".*line 2.*c000"),
        ("Holding some clothes\n", ".*line 1.*'Holding some clothes'"),
        ("c000 \n", ".*line 1.*'c000 '"),
        ("c0² One\n", ".*line 1.*'c0² One'"),
    ],
)
def test_bad_classes_are_named(tmp_path: Path, content: str, message: str) -> None:
    path = write(tmp_path, row())
    (tmp_path / CLASSES).write_text(content)
    with pytest.raises(AnnotationError, match=rf"{CLASSES}{message}"):
        read_annotations("charades_ego", path, split="val")


def test_missing_and_foreign_files(tmp_path: Path) -> None:
    path = write(tmp_path, row())
    with pytest.raises(AnnotationError, match=rf"{TRAIN}.*{VAL}"):
        read_annotations("charades_ego", tmp_path, split="train")
    with pytest.raises(AnnotationError, match=rf"'val'.*'train'.*{TRAIN}"):
        read_annotations("charades_ego", path, split="train")
    with pytest.raises(AnnotationError, match=r"'test'.*train, val"):
        read_annotations("charades_ego", path, split="test")
    with pytest.raises(AnnotationError, match=rf"{CLASSES}.*{VAL}"):
        read_annotations("charades_ego", tmp_path / CLASSES, split="val")
    (tmp_path / CLASSES).unlink()
    with pytest.raises(AnnotationError, match=rf"{CLASSES}"):
        read_annotations("charades_ego", path, split="val")
