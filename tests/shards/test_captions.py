"""Captions tables: reading and writing them, laying them over a shard set, and what the loaders hand out."""

from __future__ import annotations

import itertools
import json
import random
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lavila.config.load import load_config
from lavila.config.schema import RunConfig
from lavila.engine import build
from lavila.engine.distributed import Process
from lavila.plan.plans import Ranks
from lavila.records import VideoBatch
from lavila.shards.captions import CAPTIONS_SCHEMA, CaptionError, Captions, choose, read_captions, write_captions
from lavila.shards.format import file_sha256
from lavila.shards.reader import ShardSet, open_shard_set
from tests.data.test_loader import training, viewing

IDS = ["clip_0", "clip_1"]
TEXTS = [["cut the leek", "切る 🥬"], []]
STRINGS = pa.list_(pa.string())


def table(folder: Path, words: dict[str, list[str]], *, source: str, name: str = "") -> Path:
    path = folder / (name or f"{source}.parquet")
    write_captions(path, [(clip_id, texts, None) for clip_id, texts in words.items()], source=source)
    return path


def row_of(shards: ShardSet, clip_id: str) -> int:
    return int(shards.clips.column("clip_id").to_pylist().index(clip_id))


def words_of(captions: Captions, shards: ShardSet) -> dict[str, tuple[tuple[str, ...], tuple[str, ...]]]:
    return {name: captions.of(row) for row, name in enumerate(shards.clips.column("clip_id").to_pylist())}


# --- reading and writing ---------------------------------------------------------------------------------------------


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "words.parquet"
    rows = [("a", ["cut the leek", "  spaces \n kept\t"], [1.5, float("inf")]), ("b", ["切る é e\u0301 🥬"], None)]
    assert write_captions(path, iter([*rows, ("c", [], None)]), source="machine") == 3
    read = read_captions(path)
    assert read.schema.equals(CAPTIONS_SCHEMA)
    assert read.to_pylist() == [
        *({"clip_id": a, "narrations": b, "scores": c, "source": "machine"} for a, b, c in rows),
        {"clip_id": "c", "narrations": [], "scores": None, "source": "machine"},
    ]


@pytest.mark.parametrize(
    ("rows", "source", "message"),
    [
        ([("a", ["x"], None), ("a", ["y"], None)], "machine", "'a'"),
        ([("a", ["x"], [1.0, 2.0])], "machine", "'a'.*2.*1"),
        ([("a", ["\ud83e"], None)], "machine", "'a': '.ud83e'"),
        ([("a", [b"x"], None)], "machine", "'a': b'x'"),
        ([("a", ["x"], None)], "", "source"),
    ],
)
def test_what_no_table_can_hold_is_not_written(tmp_path: Path, rows: Any, source: str, message: str) -> None:
    path = tmp_path / "words.parquet"
    with pytest.raises(CaptionError, match=message):
        write_captions(path, rows, source=source)
    assert list(tmp_path.iterdir()) == []
    write_captions(path, [("old", ["x"], None)], source="human")
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(CaptionError, match=rf"^{path}.*{message}"):
        write_captions(path, rows, source=source)
    assert before.keys() == {path, path.with_suffix(".arrow")}
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before


def columns(**changes: pa.Array) -> dict[str, pa.Array]:
    values = {
        "clip_id": pa.array(IDS),
        "narrations": pa.array(TEXTS, STRINGS),
        "scores": pa.array([[0.5, 2.0], None], pa.list_(pa.float64())),
        "source": pa.array(["human", "machine"]),
    }
    return {name: value for name, value in (values | changes).items() if value is not None}


def write(path: Path, values: dict[str, pa.Array]) -> Path:
    pq.write_table(pa.table(values), path)
    return path


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"clip_id": pa.array(IDS, pa.large_string()), "source": pa.array(["human", "machine"], pa.large_string())},
        {"clip_id": pa.array(IDS, pa.string_view())},
        {"narrations": pa.array(TEXTS, pa.large_list(pa.large_string()))},
        {"narrations": pa.array(TEXTS, pa.list_(pa.string_view()))},
        {"narrations": pa.array(TEXTS, STRINGS).cast(pa.list_(pa.dictionary(pa.int32(), pa.string())))},
        {"source": pa.array(["human", "machine"]).dictionary_encode()},
        {"scores": pa.array([[0.5, 2.0], None], pa.large_list(pa.float32()))},
    ],
)
def test_other_kinds_of_strings_and_lists_are_taken(tmp_path: Path, changes: dict[str, pa.Array]) -> None:
    wanted = pa.table(columns()).cast(CAPTIONS_SCHEMA)
    assert read_captions(write(tmp_path / "t.parquet", columns(**changes))).equals(wanted)


