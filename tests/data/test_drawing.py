"""Drawing alone, on both paths: the form of what it draws, and the pictures of the runner beside it."""

from __future__ import annotations

from contextlib import closing

import numpy as np
import pytest

from lavila.data.drawing import DaliDrawing, HostDrawing, build_drawing
from lavila.data.pictures import DecoderName, Execution, Payload
from lavila.data.reading import ClipReader
from lavila.shards.reader import ShardSet
from tests.data.test_loader import training


@pytest.mark.parametrize(("decoder", "kind"), [("host", HostDrawing), ("dali_cpu", DaliDrawing)])
def test_decoded_clips_are_drawn_again_and_again(vp9_shards: ShardSet, decoder: DecoderName, kind: type) -> None:
    loader = training(vp9_shards)
    execution = Execution(decoder=decoder, device_id=None, batch_size=4, threads=2, prefetch=1)
    drawing = build_drawing(loader.spec, execution)
    assert type(drawing) is kind
    reader, plans = ClipReader(vp9_shards, threads=1), loader.plan.batch(0, 0)
    payloads = [Payload(data=np.frombuffer(data, np.uint8), frames=frames) for data, frames in map(reader.read, plans)]
    decoded = [drawing.decode(payload) for payload in payloads]
    assert [len(frames) for frames in decoded] == [len(plan.distinct_frames()) for plan in plans]
    with closing(drawing.draw([(plans, decoded)])) as drawn:
        assert [next(drawn) for _ in range(3)] == [len(plans)] * 3


@pytest.mark.parametrize(("decoder", "drawn_on_host"), [("host", True), ("nvdec", False), ("dali_cpu", False)])
def test_what_cpu_threads_decode_they_draw_on_a_gpu_machine_too(decoder: DecoderName, drawn_on_host: bool) -> None:
    on_gpu = Execution(decoder=decoder, device_id=0, batch_size=4, threads=2, prefetch=1)
    assert on_gpu.draws_on_host == drawn_on_host
