"""The doctor measures a dual encoder's model as it does a classifier's."""

from __future__ import annotations

from pathlib import Path

import torch

from lavila.doctor.model import ModelBench, tiled
from lavila.engine import build
from lavila.engine.distributed import Process
from lavila.shards.reader import ShardSet
from tests.engine.test_start import dual_config


def test_a_step_of_a_dual_encoder_needs_no_weights(tmp_path: Path, vp9_shards: ShardSet) -> None:
    """What `model.init` names is not read: it need not be there."""
    config = build.with_weights(dual_config(tmp_path, vp9_shards, "model.init=/no/such/file"), None)
    process = Process(rank=0, world=1, local_world=1, device=torch.device("cpu"))
    bench = ModelBench(config, vp9_shards, process)
    batch = next(iter(build.training_loader(config, vp9_shards, process)))
    bench.step(batch)
    bench.step(tiled(batch, 7))
    rate, size, _ = bench.measure(batch, share=4, seconds=0.01)
    assert rate > 0 and 1 <= size <= 4
