"""Damage on the disk is noticed whatever decodes, with checksums and without: no picture is made of it in silence."""

from __future__ import annotations

import io
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import pytest

from lavila.data.batches import LoadedBatch, PictureBatch
from lavila.data.dali_pipelines.probe import DecodeProbe
from lavila.data.dali_pipelines.runner import PipelineRunner
from lavila.data.host.decode import DecodeError, decode_frames, video_problem
from lavila.data.pictures import Execution, Payload
from lavila.ingest.encode import EncodeSettings, Interval, encode_chunk, encode_clip
from lavila.inspection.verify import Verdict
from lavila.shards.format import FORMAT, WITHOUT_CHECKSUMS, DamagedClip
from lavila.shards.packets import packet_problem
from lavila.shards.reader import ShardSet, open_shard_set
from tests.data.nvdec.fakes import ANY_SIZE, fake_chip
from tests.data.test_loader import training
from tests.footage import Coding, write_numbered_video
from tests.inspection.test_verify import (
    CHUNKED_CLIPS,
    FRAMES,
    GOP,
    HEIGHT,
    WIDTH,
    encoded,
    reasons,
    renew_hashes,
    verify,
    write_chunks,
    write_clips,
)
from tests.shards.older_sets import as_format_2

ROW = 0  # of the clip that is damaged
FORMATS = [FORMAT, WITHOUT_CHECKSUMS]
__all__ = ["encoded"]  # a fixture


def copy_of(shards: ShardSet, folder: Path, shard_format: int) -> ShardSet:
    copy = Path(shutil.copytree(shards.path, folder / f"format_{shard_format}"))
    return open_shard_set(copy if shard_format == FORMAT else as_format_2(copy))


@dataclass(frozen=True)
class Stored:
    """The bytes of a clip in its tar, to be changed one at a time."""

    tar: Path
    offset: int
    data: bytes

    def write(self, at: int, value: bytes) -> None:
        with self.tar.open("r+b") as tar:
            os.pwrite(tar.fileno(), value, self.offset + at)

    def changed(self, places: Sequence[int], mask: int) -> Iterator[tuple[int, bytes]]:
        """Place and the whole mp4, with one byte of it changed, in the tar as well for as long as it is looked at."""
        for at in places:
            other = bytes([self.data[at] ^ mask])
            self.write(at, other)
            yield at, self.data[:at] + other + self.data[at + 1 :]
            self.write(at, self.data[at : at + 1])


def stored(shards: ShardSet, row: int) -> Stored:
    place = shards.clips.slice(row, 1).to_pylist()[0]
    return Stored(shards.path / f"shard-{place['shard']:06d}.tar", place["offset"], shards.read_video(row))


def header_places(data: bytes) -> list[int]:
    """All bytes of an mp4 that are not coded pictures."""
    start = data.index(b"mdat")
    size = int.from_bytes(data[start - 4 : start], "big")
    return [*range(start + 4), *range(start - 4 + size, len(data))]


def flip_a_frame_size(shards: ShardSet, row: int) -> None:
    """One bit of the size of frame 3, now 64 KiB more: it and the frames after it are not there.

    DALI's CPU decoder gives pictures for all of them, and no error.
    """
    one = stored(shards, row)
    at = one.data.index(b"stsz") + 16 + 4 * 3 + 1
    one.write(at, bytes([one.data[at] ^ 1]))


def handed_to_decoder(shards: ShardSet, decoder: str, device: str) -> tuple[list[int], dict[int, str]]:
    """Rows whose bytes an epoch's decoder is given, and those left out with the reason. Needs no GPU."""
    loader = training(shards, decoder=decoder, device=device)
    runner, plans = loader._runner, loader._reader.planned(loader.plan, epoch=0, step=0, stop=1)
    batches: list[LoadedBatch] | list[PictureBatch]
    if isinstance(runner, PipelineRunner):
        with ThreadPoolExecutor(2) as pool:
            batches = list(runner._loaded(pool, plans))
    else:
        batches = list(runner.run(plans))
    bad = {plan.row: reason for batch in batches for plan, reason in batch.bad}
    return [plan.row for batch in batches for plan in batch.plans], bad


