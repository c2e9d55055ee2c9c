"""What a verification finds, and that training and evaluation then leave it out."""

from __future__ import annotations

import functools
import io
import json
import shutil
import tarfile
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lavila.cluster.workers import Job, Progress
from lavila.data.loader import ClipLoader, Pictures, clip_sizes
from lavila.inspection import verify as verify_module
from lavila.inspection.verify import Quarantined, Verdict, verify_shard_set, write_quarantine
from lavila.inspection.videos import RecordedShape, VideoTest, decodes
from lavila.plan.crops import CropChoice, ViewChoice
from lavila.plan.frames import FrameChoice
from lavila.plan.plans import Ranks, TrainingPlan, ViewPlan
from lavila.shards.format import CHUNKS_SCHEMA, CLIPS_SCHEMA, ShardSetError, file_sha256
from lavila.shards.reader import ShardSet, open_shard_set, read_quarantine
from lavila.shards.writer import SetContents, ShardWriter, add_mapped, write_manifest, write_table
from tests.footage import Coding, numbered_picture, write_numbered_video
from tests.inspection.hostile import Hostile
from tests.shards.older_sets import as_format_2

HEIGHT, WIDTH, FPS, GOP, PER_CHUNK = 64, 96, 25, 8, 40
FRAMES = (20, 24, 30, 9, 25, 12, 18, 16)  # stored with each clip
CLASSES = {"verb": ["take", "put"], "noun": ["plate"], "labels": ["Sit on a chair", "Öffnen"]}
ENCODER = {"codec": "vp9", "crf": 12, "speed": "8"}
SIZES = {"height": HEIGHT, "width": WIDTH, "source_height": HEIGHT, "source_width": WIDTH}
SIZES |= {"scaled_height": HEIGHT, "scaled_width": WIDTH}
RATES = {"fps": float(FPS), "source_fps": float(FPS)}
CHUNKED_VIDEOS = {"v": 100, "w": 60}  # frames
CHUNKED_CLIPS = {"c0": ("v", 0, 20), "c1": ("v", 30, 20), "c2": ("v", 42, 4), "c3": ("v", 85, 15), "c4": ("w", 5, 50)}


def clip_words(clip_id: str, number: int) -> dict[str, Any]:
    return {
        "clip_id": clip_id,
        "start_second": float(number),
        "stop_second": number + 0.5,
        "narrations": [f"#C C takes plate {number}", "prend l'assiette"][: number % 3],
        "verb": number % 2,
        "noun": None if number == 3 else 0,
        "action": None,
        "labels": [1, 0][: number % 2],
        "extra": {"participant_id": "P01"},
    }


def manifest_facts(layout: str, **more: Any) -> dict[str, Any]:
    return {"dataset": "made_up", "split": "val", "layout": layout, "encoder": ENCODER, **more}


