"""tools/shard_videos.py killed at every stage, on a full disk, and where it may not read: nothing whole is harmed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from lavila.shards.reader import open_shard_set
from tests.tools.test_shard_videos import (
    ENVIRONMENT,
    command,
    contents,
    lines,
    reference,
    run,
    videos,
    worker_ids,
    write_annotations,
)

__all__ = ["reference", "videos"]  # fixtures
LAYOUTS = {"clips": [], "chunks": ["--layout", "chunks", "--chunk-seconds", "1", "--gop", "10", "--shard-size", "30KB"]}


def await_end(processes: list[int]) -> None:
    """Workers end with their parent."""
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{process}").exists() for process in processes):
        assert time.monotonic() < deadline, "a worker outlives its parent"
        time.sleep(0.005)


MILESTONES = [  # of a run: what it has made, and how many of them
    (".work", 1),
    ("shard-*.tar.*.tmp", 1),
    (".work/shard-*.json", 1),
    (".work/shard-*.json", 2),
    (".work/shard-*.json", 3),
]


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_killed_at_every_stage(layout: str, reference: Path, videos: Path, tmp_path: Path) -> None:
    annotations, out, more = reference.parent / "annotations", tmp_path / "set", LAYOUTS[layout]
    expected = reference
    if more:
        expected = tmp_path / "uninterrupted"
        done = run(annotations, videos, expected, *more)
        assert done.returncode == 0, done.stderr
    for made, count in MILESTONES:
        process = subprocess.Popen(
            command(annotations, videos, out, "--resume", *more),
            env=ENVIRONMENT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while len(list(out.glob(made))) < count:
            assert process.poll() is None, f"it ended without {count} {made}"
            time.sleep(0.002)
        process.kill()
        process.wait()
        await_end(worker_ids(out))
    done = run(annotations, videos, out, "--resume", "--workers", "1", *more)
    assert done.returncode == 0, done.stderr
    assert contents(out) == contents(expected)
    assert open_shard_set(out).verify(full=True) == []


def in_a_small_world(script: str) -> subprocess.CompletedProcess[str]:
    """Run a shell script that may mount file systems, seen by nobody else."""
    possible = subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode == 0
    if not possible:
        pytest.skip("this machine does not let a test mount a small disk (unshare -rm)")
    return subprocess.run(
        ["unshare", "-rm", "sh", "-c", script], env=ENVIRONMENT, capture_output=True, text=True, check=False
    )


def test_a_full_disk_stops_cleanly(reference: Path, videos: Path, tmp_path: Path) -> None:
    disk, copy = tmp_path / "disk", tmp_path / "copy"
    disk.mkdir()
    tool = " ".join(command(reference.parent / "annotations", videos, disk / "set", "--resume", "--workers", "1"))
    size = sum(len(data) for data in contents(reference).values())
    script = f"""
        mount -t tmpfs -o size={size // 2} none {disk} || exit 99
        {tool}; echo "status $?"
        find {disk}/set -name '*.tmp'; ls {disk}/set
        mount -o remount,size=50m none {disk} && {tool} && cp -r {disk}/set {copy}
    """
    done = in_a_small_world(script)
    assert done.returncode == 0, done.stderr
    assert "status 1" in done.stdout
    assert "the disk is full; whole shards are kept: make room and run again with --resume" in done.stderr
    assert "Traceback" not in done.stderr
    assert ".tmp" not in done.stdout, "a half-written file was left"
    assert "shards are whole already" in done.stdout and "0 of 3" not in done.stdout.split("status 1")[1]
    assert contents(copy) == contents(reference)


def without_root_rights(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a command to which the permissions of files apply, also where the tests are run by root."""
    drop = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all"] if os.geteuid() == 0 else []
    return subprocess.run([*drop, *arguments], env=ENVIRONMENT, capture_output=True, text=True, check=False)


@pytest.mark.skipif(os.geteuid() == 0 and not shutil.which("setpriv"), reason="root may read and write everything")
def test_what_may_not_be_read_or_written_is_named(reference: Path, videos: Path, tmp_path: Path) -> None:
    csvs = write_annotations(tmp_path / "csvs", lines()[:4])
    copy, locked = tmp_path / "videos", tmp_path / "locked"
    shutil.copytree(videos, copy)
    locked.mkdir()
    closed = {copy: "may not be read by this user; change its permissions", copy / "P01": "change the permissions"}
    for folder, message in closed.items():
        folder.chmod(0o000)
        done = without_root_rights(command(csvs, copy, tmp_path / "set"))
        folder.chmod(0o755)
        assert done.returncode == 1 and message in done.stderr and "Traceback" not in done.stderr
    locked.chmod(0o555)
    done = without_root_rights(command(csvs, videos, locked / "set"))
    assert done.returncode == 1 and "this user may not read or write there" in done.stderr
    assert list(locked.iterdir()) == []
    (copy / "P01/P01_02.MP4").chmod(0o000)
    done = without_root_rights(command(csvs, copy, tmp_path / "set", "--resume"))
    (copy / "P01/P01_02.MP4").chmod(0o644)
    assert done.returncode == 0, done.stderr  # one video that cannot be read costs its clips
    reasons = [json.loads(line)["reason"] for line in (tmp_path / "set/failures.jsonl").read_text().splitlines()]
    assert len(reasons) == 2 and all("not a readable video" in reason for reason in reasons)