@pytest.mark.parametrize(("decoder", "device"), [("host", "cpu"), ("dali_cpu", "cpu"), ("nvdec", "cuda")])
@pytest.mark.parametrize("shard_format", FORMATS)
def test_one_flipped_bit_costs_its_clip_whatever_decodes(
    vp9_shards: ShardSet, tmp_path: Path, decoder: str, device: str, shard_format: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_chip(monkeypatch, ANY_SIZE)
    shards = copy_of(vp9_shards, tmp_path, shard_format)
    assert handed_to_decoder(shards, decoder, device)[1] == {}
    flip_a_frame_size(shards, ROW)
    given, bad = handed_to_decoder(shards, decoder, device)
    assert list(bad) == [ROW] and sorted([*given, ROW]) == list(range(len(shards)))
    assert "damaged" in bad[ROW] and "shard-000000.tar" in bad[ROW]


@pytest.mark.parametrize("decoder", ["host", "dali_cpu", pytest.param("nvdec", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("shard_format", FORMATS)
def test_a_damaged_clip_is_a_bad_clip_and_the_others_are_untouched(
    vp9_shards: ShardSet,
    tmp_path: Path,
    decoder: str,
    shard_format: int,
    caplog: pytest.LogCaptureFixture,
    gpu_shards: Callable[[str], ShardSet],
) -> None:
    device = "cuda" if decoder == "nvdec" else "cpu"
    vp9_shards = gpu_shards("vp9") if decoder == "nvdec" else vp9_shards
    clean = {
        name: video.cpu()
        for batch in training(vp9_shards, decoder=decoder, device=device)
        for name, video in zip(batch.clip_ids, batch.video, strict=True)
    }
    shards = copy_of(vp9_shards, tmp_path, shard_format)
    flip_a_frame_size(shards, ROW)
    loader = training(shards, decoder=decoder, device=device)
    with caplog.at_level(logging.WARNING):
        seen = {name: video.cpu() for batch in loader for name, video in zip(batch.clip_ids, batch.video, strict=True)}
    lost = shards.clips["clip_id"][ROW].as_py()
    assert [(bad.clip_id, bad.shard) for bad in loader.bad_clips] == [(lost, "shard-000000.tar")]
    assert seen.keys() == clean.keys() - {lost} and all((seen[name] == clean[name]).all() for name in seen)
    assert any(lost in message and "damaged" in message for message in caplog.messages)


def by_dali(data: bytes, frames: int) -> npt.NDArray[np.uint8] | None:
    """The pictures that dali_cpu makes of all frames; None where it raises."""
    execution = Execution(decoder="dali_cpu", device_id=None, batch_size=1, threads=1, prefetch=1)
    payload = Payload(data=np.frombuffer(data, np.uint8), frames=np.arange(frames, dtype=np.int32))
    try:
        return DecodeProbe([[payload]], execution=execution).pictures()[0]
    except RuntimeError:
        return None


def test_with_checksums_no_changed_byte_is_read(vp9_shards: ShardSet, tmp_path: Path) -> None:
    shards = copy_of(vp9_shards, tmp_path, FORMAT)
    one = stored(shards, ROW)
    for _ in one.changed(range(len(one.data)), 0x10):
        with pytest.raises(DamagedClip):
            shards.read_frames(ROW, [0, 3])
    assert shards.read_video(ROW) == one.data


def test_without_checksums_no_changed_header_gives_other_pictures(vp9_shards: ShardSet, tmp_path: Path) -> None:
    """DALI makes pictures of what the header promises: about one change in eight gives wrong ones."""
    shards = copy_of(vp9_shards, tmp_path, WITHOUT_CHECKSUMS)
    one, frames = stored(shards, ROW), shards.clips["num_frames"][ROW].as_py()
    right = by_dali(one.data, frames)
    found = {"refused": 0, "same pictures": 0, "wrong pictures": 0}
    for at, data in one.changed(header_places(one.data)[::4], 0x81):
        try:
            shards.read_video(ROW)
        except DamagedClip:
            found["refused"] += 1
            continue
        pictures = by_dali(data, frames)
        sound = pictures is None or np.array_equal(pictures, right)
        found["same pictures" if sound else "wrong pictures"] += 1
        assert sound, at
    assert found["refused"] > 30 and found["same pictures"] > 30


def test_a_check_passes_no_clip_of_which_other_pictures_are_made(vp9_shards: ShardSet, tmp_path: Path) -> None:
    shards = copy_of(vp9_shards, tmp_path, FORMAT)
    one, frames = stored(shards, ROW), shards.clips["num_frames"][ROW].as_py()
    recorded = {"frames": frames, **{name: shards.clips[name][ROW].as_py() for name in ("height", "width")}}
    right = by_dali(one.data, frames)
    assert video_problem(one.data, **recorded) is None
    refused = 0
    for at, data in one.changed(header_places(one.data)[1::4], 0x01):
        if video_problem(data, **recorded) is None:
            assert np.array_equal(by_dali(data, frames), right), at  # type: ignore[arg-type]
        else:
            refused += 1
    assert refused > 30


@pytest.mark.parametrize("codec", ["vp9", "h264"])
def test_damage_in_a_header_is_a_decode_error_and_nothing_else(codec: str, request: pytest.FixtureRequest) -> None:
    """PyAV raises UnicodeDecodeError and AttributeError, too, which ended the run."""
    shards: ShardSet = request.getfixturevalue(f"{codec}_shards")
    data = shards.read_video(ROW)
    recorded = {"frames": 30, **{name: shards.clips[name][ROW].as_py() for name in ("height", "width")}}
    assert video_problem(data, **recorded) is None and packet_problem(data, **recorded) is None
    errors = 0
    for at in header_places(data)[::3]:
        changed = bytearray(data)
        changed[at] ^= 0xFF
        for ask in (video_problem, packet_problem):
            assert isinstance(ask(bytes(changed), **recorded), str | None)
        try:
            decode_frames(bytes(changed), [0, 5, 17, 29])
        except DecodeError:
            errors += 1
    assert errors > 40


def test_verification_finds_the_flipped_bit_with_checksums_and_without(vp9_shards: ShardSet, tmp_path: Path) -> None:
    for shard_format in FORMATS:
        shards = copy_of(vp9_shards, tmp_path, shard_format)
        flip_a_frame_size(shards, ROW)
        verdict = verify(shards)
        assert list(reasons(verdict)) == ["clip_0"]
        assert len(verdict.problems) == 1 and "shard-000000.tar: SHA-256" in verdict.problems[0]
        renew_hashes(shards.path)  # as if it had been stored like that, but for the checksum
        assert verify(shards) == Verdict(problems=[], bad=verdict.bad)


@pytest.fixture(params=FORMATS)
def chunks(request: pytest.FixtureRequest, tmp_path: Path) -> ShardSet:
    made = write_chunks(tmp_path / "chunked")
    return made if request.param == FORMAT else open_shard_set(as_format_2(made.path))


def chunk_places(shards: ShardSet, chunk: int) -> tuple[Path, list[int]]:
    """The tar of a chunk, and in it the first byte of its header, of each group of pictures, and its end."""
    assert shards.chunks is not None
    row = shards.chunks.slice(chunk, 1).to_pylist()[0]
    cuts = [row["offset"] + offset for offset in (0, *row["gop_offsets"])]
    return shards.path / f"shard-{row['shard']:06d}.tar", cuts


def test_only_what_is_read_of_a_chunk_is_compared(chunks: ShardSet) -> None:
    """c0 is frames 0 to 19 of its chunk, in groups of 8."""
    tar, cuts = chunk_places(chunks, 0)
    sound = {n: chunks.read_frames(0, [n])[0] for n in (0, 9, 17)}
    size_of_a_frame = tar.read_bytes().index(b"trun", cuts[2]) + 12 + 4  # in the second group
    with tar.open("r+b") as file:
        old = os.pread(file.fileno(), 4, size_of_a_frame + 4)
        os.pwrite(file.fileno(), bytes([old[0], old[1], old[2] ^ 1, old[3]]), size_of_a_frame + 4)
    assert {n: chunks.read_frames(0, [n])[0] for n in (0, 17)} == {n: sound[n] for n in (0, 17)}
    for frames in ([9], [0, 9], [9, 17], list(range(20))):
        with pytest.raises(DamagedClip, match=r"shard-000000\.tar"):
            chunks.read_frames(0, frames)
    with pytest.raises(DamagedClip):
        chunks.read_video(0)


@pytest.mark.parametrize("part", range(6))
def test_every_piece_of_a_chunk_has_its_checksum(tmp_path: Path, part: int) -> None:
    shards = write_chunks(tmp_path / "chunked")
    tar, cuts = chunk_places(shards, 0)
    for at in (cuts[part], cuts[part + 1] - 1):
        with tar.open("r+b") as file:
            old = os.pread(file.fileno(), 1, at)
            os.pwrite(file.fileno(), bytes([old[0] ^ 0x40]), at)
            for row, (video, first, frames) in enumerate(CHUNKED_CLIPS.values()):
                needs_header = part == 0 and first < 40  # begins in this chunk
                used = video == "v" and (needs_header or set(range(first, first + frames)) & in_group(part))
                try:
                    shards.read_video(row)
                except DamagedClip:
                    assert used
                else:
                    assert not used
            os.pwrite(file.fileno(), old, at)
    shards.read_video(0)


def in_group(part: int) -> set[int]:
    """Frames of the first chunk's group that is piece `part`; none for its header."""
    return set(range((part - 1) * GOP, part * GOP)) if part else set()


def test_a_set_without_checksums_gives_the_same_bytes(vp9_shards: ShardSet, tmp_path: Path) -> None:
    old = copy_of(vp9_shards, tmp_path, WITHOUT_CHECKSUMS)
    assert not old.has_checksums and vp9_shards.has_checksums
    for row in range(len(old)):
        assert old.read_video(row) == vp9_shards.read_video(row)
    new = write_chunks(tmp_path / "chunked")
    videos = [(new.read_video(row), new.read_frames(row, [0, 2])) for row in range(len(new))]
    old = open_shard_set(as_format_2(new.path))
    for row, (video, (some, numbers)) in enumerate(videos):
        assert old.read_video(row) == video
        data, places = old.read_frames(row, [0, 2])
        assert data == some and np.array_equal(places, numbers)


def test_hidden_frames_and_foreign_sizes_are_noticed_by_packets(vp9_shards: ShardSet) -> None:
    data, recorded = vp9_shards.read_video(ROW), {"frames": 30, "height": 64, "width": 112}
    assert packet_problem(data, **recorded) is None
    for wrong in ({"frames": 29}, {"frames": 31}, {"height": 80}, {"width": 64}):
        assert packet_problem(data, **{**recorded, **wrong}) is not None
    media_time = data.index(b"elst") + 16  # the edit begins 10 frames later
    with av.open(io.BytesIO(data)) as container:
        stream: Any = container.streams.video[0]
        ticks = int(10 / stream.average_rate / stream.time_base)
    hidden = data[:media_time] + ticks.to_bytes(4, "big") + data[media_time + 4 :]
    assert by_dali(hidden, 30) is not None, "DALI gives pictures for all 30"
    assert "hidden" in str(packet_problem(hidden, **recorded)) or "frames" in str(packet_problem(hidden, **recorded))
    assert video_problem(hidden, **recorded) is not None, "verification does not take them for frames"


@pytest.mark.parametrize("codec", ["vp9", "h264", "hevc", "av1"])
def test_sound_videos_of_every_codec_pass_without_checksums(codec: str, tmp_path: Path) -> None:
    speed = {"vp9": "8", "av1": "12"}.get(codec, "ultrafast")
    settings = EncodeSettings(codec=codec, short_side=64, speed=speed, gop=6)
    path = write_numbered_video(tmp_path / "v.mp4", 40, Coding(fps=Fraction(25)), height=64, width=96)
    clip = encode_clip(path, interval=Interval(start_second=0.2, stop_second=1.2), settings=settings)
    chunk = encode_chunk(path, number=0, seconds=1.0, settings=settings)
    shape = {"height": clip.height, "width": clip.width}
    offsets = chunk.gop_offsets
    some = chunk.data[: offsets[0]] + chunk.data[offsets[1] : offsets[2]] + chunk.data[offsets[3] : offsets[5]]
    for data, frames in ((clip.data, clip.num_frames), (chunk.data, 25), (some, 6 + 6 + 1)):
        for ask in (packet_problem, video_problem):
            assert ask(data, frames=frames, **shape) is None


def test_a_set_for_one_protocol_is_read_without_checksums(encoded: list[bytes], tmp_path: Path) -> None:
    facts = {"frames_for": {"frames": 4, "sampling": "segments", "stride": 2, "clips": 1}}
    coding = Coding(codec="libvpx-vp9")
    distinct = [3 if frames == 9 else 4 for frames in FRAMES]
    chosen = [
        write_numbered_video(tmp_path / f"{i}.mp4", frames, coding, height=HEIGHT, width=WIDTH).read_bytes()
        for i, frames in enumerate(distinct)
    ]
    sound = open_shard_set(as_format_2(write_clips(tmp_path / "set", chosen, **facts).path))
    assert [sound.read_video(row) for row in range(len(chosen))] == chosen
    whole = open_shard_set(as_format_2(write_clips(tmp_path / "whole", encoded, **facts).path))
    with pytest.raises(DamagedClip):
        whole.read_video(0)
