"""tools/shard_videos.py as its users meet it: by the command line, interrupted, resumed, and with bad videos."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import shard_videos

from lavila.ingest.encode import EncodeSettings
from lavila.ingest.jobs import SetSettings, assign
from lavila.plan.frames import frame_span
from lavila.records import Clip
from lavila.shards.reader import open_shard_set
from tests.commands import run_here
from tests.footage import NTSC_60, Coding, read_numbers, write_numbered_video
from tests.shared import made_once

ROOT = Path(__file__).parents[2]
HEADER = (
    "narration_id,participant_id,video_id,narration_timestamp,start_timestamp,stop_timestamp,start_frame,stop_frame,"
    "narration,verb,verb_class,noun,noun_class,all_nouns,all_noun_classes"
)
CLIPS = 70  # three shards
FAST = ["--codec", "h264", "--speed", "ultrafast", "--short-side", "48"]


def stamp(second: float) -> str:
    return f"00:00:{second:05.2f}"


def csv_line(number: int, video_id: str, start: float, stop: float) -> str:
    participant = video_id.split("_")[0]
    return (
        f"{video_id}_{number},{participant},{video_id},{stamp(start)},{stamp(start)},{stamp(stop)},1,2,"
        f"take plate {number},take,0,plate,{number % 3},['plate'],[{number % 3}]"
    )


def write_annotations(folder: Path, lines: Sequence[str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("EPIC_100_train.csv", "EPIC_100_validation.csv"):
        (folder / name).write_text("\n".join([HEADER, *lines]) + "\n")
    (folder / "EPIC_100_verb_classes.csv").write_text("id,key,instances,category\r\n0,take,[],none\r\n")
    nouns = "".join(f"{n},noun-{n},[],none\r\n" for n in range(3))
    (folder / "EPIC_100_noun_classes.csv").write_text("id,key,instances,category\r\n" + nouns)
    return folder


def lines() -> list[str]:
    return [csv_line(n, f"P01_0{1 + n % 2}", 0.1 * n % 9, 0.1 * n % 9 + 0.4) for n in range(CLIPS)]


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    def make(root: Path) -> None:
        write_numbered_video(root / "P01/P01_01.MP4", 570, Coding(fps=NTSC_60), height=48, width=64)
        write_numbered_video(root / "P01/P01_02.MP4", 480, Coding(fps=Fraction(50)), height=48, width=64)

    return made_once(tmp_path_factory, "numbered-videos", make)


@pytest.fixture
def csvs(tmp_path: Path) -> Path:
    return write_annotations(tmp_path / "annotations", lines())


def command(annotations: Path, videos: Path, out: Path, *more: str) -> list[str]:
    tool = [sys.executable, str(ROOT / "tools/shard_videos.py"), "--dataset", "ek100_cls"]
    paths = ["--annotations", str(annotations), "--videos", str(videos), "--out", str(out)]
    return [*tool, *paths, *FAST, "--workers", "2", *more]


def worker_ids(out: Path) -> list[int]:
    """Processes that write a tar just now; a temporary file is named after its writer."""
    return [int(path.name.split(".")[-2]) for path in out.glob("shard-*.tar.*.tmp")]


ADDED = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
ENVIRONMENT = {**os.environ, **ADDED}


def run(annotations: Path, videos: Path, out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """The tool in this process. Its workers have their own."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ADDED.items():
            patch.setenv(name, value)
        return run_here(shard_videos.main, command(annotations, videos, out, *more)[2:])


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory, videos: Path) -> Path:
    """The set as an uninterrupted run makes it."""

    def make(folder: Path) -> None:
        done = run(write_annotations(folder / "annotations", lines()), videos, folder / "set")
        assert done.returncode == 0, done.stderr
        assert "70 clips" in done.stdout
        assert "in 3 shards" in done.stdout and ", 0 failures" in done.stdout
        assert "NVDEC" not in done.stdout, "GPUs decode H.264 at this size"

    return made_once(tmp_path_factory, "reference-set", make) / "set"


