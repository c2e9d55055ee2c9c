"""ClipLoader: typed batches, order, resume, ranks, bad clips, decoders."""

from __future__ import annotations

import logging
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lavila.data.host.decode import DecodeError, decode_frames
from lavila.data.loader import ClipLoader, Pictures, clip_sizes
from lavila.data.pictures import LoaderError
from lavila.plan.crops import CropChoice, ViewChoice
from lavila.plan.frames import FrameChoice
from lavila.plan.order import Shuffle
from lavila.plan.plans import Ranks, TrainingPlan, ViewPlan
from lavila.shards.reader import ShardSet, open_shard_set
from tests.footage import decode
from tests.tolerance import assert_same_pictures

PICTURES = Pictures(mean=(120.0, 110.0, 100.0), std=(60.0, 60.0, 60.0))


def training(shards: ShardSet, *, batch_size: int = 4, ranks: Ranks | None = None, **changes: Any) -> ClipLoader:
    plan = TrainingPlan(
        clip_sizes(shards),
        frames=FrameChoice(frames=4),
        crop=CropChoice(size=32),
        batch_size=batch_size,
        seed=3,
        ranks=ranks or Ranks(),
    )
    return ClipLoader(shards, plan, pictures=PICTURES, threads=2, **changes)


def viewing(
    shards: ShardSet,
    *,
    batch_size: int = 5,
    ranks: Ranks | None = None,
    sampling: Any = "segments",
    **changes: Any,
) -> ClipLoader:
    plan = ViewPlan(
        clip_sizes(shards),
        frames=FrameChoice(frames=4, sampling=sampling, stride=8),
        views=ViewChoice(size=32, clips=2, crops="three"),
        batch_size=batch_size,
        ranks=ranks or Ranks(),
    )
    return ClipLoader(shards, plan, pictures=PICTURES, threads=2, **changes)


def damaged(shards: ShardSet, folder: Path, *rows: int) -> ShardSet:
    """A copy in which the middle of some clips is zeros; sizes stay, so that only decoding finds it."""
    copy = folder / "damaged"
    shutil.copytree(shards.path, copy)
    for row in rows:
        clip = shards.clips.slice(row, 1).to_pylist()[0]
        with (copy / f"shard-{clip['shard']:06d}.tar").open("r+b") as tar:
            tar.seek(clip["offset"] + 32)
            tar.write(bytes(clip["size"] - 64))
    return open_shard_set(copy)


def test_a_training_batch_is_typed_and_whole(vp9_shards: ShardSet) -> None:
    loader = training(vp9_shards)
    batches = list(loader)
    assert len(batches) == len(loader) == 3
    for batch in batches:
        assert batch.video.shape == (4, 1, 3, 4, 32, 32) and batch.video.dtype == torch.float32
        assert -2.1 < float(batch.video.min()) < float(batch.video.max()) < 2.6
        for i, row in enumerate(batch.rows.tolist()):
            clip = vp9_shards.clips.slice(row, 1).to_pylist()[0]
            assert batch.clip_ids[i] == clip["clip_id"] and batch.narrations[i] == tuple(clip["narrations"])
            assert {name: int(values[i]) for name, values in batch.labels.items()} == {
                name: clip[name] for name in ("verb", "noun", "action")
            }
    assert sorted(row for batch in batches for row in batch.rows.tolist()) == list(range(12))
    assert loader.wait_seconds > 0


def test_the_pictures_are_the_planned_ones(vp9_shards: ShardSet) -> None:
    """One clip of the loader against frames decoded by PyAV, cropped and resized by PyTorch."""
    loader = training(vp9_shards)
    batch = next(iter(loader))
    plan = loader.plan.batch(0, 0)[0]
    frames = torch.from_numpy(decode(vp9_shards.read_video(plan.row)))[plan.frames[0]].permute(0, 3, 1, 2).float()
    top, left, height, width = plan.window
    window = frames[:, :, top : top + height, left : left + width]
    wanted = torch.nn.functional.interpolate(window, size=(32, 32), mode="bilinear", align_corners=False)
    wanted = (wanted - torch.tensor(PICTURES.mean)[:, None, None]) / torch.tensor(PICTURES.std)[:, None, None]
    wanted = (wanted.flip(-1) if plan.flip else wanted).transpose(0, 1)
    assert torch.allclose(batch.video[0, 0], wanted, atol=0.255 / 60)


