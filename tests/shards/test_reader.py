"""The shard-set format: what is written can be read by us, by webdataset and by DALI; what is broken is refused."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import tarfile
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset

from lavila.ingest.encode import EncodedClip, EncodeSettings, Interval, encode_clip
from lavila.ingest.jobs import clip_row
from lavila.records import Clip
from lavila.shards import reader as shards_module
from lavila.shards import tars
from lavila.shards.format import CLIPS_SCHEMA, ShardFile, ShardSetError, UnreadableClip, file_sha256
from lavila.shards.reader import Patience, ShardSet, open_shard_set
from lavila.shards.writer import SetContents, ShardWriter, write_manifest
from tests.footage import decode, read_numbers, write_numbered_video
from tests.shards.older_sets import as_format_2

CLASSES = {"verb": ["take", "put"], "noun": ["plate"], "action": ["take plate"]}
FACTS = {"dataset": "made_up", "split": "val", "encoder": {"codec": "vp9"}}
CLIPS, PER_SHARD = 5, 2


def a_clip(number: int, **values: Any) -> Clip:
    fields: dict[str, Any] = {
        "clip_id": f"P01_01_{number}",
        "video_id": "P01_01",
        "video_path": "P01/P01_01.MP4",
        "start_second": number * 0.4,
        "stop_second": number * 0.4 + 0.31,
        "narrations": ("take plate", "prendre l'assiette é"),
        "verb": 0,
        "labels": (3, 1),
        "extra": {"participant_id": "P01"},
    }
    return Clip(**{**fields, **values})


@pytest.fixture(scope="module")
def encoded(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Clip, EncodedClip]]:
    video = write_numbered_video(tmp_path_factory.mktemp("video") / "P01_01.MP4", 60, height=64, width=96)
    settings = EncodeSettings(short_side=64)
    clips = [a_clip(number) for number in range(CLIPS)]
    return [
        (
            clip,
            encode_clip(
                video,
                interval=Interval(start_second=clip.start_second, stop_second=clip.stop_second),
                settings=settings,
            ),
        )
        for clip in clips
    ]


def write_set(folder: Path, encoded: list[tuple[Clip, EncodedClip]]) -> Path:
    folder.mkdir()
    rows, files = [], []
    for number in range(-(-len(encoded) // PER_SHARD)):
        with ShardWriter(folder, number) as writer:
            for clip, made in encoded[number * PER_SHARD : (number + 1) * PER_SHARD]:
                rows.append(writer.add(clip.clip_id, made.data, clip_row(clip, made)))
        assert writer.file is not None
        files.append(writer.file)
    write_manifest(folder, rows=rows, shards=files, contents=SetContents(classes=CLASSES, facts=FACTS))
    return folder


@pytest.fixture
def folder(tmp_path: Path, encoded: list[tuple[Clip, EncodedClip]]) -> Path:
    return write_set(tmp_path / "set", encoded)


def test_what_was_written_is_read(folder: Path, encoded: list[tuple[Clip, EncodedClip]]) -> None:
    shard_set = open_shard_set(folder)
    assert len(shard_set) == CLIPS
    assert shard_set.clips.schema.equals(CLIPS_SCHEMA)
    assert shard_set.classes == CLASSES
    assert (shard_set.codec, shard_set.path) == ("vp9", folder)
    assert shard_set.verify(full=True) == []
    for row, (clip, made) in enumerate(encoded):
        assert shard_set.read_video(row) == made.data
        table_row = shard_set.clips.slice(row, 1).to_pylist()[0]
        assert table_row["clip_id"] == clip.clip_id
        assert table_row["narrations"] == list(clip.narrations)
        assert (table_row["verb"], table_row["noun"], table_row["labels"]) == (0, None, [3, 1])
        assert dict(table_row["extra"]) == clip.extra
        assert table_row["num_frames"] == made.num_frames == 8
    assert shard_set.manifest["clips"] == CLIPS
    assert shard_set.manifest["seconds"] == pytest.approx(CLIPS * 8 / 25)
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        ["clips.arrow", "clips.parquet", "shard_set.json"]
        + [f"shard-00000{n}.{end}" for n in range(3) for end in ("idx", "tar")]
    )


def test_the_same_clips_give_the_same_bytes(
    folder: Path, tmp_path: Path, encoded: list[tuple[Clip, EncodedClip]]
) -> None:
    again = write_set(tmp_path / "again", encoded)
    for path in folder.iterdir():
        assert path.read_bytes() == (again / path.name).read_bytes(), path.name


def test_tar_is_plain_gnu_with_constant_headers(folder: Path) -> None:
    shard_set = open_shard_set(folder)
    with tarfile.open(folder / "shard-000001.tar") as tar:
        members = tar.getmembers()
    assert [member.name for member in members] == ["P01_01_2.mp4", "P01_01_2.json", "P01_01_3.mp4", "P01_01_3.json"]
    assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in members} == {(0, 0, 0, "", "", 0o644)}
    assert [m.offset_data for m in members[::2]] == shard_set.clips.column("offset").to_pylist()[2:4]
    assert (folder / "shard-000001.tar").stat().st_size % tarfile.RECORDSIZE == 0


def test_index_is_the_one_that_dali_makes(folder: Path, tmp_path: Path) -> None:
    import wds2idx  # type: ignore[import-untyped]  # comes with the DALI wheel

    made = tmp_path / "made.idx"
    with wds2idx.IndexCreator(str(folder / "shard-000000.tar"), str(made), verbose=False) as creator:
        creator.create_index()
    assert made.read_text() == (folder / "shard-000000.idx").read_text()


def test_webdataset_reads_it(folder: Path, encoded: list[tuple[Clip, EncodedClip]]) -> None:
    urls = [str(path) for path in sorted(folder.glob("*.tar"))]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == [clip.clip_id for clip, _ in encoded]
    assert [sample["mp4"] for sample in samples] == [made.data for _, made in encoded]
    rows = [json.loads(sample["json"]) for sample in samples]
    table = open_shard_set(folder).clips.to_pylist()
    assert rows == [{**row, "extra": dict(row["extra"])} for row in table]  # the same as in clips.parquet


def test_dali_reads_and_decodes_it(folder: Path, encoded: list[tuple[Clip, EncodedClip]]) -> None:
    from nvidia.dali import fn, pipeline_def

    @pipeline_def(batch_size=CLIPS, num_threads=1, device_id=None, prefetch_queue_depth=1)  # type: ignore[untyped-decorator]
    def pipeline() -> Any:
        tars = sorted(folder.glob("*.tar"))
        video = fn.readers.webdataset(
            paths=[str(path) for path in tars],
            index_paths=[str(path.with_suffix(".idx")) for path in tars],
            ext=["mp4"],
            missing_component_behavior="error",
        )
        return video, fn.decoders.video(video, device="cpu")

    built = pipeline()
    built.build()
    raw, frames = built.run()
    for n, (_, made) in enumerate(encoded):
        assert np.asarray(raw.at(n)).tobytes() == made.data
        assert np.array_equal(np.asarray(frames.at(n)), decode(made.data))
        assert read_numbers(made.data)[0] == made.start_frame


def test_long_clip_ids_keep_their_place(tmp_path: Path, encoded: list[tuple[Clip, EncodedClip]]) -> None:
    names = ["x" * 150, "y" * 99]
    folder = write_set(tmp_path / "long", [(a_clip(0, clip_id=name), encoded[0][1]) for name in names])
    shard_set = open_shard_set(folder)
    assert [shard_set.read_video(row) for row in range(2)] == [encoded[0][1].data] * 2
    samples = list(webdataset.WebDataset([str(folder / "shard-000000.tar")], shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == names


@pytest.mark.parametrize("clip_id", ["a.b", "a/b", "a b", ""])
def test_ids_that_would_break_readers_are_refused(
    tmp_path: Path, encoded: list[tuple[Clip, EncodedClip]], clip_id: str
) -> None:
    clip, made = encoded[0]
    with pytest.raises(ShardSetError), ShardWriter(tmp_path, 0) as writer:
        writer.add(clip_id, made.data, clip_row(clip, made))
    assert list(tmp_path.iterdir()) == []


def test_an_id_may_come_once_only(tmp_path: Path, encoded: list[tuple[Clip, EncodedClip]]) -> None:
    clip, made = encoded[0]
    with pytest.raises(ShardSetError, match=clip.clip_id), ShardWriter(tmp_path, 0) as writer:
        writer.add(clip.clip_id, made.data, clip_row(clip, made))
        writer.add(clip.clip_id, made.data, clip_row(clip, made))
    rows = []
    for number in (0, 1):
        with ShardWriter(tmp_path, number) as writer:
            rows.append(writer.add(clip.clip_id, made.data, clip_row(clip, made)))
    files: list[ShardFile] = []
    with pytest.raises(ShardSetError, match="'P01_01_0'"):
        write_manifest(tmp_path, rows=rows, shards=files, contents=SetContents(classes={}, facts=FACTS))
    with pytest.raises(ShardSetError):
        write_manifest(tmp_path, rows=[], shards=files, contents=SetContents(classes={}, facts=FACTS))


def test_an_interrupted_shard_leaves_nothing(tmp_path: Path, encoded: list[tuple[Clip, EncodedClip]]) -> None:
    clip, made = encoded[0]
    with pytest.raises(KeyboardInterrupt), ShardWriter(tmp_path, 0) as writer:
        writer.add(clip.clip_id, made.data, clip_row(clip, made))
        assert not (tmp_path / "shard-000000.tar").exists()
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def without_mapped(folder: Path) -> None:
    """As sets were before there were tables that are read in place."""
    (folder / "clips.arrow").unlink()
    manifest = json.loads((folder / "shard_set.json").read_text())
    del manifest["mapped"]
    (folder / "shard_set.json").write_text(json.dumps(manifest))


def _no_folder(folder: Path) -> None:
    shutil.rmtree(folder)


def _no_manifest(folder: Path) -> None:
    (folder / "shard_set.json").unlink()


def _foreign(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def _newer(folder: Path) -> None:
    text = (folder / "shard_set.json").read_text()
    (folder / "shard_set.json").write_text(text.replace('"format": 3', '"format": 4'))


def _older(folder: Path) -> None:
    text = (folder / "shard_set.json").read_text()
    (folder / "shard_set.json").write_text(text.replace('"format": 3', '"format": 1'))


def _half_with_checksums(folder: Path) -> None:
    (folder / ".adding-checksums").touch()


def _no_json(folder: Path) -> None:
    (folder / "shard_set.json").write_text("{")


def _no_tar(folder: Path) -> None:
    (folder / "shard-000001.tar").unlink()


def _no_index(folder: Path) -> None:
    (folder / "shard-000002.idx").unlink()


def _short_tar(folder: Path) -> None:
    with (folder / "shard-000001.tar").open("r+b") as file:
        file.truncate(1000)


def _no_clips(folder: Path) -> None:
    (folder / "clips.parquet").unlink()


def _no_mapped(folder: Path) -> None:
    (folder / "clips.arrow").unlink()


def _damaged_mapped(folder: Path) -> None:
    (folder / "clips.arrow").write_bytes(b"ARROW1 not really")


def _half_mapped(folder: Path) -> None:
    with (folder / "clips.arrow").open("r+b") as file:
        file.truncate((folder / "clips.arrow").stat().st_size // 2)


def _mapped_of_another_set(folder: Path) -> None:
    rows = pq.read_table(folder / "clips.parquet").slice(1)
    with pa.ipc.new_file(str(folder / "clips.arrow"), rows.schema) as file:
        file.write_table(rows)


def _mapped_of_other_columns(folder: Path) -> None:
    rows = pq.read_table(folder / "clips.parquet").drop_columns(["extra"])
    with pa.ipc.new_file(str(folder / "clips.arrow"), rows.schema) as file:
        file.write_table(rows)


def _damaged_clips(folder: Path) -> None:
    without_mapped(folder)
    (folder / "clips.parquet").write_bytes(b"PAR1 not really")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_no_folder, "no such folder; make a shard set with tools/shard_videos.py"),
        (_no_manifest, "incomplete: it has no shard_set.json; run tools/shard_videos.py again with --resume"),
        (_foreign, "not a shard set"),
        (_newer, "shard-set format 4, supported are 2 and 3; make the set again"),
        (_older, "shard-set format 1, supported are 2 and 3; make the set again"),
        (_half_with_checksums, "--add-checksums again"),
        (_no_json, "not a shard set's manifest"),
        (_no_tar, "shard-000001.tar: missing"),
        (_no_index, "shard-000002.idx: missing"),
        (_no_clips, "clips.parquet: missing"),
        (_damaged_clips, "clips.parquet: not readable"),
        (_no_mapped, "clips.arrow: missing"),
        (_damaged_mapped, "clips.arrow: not readable"),
        (_half_mapped, "clips.arrow: not readable"),
        (_mapped_of_another_set, "table of 4 clips, its manifest says 5"),
        (_mapped_of_other_columns, "clips.arrow: not the table the manifest was written for"),
    ],
)
def test_what_is_not_whole_is_refused(folder: Path, damage: Any, message: str) -> None:
    damage(folder)
    with pytest.raises(ShardSetError) as caught:
        open_shard_set(folder)
    assert message in str(caught.value)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_tar_of_another_size_is_found_when_it_is_read_from_or_verified(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _short_tar(folder)
    shard_set = open_shard_set(folder)
    wanted = f"{folder}/shard-000001.tar: 1000 bytes, should be {shard_set.shards[1].bytes}; copy the file again"
    assert shard_set.verify() == [wanted]
    shard_set.read_video(1)
    with pytest.raises(UnreadableClip, match=r"shard-000001\.tar: ends before"):
        shard_set.read_video(2)
    assert wanted in caplog.text
    older = open_shard_set(as_format_2(folder))  # without checksums nothing shows that the rest is sound
    with pytest.raises(UnreadableClip) as caught:
        older.read_video(2)
    assert str(caught.value) == wanted
    (folder / "shard-000001.tar").unlink()
    with pytest.raises(UnreadableClip, match=r"shard-000001\.tar"):
        older.read_video(2)


def test_a_missing_tar_is_put_up_with_where_few_clips_are_lost(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    lost = open_shard_set(folder).shards[1].clips
    for file in ("shard-000001.tar", "shard-000001.idx"):
        (folder / file).unlink()
        with pytest.raises(ShardSetError, match=r"shard-000001\.(tar|idx): missing"):
            open_shard_set(folder)
        with pytest.raises(ShardSetError, match=r"shard-000001\.(tar|idx): missing"):
            open_shard_set(folder, patience=Patience(missing_clips=lost - 1))
        caplog.clear()
        opened = open_shard_set(folder, patience=Patience(missing_clips=lost))
        assert "shard-000001.tar" in caplog.text
        assert pickle.loads(pickle.dumps(opened)).path == folder
        opened.read_video(1)
        with pytest.raises(UnreadableClip, match=r"shard-000001\.tar"):
            opened.read_video(2)


def test_hashes_find_what_sizes_do_not(folder: Path) -> None:
    with (folder / "shard-000001.tar").open("r+b") as file:
        file.seek(600)
        file.write(b"\xff\xfe")
    index = folder / "shard-000002.idx"
    index.write_text(index.read_text().replace("mp4 512", "mp4 513"))
    shard_set = open_shard_set(folder)
    assert shard_set.verify() == []
    problems = shard_set.verify(full=True)
    assert [problem.split(": ")[0] for problem in problems] == [
        str(folder / "shard-000001.tar"),
        str(folder / "shard-000002.idx"),
    ]


@pytest.mark.parametrize("row", [-1, CLIPS])
def test_rows_that_are_not_there(folder: Path, row: int) -> None:
    with pytest.raises(ShardSetError, match=rf"row {row}.*5 clips.*0 to 4"):
        open_shard_set(folder).read_video(row)


def test_a_tar_that_shrinks_under_a_reader_is_named(folder: Path) -> None:
    shard_set = open_shard_set(folder)
    shard_set.read_video(2)
    _short_tar(folder)
    with pytest.raises(ShardSetError, match=r"shard-000001\.tar.*row 3"):
        shard_set.read_video(3)


def test_many_threads_read_through_few_descriptors(
    folder: Path, encoded: list[tuple[Clip, EncodedClip]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tars, "MAX_OPEN_TARS", 1)
    shard_set = open_shard_set(folder)
    wrong: list[int] = []

    def read(seed: int) -> None:
        rows = np.random.default_rng(seed).integers(0, CLIPS, 300).tolist()
        wrong.extend(row for row in rows if shard_set.read_video(row) != encoded[row][1].data)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(shard_set._tars._open) == 1
    descriptors = [path.readlink() for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    assert sum(path.parent == folder for path in descriptors) == 1


def test_a_set_pickles_as_its_path(folder: Path) -> None:
    shard_set = open_shard_set(folder)
    copy = pickle.loads(pickle.dumps(shard_set))
    assert isinstance(copy, ShardSet)
    assert copy.read_video(4) == shard_set.read_video(4)
    assert file_sha256(copy.path / "clips.parquet") == copy.manifest["tables"]["clips.parquet"]


def test_open_tars_leave_half_of_the_descriptors_to_others(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tars.resource, "getrlimit", lambda which: (4, 1024))
    shard_set = open_shard_set(folder)
    for row in range(CLIPS):
        shard_set.read_video(row)
    descriptors = [path.readlink() for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    assert sum(path.parent == folder and path.suffix == ".tar" for path in descriptors) == 2  # of three


@pytest.mark.parametrize(
    ("rows", "wanted"),
    [((0, 1), [(0, 0, 1)]), ((1, 2), [(0, 1, -1), (1, 0, 2)]), ((0, 4), []), ((3, 2), []), ((2, 2), [(1, 2, 2)])],
)
def test_neighbouring_rows_are_read_ahead_as_one_piece_of_each_tar(
    folder: Path, monkeypatch: pytest.MonkeyPatch, rows: tuple[int, int], wanted: list[tuple[int, int, int]]
) -> None:
    shard_set = open_shard_set(folder)
    clips = shard_set.clips.to_pylist()
    asked: list[tuple[str, int, int, int]] = []

    def advise(descriptor: int, start: int, length: int, advice: int) -> None:
        asked.append((Path(f"/proc/self/fd/{descriptor}").readlink().name, start, start + length, advice))

    monkeypatch.setattr(shards_module.os, "posix_fadvise", advise)
    shard_set.read_ahead(*rows)
    ends = [row["offset"] + row["size"] for row in clips]
    assert asked == [
        (
            f"shard-00000{tar}.tar",
            clips[first]["offset"] if first or tar == 0 else 0,
            shard_set.shards[tar].bytes if last < 0 else ends[last],
            os.POSIX_FADV_WILLNEED,
        )
        for tar, first, last in wanted
    ]
