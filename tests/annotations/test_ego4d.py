"""Ego4D pickles -> narrated clips, and the same narrations by the same ids."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from lavila.annotations import read_annotations
from lavila.annotations.base import AnnotationError
from lavila.annotations.ego4d import read_narrations
from lavila.plan.frames import frame_span

UID = "0a3097fc-baed-4d11-a4c9-30f07eb91af6"


def save(folder: Path, data: object, name: str = "ego4d_train.pkl") -> Path:
    path = folder / name
    path.write_bytes(pickle.dumps(data))
    return path


def test_entries_with_one_narration(tmp_path: Path) -> None:
    data = [
        (UID, 12.0, 14.0, "#C C takes “the” plate"),
        (UID, 299.0016, 301, "#O 食べる\nnow"),
        ("other", 0.0, 0.05, " "),
    ]
    found = read_annotations("ego4d", save(tmp_path, data), split="train")
    assert [clip.clip_id for clip in found.clips] == [
        f"{UID}_00012000_00014000",
        f"{UID}_00299002_00301000",
        "other_00000000_00000050",
    ]
    first = found.clips[0]
    assert (first.video_id, first.video_path) == (UID, f"{UID}.mp4")
    assert (first.start_second, first.stop_second) == (12.0, 14.0)
    assert [clip.narrations for clip in found.clips] == [("#C C takes “the” plate",), ("#O 食べる\nnow",), ()]
    assert found.span_rule == "duration"
    assert frame_span(12.0, 14.0, 30.0, found.span_rule) == (360, 420)
    assert (found.failures, found.classes, found.tables) == ([], {}, {})
    assert found.files == [tmp_path / "ego4d_train.pkl"]


def test_a_name_with_the_ending_of_a_video_is_the_files(tmp_path: Path) -> None:
    data = [("day 1/GX01.MP4", 1.0, 2.0, "a"), ("b.mkv", 1.0, 2.0, "b"), ("c.d", 1.0, 2.0, "c")]
    clips = read_annotations("ego4d", save(tmp_path, data), split="train").clips
    assert [clip.video_path for clip in clips] == ["day 1/GX01.MP4", "b.mkv", "c.d.mp4"]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_numpy_numbers_lists_and_arrays(tmp_path: Path, protocol: int) -> None:
    data = [
        [np.str_(UID), np.float32(1.5), np.int64(2), np.array(["a", "b"])],
        (UID, np.float64(2), 3, ("c",), np.array([0.25], "f4")),
        (UID, 3, 4.0, ["d", "", "e"], [1, np.float32(0.5), float("inf")]),
        (UID, 4, 5.0, [], []),
    ]
    path = tmp_path / "narrated.pkl"
    path.write_bytes(pickle.dumps(data, protocol=protocol))
    clips = read_annotations("ego4d", path, split="train").clips
    assert [clip.narrations for clip in clips] == [("a", "b"), ("c",), ("d", "e"), ()]
    assert {type(clip.start_second) for clip in clips} == {float}
    assert {type(text) for clip in clips for text in (*clip.narrations, clip.video_id)} == {str}
    narrations = read_narrations(path)
    assert [scores for _, _, scores in narrations] == [None, (0.25,), (1.0, float("inf")), ()]
    assert {type(score) for _, _, scores in narrations for score in scores or ()} == {float}


def test_narrations_have_the_ids_of_the_clips(tmp_path: Path) -> None:
    """Also where the same times come again, and where an entry cannot be a clip."""
    data = [("v", 1.0, 2.0, "one"), ("v", 2.0, 2.0, "none"), ("v", 1.0, 2.0, "two"), ("w", 1.0, 2.0, "three")]
    path = save(tmp_path, data)
    clips = read_annotations("ego4d", path, split="train").clips
    assert [clip.clip_id for clip in clips] == ["v_00001000_00002000", "v_00001000_00002000_2", "w_00001000_00002000"]
    assert read_narrations(path) == [(clip.clip_id, clip.narrations, None) for clip in clips]
    scored = [(*entry[:3], [entry[3], "x"], [0.5, 1.5]) for entry in data]
    narrations = read_narrations(save(tmp_path, scored, "narrator.pkl"))
    assert [name for name, _, _ in narrations] == [clip.clip_id for clip in clips]
    assert narrations[1][1:] == (("two", "x"), (0.5, 1.5))


@pytest.mark.parametrize("split", ["train", "val"])
def test_the_folder_has_a_file_of_each_split(tmp_path: Path, split: str) -> None:
    save(tmp_path, [("t", 0, 1, "")], "ego4d_train.pkl")
    save(tmp_path, [("v", 0, 1, "")], "ego4d_val.pkl")
    assert [clip.video_id for clip in read_annotations("ego4d", tmp_path, split=split).clips] == [split[0]]
    other = {"train": "val", "val": "train"}[split]
    with pytest.raises(AnnotationError, match=rf"'{other}'.*'{split}'"):
        read_annotations("ego4d", tmp_path / f"ego4d_{other}.pkl", split=split)
    with pytest.raises(AnnotationError, match=r"'test'.*train, val"):
        read_annotations("ego4d", tmp_path, split="test")
    (tmp_path / f"ego4d_{split}.pkl").unlink()
    with pytest.raises(AnnotationError, match=rf"ego4d_{split}.pkl.*ego4d_{other}.pkl"):
        read_annotations("ego4d", tmp_path, split=split)


def test_entries_that_cannot_be_clips_are_listed_and_the_rest_is_read(tmp_path: Path) -> None:
    data = [
        ("v", 2.0, 1.5, "a"),
        ("v", 2.0, 2.0, "a"),
        ("v", -0.5, 2.0, "a"),
        ("../v", 0.0, 1.0, "a"),
        ("/etc/v", 0.0, 1.0, "a"),
        ("C:\\v", 0.0, 1.0, "a"),
        ("a\0b", 0.0, 1.0, "a"),
        ("v", 0.0, 1.0, "a"),
    ]
    found = read_annotations("ego4d", save(tmp_path, data), split="train")
    assert [clip.clip_id for clip in found.clips] == ["v_00000000_00001000"]
    assert found.failures[0] == (
        "v_00002000_00001500",
        "v.mp4",
        "ego4d_train.pkl, entry 0: stop 1.5 s is not after start 2 s; correct the times",
    )
    assert found.failures[2][0] == "v_-0000500_00002000"
    assert found.failures[3] == (
        "%2E%2E%2Fv_00000000_00001000",
        "../v.mp4",
        "ego4d_train.pkl, entry 3: video path '../v.mp4' leaves the video root; correct the video's name",
    )
    assert ["leaves the video root" in reason for _, _, reason in found.failures] == [False] * 3 + [True] * 3 + [False]
    assert "holds control characters" in found.failures[6][2]


GOOD = ("v", 0.0, 1.0, "a")
BAD_FILES = [  # what the file holds, and what the message names of it
    ({"a": 1}, "dict"),
    ("abc", "'abc'"),
    (None, "None"),
    ([GOOD, ("v", 0.0, 1.0)], "entry 1: 3 values"),
    ([GOOD, (*GOOD, [0.5], 1)], "entry 1: 6 values"),
    ([GOOD, GOOD, "v 0 1 a"], "entry 2: 'v 0 1 a'"),
    ([(b"v", 0.0, 1.0, "a")], "entry 0: b'v'"),
    ([("half \ud800", 0.0, 1.0, "a")], r"entry 0: 'half \\ud800'"),
    ([("v", 0.0, 1.0, 5)], "entry 0: 5 .* narrations"),
    ([("v", 0.0, 1.0, {"a"})], "entry 0: .*set .* narrations"),
    ([("v", 0.0, 1.0, ["a", None])], "entry 0: None .* narration"),
    ([("v", 0.0, 1.0, "half \udfff")], r"entry 0: 'half \\udfff' .* narration"),
    ([("v", 0.0, 1.0, ["a"], [0.5, 1.5])], "entry 0: 1 narrations .* 2 scores"),
    ([("v", 0.0, 1.0, ["a"], 0.5)], "entry 0: 0.5 .* scores"),
    ([("v", 0.0, 1.0, ["a"], ["0.5"])], "entry 0: '0.5' .* score"),
    ([("v", 0.0, 1.0, ["a"], [10**400])], "entry 0: .* score"),
    ([("v", 0.0, 1.0, np.array([["a"]]))], "entry 0: .*ndarray .* narrations"),
]


@pytest.mark.parametrize(("data", "message"), BAD_FILES)
def test_what_is_no_list_of_entries_is_named(tmp_path: Path, data: object, message: str) -> None:
    path = save(tmp_path, data)
    with pytest.raises(AnnotationError, match=rf"^{path}.*{message}") as caught:
        read_annotations("ego4d", path, split="train")
    assert "\n" not in str(caught.value)
    with pytest.raises(AnnotationError, match=rf"^{path}.*{message}"):
        read_narrations(path)


def test_fifth_value_none_means_no_scores(tmp_path: Path) -> None:
    assert read_narrations(save(tmp_path, [(*GOOD[:3], ["a"], None)])) == [("v_00000000_00001000", ("a",), None)]
