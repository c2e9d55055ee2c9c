"""Tables that are read in place: equal to their Parquet files, opened at no cost, refused where they do not fit."""

from __future__ import annotations

import json
import logging
import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lavila.data.loader import clip_sizes
from lavila.data.sizes import ChosenSizes, ClipSizes, StoredSizes, shuffle_of
from lavila.plan.crops import CropChoice
from lavila.plan.frames import FrameChoice
from lavila.plan.plans import Ranks, TrainingPlan
from lavila.shards.captions import CaptionError, Captions, read_captions, write_captions
from lavila.shards.format import CLIPS_SCHEMA, ShardSetError, file_sha256
from lavila.shards.mapped import Column, mapped_problem, open_mapped, sorted_rows, write_mapped
from lavila.shards.reader import ShardSet, open_shard_set
from lavila.shards.writer import add_mapped

MANY = 200_000


@pytest.fixture
def copy(vp9_shards: ShardSet, tmp_path: Path) -> Path:
    shutil.copytree(vp9_shards.path, tmp_path / "copy")
    return tmp_path / "copy"


def unmapped(folder: Path) -> Path:
    """As sets were before there were mapped tables."""
    (folder / "clips.arrow").unlink()
    manifest = json.loads((folder / "shard_set.json").read_text())
    del manifest["mapped"]
    (folder / "shard_set.json").write_text(json.dumps(manifest))
    return folder


def change(folder: Path, column: str, values: pa.Array) -> None:
    """Another column in the mapped table alone."""
    table = pq.read_table(folder / "clips.parquet")
    table = table.set_column(table.schema.get_field_index(column), table.schema.field(column), values)
    with pa.ipc.new_file(str(folder / "clips.arrow"), table.schema) as out:
        out.write_table(table)


def test_a_mapped_table_has_the_rows_of_its_parquet_file(vp9_shards: ShardSet) -> None:
    assert vp9_shards.clips.schema.equals(CLIPS_SCHEMA)
    assert vp9_shards.clips.equals(pq.read_table(vp9_shards.path / "clips.parquet"))
    assert mapped_problem(vp9_shards.path / "clips.parquet") is None
    assert vp9_shards.manifest["mapped"] == {"clips.arrow": file_sha256(vp9_shards.path / "clips.arrow")}


def test_a_mapped_table_of_many_batches_is_whole(tmp_path: Path) -> None:
    table = pa.table({"n": np.arange(25_000), "s": [None if n % 7 == 0 else f"é{n}" for n in range(25_000)]})
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=3_001)
    write_mapped(tmp_path / "t.parquet")
    mapped = open_mapped(tmp_path / "t.arrow", table.schema)
    assert mapped.equals(table) and mapped.column("n").num_chunks > 2
    assert mapped_problem(tmp_path / "t.parquet") is None
    numbers, texts = Column(mapped, "n"), Column(mapped, "s", null="-")
    assert [numbers[row] for row in (0, 9_999, 10_000, 24_999)] == [0, 9_999, 10_000, 24_999]
    assert [texts[row] for row in (0, 1, 20_006)] == ["-", "é1", "-"]
    pq.write_table(table.slice(0, 24_000), tmp_path / "t.parquet")
    assert mapped_problem(tmp_path / "t.parquet") == f"{tmp_path}/t.arrow: 25000 rows, t.parquet has 24000"


def test_a_full_verification_compares_both_tables(copy: Path) -> None:
    assert open_shard_set(copy).verify(full=True) == []
    change(copy, "verb", pa.array([0, 1, 2, 0, 1, 1, 0, 1, 2, 0, 1, 2], pa.int32()))
    shard_set = open_shard_set(copy)
    assert shard_set.verify() == []
    assert shard_set.verify(full=True) == [
        f"{copy}/clips.arrow: SHA-256 is not the manifest's; copy the file again",
        f"{copy}/clips.arrow: rows from 0 on are not those of clips.parquet; copy both again",
    ]


def test_a_table_that_was_changed_is_not_read_as_it_was(copy: Path) -> None:
    table = pq.read_table(copy / "clips.parquet")
    place = table.schema.get_field_index("narrations")
    relabelled = pa.array([["quite another text"]] * len(table), table.schema.field(place).type)
    changed = table.set_column(place, table.schema.field(place), relabelled)
    pq.write_table(changed, copy / "clips.parquet")
    with pytest.raises(ShardSetError, match=r"clips\.parquet.*clips\.arrow.*--add-mapped"):
        open_shard_set(copy)
    add_mapped(copy)
    assert open_shard_set(copy).clips.column("narrations")[0].as_py() == ["quite another text"]


def test_a_full_verification_finds_text_that_no_reader_could_bear(copy: Path) -> None:
    data = bytearray((copy / "clips.arrow").read_bytes())
    data[data.index(b"clip_3") : data.index(b"clip_3") + 2] = b"\xff\xff"
    (copy / "clips.arrow").write_bytes(data)
    problems = open_shard_set(copy).verify(full=True)
    assert any("cannot be compared with clips.parquet" in problem and "\n" not in problem for problem in problems)


