"""Checksums for sets that were made without: the same tables as if they had been made with them, or none at all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lavila.ingest import assembly
from lavila.inspection.verify import Verdict
from lavila.shards import writer as shard_writer
from lavila.shards.checksums import add_checksums
from lavila.shards.format import ShardSetError
from lavila.shards.reader import ShardSet, open_shard_set
from lavila.shards.writer import SetContents, ShardWriter, add_mapped, write_manifest
from tests.inspection.test_verify import verify, write_chunks
from tests.shards.older_sets import as_format_2


@pytest.fixture(params=["clips", "chunks"])
def made(request: pytest.FixtureRequest, vp9_shards: ShardSet, tmp_path: Path) -> ShardSet:
    if request.param == "chunks":
        return write_chunks(tmp_path / "set")
    return open_shard_set(shutil.copytree(vp9_shards.path, tmp_path / "set"))


def add(folder: Path) -> list[str]:
    return add_checksums(folder, threads=2, on_progress=lambda size: None)


def tables(folder: Path) -> dict[str, pa.Table]:
    return {path.name: pq.read_table(path) for path in folder.glob("*.parquet")}


def test_an_old_set_becomes_what_a_new_one_is(made: ShardSet) -> None:
    wanted, manifest = tables(made.path), json.loads((made.path / "shard_set.json").read_text())
    videos = [made.read_video(row) for row in range(len(made))]
    tars = {path.name: path.read_bytes() for path in made.path.glob("shard-*")}
    as_format_2(made.path)
    read: list[int] = []
    names = ["clips.parquet", "clips.arrow"]
    names = ["chunks.parquet", names[0], "chunks.arrow", names[1]] if made.chunks is not None else names
    assert add_checksums(made.path, threads=2, on_progress=read.append) == names
    assert read == [shard.bytes for shard in made.shards]
    opened = open_shard_set(made.path)
    assert opened.has_checksums and opened.verify(full=True) == []
    assert tables(made.path) == wanted
    assert [opened.read_video(row) for row in range(len(opened))] == videos
    assert {path.name: path.read_bytes() for path in made.path.glob("shard-*")} == tars
    assert json.loads((made.path / "shard_set.json").read_text()).keys() == manifest.keys()
    assert add(made.path) == []
    assert verify(opened) == Verdict(problems=[], bad=[])


def test_tars_whose_json_has_no_checksum_are_sound(
    vp9_shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_writer, "_checksums", lambda video, row: {})
    made = write_old_clips(tmp_path / "set", vp9_shards)
    assert b"crc32" not in (made / "shard-000000.tar").read_bytes()
    assert verify(open_shard_set(as_format_2(made))) == Verdict(problems=[], bad=[])
    add(made)
    assert verify(open_shard_set(made)) == Verdict(problems=[], bad=[])


def write_old_clips(folder: Path, source: ShardSet) -> Path:
    """Some clips of a set once more, by whatever writer there is now."""
    folder.mkdir()
    rows = []
    with ShardWriter(folder, 0) as writer:
        for number, row in enumerate(source.clips.slice(0, 4).to_pylist()):
            words = {name: value for name, value in row.items() if name != "crc32"} | {"extra": dict(row["extra"])}
            rows.append(writer.add(row["clip_id"], source.read_video(number), words))
    assert writer.file is not None
    facts = {name: source.manifest[name] for name in ("dataset", "split", "encoder")}
    write_manifest(folder, rows=rows, shards=[writer.file], contents=SetContents(classes=source.classes, facts=facts))
    return folder


def test_labels_that_were_edited_stay(vp9_shards: ShardSet, tmp_path: Path) -> None:
    folder = as_format_2(Path(shutil.copytree(vp9_shards.path, tmp_path / "set")))
    rows = pq.read_table(folder / "clips.parquet")
    place, edited = rows.column_names.index("verb"), pa.array([7] * len(rows), pa.int32())
    pq.write_table(rows.set_column(place, rows.schema.field("verb"), edited), folder / "clips.parquet")
    add(folder)
    opened = open_shard_set(folder)
    assert opened.has_checksums and set(opened.clips["verb"].to_pylist()) == {7}


def test_bytes_that_may_not_be_those_stored_get_no_checksums(made: ShardSet) -> None:
    as_format_2(made.path)
    before = {path.name: path.read_bytes() for path in made.path.iterdir()}
    tar = made.path / "shard-000001.tar"
    tar.write_bytes(before[tar.name][:-20] + b"x" + before[tar.name][-19:])
    with pytest.raises(ShardSetError, match=r"shard-000001\.tar: SHA-256"):
        add(made.path)
    tar.write_bytes(before[tar.name])
    assert {path.name: path.read_bytes() for path in made.path.iterdir()} == before


def test_a_table_of_other_places_gets_no_checksums(vp9_shards: ShardSet, tmp_path: Path) -> None:
    folder = as_format_2(Path(shutil.copytree(vp9_shards.path, tmp_path / "set")))
    rows = pq.read_table(folder / "clips.parquet").to_pylist()
    for name in ("offset", "size"):
        rows[0][name], rows[1][name] = rows[1][name], rows[0][name]
    columns = pq.read_schema(folder / "clips.parquet")
    pq.write_table(pa.Table.from_pylist(rows, columns), folder / "clips.parquet")
    with pytest.raises(ShardSetError, match=r"shard-000000\.tar: 'clip_0'"):
        add(folder)
    add_mapped(folder)
    assert not open_shard_set(folder).has_checksums


@pytest.mark.parametrize("step", range(8))
def test_killed_at_every_step_it_can_be_done_again(made: ShardSet, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder is what it was, or refused with what to type, or done."""
    wanted = tables(made.path)
    as_format_2(made.path)
    steps = iter(range(100))

    class Killed(BaseException):
        pass

    def maybe(call):  # type: ignore[no-untyped-def]
        def instead(*args, **named):  # type: ignore[no-untyped-def]
            if next(steps) == step:
                raise Killed
            return call(*args, **named)

        return instead

    with monkeypatch.context() as patch:
        for name in ("touch", "replace"):
            patch.setattr(Path, name, maybe(getattr(Path, name)))
        patch.setattr(Path, "unlink", lambda path, missing_ok=False: None)  # a killed process cleans up nothing
        try:
            add(made.path)
        except Killed:
            pass
        else:
            assert step > 3
    try:
        opened = open_shard_set(made.path)
        assert opened.read_video(0)
    except ShardSetError as error:
        assert f"tools/inspect_shards.py {made.path} --add-checksums" in str(error)
    add(made.path)
    opened = open_shard_set(made.path)
    assert opened.has_checksums and opened.verify(full=True) == []
    assert tables(made.path) == wanted


def test_an_unfinished_set_of_an_earlier_version_is_not_gone_on_with(tmp_path: Path) -> None:
    settings = {"dataset": "made_up", "versions": {"lavila": "0.1.0"}}
    work = tmp_path / "set" / ".work"
    work.mkdir(parents=True)
    (work / "settings.json").write_text(json.dumps(settings))
    with (
        pytest.raises(ShardSetError, match=r"--out"),
        assembly.work_folder(tmp_path / "set", settings, resume=True),
    ):
        pass
    with assembly.work_folder(tmp_path / "new", settings, resume=False):
        pass
    with assembly.work_folder(tmp_path / "new", settings, resume=True) as whole:
        assert whole is False