def test_batches_that_were_handed_out_stay_as_they_were(vp9_shards: ShardSet) -> None:
    kept = [(batch.video, batch.video.clone()) for batch in training(vp9_shards)]
    assert all(torch.equal(video, copy) for video, copy in kept)


def test_the_same_epoch_twice_and_another_epoch(vp9_shards: ShardSet) -> None:
    loader = training(vp9_shards)
    first = [batch.video.clone() for batch in loader]
    loader.set_epoch(0)
    assert all(torch.equal(a, b.video) for a, b in zip(first, loader, strict=True))
    loader.set_epoch(1)
    assert not all(torch.equal(a, b.video) for a, b in zip(first, loader, strict=True))


def test_resume_continues_with_the_very_next_batch(vp9_shards: ShardSet) -> None:
    loader = training(vp9_shards)
    loader.set_epoch(5)
    wanted = [batch.video.clone() for batch in loader]
    loader.set_epoch(5)
    iterator = iter(loader)
    next(iterator)
    state = loader.state_dict()
    assert state == {"epoch": 5, "step": 1}
    resumed = training(vp9_shards)
    resumed.load_state_dict(state)
    assert all(torch.equal(a, b.video) for a, b in zip(wanted[1:], resumed, strict=True))
    resumed.load_state_dict({"epoch": 5, "step": 3})
    assert list(resumed) == []
    with pytest.raises(LoaderError, match="3 steps"):
        resumed.load_state_dict({"epoch": 0, "step": 4})


def test_ranks_share_the_global_batch(vp9_shards: ShardSet) -> None:
    alone = training(vp9_shards)
    parts = [training(vp9_shards, ranks=Ranks(rank=rank, world=2)) for rank in range(2)]
    for whole, *halves in zip(alone, *parts, strict=True):
        assert torch.equal(whole.video, torch.cat([half.video for half in halves]))
        assert whole.clip_ids == tuple(name for half in halves for name in half.clip_ids)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_evaluation_shows_every_clip_once(vp9_shards: ShardSet, world: int) -> None:
    seen: Counter[str] = Counter()
    for rank in range(world):
        for batch in viewing(vp9_shards, ranks=Ranks(rank=rank, world=world)):
            assert batch.video.shape[1:] == (6, 3, 4, 32, 32)
            seen.update(batch.clip_ids)
    assert seen == Counter(f"clip_{i}" for i in range(12))


@pytest.mark.parametrize("make", [training, viewing])
def test_host_and_dali_give_the_same_pictures(vp9_shards: ShardSet, make: Any) -> None:
    dali, host = make(vp9_shards, decoder="dali_cpu"), make(vp9_shards, decoder="host")
    assert (dali.decoder, host.decoder) == ("dali_cpu", "host")
    for a, b in zip(dali, host, strict=True):
        assert a.clip_ids == b.clip_ids
        assert_same_pictures(a.video, b.video, std=PICTURES.std)


def test_h264_takes_the_host_decoder(h264_shards: ShardSet, vp9_shards: ShardSet) -> None:
    loader = training(h264_shards)
    assert loader.decoder == "host"
    for a, b in zip(loader, training(vp9_shards), strict=True):
        assert a.clip_ids == b.clip_ids and (a.video - b.video).abs().mean() < 0.15  # another codec, the same pictures
    with pytest.raises(LoaderError, match=r"h264.*data\.decoder=host.*--codec vp9"):
        training(h264_shards, decoder="dali_cpu")