@pytest.mark.parametrize(
    ("changes", "scores"),
    [
        ({"scores": None}, [None, None]),
        ({"scores": pa.nulls(2)}, [None, None]),
        ({"scores": pa.array([[1, 2], []], pa.list_(pa.int64()))}, [[1.0, 2.0], []]),
        ({"narrations": pa.array([[], []], pa.list_(pa.null())), "scores": None}, [None, None]),
        ({"narrations": pa.array([["a", "b"], ["c", "d"]], pa.list_(pa.string(), 2)), "scores": None}, [None, None]),
    ],
)
def test_scores_may_be_missing_null_or_whole_numbers(tmp_path: Path, changes: Any, scores: list[Any]) -> None:
    read = read_captions(write(tmp_path / "t.parquet", columns(**changes)))
    assert read.schema.equals(CAPTIONS_SCHEMA) and read.column("scores").to_pylist() == scores


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": None}, r"source.*clip_id, narrations, scores"),
        ({"score": pa.array([1, 2])}, "clip_id, narrations, scores, source, score"),
        ({"clip_id": pa.array([1, 2])}, "clip_id.*int64"),
        ({"narrations": pa.array(["a", "b"])}, "narrations.*string"),
        ({"narrations": pa.array([[1], [2]])}, "narrations.*int64"),
        ({"scores": pa.array([1.0, 2.0])}, "scores.*double"),
        ({"scores": pa.array([["1"], None])}, "scores.*string"),
        ({"source": pa.array([True, False])}, "source.*bool"),
        ({"clip_id": pa.array(["a", "a"])}, "'a'"),
        ({"clip_id": pa.array(["a", None])}, "clip_id.*1 of 2"),
        ({"narrations": pa.array([["a", "b"], None])}, "narrations.*1 of 2"),
        ({"narrations": pa.array([["a", None], []])}, "narrations.*null"),
        ({"source": pa.array([None, "human"])}, "source.*1 of 2"),
        ({"scores": pa.array([None, [0.5]])}, "'clip_1'.*1.*0"),
        ({"scores": pa.array([[0.5], None])}, "'clip_0'.*1.*2"),
    ],
)
def test_a_wrong_table_is_reported_in_one_line(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = write(tmp_path / "t.parquet", columns(**changes))
    with pytest.raises(CaptionError, match=message) as found:
        read_captions(path)
    assert str(found.value).startswith(f"{path}: ") and "\n" not in str(found.value)


def test_text_that_is_not_utf8_is_an_error(tmp_path: Path) -> None:
    offsets, data = pa.py_buffer(np.array([0, 2, 4], np.int32)), pa.py_buffer(b"ok\xff\xfe")
    bad = pa.StringArray.from_buffers(2, offsets, data)
    path = write(tmp_path / "t.parquet", columns(source=bad))
    with pytest.raises(CaptionError, match=rf"{path}.*UTF8"):
        read_captions(path)


def test_what_is_not_parquet_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    with pytest.raises(CaptionError, match=r"t\.parquet.*tools/make_captions"):
        read_captions(path)
    with pytest.raises(CaptionError, match=str(tmp_path)):
        read_captions(tmp_path)
    for content in (b"", b"clip_id,narration\nclip_0,cut\n", b"PAR1"):
        path.write_bytes(content)
        with pytest.raises(CaptionError, match=r"t\.parquet"):
            read_captions(path)
    whole = write(tmp_path / "whole.parquet", columns()).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CaptionError, match=r"t\.parquet|whole"):
        read_captions(path)


# --- laying tables over a set ----------------------------------------------------------------------------------------


def test_without_tables_a_clip_has_the_words_it_came_with(vp9_shards: ShardSet) -> None:
    wanted = {f"clip_{i}": ((f"clip number {i}",), ("human",)) for i in range(12)}
    assert words_of(Captions(vp9_shards), vp9_shards) == wanted
    assert words_of(Captions(vp9_shards, ["own"]), vp9_shards) == wanted


