"""tools/shard_videos.py --layout chunks, --margin and --frames-for: other ways to store the same clips."""

from __future__ import annotations

import json
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from lavila.data.loader import ClipLoader, Pictures, clip_sizes
from lavila.plan.crops import CropChoice, ViewChoice
from lavila.plan.frames import FrameChoice, choose_frames, frame_span
from lavila.plan.plans import Ranks, TrainingPlan, ViewPlan
from lavila.shards.format import ShardSetError
from lavila.shards.reader import ShardSet, open_shard_set
from tests.footage import Coding, read_number, read_numbers, write_numbered_video
from tests.tools.test_shard_videos import contents, csv_line, run, write_annotations

SECONDS = 30
PLAIN = Pictures(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
CHUNKS = ["--layout", "chunks", "--chunk-seconds", "4", "--gop", "10"]


def lines() -> list[str]:
    """Overlapping clips, some across the boundaries at 4, 8, 12 ... s, one past the end of the video."""
    starts = [0.0, 0.3, 3.5, 3.9, 7.0, 7.9, 11.5, 15.98, 20.0, 28.1, 29.0]
    clips = [csv_line(number, "P01_01", start, start + 1.4) for number, start in enumerate(starts)]
    return [*clips, csv_line(90, "P01_02", 1.0, 9.5), csv_line(91, "P01_02", 2.0, 2.3)]


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("videos")
    write_numbered_video(root / "P01/P01_01.MP4", SECONDS * 30, Coding(fps=Fraction(30)), height=48, width=64)
    write_numbered_video(root / "P01/P01_02.MP4", 250, Coding(fps=Fraction(25), gop=60), height=48, width=64)
    return root


@pytest.fixture(scope="module")
def annotations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_annotations(tmp_path_factory.mktemp("csvs"), lines())


def made(folder: Path, annotations: Path, videos: Path, *more: str) -> ShardSet:
    done = run(annotations, videos, folder, "--split", "val", *more)
    assert done.returncode == 0, done.stderr
    return open_shard_set(folder)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory, annotations: Path, videos: Path) -> ShardSet:
    return made(tmp_path_factory.mktemp("clips") / "set", annotations, videos)


@pytest.fixture(scope="module")
def chunks(tmp_path_factory: pytest.TempPathFactory, annotations: Path, videos: Path) -> ShardSet:
    return made(tmp_path_factory.mktemp("chunks") / "set", annotations, videos, *CHUNKS)


def numbers(shards: ShardSet, row: int, frames: Sequence[int]) -> list[int]:
    """What the stored frames of a clip say of themselves."""
    data, places = shards.read_frames(row, frames)
    held = read_numbers(data)
    return [held[place] for place in places]


def test_both_layouts_hold_the_same_clips(clips: ShardSet, chunks: ShardSet) -> None:
    assert chunks.verify(full=True) == [] and chunks.chunks is not None and clips.chunks is None
    words = ["clip_id", "video_id", "start_second", "stop_second", "verb", "noun", "narrations", "num_frames", "fps"]
    assert chunks.clips.select(words).equals(clips.clips.select(words))  # val keeps the annotations' order
    for row, line in enumerate(chunks.clips.to_pylist()):
        first, stop = frame_span(line["start_second"], line["stop_second"], line["source_fps"])
        stop = min(stop, SECONDS * 30 if line["video_id"] == "P01_01" else 250)
        assert line["num_frames"] == stop - first
        wanted = list(range(0, stop - first, 3))
        expected = [first + frame for frame in wanted]
        assert numbers(chunks, row, wanted) == expected == numbers(clips, row, wanted)


def test_each_video_is_stored_once(chunks: ShardSet) -> None:
    assert chunks.chunks is not None
    table = chunks.chunks.to_pylist()
    assert [row["chunk_id"] for row in table[:3]] == ["P01_01_00000", "P01_01_00001", "P01_01_00002"]
    assert [row["first_frame"] for row in table[:3]] == [0, 120, 240]
    assert {row["gop"] for row in table} == {10}
    assert "P01_01_00006" not in [row["chunk_id"] for row in table]  # no clip needs 24 to 28 s
    assert sum(row["num_frames"] for row in table) == 30 * (30 - 4) + 250


def test_only_the_groups_that_are_needed_are_read(chunks: ShardSet) -> None:
    long = chunks.clips.column("clip_id").to_pylist().index("P01_02_90")
    whole, sparse = chunks.read_video(long), chunks.read_frames(long, [0, 100, 200])[0]
    assert len(sparse) < 0.3 * len(whole)
    assert len(read_numbers(sparse)) == 30  # three groups of ten
    assert numbers(chunks, long, [0, 100, 200]) == [25, 125, 225]


