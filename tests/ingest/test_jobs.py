"""A tar as a unit of work: what takes its process down costs one clip, the same one in every run."""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lavila.annotations.base import AnnotationError
from lavila.cluster import workers
from lavila.cluster.workers import run_jobs
from lavila.ingest.encode import EncodeSettings, Limits
from lavila.ingest.jobs import Chunk, SetSettings, ShardJob, assign, read_result
from lavila.ingest.needs import needed_chunks
from lavila.records import Clip
from tests.footage import write_numbered_video

FAST = EncodeSettings(codec="h264", speed="ultrafast", short_side=48)
SETTINGS = SetSettings(dataset="d", split="val", encoder=FAST, shard_bytes=10**9, seed=0)


class HostileJob(ShardJob):
    """Some of its clips take the process down, as a broken video does to a decoder now and then."""

    @property
    def tried(self) -> Path:
        """A line for each time that a clip was begun."""
        return self.out / "tried"

    def _encode(self, item: Clip | Chunk) -> tuple[bytes, dict[str, Any]]:
        assert isinstance(item, Clip)
        with self.tried.open("a") as file:
            file.write(f"{item.clip_id}\n")
        if "crash" in str(item):
            os.kill(os.getpid(), signal.SIGSEGV)
        if "stall" in str(item):
            time.sleep(60)
        return super()._encode(item)


def clips(*names: str) -> tuple[Clip, ...]:
    return tuple(
        Clip(clip_id=name, video_id="v", video_path="v.mp4", start_second=0.1 * n, stop_second=0.1 * n + 0.3)
        for n, name in enumerate(names)
    )


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_numbered_video(tmp_path_factory.mktemp("videos") / "v.mp4", 60, height=48, width=64).parent


def hostile(out: Path, videos: Path, *names: str) -> HostileJob:
    (out / ".work").mkdir(parents=True, exist_ok=True)
    return HostileJob(number=0, items=clips(*names), videos=videos, out=out, settings=SETTINGS)


def make(job: ShardJob, *, seconds: float = 1.0) -> None:
    run_jobs([job], workers=1, item_seconds=seconds, on_progress=lambda progress: None)


def test_clips_that_crash_or_stall_are_named_and_the_others_stored(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "GRACE_SECONDS", 0.3)
    job = hostile(tmp_path / "a", videos, "one", "crash", "two", "stall", "three")
    make(job)
    result = read_result(job.out, 0)
    assert result is not None
    assert [row["clip_id"] for row in result.rows] == ["one", "two", "three"]
    assert result.failures == {"crash": "crashed its process (SIGSEGV)", "stall": "took longer than 1 s"}
    assert job.tried.read_text().split() == ["one", "crash", "one", "two", "stall", "one", "two", "three"]
    # Made again after an interruption, what was lost is not tried a second time, and the bytes are the same.
    before = (job.out / "shard-000000.tar").read_bytes()
    for name in ("shard-000000.tar", ".work/shard-000000.json"):
        (job.out / name).unlink()
    job.tried.unlink()
    make(job)
    assert job.tried.read_text().split() == ["one", "two", "three"]
    assert (job.out / "shard-000000.tar").read_bytes() == before
    # The same as where these clips were refused in the ordinary way.
    plain = ShardJob(
        number=0,
        items=clips("one", "gone", "two", "lost", "three"),
        videos=videos,
        out=tmp_path / "b",
        settings=SETTINGS,
    )
    (plain.out / ".work").mkdir(parents=True)
    missing = tuple(replace(c, video_path="none.mp4") if c.clip_id in ("gone", "lost") else c for c in plain.items)
    make(replace(plain, items=missing), seconds=60)
    assert (plain.out / "shard-000000.tar").read_bytes() == before


def test_a_loss_can_be_forgotten(videos: Path, tmp_path: Path) -> None:
    job = hostile(tmp_path, videos, "one", "crash")
    make(job)
    mended = ShardJob(number=0, items=job.items, videos=videos, out=tmp_path, settings=SETTINGS)
    make(mended, seconds=60)
    assert read_result(tmp_path, 0).failures.keys() == {"crash"}  # type: ignore[union-attr]
    mended.forget(lost=False)
    assert not mended.is_done()
    make(mended, seconds=60)
    assert read_result(tmp_path, 0).failures.keys() == {"crash"}  # type: ignore[union-attr]
    mended.forget(lost=True)
    make(mended, seconds=60)
    assert read_result(tmp_path, 0).failures == {}  # type: ignore[union-attr]


