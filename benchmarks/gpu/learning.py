"""Parts of the GPU benchmark with a model: training steps and their data wait, and the rows of other benchmarks."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from benchmarks.gpu.material import Material
from benchmarks.gpu.speed import FRAMES, SIZE, loader, training_plan, view_plan
from benchmarks.gpu.step import TrainingStep, data_wait
from benchmarks.gpu.stubs import Gpu
from lavila.data.loader import ClipLoader
from lavila.data.pictures import DecoderName
from lavila.models.timesformer import TimeSformerConfig

if TYPE_CHECKING:
    from benchmarks.gpu.parts import Results

BASE = TimeSformerConfig(image_size=SIZE, num_frames=FRAMES, zero_time_attention=False)
GOAL, AIM = 0.05, 0.01  # share of a step that may wait for data
DECODERS: tuple[DecoderName, ...] = ("nvdec", "host")
BATCHES = {"B": 16, "L": 8}  # clips of a step


def size_of(name: str, material: Material) -> TimeSformerConfig:
    """TimeSformer B or L; a small one for --tiny."""
    if material.tiny:
        return replace(BASE, image_size=64, patch_size=16, width=64, depth=2, heads=4)
    return BASE if name == "B" else replace(BASE, patch_size=14, width=1024, depth=24, heads=16)


def epochs_of(made: ClipLoader) -> Callable[[int], Iterator[Tensor]]:
    """The pictures of an epoch."""

    def epochs(number: int) -> Iterator[Tensor]:
        made.set_epoch(number)
        return (batch.video for batch in made)

    return epochs


def step(gpu: Gpu, material: Material, results: Results) -> None:
    """Data wait of training with B and L, and of an evaluation of 10 x 3 views with B, by codec and decoder."""
    for name, turns in (("B", 8), ("L", 3)):
        train = TrainingStep(size_of(name, material), device=gpu.device)
        for codec in ("hevc", "h264", "vp9") if name == "B" and not material.tiny else ("hevc",):
            shards = material.shard_set(codec)
            batch = 2 if material.tiny else BATCHES[name]
            for decoder in DECODERS:
                plan = training_plan(shards, material, batch=batch, turns=turns)
                measured(results, loader(gpu, shards, plan, decoder), train, f"train {name} bf16", codec, decoder)
        if name == "B":
            shards = material.shard_set("hevc")
            for decoder in DECODERS:
                made = loader(gpu, shards, view_plan(shards, material), decoder)
                measured(results, made, forward_only(train), "evaluate B 10 x 3", "hevc", decoder)
        del train


def forward_only(train: TrainingStep) -> Callable[[Tensor], None]:
    """Scores of every view, a clip at a time."""

    def forward(video: Tensor) -> None:
        """[B, V, C, T, H, W]"""
        with torch.no_grad(), torch.autocast(train.device, torch.bfloat16):
            for clip in video:
                train.model(clip)

    return forward


def measured(
    results: Results, made: ClipLoader, step: Callable[[Tensor], None], what: str, codec: str, decoder: str
) -> None:
    """Two epochs: one to warm up, one that counts."""
    epochs = epochs_of(made)
    data_wait(epochs, step, 0)
    began = time.perf_counter()
    wait = data_wait(epochs, step, 1)
    rate = sum(len(made.plan.batch(1, number)) for number in range(made.plan.steps)) / (time.perf_counter() - began)
    reached = "aim" if wait <= AIM else "must" if wait <= GOAL else "no"
    results.add(what=what, codec=codec, decoder=decoder, data_wait=wait, reached=reached, clips_per_second=rate)


def model(gpu: Gpu, material: Material, results: Results) -> None:
    """Rows of benchmarks.model."""
    from benchmarks import model as model_bench  # it needs timm, which the other parts do without

    short = ["--steps", "forward+backward", "--checkpointing", "off", "--compile", "off", "--precisions", "bf16"]
    given = ["--dry-run"] if material.tiny else [*short, "--rounds", "3", "--batch", "4"]
    for case in model_bench.cases_of(model_bench.parse([*given, "--device", gpu.device.partition(":")[0]])):
        results.add(**model_bench.measure(case, 1 if material.tiny else 3))


def narrator(gpu: Gpu, material: Material, results: Results) -> None:
    """The row of benchmarks.narrator."""
    from benchmarks import narrator as narrator_bench

    asked = argparse.Namespace(
        model="tiny" if material.tiny else "base",
        sequences=10,
        length=9 if material.tiny else 77,
        clips=3 if material.tiny else 16,
        rounds=1 if material.tiny else 3,
        threads=1,
        device=gpu.device.partition(":")[0],
    )
    results.add(**narrator_bench.measure(asked))
