"""Videos that come late: their clips are added to a whole set, and the result is that of a run that had them."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from lavila.shards.format import CLIPS, FAILURES, MANIFEST, WORK
from lavila.shards.reader import open_shard_set
from tests.shards.older_sets import as_format_2
from tests.tools.test_shard_interrupted import await_end
from tests.tools.test_shard_videos import (
    ENVIRONMENT,
    command,
    contents,
    csv_line,
    lines,
    reference,
    run,
    videos,
    worker_ids,
    write_annotations,
)

__all__ = ["reference", "videos"]  # fixtures
CHUNKS = ["--layout", "chunks", "--chunk-seconds", "1", "--gop", "10", "--shard-size", "30KB"]
MEND = ["--resume", "--max-failures", "0"]
FEW = [csv_line(n, f"P01_0{1 + n % 2}", 0.5 * n, 0.5 * n + 0.4) for n in range(6)]


@pytest.fixture
def some(videos: Path, tmp_path: Path) -> Path:
    """The first of the two videos."""
    root = tmp_path / "videos"
    (root / "P01").mkdir(parents=True)
    shutil.copy(videos / "P01/P01_01.MP4", root / "P01")
    return root


def arrive(videos: Path, root: Path) -> None:
    shutil.copy(videos / "P01/P01_02.MP4", root / "P01/P01_02.MP4")


def failed(out: Path) -> set[str]:
    return {json.loads(line)["clip_id"] for line in (out / FAILURES).read_text().splitlines()}


def test_a_late_video(reference: Path, videos: Path, some: Path, tmp_path: Path) -> None:
    annotations, out = reference.parent / "annotations", tmp_path / "set"
    assert run(annotations, some, out).returncode == 0
    assert len(open_shard_set(out)) == 35 and len(failed(out)) == 35
    before = contents(out)
    resumed = run(annotations, some, out, "--resume")
    assert resumed.returncode == 0 and "35 clips failed" in resumed.stdout and "--max-failures 0" in resumed.stdout
    refused = run(annotations, some, out, "--max-failures", "0")
    assert refused.returncode == 1 and "--resume" in refused.stderr
    hopeless = run(annotations, some, out, *MEND)  # the video is not there yet
    assert hopeless.returncode == 1 and "none of its 35 failures" in hopeless.stderr
    assert contents(out) == before
    arrive(videos, some)
    done = run(annotations, some, out, *MEND)
    assert done.returncode == 0, done.stderr
    assert contents(out) == contents(reference)
    assert "already whole" in run(annotations, some, out, *MEND).stdout


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_late_video_in_chunks(split: str, videos: Path, some: Path, tmp_path: Path) -> None:
    csvs = write_annotations(tmp_path / "csvs", lines()[:20])
    more = [*CHUNKS, "--split", split]
    expected, out = tmp_path / "expected", tmp_path / "set"
    assert run(csvs, videos, expected, *more).returncode == 0
    assert run(csvs, some, out, *more).returncode == 0
    assert contents(out) != contents(expected) and failed(out)
    arrive(videos, some)
    done = run(csvs, some, out, *more, *MEND)
    assert done.returncode == 0, done.stderr
    assert contents(out) == contents(expected)


def test_a_video_that_was_damaged_and_a_tar_that_is(videos: Path, some: Path, tmp_path: Path) -> None:
    """A tar that changed on the disk is not copied: its clips are encoded again."""
    csvs = write_annotations(tmp_path / "csvs", FEW)
    expected, out = tmp_path / "expected", tmp_path / "set"
    assert run(csvs, videos, expected).returncode == 0
    whole = (videos / "P01/P01_02.MP4").read_bytes()
    (some / "P01/P01_02.MP4").write_bytes(whole[: len(whole) // 2])
    assert run(csvs, some, out).returncode == 0
    assert all("ends early" in line for line in (out / FAILURES).read_text().splitlines())
    tar = out / "shard-000000.tar"
    data = bytearray(tar.read_bytes())
    row = open_shard_set(out).clips.to_pylist()[0]
    data[row["offset"] + row["size"] // 2] ^= 255
    tar.write_bytes(data)
    arrive(videos, some)
    done = run(csvs, some, out, *MEND)
    assert done.returncode == 0, done.stderr
    assert contents(out) == contents(expected)


def test_one_of_two_late_videos(videos: Path, some: Path, tmp_path: Path) -> None:
    csvs = write_annotations(tmp_path / "csvs", [*FEW, csv_line(9, "P01_03", 0.0, 0.4)])
    out = tmp_path / "set"
    assert run(csvs, some, out).returncode == 0
    arrive(videos, some)
    done = run(csvs, some, out, *MEND)
    assert done.returncode == 1 and "1 still fail" in done.stderr
    assert failed(out) == {"P01_03_9"}
    shard_set = open_shard_set(out)  # whole all the same
    assert len(shard_set) == 6 and shard_set.verify(full=True) == [] and shard_set.manifest["failures"] == 1
    shutil.copy(videos / "P01/P01_02.MP4", some / "P01/P01_03.MP4")
    assert run(csvs, some, out, *MEND).returncode == 0
    assert run(csvs, some, tmp_path / "expected").returncode == 0
    assert contents(out) == contents(tmp_path / "expected")


def test_killed_while_clips_are_added(reference: Path, videos: Path, some: Path, tmp_path: Path) -> None:
    annotations, out = reference.parent / "annotations", tmp_path / "set"
    assert run(annotations, some, out).returncode == 0
    arrive(videos, some)
    for milestone in (f"{WORK}/*.before.json", "shard-*.tar.*.tmp", f"{WORK}/shard-00000?.json"):
        process = subprocess.Popen(
            command(annotations, some, out, *MEND),
            env=ENVIRONMENT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 60
        while (out / MANIFEST).exists() or not list(out.glob(milestone)):
            assert process.poll() is None and time.monotonic() < deadline, milestone
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
        await_end(worker_ids(out))
        assert not (out / MANIFEST).exists()
    done = run(annotations, some, out, "--resume")
    assert done.returncode == 0, done.stderr
    assert contents(out) == contents(reference)


def test_what_cannot_take_clips_stays_as_it_is(videos: Path, some: Path, tmp_path: Path) -> None:
    csvs, out = write_annotations(tmp_path / "csvs", FEW), tmp_path / "set"
    assert run(csvs, some, out).returncode == 0
    arrive(videos, some)

    def refused(word: str, *more: str) -> None:
        before = contents(out)
        done = run(csvs, some, out, *MEND, *more)
        assert done.returncode == 1 and word in done.stderr, done.stderr
        assert contents(out) == before

    refused("encoder.crf", "--crf", "30")
    manifest = json.loads((out / MANIFEST).read_text())
    other = {**manifest, "versions": {**manifest["versions"], "lavila": "0.0"}}
    (out / MANIFEST).write_text(json.dumps(other))
    refused("versions.lavila")
    (out / MANIFEST).write_text(json.dumps(manifest))
    table = pq.read_table(out / CLIPS)
    edited = table.set_column(table.schema.get_field_index("verb"), table.schema.field("verb"), table["noun"])
    whole = (out / CLIPS).read_bytes()
    pq.write_table(edited, out / CLIPS)
    (out / "clips.arrow").unlink()
    (out / MANIFEST).write_text(json.dumps({**manifest, "mapped": {}}))
    refused("clips.parquet: was changed")
    (out / CLIPS).write_bytes(whole)
    as_format_2(out)
    refused("format 2")
