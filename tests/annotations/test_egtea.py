"""EGTEA's text files -> trimmed clips of one action each."""

from __future__ import annotations

from pathlib import Path

import pytest

from lavila.annotations import read_annotations
from lavila.annotations.base import AnnotationError
from tests.annotations.published import GOLDEN

NAMES: list[str] = GOLDEN["label_map_egtea"]["lines"]
CLIP = "OP01-R01-PastaSalad-1002316-1004005-F024051-F024101"
OTHER = "P05-R03-BaconAndEggs-51880-53740-F001248-F001301"


def write(folder: Path, *lines: str, names: list[str] = NAMES, file: str = "train_split1.txt", end: str = "\n") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "action_idx.txt").write_bytes("".join(f"{name}{end}" for name in names).encode())
    (folder / file).write_bytes("".join(f"{line}{end}" for line in lines).encode())
    return folder / file


def test_clips_and_label_map_match_reference(tmp_path: Path) -> None:
    golden = GOLDEN["egtea"]
    write(tmp_path, *golden["lines"])
    found = read_annotations("egtea", tmp_path, split="train")
    texts = found.classes["action"]
    samples = [[clip.video_path, int(clip.start_second), texts[clip.action or 0]] for clip in found.clips]
    assert samples == [[path, start, text] for path, start, _, text in golden["samples"]]
    assert texts == GOLDEN["label_map_egtea"]["labels"]
    assert {text: index for index, text in enumerate(texts)} == GOLDEN["label_map_egtea"]["mapping"]
    assert found.class_texts == {"action": [[text] for text in texts]}
    assert [clip.stop_second for clip in found.clips] == [None, None]  # the number of frames is the file's
    assert [clip.clip_id for clip in found.clips] == [line.split()[0] for line in golden["lines"]]
    assert [clip.narrations for clip in found.clips] == [("open fridge",), ("cut tomato cherry",)]
    assert [clip.extra for clip in found.clips] == [{"further_columns": "1 53"}, {"further_columns": "4 5 6"}]
    assert (found.span_rule, found.failures) == ("edges", [])
    assert found.files == [tmp_path / "train_split1.txt", tmp_path / "action_idx.txt"]


def test_numbers_may_come_in_any_order_and_files_in_any_dress(tmp_path: Path) -> None:
    plain = read_annotations("egtea", write(tmp_path / "plain", f"{CLIP} 2 1 53", f"{OTHER} 3"), split="train")
    path = write(tmp_path / "odd", f" {CLIP}\t2  1 53 ", "", f"{OTHER} 3 ", names=[*NAMES[::-1], ""], end="\r\n")
    for file in (path, path.parent / "action_idx.txt"):
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    odd = read_annotations("egtea", path, split="train")
    assert (odd.clips, odd.classes) == (plain.clips, plain.classes)


def test_splits(tmp_path: Path) -> None:
    write(tmp_path, f"{CLIP} 1")
    write(tmp_path, f"{OTHER} 1", file="test_split1.txt")
    write(tmp_path, f"{OTHER} 4", file="train_split3.txt")
    assert [clip.clip_id for clip in read_annotations("egtea", tmp_path, split="val").clips] == [OTHER]
    found = read_annotations("egtea", tmp_path / "train_split3.txt", split="train")
    assert [(clip.clip_id, clip.action) for clip in found.clips] == [(OTHER, 3)]
    with pytest.raises(AnnotationError, match=r"'val'.*'train'.*train_split1.txt"):
        read_annotations("egtea", tmp_path / "test_split1.txt", split="train")


def test_clips_outside_the_video_root_are_listed(tmp_path: Path) -> None:
    names = ["/etc-a-b-c", "../a-b-c-d", "a\\b-c-d-e", "C:a-b-c-d"]
    found = read_annotations("egtea", write(tmp_path, *(f"{name} 1" for name in names), f"{CLIP} 1"), split="train")
    assert [clip.clip_id for clip in found.clips] == [CLIP]
    assert found.failures[0] == (
        "/etc-a-b-c",
        "/etc-a-b//etc-a-b-c.mp4",
        "train_split1.txt, line 1: video path '/etc-a-b//etc-a-b-c.mp4' leaves the video root; correct the clip's name",
    )
    assert [clip_id for clip_id, _, _ in found.failures] == names


RANGE = "is not an action; allowed are whole numbers from 1 to 4"
BAD_LINES = [
    (CLIP, f"'' {RANGE}"),
    (f"{CLIP} 0", f"'0' {RANGE}"),
    (f"{CLIP} 5", f"'5' {RANGE}"),
    (f"{CLIP} cut", f"'cut' {RANGE}"),
    (f"{OTHER} 1", f"'{OTHER}' was already on line 1; remove one"),
    ("a-b-c 1", f"'a-b-c' should look like {CLIP}; correct the clip's name"),
    ("a-b-c-d.mp4 1", "'a-b-c-d.mp4' must be a name without dots, slashes and spaces; correct the clip's name"),
]


@pytest.mark.parametrize(("line", "message"), BAD_LINES)
def test_bad_lines_are_named(tmp_path: Path, line: str, message: str) -> None:
    path = write(tmp_path, f"{OTHER} 1", "", line)
    with pytest.raises(AnnotationError) as caught:
        read_annotations("egtea", path, split="train")
    assert str(caught.value) == f"{path}, line 3: {message}"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], ""),
        (["Cut 1", "Open 1"], "line 2.*1.*'cut'"),
        (["Cut 1", "2"], "line 2.*name"),
        (["Cut 1", "Open 3"], "line 2.*'3'.*1 to 2"),
        (["Cut"], "line 1.*'Cut'"),
    ],
)
def test_bad_actions_are_named(tmp_path: Path, names: list[str], message: str) -> None:
    with pytest.raises(AnnotationError, match=rf"action_idx.txt.*{message}"):
        read_annotations("egtea", write(tmp_path, f"{CLIP} 1", names=names), split="train")


def test_missing_files_and_bytes_that_are_not_text(tmp_path: Path) -> None:
    path = write(tmp_path, f"{CLIP} 1")
    with pytest.raises(AnnotationError, match=r"test_split1.txt.*action_idx.txt, train_s"):
        read_annotations("egtea", tmp_path, split="val")
    (tmp_path / "action_idx.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(AnnotationError, match=r"action_idx.txt.*UTF-8"):
        read_annotations("egtea", path, split="train")
    (tmp_path / "action_idx.txt").unlink()
    with pytest.raises(AnnotationError, match=r"action_idx.txt"):
        read_annotations("egtea", path, split="train")