def test_every_clip_is_there_exactly_cut(reference: Path) -> None:
    shard_set = open_shard_set(reference)
    assert shard_set.verify(full=True) == []
    rows = shard_set.clips.to_pylist()
    assert {row["shard"] for row in rows} == {0, 1, 2}
    wanted = [line.split(",")[0] for line in lines()]
    stored = [row["clip_id"] for row in rows]
    assert sorted(stored) == sorted(wanted)
    assert stored != wanted  # a training split is shuffled
    for row in rows[::7]:
        first, stop = frame_span(row["start_second"], row["stop_second"], row["source_fps"])
        at = rows.index(row)
        assert read_numbers(shard_set.read_video(at)) == list(range(first, stop))
    assert shard_set.classes["noun"] == ["noun-0", "noun-1", "noun-2"]
    assert {path.name for path in reference.iterdir()} == {
        *(f"shard-00000{n}.{end}" for n in range(3) for end in ("tar", "idx")),
        *("clips.parquet", "clips.arrow", "shard_set.json", "failures.jsonl"),
    }
    manifest = shard_set.manifest
    assert (manifest["dataset"], manifest["split"], manifest["failures"]) == ("ek100_cls", "train", 0)
    assert manifest["encoder"]["short_side"] == 48
    assert str(reference.parent) not in (reference / "shard_set.json").read_text()  # the set can be moved


def test_a_set_that_gpus_cannot_decode_is_named(videos: Path, tmp_path: Path) -> None:
    annotations = write_annotations(tmp_path / "annotations", lines())
    done = run(annotations, videos, tmp_path / "set", "--codec", "vp9", "--speed", "8", "--limit", "3")
    assert done.returncode == 0 and "note: NVDEC decodes vp9 from 128x128" in done.stdout, done.stderr


def test_validation_keeps_the_order_and_limit_takes_the_first(csvs: Path, videos: Path, tmp_path: Path) -> None:
    done = run(csvs, videos, tmp_path / "set", "--split", "val", "--limit", "8", "--fps", "25")
    assert done.returncode == 0, done.stderr
    clips = open_shard_set(tmp_path / "set").clips
    assert clips.column("clip_id").to_pylist() == [line.split(",")[0] for line in lines()[:8]]
    assert set(clips.column("fps").to_pylist()) == {25.0}