def test_a_tar_that_is_made_again_copies_what_it_holds(videos: Path, tmp_path: Path) -> None:
    job = hostile(tmp_path, videos, "one", "crash", "two")
    make(job)
    tar = tmp_path / "shard-000000.tar"
    before, record = tar.read_bytes(), (tmp_path / ".work/shard-000000.json").read_bytes()
    job.tried.unlink()
    job.forget(lost=False)
    make(job, seconds=60)
    assert not job.tried.exists()  # nothing was encoded
    assert (tar.read_bytes(), (tmp_path / ".work/shard-000000.json").read_bytes()) == (before, record)
    job.forget(lost=False)
    tar.write_bytes(before[:700] + b"x" + before[701:])  # a copy would keep the damage
    make(job, seconds=60)
    assert job.tried.read_text().split() == ["one", "two"]
    assert tar.read_bytes() == before
    assert not list((tmp_path / ".work").glob("*.before.json"))


def test_a_clip_has_its_own_time_limit(videos: Path, tmp_path: Path) -> None:
    (tmp_path / ".work").mkdir()
    job = ShardJob(
        number=0, items=clips("one"), videos=videos, out=tmp_path, settings=SETTINGS, limits=Limits(seconds=1e-6)
    )
    make(job, seconds=60)
    result = read_result(tmp_path, 0)
    assert result is not None and result.file is None
    assert "given up after 1e-06 s, the limit for one clip" in result.failures["one"]
    assert not (tmp_path / "shard-000000.tar").exists()


def test_a_record_or_tar_that_is_not_sound_is_made_again(videos: Path, tmp_path: Path) -> None:
    job = hostile(tmp_path, videos, "one", "two")
    make(job, seconds=60)
    assert job.is_done()
    tar = tmp_path / "shard-000000.tar"
    whole = tar.read_bytes()
    tar.write_bytes(whole[:700] + b"x" + whole[701:])
    assert job.is_done() and read_result(tmp_path, 0) is None  # the size is right, the content is not
    tar.write_bytes(whole[:-1])
    assert not job.is_done()
    make(job, seconds=60)
    assert tar.read_bytes() == whole
    (tmp_path / ".work/shard-000000.json").write_text("{")
    assert read_result(tmp_path, 0) is None
    assert not job.is_done()


def test_chunks_that_are_needed(videos: Path) -> None:
    plan = replace(SETTINGS, layout="chunks", chunk_seconds=1.0)
    some = (
        Clip(clip_id="a", video_id="v", video_path="v.mp4", start_second=0.5, stop_second=0.6),
        Clip(clip_id="b", video_id="w 1.x", video_path="w.mp4", start_second=7.0, stop_second=7.5),
        Clip(clip_id="c", video_id="v", video_path="v.mp4", start_second=1.5, stop_second=None),
        Clip(clip_id="d", video_id="gone", video_path="gone.mp4", start_second=0.0, stop_second=None),
    )
    needs = needed_chunks(some, plan, videos)
    assert [chunk.chunk_id for chunk in needs.chunks] == [
        *("v_00000", "v_00001", "v_00002"),
        *("w-1-x_00007", "w-1-x_00008", "w-1-x_00009"),
    ]
    assert needs.ids(0) == ["v_00000", "v_00001", "v_00002"]  # with what may follow a short clip
    assert needs.ids(2) == ["v_00001", "v_00002"] and needs.ids(3) == []
    assert needs.failures == [{"clip_id": "d", "video": "gone.mp4", "reason": "no such video"}]
    other = Clip(clip_id="e", video_id="v", video_path="elsewhere/v.mp4", start_second=0.0, stop_second=1.0)
    with pytest.raises(AnnotationError, match=r"'v'.*v\.mp4.*elsewhere/v\.mp4"):
        needed_chunks([*some, other], plan, videos)
    spread = assign(needs.chunks, replace(plan, split="train"))
    assert sorted(chunk.chunk_id for group in spread for chunk in group) == sorted(c.chunk_id for c in needs.chunks)


def test_failures_are_json_lines_with_the_video(videos: Path, tmp_path: Path) -> None:
    job = hostile(tmp_path, videos, "one")
    job = replace(job, items=(replace(job.items[0], video_path="né\n.mp4"),))  # type: ignore[type-var]
    make(job, seconds=60)
    record = json.loads((tmp_path / ".work/shard-000000.json").read_text(encoding="utf-8"))
    assert record["failures"].keys() == {"one"} and record["rows"] == []
    assert record["failures"]["one"].startswith("no such video") and "\n" not in record["failures"]["one"]
