"""tools/shard_videos.py --cluster: a job array gives the same bytes as worker processes on one machine."""

from __future__ import annotations

from pathlib import Path

from tests.slurm.test_cluster import Cluster, cluster
from tests.tools.test_shard_videos import contents, reference, run, videos

__all__ = ["cluster", "reference", "videos"]  # fixtures


def test_a_job_array_gives_the_same_bytes(reference: Path, videos: Path, tmp_path: Path, cluster: Cluster) -> None:
    annotations, out = reference.parent / "annotations", tmp_path / "set"
    done = run(annotations, videos, out, "--cluster", cluster, "--jobs", "2", "--cluster-option", "comment=shards")
    assert done.returncode == 0, done.stderr
    assert contents(out) == contents(reference)


def test_an_array_goes_on_where_another_ended(reference: Path, videos: Path, tmp_path: Path, cluster: Cluster) -> None:
    annotations, out = reference.parent / "annotations", tmp_path / "set"
    limited = run(annotations, videos, out, "--cluster", cluster, "--jobs", "3", "--max-failures", "-1")
    assert limited.returncode == 1  # the tars are made, the set is not completed
    made = {path.name: path.stat().st_mtime_ns for path in out.glob("shard-*.tar")}
    (out / "shard-000001.tar").unlink(missing_ok=True)
    done = run(annotations, videos, out, "--cluster", cluster, "--jobs", "3", "--resume")
    assert done.returncode == 0, done.stderr
    assert contents(out) == contents(reference)
    kept = [name for name, time in made.items() if (out / name).stat().st_mtime_ns == time]
    assert kept == [name for name in made if name != "shard-000001.tar"]