def test_several_tables_follow_each_other_in_the_order_of_the_list(vp9_shards: ShardSet, tmp_path: Path) -> None:
    machine = table(tmp_path, {"clip_7": ["m0", "m1"], "clip_0": ["m2"]}, source="machine")
    rephrased = table(tmp_path, {"clip_7": ["r0"], "clip_3": [], "clip_4": ["r1"]}, source="rephrased")
    found = words_of(Captions(vp9_shards, [machine, "own", rephrased]), vp9_shards)
    assert found["clip_7"] == (("m0", "m1", "clip number 7", "r0"), ("machine", "machine", "human", "rephrased"))
    assert found["clip_0"] == (("m2", "clip number 0"), ("machine", "human"))
    assert found["clip_3"] == (("clip number 3",), ("human",))
    assert found["clip_4"] == (("clip number 4", "r1"), ("human", "rephrased"))
    assert words_of(Captions(vp9_shards, [rephrased, machine]), vp9_shards)["clip_7"] == (
        ("r0", "m0", "m1"),
        ("rephrased", "machine", "machine"),
    )


def test_one_table_may_have_several_sources(vp9_shards: ShardSet, tmp_path: Path) -> None:
    path = write(tmp_path / "t.parquet", columns(narrations=pa.array([["a", "b"], ["c"]]), scores=None))
    found = words_of(Captions(vp9_shards, [path]), vp9_shards)
    assert found["clip_0"] == (("a", "b"), ("human", "human")) and found["clip_1"] == (("c",), ("machine",))


@pytest.mark.parametrize("row_group", [1, 7, 1000])
def test_rows_are_joined_by_clip_id_whatever_their_order_and_row_groups(
    vp9_shards: ShardSet, tmp_path: Path, row_group: int
) -> None:
    words = {f"clip_{i}": [f"{i}.{j}" for j in range(i % 4)] for i in range(-20, 40)}
    order = list(words)
    random.Random(row_group).shuffle(order)
    values = {"clip_id": order, "narrations": [words[name] for name in order], "source": [f"of {n}" for n in order]}
    pq.write_table(pa.table(values), tmp_path / "t.parquet", row_group_size=row_group)
    for name, (texts, sources) in words_of(Captions(vp9_shards, [tmp_path / "t.parquet"]), vp9_shards).items():
        assert texts == tuple(words[name]) and sources == (f"of {name}",) * len(texts)


def test_clips_may_have_no_words_and_words_no_clips(vp9_shards: ShardSet, tmp_path: Path) -> None:
    path = table(tmp_path, {"clip_1": ["x"], "clip_2": [], "p1": ["y"], "p2": ["z"], "clip_3": ["w"]}, source="machine")
    captions = Captions(vp9_shards, [path])
    assert captions.of(row_of(vp9_shards, "clip_5")) == captions.of(row_of(vp9_shards, "clip_2")) == ((), ())
    assert captions.of(row_of(vp9_shards, "clip_3")) == (("w",), ("machine",))


def test_a_table_of_other_clips_is_refused(vp9_shards: ShardSet, tmp_path: Path) -> None:
    path = table(tmp_path, {"P01_01_7": ["x"], "P01_01_8": ["y"]}, source="machine")
    for listed in ([path], ["own", path]):
        with pytest.raises(
            CaptionError,
            match=rf"^{path}.*2 clips.*'P01_01_7'.*{vp9_shards.path}.*'clip_0'",
        ):
            Captions(vp9_shards, listed)
    empty = table(tmp_path, {}, source="none")
    with pytest.raises(CaptionError, match=r"none\.parquet.*'clip_0'"):
        Captions(vp9_shards, [empty])


def test_a_table_that_is_listed_twice_is_refused(vp9_shards: ShardSet) -> None:
    with pytest.raises(CaptionError, match="own"):
        Captions(vp9_shards, ["own", "own"])