@pytest.mark.parametrize("codec", ["vp9", "h264"])
def test_the_loader_treats_both_alike(codec: str, annotations: Path, videos: Path, tmp_path: Path) -> None:
    speed = ["--codec", codec, "--speed", "8" if codec == "vp9" else "ultrafast", "--crf", "10"]
    pair = [made(tmp_path / name, annotations, videos, *speed, *more) for name, more in (("a", []), ("b", CHUNKS))]
    for shards in pair:
        sizes = clip_sizes(shards)
        training = TrainingPlan(
            sizes,
            frames=FrameChoice(frames=4),
            crop=CropChoice(size=48, scale=(1.0, 1.0), ratio=(4 / 3, 4 / 3), flip=0.0),
            batch_size=3,
            seed=5,
            ranks=Ranks(),
        )
        views = ViewPlan(
            sizes,
            frames=FrameChoice(frames=4),
            views=ViewChoice(size=48, clips=2, crops="center"),
            batch_size=4,
            ranks=Ranks(),
        )
        for plan in (training, views):
            loader = ClipLoader(shards, plan, pictures=PLAIN, threads=2)
            plans = {p.position: p for step in range(plan.steps) for p in plan.batch(0, step)}
            seen = 0
            for batch in loader:
                for video, position, row in zip(
                    batch.video, batch.positions.tolist(), batch.rows.tolist(), strict=True
                ):
                    first = round(shards.clips["start_second"][row].as_py() * shards.clips["source_fps"][row].as_py())
                    wanted = plans[position].frames + first
                    if plan is training:  # the whole picture, squeezed to a square; the views cut its middle out
                        said = [
                            [read_number(p) for p in np.moveaxis(view.numpy(), 0, -1)[:, :, :, :]] for view in video
                        ]
                        assert said == wanted.tolist()
                    seen += 1
            assert seen == (12 if plan is training else 13)


def test_margin_keeps_what_lies_around(annotations: Path, videos: Path, tmp_path: Path) -> None:
    shards = made(tmp_path / "set", annotations, videos, "--margin", "0.5")
    for row, line in enumerate(shards.clips.to_pylist()):
        first, stop = frame_span(line["start_second"], line["stop_second"], line["source_fps"])
        end = SECONDS * 30 if line["video_id"] == "P01_01" else 250
        around = round(0.5 * line["source_fps"])
        assert line["first_frame"] == min(first, around)
        assert line["frames_after"] == min(end, stop + around) - min(stop, end)
        assert numbers(shards, row, [0, line["num_frames"] - 1]) == [first, min(stop, end) - 1]
        assert read_numbers(shards.read_video(row)) == list(range(max(first - around, 0), min(end, stop + around)))


def test_frames_for_stores_what_an_evaluation_asks_for(
    clips: ShardSet, annotations: Path, videos: Path, tmp_path: Path
) -> None:
    asked = ["--frames-for", "quickstart", "data.frames=4", "views.clips=3"]
    shards = made(tmp_path / "set", annotations, videos, *asked)
    assert shards.manifest["frames_for"] == {"frames": 4, "sampling": "segments", "stride": 2, "clips": 3}
    assert sum(s.bytes for s in shards.shards) < sum(s.bytes for s in clips.shards)
    for row, count in enumerate(shards.clips.column("num_frames").to_pylist()):
        wanted = np.unique(choose_frames(count, FrameChoice(frames=4), clips=3))
        assert read_numbers(shards.read_video(row)) == numbers(clips, row, wanted)  # these, and no other
        assert numbers(shards, row, wanted) == numbers(clips, row, wanted)
        few = wanted[::2].tolist()
        assert numbers(shards, row, few) == numbers(clips, row, few)
    other = sorted(set(range(shards.clips["num_frames"][11].as_py())) - set(wanted.tolist()))[:2]
    with pytest.raises(ShardSetError):
        shards.read_frames(11, other)
    pictures = {}
    for shard_set in (clips, shards):
        plan = ViewPlan(
            clip_sizes(shard_set),
            frames=FrameChoice(frames=4),
            views=ViewChoice(size=48, clips=3, crops="center"),
            batch_size=13,
            ranks=Ranks(),
        )
        (batch,) = ClipLoader(shard_set, plan, pictures=PLAIN, threads=2)
        pictures[shard_set.path] = batch.video.numpy()
    a, b = pictures.values()
    assert float(np.abs(a - b).mean()) < 4.0  # coded anew, of 255


def test_frames_for_wants_an_evaluation_clip_by_clip(annotations: Path, videos: Path, tmp_path: Path) -> None:
    for more, message in (
        (["--split", "train", "--frames-for", "quickstart"], "with --split train"),
        (["--split", "val", "--layout", "chunks", "--frames-for", "quickstart"], "with --layout chunks"),
        (["--split", "val", "--frames-for", "quickstrat"], "Did you mean 'quickstart'?"),
    ):
        done = run(annotations, videos, tmp_path / "set", *more)
        assert done.returncode == 2 and message in done.stderr
        assert not (tmp_path / "set").exists()


def test_chunks_resume_to_the_same_bytes(chunks: ShardSet, annotations: Path, videos: Path, tmp_path: Path) -> None:
    out = tmp_path / "set"
    few = run(annotations, videos, out, "--split", "val", *CHUNKS, "--workers", "1")
    assert few.returncode == 0, few.stderr
    assert contents(out) == contents(chunks.path)


def test_a_damaged_stretch_costs_the_clips_that_lie_in_it(annotations: Path, videos: Path, tmp_path: Path) -> None:
    root = tmp_path / "videos/P01"
    root.mkdir(parents=True)
    (root / "P01_02.MP4").symlink_to(videos / "P01/P01_02.MP4")
    data = (videos / "P01/P01_01.MP4").read_bytes()
    (root / "P01_01.MP4").write_bytes(data[: len(data) // 2])  # its header lies at the end: no frame can be read
    out = tmp_path / "set"
    done = run(annotations, tmp_path / "videos", out, "--split", "val", *CHUNKS)
    assert done.returncode == 0, done.stderr
    shards = open_shard_set(out)
    assert shards.clips.column("clip_id").to_pylist() == ["P01_02_90", "P01_02_91"]
    failures = [json.loads(line) for line in (out / "failures.jsonl").read_text().splitlines()]
    assert len(failures) == 11 and {failure["video"] for failure in failures} == {"P01/P01_01.MP4"}
    assert all("not a readable video" in failure["reason"] for failure in failures)