@pytest.fixture(scope="session")
def encoded(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    folder = tmp_path_factory.mktemp("videos")
    coding = Coding(codec="libvpx-vp9", gop=GOP)
    return [
        write_numbered_video(folder / f"{i}.mp4", frames, coding, height=HEIGHT, width=WIDTH).read_bytes()
        for i, frames in enumerate(FRAMES)
    ]


def write_clips(folder: Path, encoded: list[bytes], **facts: Any) -> ShardSet:
    """Layout "clips": eight clips in two tars; each has two frames before it and three after."""
    folder.mkdir()
    rows, files = [], []
    for tar in range(2):
        with ShardWriter(folder, tar) as writer:
            for i in range(4 * tar, 4 * tar + 4):
                place = {"first_frame": 2, "num_frames": FRAMES[i] - 5, "frames_after": 3, "chunk": None}
                row = {**clip_words(f"clip_{i}", i), "video_id": f"v{i // 2}", **place, **SIZES, **RATES}
                rows.append(writer.add(row["clip_id"], encoded[i], row))
        files.append(writer.file)
    contents = SetContents(classes=CLASSES, facts=manifest_facts("clips", **facts), tables={"sentences": [{"id": 1}]})
    write_manifest(folder, rows=rows, shards=files, contents=contents)
    return open_shard_set(folder)


@functools.cache
def chunk_bytes(first: int, frames: int) -> tuple[bytes, list[int]]:
    """A chunk as `lavila.shards.format` describes it, and its gop_offsets."""
    buffer = io.BytesIO()
    flags = "+frag_keyframe+empty_moov+default_base_moof+negative_cts_offsets+frag_discont"
    options = {"deadline": "realtime", "cpu-used": "8", "b": "0", "crf": "12", "lag-in-frames": "0"}
    with av.open(buffer, "w", format="mp4", container_options={"movflags": flags, "use_editlist": "0"}) as container:
        stream: Any = container.add_stream("libvpx-vp9", rate=FPS, options={**options, "keyint_min": str(GOP)})
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        stream.codec_context.gop_size, stream.codec_context.time_base = GOP, Fraction(1, FPS)
        for number in range(first, first + frames):
            picture = numbered_picture(number, height=HEIGHT, width=WIDTH)
            frame: Any = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    data = buffer.getvalue()
    starts, at = [], 0
    while at < len(data):
        size, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        if kind in (b"moof", b"mfra"):
            starts.append(at)
        at += size
    assert len(starts) == -(-frames // GOP) + 1, "one fragment a group, then mfra"
    return data, starts


def write_chunks(folder: Path) -> ShardSet:
    """Layout "chunks": two videos in five chunks over two tars, and five clips that overlap and cross boundaries."""
    folder.mkdir()
    rows: list[dict[str, Any]] = []
    files = []
    wanted = [(video, first) for video, frames in CHUNKED_VIDEOS.items() for first in range(0, frames, PER_CHUNK)]
    for tar in range(2):
        with ShardWriter(folder, tar) as writer:
            for video, first in wanted[3 * tar : 3 * tar + 3]:
                frames = min(PER_CHUNK, CHUNKED_VIDEOS[video] - first)
                data, offsets = chunk_bytes(first, frames)
                row = {"chunk_id": f"{video}_{first // PER_CHUNK:05d}", "video_id": video, "first_frame": first}
                row |= {"num_frames": frames, "gop": GOP, "gop_offsets": offsets, **SIZES, **RATES}
                rows.append(writer.add(row["chunk_id"], data, row))
        files.append(writer.file)
    write_table(folder / "chunks.parquet", rows, CHUNKS_SCHEMA)
    clips = []
    for i, (clip_id, (video, first, frames)) in enumerate(CHUNKED_CLIPS.items()):
        chunk = next(n for n, row in enumerate(rows) if row["video_id"] == video and first < row["first_frame"] + 40)
        place = {name: rows[chunk][name] for name in ("shard", "offset", "size")}
        place |= {"chunk": chunk, "first_frame": first - rows[chunk]["first_frame"], "num_frames": frames}
        place |= {"frames_after": CHUNKED_VIDEOS[video] - first - frames}
        clips.append({**clip_words(clip_id, i), "video_id": video, **place, **SIZES, **RATES})
    contents = SetContents(classes=CLASSES, facts=manifest_facts("chunks"))
    write_manifest(folder, rows=clips, shards=files, contents=contents)
    return open_shard_set(folder)


@pytest.fixture
def clips(tmp_path: Path, encoded: list[bytes]) -> ShardSet:
    return write_clips(tmp_path / "set", encoded)


@pytest.fixture
def chunks(tmp_path: Path) -> ShardSet:
    return write_chunks(tmp_path / "chunked")


def run_here(jobs: Sequence[Job], **settings: Any) -> None:
    """`run_jobs` without its processes, which take seconds to start."""
    for job in jobs:
        job.run(lambda item, event: None, {})


def verify(shard_set: ShardSet) -> Verdict:
    """A verification, in this process, of the folder as it is now."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verify_module, "run_jobs", run_here)
        return verify_for_good(shard_set, decodes)


def verify_for_good(shard_set: ShardSet, test: VideoTest) -> Verdict:
    """The same with worker processes."""
    return verify_shard_set(open_shard_set(shard_set.path), test, workers=2, on_progress=lambda _: None)


def renew_hashes(folder: Path) -> None:
    """Have the manifest agree with the files as they are now."""
    manifest = json.loads((folder / "shard_set.json").read_text())
    for shard in manifest["shards"]:
        shard["bytes"] = (folder / shard["name"]).stat().st_size
        shard["sha256"] = file_sha256(folder / shard["name"])
        shard["index_sha256"] = file_sha256((folder / shard["name"]).with_suffix(".idx"))
    manifest["tables"] = {name: file_sha256(folder / name) for name in manifest["tables"]}
    (folder / "shard_set.json").write_text(json.dumps(manifest))
    add_mapped(folder)


def break_frame(shard_set: ShardSet, *, table: pa.Table, row: int, frame: int) -> None:
    """Spoil the first bytes of a stored frame, which VP9 decoders notice. No size changes."""
    place = table.select(["shard", "offset", "size"]).slice(row, 1).to_pylist()[0]
    with (shard_set.path / f"shard-{place['shard']:06d}.tar").open("r+b") as tar:
        tar.seek(place["offset"])
        with av.open(io.BytesIO(tar.read(place["size"]))) as container:
            packets = [packet.pos for packet in container.demux(video=0) if packet.size]
        tar.seek(place["offset"] + packets[frame])
        tar.write(b"\x00\x00")


def change_table(shard_set: ShardSet, name: str, column: str, row: int, value: Any) -> None:
    """Another value in a table, and a manifest that agrees with it."""
    path = shard_set.path / name
    rows = pq.read_table(path).to_pylist()
    rows[row][column] = value
    pq.write_table(pa.Table.from_pylist(rows, CLIPS_SCHEMA if name == "clips.parquet" else CHUNKS_SCHEMA), path)
    renew_hashes(shard_set.path)


def reasons(verdict: Verdict) -> dict[str, str]:
    return {one.clip_id: one.reason for one in verdict.bad}


@pytest.mark.parametrize("layout", ["clips", "chunks"])
def test_a_sound_set_is_found_sound(layout: str, request: pytest.FixtureRequest) -> None:
    shard_set: ShardSet = request.getfixturevalue(layout)
    before = {path.name: path.read_bytes() for path in shard_set.path.iterdir()}
    progress: list[Progress] = []
    verdict = verify_shard_set(shard_set, decodes, workers=2, on_progress=progress.append)
    assert verdict == Verdict(problems=[], bad=[])
    videos = shard_set.clips.num_rows if shard_set.chunks is None else shard_set.chunks.num_rows
    assert (progress[-1].stored, progress[-1].failed) == (videos + 2, 0)  # every video and every tar
    assert {path.name: path.read_bytes() for path in shard_set.path.iterdir()} == before


@pytest.mark.parametrize("frame", [0, 11, 23])
def test_a_damaged_frame_is_found_by_hash_and_by_decoding(clips: ShardSet, frame: int) -> None:
    break_frame(clips, table=clips.clips, row=1, frame=frame)
    verdict = verify(clips)
    assert verdict.problems == [f"{clips.path}/shard-000000.tar: SHA-256 is not the one on record; copy the file again"]
    assert [(one.clip_id, one.shard) for one in verdict.bad] == [("clip_1", "shard-000000.tar")]
    assert "checksum" in verdict.bad[0].reason
    renew_hashes(as_format_2(clips.path))
    only_decoding = verify(clips)
    assert only_decoding.problems == []
    assert [(one.clip_id, one.shard) for one in only_decoding.bad] == [("clip_1", "shard-000000.tar")]
    assert "Invalid data" in only_decoding.bad[0].reason


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("num_frames", 30, "20"),
        ("num_frames", 14, "more than the 19 frames that the table says"),
        ("frames_after", 4, "20"),
        ("height", 80, "pictures of 96x64, the table says 96x80"),
    ],
)
def test_frame_counts_and_sizes_are_those_of_the_table(clips: ShardSet, column: str, value: int, reason: str) -> None:
    change_table(clips, "clips.parquet", column, 0, value)
    verdict = verify(clips)
    assert list(reasons(verdict)) == ["clip_0"] and reason in reasons(verdict)["clip_0"]
    assert len(verdict.problems) == 1
    assert f"1 .json members differ from the table, the first: 'clip_0' ({column})" in verdict.problems[0]


def test_rows_that_cannot_be_are_named(clips: ShardSet) -> None:
    change_table(clips, "clips.parquet", "num_frames", 5, 0)
    change_table(clips, "clips.parquet", "verb", 6, 2)
    verdict = verify(clips)
    assert reasons(verdict) == {"clip_5": "the table says 0 frames from 2, and 3 after them"}
    assert any("verb from 0 to 2, but the manifest names 2 classes" in text for text in verdict.problems)


def test_a_wrong_index_is_named_with_its_line(clips: ShardSet) -> None:
    index = clips.path / "shard-000001.idx"
    lines = index.read_text().splitlines()
    index.write_text("\n".join([*lines[:2], lines[2].replace("mp4 ", "mp4 1", 1), *lines[3:]]) + "\n")
    renew_hashes(clips.path)
    verdict = verify(clips)
    assert verdict.bad == []
    assert len(verdict.problems) == 1 and verdict.problems[0].startswith(f"{index}, line 3: ")
    assert lines[2] in verdict.problems[0]


def test_a_clip_that_lies_elsewhere_is_not_trained_on(clips: ShardSet) -> None:
    """Two rows that are exchanged decode well, under each other's words."""
    path = clips.path / "clips.parquet"
    rows = pq.read_table(path).to_pylist()
    same = ("offset", "size", "num_frames")
    rows[0] |= {name: clips.clips[name][1].as_py() for name in same}
    rows[1] |= {name: clips.clips[name][0].as_py() for name in same}
    pq.write_table(pa.Table.from_pylist(rows, CLIPS_SCHEMA), path)
    renew_hashes(clips.path)
    found = reasons(verify(clips))
    assert list(found) == ["clip_0", "clip_1"]
    assert all("of the tar with" in reason and "the table says byte" in reason for reason in found.values())


@pytest.mark.parametrize("name", ["../outside.mp4", "/etc/passwd", "a/b.mp4", "..mp4", "clip_9.sh", "x.y.mp4"])
def test_members_that_could_escape_are_refused(clips: ShardSet, name: str) -> None:
    path = clips.path / "shard-000000.tar"
    with tarfile.open(path, "a", format=tarfile.GNU_FORMAT) as tar:
        info = tarfile.TarInfo(name)
        info.size = 3
        tar.addfile(info, io.BytesIO(b"bad"))
    renew_hashes(clips.path)
    verdict = verify(clips)
    assert verdict.bad == []
    assert [text for text in verdict.problems if repr(name) in text and "is not a file <id>.mp4" in text]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.DIRTYPE])
