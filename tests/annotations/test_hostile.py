"""Whatever bytes lie in an annotation file: clips or an AnnotationError of one line, and nothing else."""

from __future__ import annotations

import json
import pickle
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lavila.annotations import read_annotations
from lavila.annotations.base import AnnotationError, AnnotationSet
from lavila.annotations.checks import clip_id_problem, video_path_problem
from lavila.pickles.errors import PickleError
from lavila.pickles.plain import read_pickle
from tests.annotations import test_charades_ego, test_egomcq, test_egtea, test_epic_retrieval
from tests.annotations.published import GOLDEN, TRAIN, row, write_set

fuzz = settings(
    max_examples=100, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow], database=None
)

EGO4D = [
    ("0a3097fc", 0.5, 2.0, "#C C takes plate"),
    ("0a3097fc", np.float32(0.5), 2, ["#C C takes plate", "食べる"]),
    ("b", 1.0, 2.5, ["one", "two"], np.array([0.5, 1.5])),
]


def _epic(folder: Path) -> None:
    write_set(folder, GOLDEN["ek100"]["rows"], [row()])
    for kind in ("verb", "noun"):  # short, so that mutations meet what matters
        lines = "".join(f"{i},{kind}-{i}\r\n" for i in range(17))
        (folder / f"EPIC_100_{kind}_classes.csv").write_text(f"id,key\r\n{lines}")


def _retrieval(folder: Path) -> None:
    test_epic_retrieval.write(folder)
    _epic(folder)
    found = read_annotations("ek100_mir", folder, split="val")
    test_epic_retrieval.save_relevancy(folder, test_epic_retrieval.by_the_formula(*test_epic_retrieval.meanings(found)))


def _questions(folder: Path) -> None:
    easy, hard = (test_egomcq.question(*test_egomcq.five(video), kind=kind) for kind, video in ((1, "v"), (2, "w")))
    test_egomcq.save(folder, {"0": easy, "1": hard})


def _ego4d(protocol: int) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "ego4d_train.pkl").write_bytes(pickle.dumps(EGO4D, protocol=protocol))

    return write


def _egtea(folder: Path) -> None:
    test_egtea.write(folder, *GOLDEN["egtea"]["lines"])


def _charades(folder: Path) -> None:
    test_charades_ego.write(folder, *GOLDEN["charades_ego"]["rows"])
    test_charades_ego.write(folder, *GOLDEN["charades_ego"]["rows"], name=test_charades_ego.TRAIN)


def _charades_pickle(folder: Path) -> None:
    _charades(folder)
    (folder / "metadata_filtered_train.pkl").write_bytes(pickle.dumps([entry[:4] for entry in EGO4D[:1]]))


WRITERS: dict[str, tuple[str, str, Callable[[Path], None], tuple[str, ...]]] = {
    "ek100_cls": ("ek100_cls", "train", _epic, (TRAIN, "EPIC_100_verb_classes.csv")),
    "ek100_mir": (
        "ek100_mir",
        "val",
        _retrieval,
        (test_epic_retrieval.CLIPS["val"], test_epic_retrieval.SENTENCES["val"], test_epic_retrieval.PICKLE),
    ),
    "ego4d protocol 0": ("ego4d", "train", _ego4d(0), ("ego4d_train.pkl",)),
    "ego4d protocol 2": ("ego4d", "train", _ego4d(2), ("ego4d_train.pkl",)),
    "ego4d protocol 5": ("ego4d", "train", _ego4d(5), ("ego4d_train.pkl",)),
    "egomcq": ("egomcq", "val", _questions, ("egomcq.json",)),
    "egtea": ("egtea", "train", _egtea, ("train_split1.txt", "action_idx.txt")),
    "charades_ego train": ("charades_ego", "train", _charades, (test_charades_ego.TRAIN, test_charades_ego.CLASSES)),
    "charades_ego val": ("charades_ego", "val", _charades, (test_charades_ego.VAL, test_charades_ego.CLASSES)),
    "charades_ego pickle": ("charades_ego", "train", _charades_pickle, ("metadata_filtered_train.pkl",)),
}
CASES = [(name, file) for name, (_, _, _, files) in WRITERS.items() for file in files]


@cache
def valid_files(name: str) -> dict[str, bytes]:
    """The published files of a case, which are read without complaint."""
    dataset, split, write, _ = WRITERS[name]
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder))
        found = read_annotations(dataset, Path(folder), split=split)
        assert found.clips
        assert not found.failures
        paths = [path for path in Path(folder).rglob("*") if path.is_file()]
        return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def read_changed(name: str, file: str, content: bytes) -> AnnotationSet | None:
    """What the reader makes of the case's files with other content in one of them; None for an AnnotationError."""
    dataset, split, _, _ = WRITERS[name]
    folder = Path(tempfile.mkdtemp())
    try:
        for path, valid in (valid_files(name) | {file: content}).items():
            (folder / path).parent.mkdir(exist_ok=True)
            (folder / path).write_bytes(valid if path != file else content)
        found = read_annotations(dataset, folder, split=split)
    except AnnotationError as error:
        assert "\n" not in str(error)
        assert len(str(error)) < 2000
        str(error).encode()
        return None
    finally:
        shutil.rmtree(folder)
    label_kind = "labels" if "labels" in found.classes else "noun"
    for clip in found.clips:
        assert not clip_id_problem(clip.clip_id)
        assert not video_path_problem(clip.video_path)
        assert clip.start_second >= 0
        assert clip.stop_second is None or clip.stop_second > clip.start_second
        assert all(0 <= label < len(found.classes[label_kind]) for label in clip.labels)
    assert len({clip.clip_id for clip in found.clips}) == len(found.clips)
    json.dumps(
        [found.failures, found.tables, [clip.narrations for clip in found.clips]], ensure_ascii=False, default=repr
    ).encode()
    return found


