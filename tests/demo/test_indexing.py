"""An index holds each window of each video once, after any interruption and change, by any number of processes."""

from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from lavila.demo import indexing
from lavila.demo.footage import FootageError
from lavila.demo.index import MOMENTS, VECTORS, WORK, Index, IndexFolderError, open_index
from lavila.demo.index_plan import IndexOptions, plan_index
from lavila.demo.indexing import Progress, embed, index_lock, publish, update_index
from lavila.ingest.decoded import FrameReader
from tests.demo.indexed import NumberEncoder, vector_of, write_numbered

OPTIONS = IndexOptions(window=1.0, every=0.5, batch_size=4)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two videos in a folder, one of them below another folder."""
    folder = tmp_path_factory.mktemp("videos")
    write_numbered(folder / "long.mp4", 8)
    write_numbered(folder / "day 2/short.mkv", 3)
    return folder


@pytest.fixture
def videos(made: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(made, tmp_path / "videos"))


@pytest.fixture(scope="module")
def whole(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Index:
    return update_index(tmp_path_factory.mktemp("whole"), [made], NumberEncoder(), OPTIONS)


def same(one: Index, other: Index) -> bool:
    """Whether two indices say the same of the same videos."""
    assert [(v.name, v.moments, v.reason) for v in one.videos] == [(v.name, v.moments, v.reason) for v in other.videos]
    return one.moments.equals(other.moments) and all(
        np.array_equal(one.vectors(video.name), other.vectors(video.name)) for video in one.videos
    )


def test_every_window_has_its_vector_and_its_seconds(whole: Index, made: Path) -> None:
    assert [video.name for video in whole.videos] == ["day 2/short.mkv", "long.mp4"]
    long = whole.video("long.mp4")
    assert (long.duration, long.fps, long.width, long.height) == (8.0, 10.0, 160, 120)
    assert long.size == (made / "long.mp4").stat().st_size and not long.reason
    rows = [row for row in whole.moments.to_pylist() if row["video"] == "long.mp4"]
    assert [(row["start"], row["stop"], row["row"]) for row in rows[:2]] == [(0.0, 1.0, 0), (0.5, 1.5, 1)]
    assert len(rows) == long.moments == 16 and rows[-1]["stop"] == 8.0
    vectors = whole.vectors("long.mp4")
    assert vectors.dtype == np.float16 and vectors.shape == (16, 4)
    for row, vector in zip(rows, vectors, strict=True):
        middle = 10 * (row["start"] + row["stop"]) / 2  # the number of the frame there
        assert float(vector @ vector_of(middle)) > np.cos(2 * 0.02)
    assert whole.root == made and whole.settings.window == 1.0 and whole.settings.facts["dimensions"] == 4
    assert not list((whole.folder / WORK).glob("*.safetensors"))


def test_each_frame_is_decoded_once(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []
    frames = FrameReader.frames
    monkeypatch.setattr(FrameReader, "frames", lambda self: (decoded.append(one.pts) or one for one in frames(self)))
    update_index(tmp_path / "index", [made / "long.mp4"], NumberEncoder(), IndexOptions(window=2.0, every=0.25))
    assert len(decoded) == len(set(decoded)) >= 75


def test_an_interrupted_run_continues(
    whole: Index, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexing, "PART_SECONDS", 0.0)
    first = NumberEncoder(stop_after=10)
    with pytest.raises(KeyboardInterrupt):
        update_index(tmp_path / "index", [made], first, OPTIONS)
    rest = NumberEncoder()
    index = update_index(tmp_path / "index", [made], rest, OPTIONS)
    assert first.embedded == 12 and rest.embedded == 22 - 12 and same(index, whole)


def test_progress_shows_what_is_left(made: Path, tmp_path: Path) -> None:
    heard: list[Progress] = []
    update_index(tmp_path / "index", [made], NumberEncoder(), OPTIONS, report=heard.append)
    assert [one.done for one in heard] == [4, 8, 12, 16, 20, 22] and {one.of for one in heard} == {22}
    assert heard[0].seconds_left > 0 and heard[-1].seconds_left == 0
    assert heard[0].video == "day 2/short.mkv" and heard[-1].video == "long.mp4"


@pytest.mark.parametrize("world", [2, 3, 30])
def test_processes_share_the_work(whole: Index, made: Path, tmp_path: Path, world: int) -> None:
    encoders = [NumberEncoder() for _ in range(world)]
    with index_lock(tmp_path):
        plan = plan_index(tmp_path, [made], encoders[0], OPTIONS)
        for rank, encoder in reversed(list(enumerate(encoders))):
            embed(plan, encoder, batch_size=4, share=(rank, world))
        publish(plan, is_last=True)
    assert same(open_index(tmp_path), whole)
    counts = [encoder.embedded for encoder in encoders]
    assert sum(counts) == 22 and max(counts) - min(counts) <= 1


def test_what_other_processes_left_is_done_by_one(whole: Index, made: Path, tmp_path: Path) -> None:
    with index_lock(tmp_path):
        plan = plan_index(tmp_path, [made], NumberEncoder(), OPTIONS)
        embed(plan, NumberEncoder(), batch_size=4, share=(1, 3))
    rest = NumberEncoder()
    assert same(update_index(tmp_path, [made], rest, OPTIONS), whole) and rest.embedded == 22 - 7


def test_the_table_grows_while_videos_are_embedded(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indexing, "PUBLISH_SECONDS", 0.0)
    seen = []
    update_index(
        tmp_path,
        [made],
        NumberEncoder(),
        OPTIONS,
        report=lambda _: seen.append([(v.moments, bool(v.reason)) for v in open_index(tmp_path).videos]),
    )
    assert seen[0] == [(0, True), (0, True)]
    assert [(6, False), (0, True)] in seen


# ---------------------------------------------------------------- changes


def test_nothing_new_costs_nothing(videos: Path, tmp_path: Path) -> None:
    index = update_index(tmp_path / "index", [videos], NumberEncoder(), OPTIONS)
    again = NumberEncoder()
    assert same(update_index(tmp_path / "index", [videos], again, OPTIONS), index) and not again.embedded


def test_added_changed_and_removed_videos_are_noticed(videos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "index"
    before = update_index(folder, [videos], NumberEncoder(), OPTIONS)
    write_numbered(videos / "new.mp4", 2)
    write_numbered(videos / "long.mp4", 4)
    (videos / "day 2/short.mkv").unlink()
    plan = plan_index(folder, [videos], NumberEncoder(), OPTIONS)
    assert (plan.added, plan.changed, plan.removed) == (["new.mp4"], ["long.mp4"], ["day 2/short.mkv"])
    encoder = NumberEncoder()
    index = update_index(folder, [videos], encoder, OPTIONS)
    assert encoder.embedded == plan.windows_left == 8 + 4
    assert [(video.name, video.moments) for video in index.videos] == [("long.mp4", 8), ("new.mp4", 4)]
    assert {file.name for file in (folder / VECTORS).iterdir()} == {video.file for video in index.videos}
    assert before.moments.num_rows == 22  # who has the older table open can still read it


def test_a_video_that_is_left_out_for_once_need_not_be_embedded_again(videos: Path, tmp_path: Path) -> None:
    folder, again = tmp_path / "index", NumberEncoder()
    whole = update_index(folder, [videos], NumberEncoder(), OPTIONS)
    assert len(update_index(folder, [videos / "long.mp4"], again, OPTIONS).videos) == 1
    assert same(update_index(folder, [videos], again, OPTIONS), whole) and not again.embedded


def test_videos_of_one_name_in_two_folders(made: Path, tmp_path: Path) -> None:
    for day in ("monday", "tuesday"):
        (tmp_path / day).mkdir()
        shutil.copy(made / "day 2/short.mkv", tmp_path / day / "GX01.mkv")
    index = update_index(tmp_path / "index", [tmp_path / "monday", tmp_path / "tuesday"], NumberEncoder(), OPTIONS)
    assert [video.name for video in index.videos] == ["monday/GX01.mkv", "tuesday/GX01.mkv"]
    assert index.root == tmp_path


def test_a_copy_with_the_same_times_is_embedded_once(made: Path, tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    shutil.copy2(made / "day 2/short.mkv", tmp_path / "short.mkv")
    shutil.copy2(made / "day 2/short.mkv", tmp_path / "b/short.mkv")
    encoder = NumberEncoder()
    index = update_index(tmp_path / "index", [tmp_path], encoder, OPTIONS)
    assert [video.moments for video in index.videos] == [6, 6] and encoder.embedded == 6
    assert np.array_equal(index.vectors("short.mkv"), index.vectors("b/short.mkv"))


def test_a_folder_of_chunks_is_one_video(tmp_path: Path) -> None:
    folder = tmp_path / "whole.mp4"
    write_numbered(folder / "0.mp4", 2)
    write_numbered(folder / "2.mp4", 2)
    (video,) = update_index(tmp_path / "index", [folder], NumberEncoder(), OPTIONS).videos
    assert (video.name, video.moments, video.duration) == ("whole.mp4", 8, 4.0)


# ---------------------------------------------------------------- what cannot be


def test_a_video_that_cannot_be_read_is_listed_and_stops_nothing(videos: Path, tmp_path: Path) -> None:
    (videos / "broken.mp4").write_bytes(b"x" * 500)
    index = update_index(tmp_path / "index", [videos], NumberEncoder(), OPTIONS)
    assert [bool(video.reason) for video in index.videos] == [True, False, False]
    broken = index.video("broken.mp4")
    assert "not a readable video" in broken.reason and broken.size == 500 and broken.moments == 0
    assert index.vectors("broken.mp4").shape == (0, 4)


def test_damage_costs_the_windows_that_need_it(videos: Path, tmp_path: Path) -> None:
    content = bytearray((videos / "long.mp4").read_bytes())
    content[len(content) // 3 : len(content) // 3 + 400] = bytes(400)
    (videos / "long.mp4").write_bytes(content)
    index = update_index(tmp_path / "index", [videos / "long.mp4"], NumberEncoder(), OPTIONS)
    (video,) = index.videos
    assert 8 <= video.moments < 16 and f"{16 - video.moments} of 16 windows" in video.reason
    assert len(index.vectors("long.mp4")) == index.moments.num_rows == video.moments


def test_a_video_that_vanishes_meanwhile_is_listed(videos: Path, tmp_path: Path) -> None:
    with index_lock(tmp_path / "index"):
        plan = plan_index(tmp_path / "index", [videos], NumberEncoder(), OPTIONS)
        (videos / "long.mp4").unlink()
        embed(plan, NumberEncoder(), batch_size=4)
        publish(plan, is_last=True)
    index = open_index(tmp_path / "index")
    assert index.video("long.mp4").moments == 0 and "16 of 16 windows" in index.video("long.mp4").reason
    assert index.video("day 2/short.mkv").moments == 6


def test_numbers_that_are_not_finite_are_no_vectors(made: Path, tmp_path: Path) -> None:
    class Broken(NumberEncoder):
        def embed(self, video_BCTYX):  # type: ignore[no-untyped-def]
            found = super().embed(video_BCTYX)
            found[0] = np.nan
            return found

    (video,) = update_index(tmp_path / "index", [made / "long.mp4"], Broken(), OPTIONS).videos
    assert video.moments == 12 and "4 of 16 windows" in video.reason and "finite" in video.reason


def test_an_index_of_other_settings_is_not_overwritten(made: Path, tmp_path: Path) -> None:
    folder = tmp_path / "index"
    index = update_index(folder, [made], NumberEncoder(), OPTIONS)
    with pytest.raises(IndexFolderError, match=r"window was 1.0, is 2.0"):
        update_index(folder, [made], NumberEncoder(), IndexOptions(window=2.0, every=0.5))
    with pytest.raises(IndexFolderError, match="sha256"):
        update_index(folder, [made], NumberEncoder(sha256="b"), OPTIONS)
    assert same(open_index(folder), index)


def test_two_processes_do_not_work_on_one_index(made: Path, tmp_path: Path) -> None:
    with index_lock(tmp_path), pytest.raises(IndexFolderError, match="another process"):
        update_index(tmp_path, [made], NumberEncoder(), OPTIONS)


def test_paths_and_windows_that_cannot_be(made: Path, tmp_path: Path) -> None:
    with pytest.raises(FootageError, match="nowhere"):
        update_index(tmp_path, [made / "nowhere"], NumberEncoder(), OPTIONS)
    for wrong in ({"every": 0}, {"window": math.nan}, {"window": math.inf}, {"every": 1e-9}, {"batch_size": 0}):
        with pytest.raises(FootageError, match=f"--{min(wrong).replace('_', '-')} "):
            IndexOptions(**wrong)


def test_an_index_among_its_videos_is_no_video(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made, tmp_path / "videos")
    index = tmp_path / "videos/features"
    before = update_index(index, [tmp_path / "videos"], NumberEncoder(), OPTIONS)
    (index / "made/copies").mkdir(parents=True)
    write_numbered(index / "made/copies/copy.mp4", 2)
    (tmp_path / "videos/empty.mp4").mkdir()
    after = update_index(index, [tmp_path / "videos"], NumberEncoder(), OPTIONS)
    assert after.moments.num_rows == before.moments.num_rows
    assert [video.name for video in after.videos if video.moments] == [video.name for video in before.videos]
    assert [video.name for video in after.videos if video.reason] == ["empty.mp4"]


def test_another_model_is_named(made: Path, tmp_path: Path) -> None:
    update_index(tmp_path, [made], NumberEncoder(), OPTIONS)
    other = NumberEncoder(sha256="b")
    with pytest.raises(IndexFolderError, match="sha256 was 'a', is 'b'"):
        update_index(tmp_path, [made], other, OPTIONS)
    other.name = "letters"
    with pytest.raises(IndexFolderError, match="model was 'numbers', is 'letters'"):
        update_index(tmp_path, [made], other, OPTIONS)


def test_a_full_disk_is_named(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **more: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(indexing, "save_file", full)
        with pytest.raises(IndexFolderError, match="No space left"):
            update_index(tmp_path / "index", [made], NumberEncoder(), OPTIONS)
    assert not list(tmp_path.rglob("*.tmp"))


# ---------------------------------------------------------------- reading


def test_an_index_without_lavila(whole: Index) -> None:
    import pyarrow as pa

    with pa.OSFile(str(whole.folder / MOMENTS)) as file:
        assert pa.ipc.open_file(file).read_all().num_rows == 22
    tensors = load_file(whole.folder / VECTORS / whole.video("long.mp4").file)
    assert tensors["vectors"].shape == (16, 4) and tensors["starts"][1] == 0.5


def test_what_is_no_index_is_named(whole: Index, tmp_path: Path) -> None:
    with pytest.raises(IndexFolderError, match="no index"):
        open_index(tmp_path)
    (tmp_path / MOMENTS).write_bytes(b"x" * 100)
    with pytest.raises(IndexFolderError, match="no table of an index"):
        open_index(tmp_path)
    with pytest.raises(IndexFolderError, match="no video"):
        whole.vectors("another.mp4")


def test_a_damaged_matrix_is_named(videos: Path, tmp_path: Path) -> None:
    index = update_index(tmp_path, [videos], NumberEncoder(), OPTIONS)
    file = tmp_path / VECTORS / index.video("long.mp4").file
    content = file.read_bytes()
    file.write_bytes(content[:-10])
    with pytest.raises(IndexFolderError, match=file.name):
        index.vectors("long.mp4")
    shutil.copy(tmp_path / VECTORS / index.video("day 2/short.mkv").file, file)
    with pytest.raises(IndexFolderError, match=r"\[16, 4\]"):
        index.vectors("long.mp4")


def test_a_newer_format_is_named(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("lavila.demo.index.FORMAT", 2)
        update_index(tmp_path, [made], NumberEncoder(), OPTIONS)
    with pytest.raises(IndexFolderError, match="format 2"):
        open_index(tmp_path)


def test_files_can_be_read_by_others(whole: Index) -> None:
    files = [whole.folder / MOMENTS, *(whole.folder / VECTORS).iterdir()]
    umask = os.umask(0)
    os.umask(umask)
    assert {file.stat().st_mode & 0o777 for file in files} == {0o666 & ~umask}
    assert json.loads(open_index(whole.folder).moments.schema.metadata[b"lavila.index"])["format"] == 1