def test_links_and_folders_are_refused(clips: ShardSet, kind: bytes) -> None:
    with tarfile.open(clips.path / "shard-000000.tar", "a", format=tarfile.GNU_FORMAT) as tar:
        info = tarfile.TarInfo("clip_9.mp4")
        info.type, info.linkname = kind, "/etc/passwd"
        tar.addfile(info)
    renew_hashes(clips.path)
    assert any("'clip_9.mp4' is not a file" in text for text in verify(clips).problems)


def test_a_member_too_many_or_too_few_is_named(clips: ShardSet) -> None:
    with tarfile.open(clips.path / "shard-000000.tar", "a", format=tarfile.GNU_FORMAT) as tar:
        for name in ("clip_9.mp4", "clip_9.json"):
            tar.addfile(tarfile.TarInfo(name))
    renew_hashes(clips.path)
    problems = verify(clips).problems
    assert any("1 members that the table does not have, the first: 'clip_9'" in text for text in problems)
    manifest = json.loads((clips.path / "shard_set.json").read_text())
    manifest["shards"][1]["clips"] = 5
    (clips.path / "shard_set.json").write_text(json.dumps(manifest))
    assert any("4 videos in shard-000001.tar, the manifest lists 5" in text for text in verify(clips).problems)


def test_a_damaged_header_hides_the_clips_after_it(clips: ShardSet) -> None:
    offset = clips.clips["offset"][2].as_py()
    with (clips.path / "shard-000000.tar").open("r+b") as tar:
        tar.seek(offset - 512)
        tar.write(b"\xff" * 200)
    renew_hashes(clips.path)
    verdict = verify(clips)
    assert reasons(verdict) == dict.fromkeys(("clip_2", "clip_3"), "not among the tar's members")
    assert any("shard-000000.idx, line 1: 'v1.2 4', but the tar has 'v1.2 2'" in text for text in verdict.problems)