def test_short_clips_are_padded_with_black_in_the_strided_protocol(vp9_shards: ShardSet) -> None:
    black = (0 - np.array(PICTURES.mean)) / np.array(PICTURES.std)
    for batch in viewing(vp9_shards, sampling="strided"):
        for name, video in zip(batch.clip_ids, batch.video, strict=True):
            last = video[:, :, -1].permute(1, 0, 2, 3).reshape(3, -1).numpy()
            assert np.allclose(last, black[:, None], atol=1e-5) == (name in {"clip_1", "clip_3", "clip_7", "clip_9"})


def test_half_precision_pictures(vp9_shards: ShardSet) -> None:
    plan = training(vp9_shards).plan
    half = Pictures(mean=PICTURES.mean, std=PICTURES.std, half=True)
    batch = next(iter(ClipLoader(vp9_shards, plan, pictures=half)))
    assert batch.video.dtype == torch.float16


@pytest.mark.parametrize("decoder", ["dali_cpu", "host"])
def test_a_bad_clip_is_named_counted_and_replaced(
    vp9_shards: ShardSet, tmp_path: Path, caplog: pytest.LogCaptureFixture, decoder: str
) -> None:
    shards = damaged(vp9_shards, tmp_path, 1, 4, 5)
    bad = {shards.clips.column("clip_id")[row].as_py() for row in (1, 4, 5)}
    whole = training(vp9_shards, decoder=decoder)
    clean = {name: video for b in whole for name, video in zip(b.clip_ids, b.video, strict=True)}
    loader = training(shards, decoder=decoder)
    with caplog.at_level(logging.WARNING):
        batches = list(loader)
    assert [len(batch) for batch in batches] == [4, 4, 4]
    order = [plan.row for step in range(3) for plan in whole.plan.batch(0, step)]
    for batch in batches:
        for position, row, name, video in zip(batch.positions, batch.rows, batch.clip_ids, batch.video, strict=True):
            assert name not in bad
            if order[position] not in (1, 4, 5):
                assert order[position] == row and torch.equal(video, clean[name])  # the others are untouched
    assert {clip.clip_id for clip in loader.bad_clips} == bad
    for clip in loader.bad_clips:
        assert clip.shard.startswith("shard-00000") and clip.reason
        assert order[clip.position] in (1, 4, 5)
        assert any(clip.clip_id in message and clip.shard in message for message in caplog.messages)


def test_an_evaluation_has_no_substitutes_and_its_steps_stay(vp9_shards: ShardSet, tmp_path: Path) -> None:
    loader = viewing(vp9_shards, batch_size=2)
    rows = [clip.row for clip in loader.plan.batch(0, 1)]
    last = [clip.row for clip in loader.plan.batch(0, 5)]
    batches = list(viewing(damaged(vp9_shards, tmp_path, *rows, *last), batch_size=2))
    assert [len(batch) for batch in batches] == [2, 0, 2, 2, 2, 0]
    assert batches[1].video.shape == (0, 6, 3, 4, 32, 32)


@pytest.mark.parametrize("decoder", ["dali_cpu", "host"])
def test_substitutes_are_the_same_on_any_number_of_ranks_and_after_a_resume(
    vp9_shards: ShardSet, tmp_path: Path, decoder: str
) -> None:
    shards = damaged(vp9_shards, tmp_path, 1, 4, 5)
    alone = [(batch.clip_ids, batch.video.clone()) for batch in training(shards, decoder=decoder, batch_size=6)]
    for world in (2, 3):
        ranks = [
            training(shards, decoder=decoder, batch_size=6, ranks=Ranks(rank=rank, world=world))
            for rank in range(world)
        ]
        for (names, video), *parts in zip(alone, *ranks, strict=True):
            assert names == tuple(name for part in parts for name in part.clip_ids)
            assert torch.equal(video, torch.cat([part.video for part in parts]))
    resumed = training(shards, decoder=decoder, batch_size=6)
    resumed.load_state_dict({"epoch": 0, "step": 1})
    (batch,) = resumed
    assert batch.clip_ids == alone[1][0] and torch.equal(batch.video, alone[1][1])


