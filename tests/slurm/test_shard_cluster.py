"""tools/shard_videos.py --cluster: a job array gives the same bytes as worker processes on one machine."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.slurm.test_arrays import Cluster, cluster
from tests.tools.test_shard_videos import contents, csv_line, lines, reference, run, videos, write_annotations

__all__ = ["cluster", "reference", "videos"]  # fixtures


def test_a_job_array_gives_the_same_bytes(reference: Path, videos: Path, tmp_path: Path, cluster: Cluster) -> None:
    annotations, out = reference.parent / "annotations", tmp_path / "set"
    done = run(annotations, videos, out, "--cluster", cluster, "--jobs", "2", "--cluster-option", "comment=shards")
    assert done.returncode == 0, done.stderr
    assert contents(out) == contents(reference)


@pytest.fixture(scope="module")
def one_bad(tmp_path_factory: pytest.TempPathFactory, videos: Path) -> Path:
    """Annotations, and the set made of them by one machine; one clip lies after the end of its video."""
    folder = tmp_path_factory.mktemp("one_bad")
    write_annotations(folder / "annotations", [*lines(), csv_line(99, "P01_01", 50.0, 51.0)])
    assert run(folder / "annotations", videos, folder / "set", "--max-failures", "1").returncode == 0
    return folder


def test_an_array_continues_where_another_ended(one_bad: Path, videos: Path, tmp_path: Path, cluster: Cluster) -> None:
    """Tars that are whole are kept; one that is gone and one that is damaged, though of the right size, are made."""
    out, array = tmp_path / "set", ["--cluster", cluster, "--jobs", "3"]
    failed = run(one_bad / "annotations", videos, out, *array, "--max-failures", "0")
    assert failed.returncode == 1 and "1 clips cannot be stored" in failed.stderr
    made = {path.name: path.stat().st_mtime_ns for path in out.glob("shard-*.tar")}
    assert len(made) == 3
    (out / "shard-000000.tar").unlink()
    with (out / "shard-000001.tar").open("r+b") as tar:
        tar.seek(2000)
        tar.write(b"\xff\xff")
    done = run(one_bad / "annotations", videos, out, *array, "--max-failures", "1", "--resume")
    assert done.returncode == 0, done.stderr
    assert "1 of 3 shards are whole already" in done.stdout
    assert contents(out) == contents(one_bad / "set")
    assert (out / "shard-000002.tar").stat().st_mtime_ns == made["shard-000002.tar"]


def test_what_failed_is_tried_again_once_it_is_put_right(reference: Path, videos: Path, tmp_path: Path) -> None:
    annotations, out, copy = reference.parent / "annotations", tmp_path / "set", tmp_path / "videos"
    shutil.copytree(videos, copy)
    whole = (copy / "P01/P01_02.MP4").read_bytes()
    (copy / "P01/P01_02.MP4").write_bytes(whole[: len(whole) // 2])
    array = ["--cluster", "local", "--jobs", "3"]
    failed = run(annotations, copy, out, *array, "--max-failures", "3")
    assert failed.returncode == 1 and "35 clips cannot be stored" in failed.stderr
    (copy / "P01/P01_02.MP4").write_bytes(whole)
    done = run(annotations, copy, out, *array, "--max-failures", "3", "--resume")
    assert done.returncode == 0, done.stderr
    assert contents(out) == contents(reference)