def test_a_changed_table_is_found_by_hash(clips: ShardSet) -> None:
    (clips.path / "sentences.parquet").write_bytes((clips.path / "sentences.parquet").read_bytes() + b" ")
    assert verify(clips).problems == [
        f"{clips.path}/sentences.parquet: SHA-256 is not the manifest's; copy the file again"
    ]


def test_a_clip_that_kills_the_decoder_is_found_like_any_other(clips: ShardSet, tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    verdict = verify_for_good(clips, Hostile(frozenset({24, 9, 16}), seen))
    assert verdict.problems == []
    assert list(reasons(verdict)) == ["clip_1", "clip_3", "clip_7"]
    assert all(reason == "crashed its process (SIGSEGV)" for reason in reasons(verdict).values())
    assert seen.stat().st_size == 8, "what was checked before a crash is not checked again"


def test_a_chunk_that_kills_the_decoder_takes_its_clips_along(chunks: ShardSet, tmp_path: Path) -> None:
    found = reasons(verify_for_good(chunks, Hostile(frozenset({20}), tmp_path / "seen")))  # the last chunks of v and w
    assert list(found) == ["c1", "c2", "c3", "c4"]
    assert found["c3"] == "chunk v_00002: crashed its process (SIGSEGV)"


@pytest.mark.parametrize(
    ("chunk", "frame", "lost"),
    [
        (0, 12, ["c0"]),  # frames 8 to 15 of v
        (0, 39, ["c1"]),
        (1, 5, ["c1", "c2"]),
        (1, 20, ["c1", "c2"]),  # past the end of both, but a view of a short clip may reach there
        (4, 19, ["c4"]),
    ],
)
def test_a_damaged_group_of_a_chunk_costs_only_the_clips_that_use_it(
    chunks: ShardSet, chunk: int, frame: int, lost: list[str]
) -> None:
    assert chunks.chunks is not None
    break_frame(chunks, table=chunks.chunks, row=chunk, frame=frame)
    renew_hashes(chunks.path)
    verdict = verify(chunks)
    assert verdict.problems == []
    assert set(lost) <= set(reasons(verdict))
    # A view may reach two seconds, 50 frames, past the end of a clip.
    video, at = ("v", chunk * PER_CHUNK + frame) if chunk < 3 else ("w", (chunk - 3) * PER_CHUNK + frame)
    group = range(at - at % GOP, at - at % GOP + GOP)
    reach = {name: (v, range(first, first + frames + 50)) for name, (v, first, frames) in CHUNKED_CLIPS.items()}
    assert set(reasons(verdict)) == {name for name, (v, span) in reach.items() if v == video and set(span) & set(group)}


def test_clips_must_lie_where_chunks_are(chunks: ShardSet) -> None:
    change_table(chunks, "clips.parquet", "num_frames", 3, 16)
    change_table(chunks, "clips.parquet", "chunk", 2, 9)
    change_table(chunks, "clips.parquet", "offset", 0, 1)
    assert reasons(verify(chunks)) == {
        "c0": "shard, offset and size are not those of chunk 0",
        "c2": "chunk 9 is not in chunks.parquet",
        "c3": "frames 5 to 21 of chunk 2, which can be read up to 20",
    }


def test_a_wrong_frame_count_of_a_chunk_is_found(chunks: ShardSet) -> None:
    change_table(chunks, "chunks.parquet", "num_frames", 2, 22)
    verdict = verify(chunks)
    assert "c3" in reasons(verdict) and "chunk v_00002" in reasons(verdict)["c3"]
    assert any("'v_00002' (num_frames)" in text for text in verdict.problems)
    change_table(chunks, "chunks.parquet", "num_frames", 2, 28)
    assert "28 frames in groups of 8, but gop_offsets has 3 groups" in reasons(verify(chunks))["c3"]


def test_a_set_for_one_protocol_holds_its_frames_only(tmp_path: Path, encoded: list[bytes]) -> None:
    facts = {"frames_for": {"frames": 4, "sampling": "segments", "stride": 2, "clips": 1}}
    distinct = [3 if frames == 9 else 4 for frames in FRAMES]  # a clip of four frames gives three: published rounding
    coding = Coding(codec="libvpx-vp9")
    chosen = [
        write_numbered_video(tmp_path / f"{i}.mp4", frames, coding, height=HEIGHT, width=WIDTH).read_bytes()
        for i, frames in enumerate(distinct)
    ]
    assert verify(write_clips(tmp_path / "set", chosen, **facts)) == Verdict(problems=[], bad=[])
    whole = verify(write_clips(tmp_path / "whole", encoded, **facts))
    assert reasons(whole) == {
        f"clip_{i}": f"more than the {frames} frames that the table says" for i, frames in enumerate(distinct)
    }


def test_every_frame_is_decoded(clips: ShardSet) -> None:
    def problem(data: bytes, frames: int) -> str | None:
        return decodes(data, RecordedShape(frames=frames, height=HEIGHT, width=WIDTH))

    video, tar = clips.read_video(2), clips.path / "shard-000000.tar"
    assert problem(video, 30) is None
    assert "not the 31 frames that the table says" in str(problem(video, 31))
    for frames in (29, 12, 1):
        assert problem(video, frames) == f"more than the {frames} frames that the table says"
    sound, place = tar.read_bytes(), slice(offset := clips.clips["offset"][2].as_py(), offset + len(video))
    for frame in range(30):  # in four groups of pictures
        break_frame(clips, table=clips.clips, row=2, frame=frame)
        assert "Invalid data" in str(problem(tar.read_bytes()[place], 30)), frame
        tar.write_bytes(sound)


def test_quarantine_is_replaced_and_removed(clips: ShardSet) -> None:
    one, two = (Quarantined(clip_id=f"clip_{i}", shard="shard-000000.tar", reason=f"ü {i}") for i in range(2))
    path = clips.path / "quarantine.jsonl"
    write_quarantine(clips.path, [one, two])
    assert open_shard_set(clips.path).quarantine == {"clip_0": "ü 0", "clip_1": "ü 1"}
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines[0] == {"clip_id": "clip_0", "shard": "shard-000000.tar", "reason": "ü 0"}
    write_quarantine(clips.path, [two])
    assert list(open_shard_set(clips.path).quarantine) == ["clip_1"]
    write_quarantine(clips.path, [])
    assert not path.exists() and not list(clips.path.glob("*.tmp"))
    write_quarantine(clips.path, [])


@pytest.mark.parametrize("layout", ["clips", "chunks"])
def test_training_and_evaluation_leave_the_quarantine_out(layout: str, request: pytest.FixtureRequest) -> None:
    shard_set: ShardSet = request.getfixturevalue(layout)
    table = shard_set.clips if shard_set.chunks is None else shard_set.chunks
    break_frame(shard_set, table=table, row=0, frame=10)
    renew_hashes(shard_set.path)
    verdict = verify(shard_set)
    write_quarantine(shard_set.path, verdict.bad)
    bad = {"clip_0"} if layout == "clips" else {"c0"}
    assert {one.clip_id for one in verdict.bad} == bad
    opened = open_shard_set(shard_set.path)
    good = set(opened.clips["clip_id"].to_pylist()) - bad
    assert len(opened.usable_rows()) == len(clip_sizes(opened)) == len(good)
    choice = FrameChoice(frames=4)
    views = ViewPlan(
        clip_sizes(opened), frames=choice, views=ViewChoice(size=32, crops="center"), batch_size=2, ranks=Ranks()
    )
    train = TrainingPlan(
        clip_sizes(opened), frames=choice, crop=CropChoice(size=32), batch_size=len(good), seed=0, ranks=Ranks()
    )
    pictures = Pictures(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    for plan in (views, train):
        loader = ClipLoader(opened, plan, pictures=pictures)
        seen = [clip_id for batch in loader for clip_id in batch.clip_ids]
        assert sorted(seen) == sorted(good)
        assert loader.bad_clips == []


def test_interrupting_writes_nothing(clips: ShardSet) -> None:
    def stop(progress: Progress) -> None:
        raise KeyboardInterrupt

    write_quarantine(clips.path, [Quarantined(clip_id="clip_3", shard="shard-000000.tar", reason="earlier")])
    before = {path.name: path.read_bytes() for path in clips.path.iterdir()}
    with pytest.raises(KeyboardInterrupt):
        verify_shard_set(clips, decodes, workers=2, on_progress=stop)
    assert {path.name: path.read_bytes() for path in clips.path.iterdir()} == before


def test_a_copy_elsewhere_is_as_sound(clips: ShardSet, tmp_path: Path) -> None:
    shutil.copytree(clips.path, tmp_path / "copy")
    assert verify(open_shard_set(tmp_path / "copy")).problems == []
    with pytest.raises(ShardSetError, match="nowhere"):
        open_shard_set(tmp_path / "nowhere")


def test_a_quarantine_in_another_file(clips: ShardSet, tmp_path: Path) -> None:
    one = Quarantined(clip_id="clip_0", shard="shard-000000.tar", reason="bad")
    file = tmp_path / "elsewhere.jsonl"
    write_quarantine(clips.path, [one], file=file)
    assert not (clips.path / "quarantine.jsonl").exists() and "clip_0" in file.read_text()
    assert read_quarantine(file) == {"clip_0": "bad"}
    write_quarantine(clips.path, [], file=file)
    assert not file.exists()