def test_too_many_bad_clips_stop_the_epoch(vp9_shards: ShardSet, tmp_path: Path) -> None:
    shards = damaged(vp9_shards, tmp_path, 0, 1, 2)
    with pytest.raises(LoaderError, match=r"3 clips.*data\.max_bad_clips.*2"):
        list(viewing(shards, max_bad_clips=2))
    with pytest.raises(LoaderError, match=r"3 clips.*data\.max_bad_clips.*2"):
        list(training(shards, max_bad_clips=2))


@pytest.mark.parametrize("make", [training, viewing])
@pytest.mark.parametrize("decoder", ["dali_cpu", "host"])
def test_the_clips_of_a_tar_that_goes_missing_are_bad(
    vp9_shards: ShardSet, tmp_path: Path, decoder: str, make: Any
) -> None:
    """Deleted after the set was opened, and cut off in the middle of its fourth clip."""
    shards = damaged(vp9_shards, tmp_path)
    fourth = shards.clips.slice(9, 1).to_pylist()[0]
    with (shards.path / "shard-000001.tar").open("r+b") as tar:
        tar.truncate(fourth["offset"] + fourth["size"] // 2)
    cut = make(shards, decoder=decoder)
    seen = {row for batch in cut for row in batch.rows.tolist()}
    assert seen == set(range(9)) and {clip.shard for clip in cut.bad_clips} == {"shard-000001.tar"}
    shards = open_shard_set(shards.path)
    (shards.path / "shard-000001.tar").unlink()
    gone = make(shards, decoder=decoder)
    seen = {row for batch in gone for row in batch.rows.tolist()}
    assert seen == set(range(6)) and all("missing" in clip.reason for clip in gone.bad_clips)


def test_an_iteration_may_be_left_half_way(vp9_shards: ShardSet) -> None:
    loader = training(vp9_shards)
    for _ in loader:
        break
    assert loader.state_dict()["step"] == 1


def test_host_decoding_names_what_is_wrong(vp9_shards: ShardSet) -> None:
    data = vp9_shards.read_video(0)
    frames = int(vp9_shards.clips.column("num_frames")[0].as_py())
    whole = decode(data)
    assert (decode_frames(data, [0, 3, frames - 1]) == whole[[0, 3, frames - 1]]).all()
    with pytest.raises(DecodeError, match=rf"frame {frames}.*{frames} frames"):
        decode_frames(data, [0, frames])
    for broken in (b"", bytes(1000), data[: len(data) // 2]):
        with pytest.raises(DecodeError):
            decode_frames(broken, [0])


def test_reading_ahead_changes_no_batch(vp9_shards: ShardSet, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []

    def loader(*, read_ahead: bool) -> ClipLoader:
        plan = TrainingPlan(
            clip_sizes(vp9_shards),
            frames=FrameChoice(frames=4),
            crop=CropChoice(size=32),
            batch_size=2,
            seed=3,
            ranks=Ranks(),
            shuffle=Shuffle(window=4, stretch=2, read_ahead=read_ahead),
        )
        return ClipLoader(vp9_shards, plan, pictures=PICTURES, threads=2)

    monkeypatch.setattr(vp9_shards, "read_ahead", lambda first, last: asked.append((first, last)))
    plain = list(loader(read_ahead=False))
    assert asked == []
    for one, other in zip(plain, loader(read_ahead=True), strict=True):
        assert one.clip_ids == other.clip_ids and torch.equal(one.video, other.video)
    rows = [int(row) for batch in plain for row in batch.rows]
    assert {row // 2 for row in rows[4:]} == {first // 2 for first, _ in asked}  # all but the first window
    assert all(last == first + 1 for first, last in asked) and len(asked) == 4
