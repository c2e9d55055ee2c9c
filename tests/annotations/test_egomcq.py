"""EgoMCQ's questions -> clips, each once, and a table of questions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lavila.annotations import read_annotations
from lavila.annotations.base import AnnotationError


def choice(video: str = "v", start: object = 0.0, stop: object = 1.0, text: str = "t") -> dict[str, Any]:
    return {"video_uid": video, "clip_start": start, "clip_end": stop, "clip_text": text}


def question(*choices: dict[str, Any], answer: int = 0, kind: int = 1, text: str = "#C C 食べる") -> dict[str, Any]:
    return {
        "answer": answer,
        "types": kind,
        "query": {"clip_text": text, "video_uid": "v"},
        "choices": {str(place): one for place, one in enumerate(choices)},
    }


def five(video: str = "v") -> list[dict[str, Any]]:
    return [choice(video, float(second), second + 0.5, f"{video} {second}") for second in range(5)]


def save(folder: Path, questions: object, name: str = "egomcq.json") -> Path:
    (folder / name).write_text(json.dumps(questions), encoding="utf-8")
    return folder / name


def test_questions_and_clips(tmp_path: Path) -> None:
    others = [choice(name, "12.5", "13", name) for name in "abc"]
    again = [choice("v", 1.0, 1.5, "said otherwise"), choice("v", 2.0, 2.5, "v 2")]
    path = save(
        tmp_path, {"10": question(*others, *again, answer=4), "2": question(*five(), answer=3, kind=2, text="")}
    )
    found = read_annotations("egomcq", tmp_path, split="val")
    assert read_annotations("egomcq", path, split="val") == found
    assert [clip.clip_id for clip in found.clips] == [
        *(f"v_0000{second}000_0000{second}500" for second in range(5)),
        *(f"{name}_00012500_00013000" for name in "abc"),
    ]
    assert found.clips[0].video_path == "v.mp4"
    assert [clip.narrations for clip in found.clips[:3]] == [("v 0",), ("v 1", "said otherwise"), ("v 2",)]
    assert (found.clips[5].start_second, found.clips[5].stop_second) == (12.5, 13.0)
    ids = [clip.clip_id for clip in found.clips]
    assert found.tables["questions"] == [
        {"question_id": "2", "kind": "intra", "text": "", "choices": ids[:5], "answer": 3},
        {
            "question_id": "10",
            "kind": "inter",
            "text": "#C C 食べる",
            "choices": [*ids[5:], ids[1], ids[2]],
            "answer": 4,
        },
    ]
    assert (found.span_rule, found.failures, found.classes, found.files) == ("duration", [], {}, [path])


def test_clips_closer_than_a_millisecond_stay_two(tmp_path: Path) -> None:
    choices = [choice(start=0.00001 * place) for place in range(5)]
    found = read_annotations("egomcq", save(tmp_path, {"0": question(*choices)}), split="val")
    ids = ["v_00000000_00001000", *(f"v_00000000_00001000_{count}" for count in (2, 3, 4, 5))]
    assert [clip.clip_id for clip in found.clips] == found.tables["questions"][0]["choices"] == ids


def test_a_question_with_an_unusable_choice_is_listed(tmp_path: Path) -> None:
    bad = [*five("w")[:3], choice("../v"), choice("v", 3, 2)]
    found = read_annotations("egomcq", save(tmp_path, {"0": question(*bad), "1": question(*five())}), split="val")
    assert [row["question_id"] for row in found.tables["questions"]] == ["1"]
    assert {clip.video_id for clip in found.clips} == {"v"}
    assert found.failures == [
        (
            "%2E%2E%2Fv_00000000_00001000",
            "../v.mp4",
            "egomcq.json, question 0, choice 3: video path '../v.mp4' leaves the video root; "
            "the question is left out, correct it",
        ),
        (
            "v_00003000_00002000",
            "v.mp4",
            "egomcq.json, question 0, choice 4: stop 2 s is not after start 3 s; the question is left out, correct it",
        ),
    ]


def test_there_is_no_training_split(tmp_path: Path) -> None:
    save(tmp_path, {})
    with pytest.raises(AnnotationError, match=r"'train'.*'val'"):
        read_annotations("egomcq", tmp_path, split="train")


def changed(**parts: object) -> dict[str, Any]:
    return {"0": {**question(*five()), **parts}}


def changed_choice(**parts: object) -> dict[str, Any]:
    return {"0": question(*five()[:4], {**choice(), **parts})}


BAD_FILES = [  # what the file holds, and what the message names of it
    ([], "list"),
    ({"first": {}}, "'first'"),
    ({"-1": {}}, "'-1'"),
    ({"0": 5}, "question 0: 5"),
    (changed(answer=5), "question 0: answer 5, types 1.* 0 to 4 "),
    (changed(types=0), "question 0: answer 0, types 0"),
    (changed(answer="1"), "question 0: answer .*'1'"),
    (changed(types=True), "question 0: types .*True"),
    (changed(query=None), "question 0: query .*None"),
    (changed(query={}), "question 0: clip_text .*None"),
    (changed(query={"clip_text": "\ud800"}), "question 0: clip_text"),
    (changed(choices=[]), "question 0: choices .*list"),
    (changed(choices={}), "question 0: choices .*'0' to '4'"),
    ({"0": question(*five(), choice())}, "question 0: choices '0', '1', '2', '3', '4', '5'"),
    (changed(choices={**question(*five())["choices"], "2": []}), "question 0, choice 2: .*list"),
    (changed_choice(video_uid=7), "question 0, choice 4: video_uid .*7"),
    (changed_choice(clip_text=[]), "question 0, choice 4: clip_text .*list"),
]


@pytest.mark.parametrize(("questions", "message"), BAD_FILES)
def test_bad_questions_are_named(tmp_path: Path, questions: object, message: str) -> None:
    path = save(tmp_path, questions)
    with pytest.raises(AnnotationError, match=rf"^{path}.*{message}") as caught:
        read_annotations("egomcq", path, split="val")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "JSON"),
        ("{", "JSON"),
        ("[" * 100_000, "JSON"),
        (f'{{"0": {"9" * 5000}}}', "JSON"),
        ('{"0": {}, "0": {}}', r"JSON.*key"),
    ],
)
def test_what_is_no_json(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "egomcq.json").write_text(content)
    with pytest.raises(AnnotationError, match=rf"egomcq.json.*{message}"):
        read_annotations("egomcq", tmp_path, split="val")


def test_byte_order_mark_and_missing_clip_text(tmp_path: Path) -> None:
    choices = five()
    del choices[2]["clip_text"]
    path = save(tmp_path, {"0": question(*choices)})
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read_annotations("egomcq", path, split="val").clips[2].narrations == ()