@st.composite
def mutations(draw: st.DrawFn, valid: bytes) -> bytes:
    """The bytes with some of them changed, lost, doubled or put in."""
    content = bytearray(valid)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(len(content) - 1, 0)))
        kind = draw(st.sampled_from(["flip", "set", "cut", "truncate", "insert", "copy", "word"]))
        stop = place + draw(st.integers(1, 12))
        if kind == "flip" and content:
            content[place] ^= 1 << draw(st.integers(0, 7))
        elif kind == "set":
            content[place : place + 1] = draw(st.binary(min_size=1, max_size=1))
        elif kind == "cut":
            del content[place:stop]
        elif kind == "truncate":
            del content[place:]
        elif kind == "insert":
            content[place:place] = draw(st.binary(min_size=1, max_size=8))
        elif kind == "copy":
            source = draw(st.integers(0, max(len(content) - 1, 0)))
            content[place:place] = content[source : source + stop - place]
        else:
            content[place:stop] = draw(st.sampled_from(WORDS))
    return bytes(content)


WORDS = [
    b"..",
    b"/",
    b"../",
    b"\\",
    b"\0",
    b"nan",
    b"-1",
    b"1e999",
    b'"',
    b"\n",
    b"\r\n",
    b",",
    b";",
    b"\xff",
    b"9" * 400,
]
WORDS += [b"c__main__\nx\n", b"R", b"b", b"\x81", b"\x93", b"r\xff\xff\xff\x7f", b"\x85", b"s", b"\xed\xa0\x80", b" "]


@pytest.mark.parametrize(("name", "file"), CASES)
@fuzz
@given(data=st.data())
def test_mutations_of_valid_files(name: str, file: str, data: st.DataObject) -> None:
    read_changed(name, file, data.draw(mutations(valid_files(name)[file])))


@pytest.mark.parametrize(("name", "file"), CASES)
@fuzz
@given(content=st.binary(max_size=200))
def test_arbitrary_bytes(name: str, file: str, content: bytes) -> None:
    read_changed(name, file, content)


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.binary()
    | st.sampled_from([10**400, "\ud800"]),
    lambda inner: st.lists(inner) | st.tuples(inner, inner, inner, inner) | st.dictionaries(st.text(), inner),
    max_leaves=12,
)
ENTRIES = st.lists(
    st.tuples(st.text() | PLAIN, st.floats() | PLAIN, st.floats() | PLAIN, st.text() | st.lists(st.text()) | PLAIN)
    | st.tuples(st.text(), st.floats(0, 9), st.floats(0, 9), st.lists(st.text()), st.lists(st.floats())),
)


@pytest.mark.parametrize("name", ["ego4d protocol 5", "charades_ego pickle"])
@fuzz
@given(data=PLAIN | ENTRIES)
def test_pickles_of_any_data(name: str, data: object) -> None:
    read_changed(name, WRITERS[name][3][0], pickle.dumps(data))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["../a", "1.5", "\ud800"]),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["0", "1", "query", "clip_text"]), inner),
    max_leaves=8,
)


@fuzz
@given(data=st.data())
def test_questions_with_any_part_replaced(data: st.DataObject) -> None:
    questions: Any = json.loads(valid_files("egomcq")["egomcq.json"])
    place, part = questions, "0"
    for _ in range(data.draw(st.integers(0, 3))):
        inner = place[part]
        if not isinstance(inner, dict):
            break
        place, part = inner, data.draw(st.sampled_from(sorted(inner)))
    place[part] = data.draw(JSON)
    read_changed("egomcq", "egomcq.json", json.dumps(questions).encode())


OPCODES = [
    bytes([getattr(pickle, name)[0]])
    for name in dir(pickle)
    if name.isupper() and isinstance(getattr(pickle, name), bytes)
]
ARGUMENTS = [b"cbuiltins\nset\n", b"cnumpy\ndtype\n", b"cnumpy.core.multiarray\n_reconstruct\n", b"cnumpy\nndarray\n"]
ARGUMENTS += [b"X\x02\0\0\0f8", b"K\x01", b"K\x00\x85", b"C\x01b", b"(", b"}", b"]", b"h\0", b"I1\n", b"G" + bytes(8)]


@settings(fuzz, max_examples=1000)
@given(words=st.lists(st.sampled_from(OPCODES + ARGUMENTS * 2) | st.binary(max_size=4), max_size=30))
def test_programs_of_any_opcodes(tmp_path_factory: pytest.TempPathFactory, words: list[bytes]) -> None:
    path = tmp_path_factory.getbasetemp() / "program.pkl"
    path.write_bytes(b"".join(words) + b".")
    try:
        read_pickle(path)
    except PickleError as error:
        assert "\n" not in str(error)


def test_mutations_reach_both_outcomes() -> None:
    """The fuzzing above would show nothing if every mutation were refused, or none."""
    for name, file in CASES:
        valid = valid_files(name)[file]
        outcomes = {
            read_changed(name, file, changed) is None
            for place in range(0, len(valid), max(1, len(valid) // 30))
            for changed in (valid[:place], valid[:place] + bytes([valid[place] ^ 1]) + valid[place + 1 :])
        }
        assert outcomes == {True, False}, (name, file)
