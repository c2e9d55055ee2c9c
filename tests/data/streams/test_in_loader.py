"""The loader gives decoders reduced videos, and counts those that it has to pass on whole."""

from __future__ import annotations

import io
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import av
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
        return list(runner._loaded(pool, loader._reader.planned(loader.plan, epoch=0, step=0, stop=1)))


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


@pytest.mark.parametrize("form", ["hidden frames", "another container"])
def test_frames_that_nvdec_would_count_otherwise_are_not_given_to_it(
    vp9_shards: ShardSet, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, form: str
) -> None:
    """The clip is named and counted as bad, for no other picture may take a frame's place."""
    fake_chip(monkeypatch, ANY_SIZE)
    real = vp9_shards.read_frames
    make, name = (with_hidden_frame, "0.mp4") if form == "hidden frames" else (remuxed, "0.mkv")
    made = make(vp9_shards.read_video(0), tmp_path / name)
    monkeypatch.setattr(
        vp9_shards, "read_frames", lambda row, frames: (made, frames) if row == 0 else real(row, frames)
    )
    bad = [one for batch in handed_over(training(vp9_shards, decoder="nvdec", device="cuda")) for one in batch.bad]
    assert [plan.row for plan, _ in bad] == [0] and "NVDEC" in bad[0][1]
    assert ("hidden" in bad[0][1]) == (form == "hidden frames")


def with_hidden_frame(video: bytes, path: Path) -> bytes:
    """The video as an mp4 in which packet 5 holds two frames, of which only the last is shown."""
    with (
        av.open(io.BytesIO(video)) as source,
        av.open(str(path), "w", container_options={"fflags": "+bitexact"}) as out,
    ):
        stream = out.add_stream_from_template(source.streams.video[0])
        for place, packet in enumerate(packet for packet in source.demux(video=0) if packet.size):
            data = bytes(packet)
            if place == 5:  # a superframe ends with a marker, the sizes of its frames, and the marker
                marker = bytes([0b110_01_001])
                data = data + data + marker + 2 * len(data).to_bytes(2, "little") + marker
            other = av.Packet(data)
            other.pts, other.dts, other.time_base = packet.pts, packet.dts, packet.time_base
            other.is_keyframe, other.stream, other.duration = packet.is_keyframe, stream, packet.duration
            out.mux(other)
    return path.read_bytes()