def test_a_killed_run_resumes_to_the_same_bytes(reference: Path, videos: Path, tmp_path: Path) -> None:
    out, annotations = tmp_path / "set", reference.parent / "annotations"
    process = subprocess.Popen(
        command(annotations, videos, out), env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while not list(out.glob(".work/shard-*.json")):
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    workers = worker_ids(out)
    process.send_signal(signal.SIGKILL)
    process.wait()
    while any(Path(f"/proc/{worker}").exists() for worker in workers):  # they end with their parent
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert not (out / "shard_set.json").exists()
    whole = {path.name: path.stat().st_mtime_ns for path in out.glob("shard-*.tar")}
    refused = run(annotations, videos, out)
    assert refused.returncode == 1
    assert "unfinished set; add --resume" in refused.stderr
    differs = run(annotations, videos, out, "--resume", "--crf", "30")
    assert differs.returncode == 1
    assert "encoder.crf = 23" in differs.stderr and "is 30" in differs.stderr
    done = run(annotations, videos, out, "--resume", "--workers", "1")
    assert done.returncode == 0, done.stderr
    assert "shards are whole already" in done.stdout
    assert contents(out) == contents(reference)
    recorded = [name for name, time_ns in whole.items() if (out / name).stat().st_mtime_ns == time_ns]
    assert recorded, "no whole shard was kept"


def test_ctrl_c_keeps_whole_shards_and_says_so(reference: Path, videos: Path, tmp_path: Path) -> None:
    out = tmp_path / "set"
    process = subprocess.Popen(
        command(reference.parent / "annotations", videos, out),
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while not list(out.glob(".work/shard-*.json")):
        assert process.poll() is None
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGINT)
    _, messages = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "run again with --resume" in messages
    assert "Traceback" not in messages
    assert not (out / "shard_set.json").exists()
    recorded = [json.loads(path.read_text())["file"] for path in out.glob(".work/shard-*.json")]
    assert recorded
    assert all((out / file["name"]).stat().st_size == file["bytes"] for file in recorded)


def test_a_dead_worker_does_not_hang_the_run(reference: Path, videos: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(
        command(reference.parent / "annotations", videos, tmp_path / "set"),
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (workers := worker_ids(tmp_path / "set")):
        assert process.poll() is None
        time.sleep(0.005)
    os.kill(workers[0], signal.SIGKILL)
    _, messages = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "a worker process died" in messages
    assert "--resume" in messages


def test_a_whole_set_is_left_alone(reference: Path, videos: Path) -> None:
    before = contents(reference)
    again = run(reference.parent / "annotations", videos, reference)
    assert again.returncode == 0, again.stderr
    assert "already whole" in again.stdout
    other = run(reference.parent / "annotations", videos, reference, "--resume", "--seed", "1")
    assert other.returncode == 1
    assert "seed = 0" in other.stderr and "is 1;" in other.stderr
    assert contents(reference) == before


def test_a_folder_in_use_is_refused(csvs: Path, videos: Path, tmp_path: Path) -> None:
    work = tmp_path / "set/.work"
    work.mkdir(parents=True)
    with (work / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = run(csvs, videos, tmp_path / "set", "--resume")
    assert done.returncode == 1
    assert "another run is writing here" in done.stderr
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.tex").write_text("dear")
    done = run(csvs, videos, tmp_path / "full", "--resume")
    assert done.returncode == 1
    assert "holds other files" in done.stderr
    assert contents(tmp_path / "full") == {"thesis.tex": b"dear"}


def test_clips_that_fail_are_listed_and_bounded(videos: Path, tmp_path: Path) -> None:
    root = tmp_path / "videos"
    (root / "P01").mkdir(parents=True)
    (root / "P01/P01_01.MP4").symlink_to(videos / "P01/P01_01.MP4")
    (root / "P01/P01_03.MP4").write_bytes(b"not a video at all" * 100)
    bad = [
        csv_line(900, "P01_03", 0.0, 1.0),  # unreadable
        csv_line(901, "P01_09", 0.0, 1.0),  # missing
        csv_line(902, "P01_01", 50.0, 51.0),  # after the end
        csv_line(903, "P01_01", 2.0, 1.0),  # stops before it starts
    ]
    good = [csv_line(n, "P01_01", 0.1 * n, 0.1 * n + 0.3) for n in range(6)]
    annotations = write_annotations(tmp_path / "annotations", [*good[:3], *bad, *good[3:]])
    out = tmp_path / "set"

    few = run(annotations, root, out, "--max-failures", "2")
    assert few.returncode == 1
    assert "4 clips cannot be stored, --max-failures is 2" in few.stderr
    assert not (out / "shard_set.json").exists()
    done = run(annotations, root, out, "--resume", "--max-failures", "4")
    assert done.returncode == 0, done.stderr
    assert "4 failures" in done.stdout
    failures = [json.loads(line) for line in (out / "failures.jsonl").read_text().splitlines()]
    reasons = {failure["clip_id"]: (failure["video"], failure["reason"]) for failure in failures}
    assert set(reasons) == {"P01_03_900", "P01_09_901", "P01_01_902", "P01_01_903"}
    assert reasons["P01_09_901"] == ("P01/P01_09.MP4", "no such video")
    assert "not a readable video" in reasons["P01_03_900"][1]
    assert "after the last frame" in reasons["P01_01_902"][1]
    shard_set = open_shard_set(out)
    assert len(shard_set) == 6
    assert shard_set.manifest["failures"] == 4
    assert shard_set.verify(full=True) == []


def test_missing_videos_are_reported_before_the_work(csvs: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = run(csvs, tmp_path / "empty", tmp_path / "set", "--max-failures", "0")
    assert done.returncode == 1
    assert "all 70 fail" in done.stderr and "P01/videos/P01_01.MP4" in done.stderr  # where it was looked for
    assert len((tmp_path / "set/failures.jsonl").read_text().splitlines()) == 70
    nothing = run(csvs, tmp_path / "empty", tmp_path / "other")  # 70 are allowed to fail, but not all
    assert nothing.returncode == 1
    assert not (tmp_path / "other/shard_set.json").exists()
    assert "raise --max-failures" not in done.stderr + nothing.stderr  # that would change nothing


@pytest.mark.parametrize("kind", ["no annotation can be a clip", "no video can be read", "no clip is in its video"])
def test_where_no_clip_can_be_stored_the_advice_is_not_to_allow_it(kind: str, videos: Path, tmp_path: Path) -> None:
    root = videos
    rows = [csv_line(n, "P01_01", 50.0, 51.0) for n in range(3)]
    if kind == "no annotation can be a clip":
        rows = [csv_line(n, "P01_01", 2.0, 1.0) for n in range(3)]
    elif kind == "no video can be read":
        root = tmp_path / "videos"
        (root / "P01").mkdir(parents=True)
        (root / "P01/P01_01.MP4").touch()
    done = run(write_annotations(tmp_path / "csvs", rows), root, tmp_path / "set")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "all 3 fail" in done.stderr and "raise --max-failures" not in done.stderr
    assert len((tmp_path / "set/failures.jsonl").read_text().splitlines()) == 3


def test_videos_in_the_layout_of_the_downloader(reference: Path, videos: Path, tmp_path: Path) -> None:
    """The same bytes, and the output names the layout."""
    place = tmp_path / "EPIC-KITCHENS/P01/videos"
    place.mkdir(parents=True)
    for video in (videos / "P01").iterdir():
        (place / video.name).symlink_to(video)
    for root, out in ((tmp_path / "EPIC-KITCHENS", "a"), (tmp_path, "b")):
        done = run(reference.parent / "annotations", root, tmp_path / out)
        assert done.returncode == 0, done.stderr
        assert "P01/videos/P01_01.MP4" in done.stdout
        assert contents(tmp_path / out) == contents(reference)


def test_paths_at_home(videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `--out=~/set`, which no shell expands."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "videos").symlink_to(videos)
    write_annotations(tmp_path / "csvs", [csv_line(0, "P01_01", 0.0, 0.3)])
    arguments = ["--dataset", "ek100_cls", "--annotations=~/csvs", "--videos=~/videos", "--out=~/set", *FAST]
    done = run_here(shard_videos.main, arguments)
    assert done.returncode == 0, done.stderr
    assert len(open_shard_set("~/set")) == 1 and len(open_shard_set(tmp_path / "set")) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--short-side", "50"], "short side 50 is not a multiple of 16 pixels; try 48"),
        (["--shard-size", "12"], "give for example 512MB"),
        (["--fps", "fast"], "give 'native' or frames per second"),
        (["--limit", "0"], "not a whole number of at least 1"),
        (["--workers", "-1"], "--workers -1: give 0 or more"),
        (["--clip-seconds", "nan"], "--clip-seconds nan: give 0.001 or more"),
    ],
)
def test_wrong_arguments(csvs: Path, videos: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    done = run(csvs, videos, tmp_path / "set", *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert not (tmp_path / "set").exists()


def plan(split: str = "train", **values: object) -> SetSettings:
    fields = {
        "dataset": "d",
        "split": split,
        "encoder": EncodeSettings(),
        "shard_bytes": 10**6,
        "seed": 0,
        "limit": None,
    }
    return SetSettings(**{**fields, **values})  # type: ignore[arg-type]


def test_assignment_is_pure_even_and_complete() -> None:
    lengths = np.random.default_rng(0).uniform(0.5, 6, 2000)
    clips = [
        Clip(clip_id=f"c{n}", video_id="v", video_path="v.mp4", start_second=0, stop_second=float(length))
        for n, length in enumerate(lengths)
    ]
    groups = assign(clips, plan())
    assert groups == assign(clips, plan())
    assert groups != assign(clips, plan(seed=1))
    assert sorted(c.clip_id for group in groups for c in group) == sorted(c.clip_id for c in clips)
    estimates = [sum((c.stop_second or 0) * 32_000 + 4096 for c in group) for group in groups]
    assert max(estimates) < 1.25e6
    assert min(estimates) > 0.7e6
    in_order = assign(clips, plan("val"))
    assert [c for group in in_order for c in group] == clips
    assert len(assign(clips, plan(shard_bytes=10**12))) == 16  # for the sake of the workers
    assert assign([], plan()) == []
