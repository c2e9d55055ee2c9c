"""The loader gives decoders reduced videos, and counts those that it has to pass on whole."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lavila.data.batches import LoadedBatch
from lavila.data.dali_pipelines.runner import PipelineRunner
from lavila.data.host.decode import decode_frames
from lavila.data.loader import ClipLoader
from lavila.data.streams.mp4 import read_mp4
from lavila.data.streams.reduction import WHOLE
from lavila.shards.reader import ShardSet
from tests.data.nvdec.fakes import ANY_SIZE, fake_chip
from tests.data.streams.test_mp4 import remuxed
from tests.data.test_loader import training


def handed_over(loader: ClipLoader) -> list[LoadedBatch]:
    """What the pipelines of an epoch are given. Needs no GPU."""
    runner = loader._runner
    assert isinstance(runner, PipelineRunner)
    with ThreadPoolExecutor(2) as pool:
        return list(runner._loaded(pool, loader._reader.planned(loader.plan, epoch=0, step=0)))


@pytest.mark.parametrize(("decoder", "codec"), [("nvdec", "h264"), ("nvdec", "vp9"), ("dali_cpu", "vp9")])
def test_dali_is_given_only_what_is_needed(
    decoder: str, codec: str, h264_shards: ShardSet, vp9_shards: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_chip(monkeypatch, ANY_SIZE)
    shards = h264_shards if codec == "h264" else vp9_shards
    device = "cuda" if decoder == "nvdec" else "cpu"
    given = stored = 0
    for batch in handed_over(training(shards, decoder=decoder, device=device)):
        assert not batch.bad
        for plan, payload in zip(batch.plans, batch.payloads, strict=True):
            whole, frames = shards.read_frames(plan.row, plan.distinct_frames())
            assert (decode_frames(payload.data, payload.frames) == decode_frames(whole, frames)).all()
            given += len(read_mp4(payload.data.tobytes()).packets.sizes)
            stored += len(read_mp4(whole).packets.sizes)
    assert given < (0.45 if codec == "h264" else 0.95) * stored


@pytest.mark.parametrize("decoder", ["host", "dali_cpu"])
def test_a_video_of_another_form_is_passed_on_whole_and_counted(
    decoder: str,
    vp9_shards: ShardSet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    expected = [batch.video.numpy().copy() for batch in training(vp9_shards, decoder=decoder)]
    real = vp9_shards.read_frames

    def other_writer(row: int, frames: Any) -> Any:
        data, numbers = real(row, frames)
        return remuxed(data, tmp_path / f"{row}.mkv"), numbers

    monkeypatch.setattr(vp9_shards, "read_frames", other_writer)
    monkeypatch.setattr(WHOLE, "_counts", type(WHOLE._counts)())
    with caplog.at_level(logging.WARNING):
        found = [batch.video.numpy().copy() for batch in training(vp9_shards, decoder=decoder)]
    assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))
    assert list(WHOLE.counts.values()) == [sum(map(len, found))]
    assert sum("not an mp4" in record.getMessage() for record in caplog.records) == 1, "named once"


def test_a_clip_whose_tables_do_not_fit_is_bad_before_a_decoder_is_asked(
    vp9_shards: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = vp9_shards.read_frames
    monkeypatch.setattr(vp9_shards, "read_frames", lambda row, frames: (real(row, frames)[0][:-700], frames))
    for batch in handed_over(training(vp9_shards, decoder="dali_cpu")):
        assert not batch.payloads and batch.bad