def test_a_set_without_mapped_tables_is_read_and_can_be_given_them(
    vp9_shards: ShardSet, copy: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        opened = open_shard_set(unmapped(copy))
    assert opened.clips.equals(vp9_shards.clips) and opened.read_video(7) == vp9_shards.read_video(7)
    assert any(f"tools/inspect_shards.py {copy} --add-mapped" in message for message in caplog.messages)
    before = {path.name: file_sha256(path) for path in copy.iterdir() if path.name != "shard_set.json"}
    assert add_mapped(copy) == ["clips.arrow"]
    caplog.clear()
    with caplog.at_level(logging.INFO):
        assert open_shard_set(copy).verify(full=True) == []
    assert not caplog.messages
    assert {path.name: file_sha256(path) for path in copy.iterdir()}.items() >= before.items()
    assert json.loads((copy / "shard_set.json").read_text()) == vp9_shards.manifest


def test_bytes_that_are_no_table_are_refused_at_any_length(copy: Path) -> None:
    whole = (copy / "clips.arrow").read_bytes()
    for length in (0, 5, 8, 100, len(whole) // 3, len(whole) - 7, len(whole) - 1):
        (copy / "clips.arrow").write_bytes(whole[:length])
        with pytest.raises(ShardSetError, match=r"clips\.arrow"):
            open_shard_set(copy)


# --- cost ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory, vp9_shards: ShardSet) -> Path:
    """A set of 200,000 rows that share one tar."""
    folder = tmp_path_factory.mktemp("many") / "set"
    folder.mkdir()
    shutil.copy(vp9_shards.path / "shard-000000.tar", folder)
    shutil.copy(vp9_shards.path / "shard-000000.idx", folder)
    table = pq.read_table(vp9_shards.path / "clips.parquet").slice(0, 1)
    rows = table.take(pa.array(np.zeros(MANY, np.int64)))
    ids = pa.array([f"clip_{n:06d}" for n in range(MANY)])
    pq.write_table(rows.set_column(0, CLIPS_SCHEMA.field(0), ids).cast(CLIPS_SCHEMA), folder / "clips.parquet")
    manifest = {**vp9_shards.manifest, "clips": MANY, "shards": vp9_shards.manifest["shards"][:1]}
    manifest["tables"] = {"clips.parquet": ""}
    (folder / "shard_set.json").write_text(json.dumps(manifest))
    add_mapped(folder)
    return folder


def first_batch(folder: Path) -> list[Any]:
    shard_set = open_shard_set(folder)
    plan = TrainingPlan(
        clip_sizes(shard_set),
        frames=FrameChoice(frames=4),
        crop=CropChoice(size=32),
        batch_size=16,
        seed=0,
        ranks=Ranks(),
        shuffle=shuffle_of(shard_set, window=4_096),
    )
    captions = Captions(shard_set)
    return [(clip.row, captions.of(clip.row), shard_set.read_video(clip.row)) for clip in plan.batch(0, 0)]


def test_opening_a_large_set_and_planning_holds_next_to_nothing(many: Path, vp9_shards: ShardSet) -> None:
    first_batch(many)  # what is imported on the way
    arrow = pa.total_allocated_bytes()
    tracemalloc.start()
    seen = first_batch(many)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert {video for _, _, video in seen} == {vp9_shards.read_video(0)} and len({row for row, _, _ in seen}) == 16
    assert peak < 1 << 20, peak  # one int64 for each clip would be 1.6 MB
    assert pa.total_allocated_bytes() - arrow < 1 << 16


def test_opening_a_large_set_reads_a_small_part_of_its_table(many: Path) -> None:
    shard_set = open_shard_set(many)
    resident = {"clips.arrow": 0}
    name = ""
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0] and not line.split()[0].endswith(":"):
            name = Path(line.split()[-1]).name
        elif line.startswith("Rss:") and name in resident:
            resident[name] += 1024 * int(line.split()[1])
    size = (many / "clips.arrow").stat().st_size
    assert len(shard_set) == MANY
    assert size > 20 << 20 and 0 < resident["clips.arrow"] < size / 5


def test_a_quarantine_shifts_the_rows_after_it(many: Path, caplog: pytest.LogCaptureFixture) -> None:
    bad = (0, 1, 77, 150_000, MANY - 1)
    lines = [json.dumps({"clip_id": f"clip_{row:06d}", "shard": "shard-000000.tar", "reason": "x"}) for row in bad]
    (many / "quarantine.jsonl").write_text("\n".join(lines))
    try:
        shard_set = open_shard_set(many)
        sizes = StoredSizes(shard_set)
    finally:
        (many / "quarantine.jsonl").unlink()
    assert "5 clip(s) in quarantine.jsonl are left out" in caplog.text
    assert len(sizes) == MANY - 5 and shard_set.quarantined_rows().tolist() == list(bad)
    assert [sizes.row(index) for index in (0, 74, 75, 149_996, 149_997, MANY - 6)] == [
        2,
        76,
        78,
        149_999,
        150_001,
        MANY - 2,
    ]
    usable = shard_set.usable_rows()
    assert [sizes.row(index) for index in range(0, MANY - 5, 997)] == usable[::997].tolist()


def test_sizes_are_those_of_the_table(vp9_shards: ShardSet) -> None:
    table, sizes = vp9_shards.clips.to_pylist(), StoredSizes(vp9_shards)
    assert [sizes.picture(i) for i in range(len(sizes))] == [(row["height"], row["width"]) for row in table]
    assert [sizes.span(i).frames for i in range(len(sizes))] == [row["num_frames"] for row in table]
    some = ChosenSizes(of=sizes, indices=np.array([8, 2, 2]))
    assert len(some) == 3 and [some.row(i) for i in range(3)] == [8, 2, 2]
    assert (some.picture(0), some.span(1)) == (sizes.picture(8), sizes.span(2))
    arrays = ClipSizes(num_frames=np.array([5]), height=np.array([6]), width=np.array([7]))
    assert (arrays.picture(0), arrays.span(0).frames, arrays.row(0)) == ((6, 7), 5.0, 0)


def test_stretches_have_a_few_megabytes_and_a_window_many_stretches(vp9_shards: ShardSet, copy: Path) -> None:
    def with_clips_of(size: int) -> ShardSet:
        manifest = json.loads((copy / "shard_set.json").read_text())
        for shard in manifest["shards"]:
            shard["bytes"] = len(vp9_shards) * size // 2
        (copy / "shard_set.json").write_text(json.dumps(manifest))
        return open_shard_set(copy)

    tiny, usual, huge = with_clips_of(512), with_clips_of(65_536), with_clips_of(50 << 20)
    assert shuffle_of(usual, window=131_072).stretch == 64  # 4 MiB
    assert shuffle_of(tiny, window=131_072).stretch == 131_072 // 64  # the window bounds it
    assert shuffle_of(usual, window=1_000).stretch == 1_000 // 64
    assert shuffle_of(huge, window=131_072).stretch == shuffle_of(usual, window=3).stretch == 1


# --- captions --------------------------------------------------------------------------------------------------------


def test_a_captions_table_that_changes_is_read_anew(
    vp9_shards: ShardSet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "t.parquet"
    write_captions(path, [(f"clip_{n}", [f"old {n}"], None) for n in (5, 11, 0)], source="machine")
    with caplog.at_level(logging.INFO):
        assert read_captions(path).column("clip_id").to_pylist() == ["clip_0", "clip_11", "clip_5"]
    assert not caplog.messages
    table = pa.table({"clip_id": ["clip_5", "clip_0"], "narrations": [["new 5"], ["new 0"]], "source": ["human"] * 2})
    pq.write_table(table, path)
    with caplog.at_level(logging.INFO):
        assert Captions(vp9_shards, [path]).of(0) == (("new 0",), ("human",))
    assert any("has no t.arrow made from it" in message for message in caplog.messages)
    (tmp_path / "t.arrow").write_bytes(b"ARROW1")
    with pytest.raises(CaptionError, match=r"t\.arrow.*t\.parquet"):
        read_captions(path)


def test_tables_over_a_large_set_make_nothing_for_each_clip(many: Path, tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    ids = [f"clip_{n:06d}" for n in range(0, MANY, 2)]
    write_captions(path, ((name, [f"words of {name}", "more"], None) for name in reversed(ids)), source="machine")
    shard_set = open_shard_set(many)
    Captions(shard_set, [path])
    arrow = pa.total_allocated_bytes()
    tracemalloc.start()
    captions = Captions(shard_set, ["own", path])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20 and pa.total_allocated_bytes() - arrow < 1 << 16
    assert captions.of(123_456)[0][1:] == ("words of clip_123456", "more")
    assert len(captions.of(123_457)[0]) == 1


def test_a_table_of_one_clip_of_a_large_set_fits(many: Path, tmp_path: Path) -> None:
    path, strangers = tmp_path / "t.parquet", tmp_path / "s.parquet"
    write_captions(path, [("clip_000001", ["rare"], None), ("other", ["x"], None)], source="machine")
    write_captions(strangers, [("other", ["x"], None)], source="machine")
    shard_set = open_shard_set(many)
    assert Captions(shard_set, ["own", path]).of(1)[0][1:] == ("rare",)
    assert Captions(shard_set, [path]).of(1)[0] == ("rare",)
    with pytest.raises(CaptionError, match="'other'"):
        Captions(shard_set, ["own", strangers])


def test_rows_are_sorted_as_python_compares_their_ids(tmp_path: Path) -> None:
    ids = ["b", "a", "é", "\U0001f600", "￿", "Z", "", "aa", "\u0800"]
    table = pa.table({"id": ids, "words": [[name] * n for n, name in enumerate(ids)]})
    done = sorted_rows(table, "id")
    assert done.schema.equals(table.schema) and done.column("id").to_pylist() == sorted(ids)
    assert done.column("words").to_pylist() == [[name] * ids.index(name) for name in sorted(ids)]
    assert sorted_rows(table.slice(0, 0), "id").equals(table.slice(0, 0))