def test_the_manifest_may_say_who_wrote_the_sets_own_words(vp9_shards: ShardSet, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(vp9_shards.path, copy)
    manifest = json.loads((copy / "shard_set.json").read_text())
    (copy / "shard_set.json").write_text(json.dumps(manifest | {"narrations_source": "machine"}))
    shards = open_shard_set(copy)
    assert Captions(shards).of(0) == (("clip number 0",), ("machine",))
    batch = next(iter(training(shards)))
    assert batch.captions()[0].startswith("clip number") and not batch.human.any()


def test_words_change_and_tars_do_not(vp9_shards: ShardSet, tmp_path: Path) -> None:
    def files() -> dict[str, str]:
        return {path.name: file_sha256(path) for path in vp9_shards.path.iterdir()}

    before, path = files(), tmp_path / "words.parquet"
    seen = []
    for word in ("first", "second"):
        table(tmp_path, {f"clip_{i}": [f"{word} {i}"] for i in range(12)}, source=word, name=path.name)
        batches = list(training(vp9_shards, captions=Captions(vp9_shards, [path])))
        assert [b.captions() for b in batches] == [[f"{word} {n[5:]}" for n in b.clip_ids] for b in batches]
        seen.append([batch.video for batch in batches])
    assert all(torch.equal(a, b) for a, b in zip(*seen, strict=True))
    assert files() == before and any(name.endswith(".tar") for name in before)


# --- choosing --------------------------------------------------------------------------------------------------------


def test_a_choice_is_uniform_and_within_bounds() -> None:
    drawn = np.random.default_rng(0).random(30_000)
    counts = Counter(choose(3, float(number)) for number in drawn)
    assert set(counts) == {0, 1, 2} and max(counts.values()) - min(counts.values()) < 500
    below_one = float(np.nextafter(1.0, 0.0))
    for count in (1, 2, 3, 7, 49, 10**6):
        assert choose(count, 0.0) == 0 and choose(count, below_one) == count - 1
        assert [choose(count, (i + 0.5) / count) for i in (0, count // 2, count - 1)] == [0, count // 2, count - 1]
    assert choose(0, 0.0) == choose(0, below_one) == -1


@pytest.fixture
def many_words(vp9_shards: ShardSet, tmp_path: Path) -> Captions:
    machine = table(
        tmp_path, {f"clip_{i}": [f"{i}.{j}" for j in range(i % 5 + 1)] for i in range(11)}, source="machine"
    )
    return Captions(vp9_shards, [machine])


def test_a_batch_says_which_words_are_chosen_and_whose_they_are(vp9_shards: ShardSet, tmp_path: Path) -> None:
    path = table(tmp_path, {f"clip_{i}": [f"{i}.{j}" for j in range(3)] for i in range(6)}, source="machine")
    other = table(tmp_path, {"clip_1": ["q"]}, source="human")
    captions = Captions(vp9_shards, [path, other])
    loader, seen = training(vp9_shards, captions=captions), Counter[str]()
    for epoch in range(8):
        loader.set_epoch(epoch)
        for step, batch in enumerate(loader):
            plans = loader.plan.batch(epoch, step)
            for i, plan in enumerate(plans):
                texts, sources = captions.of(plan.row)
                assert (batch.narrations[i], batch.sources[i]) == (texts, sources)
                assert batch.chosen[i] == (int(plan.caption * len(texts)) if texts else -1)
                assert batch.captions()[i] == (texts[batch.chosen[i]] if texts else "")
                assert batch.human[i] == (batch.captions()[i] == "q")
                seen[batch.captions()[i]] += 1
    assert batch.chosen.dtype == np.int64 and batch.human.dtype == np.bool_
    assert seen[""] == 8 * 6 and seen["q"] > 0 and len(seen) > 15  # of 19


def test_an_evaluation_takes_the_first_narration(vp9_shards: ShardSet, many_words: Captions) -> None:
    for batch in viewing(vp9_shards, captions=many_words):
        for name, text, chosen in zip(batch.clip_ids, batch.captions(), batch.chosen, strict=True):
            assert (text, chosen) == (("", -1) if name == "clip_11" else (f"{name[5:]}.0", 0))


@pytest.mark.parametrize("world", [1, 2, 4])
def test_the_choice_is_the_same_on_any_number_of_ranks_and_after_a_resume(
    vp9_shards: ShardSet, many_words: Captions, world: int
) -> None:
    def loader(rank: int, world: int) -> Any:
        found = training(vp9_shards, captions=many_words, ranks=Ranks(rank=rank, world=world))
        found.set_epoch(3)
        return found

    def chosen(batches: Any) -> dict[int, tuple[str, str]]:
        return {p: (n, c) for b in batches for p, n, c in zip(b.positions, b.clip_ids, b.captions(), strict=True)}

    alone = chosen(loader(0, 1))
    together: dict[int, tuple[str, str]] = {}
    for rank in range(world):
        begun = loader(rank, world)
        first = list(itertools.islice(begun, 1))
        resumed = loader(rank, world)
        resumed.load_state_dict(begun.state_dict())
        together |= chosen([*first, *resumed])
    assert together == alone and len({text for _, text in alone.values()}) > 8


def test_a_batch_checks_its_words(vp9_shards: ShardSet) -> None:
    batch = next(iter(training(vp9_shards)))
    whole: dict[str, Any] = {name: getattr(batch, name) for name in VideoBatch.__dataclass_fields__}
    VideoBatch(**whole)
    for wrong in (
        {"sources": batch.sources[:3]},
        {"chosen": batch.chosen[:3]},
        {"sources": ((), *batch.sources[1:])},
        {"chosen": np.array([0, 0, 0, 1])},
        {"chosen": np.array([0, 0, 0, -1])},
        {"narrations": ((), *batch.narrations[1:]), "sources": ((), *batch.sources[1:])},
    ):
        with pytest.raises(AssertionError):
            VideoBatch(**whole | wrong)


# --- from the config -------------------------------------------------------------------------------------------------


def config(folder: Path, shards: ShardSet, *overrides: str) -> RunConfig:
    data = {"train": str(shards.path), "val": str(shards.path), "batch_size": 4, "frames": 2, "image_size": 32}
    (folder / "tiny.yaml").write_text(yaml.safe_dump({"data": data, "views": {"batch_size": 4}, "device": "cpu"}))
    return load_config(folder / "tiny.yaml", overrides)


def test_the_config_lays_tables_over_every_loader(vp9_shards: ShardSet, tmp_path: Path) -> None:
    process = Process(rank=0, world=1, local_world=1, device=torch.device("cpu"))
    path = table(tmp_path, {f"clip_{i}": [f"machine {i}"] for i in range(12)}, source="machine")

    def words(*overrides: str) -> list[dict[str, Any]]:
        made = config(tmp_path, vp9_shards, *overrides)
        loaders = (build.training_loader(made, vp9_shards, process), build.view_loader(made, vp9_shards, process))
        return [
            {n: (t, s) for b in loader for n, t, s in zip(b.clip_ids, b.narrations, b.sources, strict=True)}
            for loader in loaders
        ]

    own = {f"clip_{i}": ((f"clip number {i}",), ("human",)) for i in range(12)}
    machine = {f"clip_{i}": ((f"machine {i}",), ("machine",)) for i in range(12)}
    both = {name: (own[name][0] + machine[name][0], ("human", "machine")) for name in own}
    assert words() == [own, own]
    assert words(f"data.captions=[{path}]") == [machine, own]
    assert words(f"data.val_captions=[own, {path}]") == [own, both]
    assert config(tmp_path, vp9_shards, f"data.captions=[own, {path}]").data.captions == ("own", str(path))


def test_a_table_of_other_clips_is_refused_where_it_is_named(vp9_shards: ShardSet, tmp_path: Path) -> None:
    process = Process(rank=0, world=1, local_world=1, device=torch.device("cpu"))
    path = table(tmp_path, {"P01_01_7": ["x"]}, source="machine")
    made = config(tmp_path, vp9_shards, f"data.captions=[own, {path}]")
    with pytest.raises(CaptionError, match=r"'P01_01_7'"):
        build.training_loader(made, vp9_shards, process)
    assert all(batch.human.all() for batch in build.view_loader(made, vp9_shards, process))
    with pytest.raises(CaptionError, match=r"'P01_01_7'"):
        build.view_loader(config(tmp_path, vp9_shards, f"data.val_captions=[{path}]"), vp9_shards, process)


# --- hostile input ---------------------------------------------------------------------------------------------------

text = st.text(max_size=4) | st.sampled_from(["clip_0", "clip_3", "clip_11", "own", ""])
maybe_text = st.none() | text
ROWS = 3
KINDS: dict[str, Any] = {
    "string": st.lists(maybe_text, min_size=ROWS, max_size=ROWS).map(lambda v: pa.array(v, pa.string())),
    "plain string": st.lists(text, min_size=ROWS, max_size=ROWS).map(lambda v: pa.array(v, pa.string())),
    "clip ids": st.permutations(["clip_0", "clip_3", "other"]).map(pa.array),
    "coded": st.lists(maybe_text, min_size=ROWS, max_size=ROWS).map(
        lambda v: pa.array(v, pa.string()).dictionary_encode()
    ),
    "binary": st.lists(st.binary(max_size=3), min_size=ROWS, max_size=ROWS).map(pa.array),
    "integer": st.lists(st.integers(-9, 9), min_size=ROWS, max_size=ROWS).map(pa.array),
    "null": st.just(pa.nulls(ROWS)),
    "strings": st.lists(st.none() | st.lists(maybe_text, max_size=3), min_size=ROWS, max_size=ROWS).map(
        lambda v: pa.array(v, pa.list_(pa.string()))
    ),
    "plain strings": st.lists(st.lists(text, max_size=3), min_size=ROWS, max_size=ROWS).map(
        lambda v: pa.array(v, pa.large_list(pa.string()))
    ),
    "nested": st.just(pa.array([[["a"]], [], None], pa.list_(pa.list_(pa.string())))),
    "numbers": st.lists(st.none() | st.lists(st.floats() | st.none(), max_size=3), min_size=ROWS, max_size=ROWS).map(
        lambda v: pa.array(v, pa.list_(pa.float64()))
    ),
    "structs": st.just(pa.array([{"a": 1}, {"a": 2}, None])),
}
# Half of the columns are of the right kind, so that some tables get through.
RIGHT = {"clip_id": "clip ids", "narrations": "plain strings", "scores": "numbers", "source": "plain string"}


@st.composite
def any_table(draw: st.DrawFn) -> pa.Table:
    names = draw(st.lists(st.sampled_from([*RIGHT, "x", "score"]), unique=True) | st.just(list(RIGHT)) | st.just(
        ["source", "narrations", "clip_id"]
    ))  # fmt: skip
    any_kind = st.sampled_from(list(KINDS))
    kinds = [draw(any_kind if draw(st.integers(0, 5)) == 0 else st.just(RIGHT.get(name, "string"))) for name in names]
    return pa.table([draw(KINDS[kind]) for kind in kinds], names=names)


outcomes: Counter[str] = Counter()


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(written=any_table(), source=st.booleans())
def check_any_table(shards: ShardSet, path: Path, written: pa.Table, source: bool) -> None:
    pq.write_table(written, path)
    try:
        captions = Captions(shards, ["own", path] if source else [path])
    except CaptionError as error:
        outcomes["error"] += 1
        assert str(error).startswith(str(path)) and len(str(error).splitlines()) == 1
        return
    outcomes["captions"] += 1
    rows = {row["clip_id"]: row for row in written.to_pylist()}
    own = 1 if source else 0
    for name, (texts, sources) in words_of(captions, shards).items():
        assert list(texts[own:]) == rows.get(name, {"narrations": []})["narrations"]
        assert list(sources[own:]) == [rows[name]["source"]] * len(texts[own:]) if name in rows else not texts[own:]


def test_any_table_gives_captions_or_a_caption_error(vp9_shards: ShardSet, tmp_path: Path) -> None:
    outcomes.clear()
    check_any_table(vp9_shards, tmp_path / "t.parquet")
    assert outcomes["error"] > 10 and outcomes["captions"] > 10


def test_a_damaged_table_gives_captions_or_a_caption_error(vp9_shards: ShardSet, tmp_path: Path) -> None:
    path = table(tmp_path, {f"clip_{i}": [f"word {i}"] * (i % 3) for i in range(12)}, source="machine")
    whole, rng, errors = path.read_bytes(), np.random.default_rng(0), 0
    for _ in range(300):
        damaged = bytearray(whole)
        for place in rng.integers(len(whole), size=int(rng.integers(1, 4))):
            damaged[place] ^= int(rng.integers(1, 256))
        path.write_bytes(damaged[: int(rng.integers(len(whole)))] if rng.random() < 0.2 else damaged)
        try:
            words_of(Captions(vp9_shards, [path]), vp9_shards)
        except CaptionError as error:
            errors += 1
            assert str(error).startswith(str(path)) and "\n" not in str(error)
    assert errors > 100


def test_which_clips_have_words_is_known_without_looking_at_each(vp9_shards: ShardSet, many_words: Captions) -> None:
    expected = [bool(many_words.of(row)[0]) for row in range(len(vp9_shards))]
    assert many_words.worded_rows().tolist() == expected


def test_a_table_of_some_clips_gives_words_to_these(vp9_shards: ShardSet, tmp_path: Path) -> None:
    ids = vp9_shards.clips.column("clip_id").to_pylist()
    some = table(tmp_path, {ids[2]: ["a cup"], ids[0]: [], "elsewhere": ["a door"]}, source="machine")
    assert np.flatnonzero(Captions(vp9_shards, [some]).worded_rows()).tolist() == [2]
    both = Captions(vp9_shards, ["own", some])
    assert both.worded_rows().tolist() == [bool(both.of(row)[0]) for row in range(len(vp9_shards))]
