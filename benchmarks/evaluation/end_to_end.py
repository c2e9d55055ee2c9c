"""How fast an evaluation is from stored video to score, beside the reference's way.

    python -m benchmarks.evaluation end_to_end [--rounds 5] [--workers 2] [--codecs vp9 h264]
    python -m benchmarks.evaluation end_to_end --dry-run

Two protocols at 224 pixels and 16 frames, clips of 3 s, both sides with the same footage and the same tiny model:

- egtea: zero-shot classification, 10 temporal clips at stride 2 x 3 crops.
- mir: multi-instance retrieval, one centre view.

Sides, in one run and in turn, round by round:

- ours: `evaluate_task`, as evaluate.py has it: each frame decoded once, one pass of the model for many views,
  predictions written to the disk, scores.
- reference: decord in chunks of 300 s; every temporal clip is decoded for itself; a DataLoader of --workers processes;
  one process's loop gives the model one view of a batch after the other, and in mir each clip's own sentence with it.
- model: the forward passes of ours alone, over pictures that are there already. Neither side can be faster.

Medians, wall time and the time of all cores, processes below included. Other work on the machine tilts the wall time;
the ratio of core times is beside it. The footage is made once (minutes) under data/benchmark/evaluation. Needs decord
(pip install 'lavila[bench]'). Writes benchmarks/results/evaluation_end_to_end.json and the table of
docs/PERFORMANCE.md between its markers.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks import common
from benchmarks.common import SCRATCH, fill_docs, machine
from benchmarks.loader.footage import Material, SetSpec
from benchmarks.loader.peers import decord_chunks
from benchmarks.loader.peers.common import Job
from benchmarks.loader.sides import core_seconds
from lavila.config.load import load_config
from lavila.config.schema import RunConfig
from lavila.data.loader import Pictures, clip_sizes
from lavila.engine import build
from lavila.engine.distributed import Process
from lavila.engine.evaluator import evaluate_task
from lavila.engine.tables import tables_of
from lavila.engine.task_options import task_options
from lavila.metrics.classification import confusion_matrix, mean_class_accuracy
from lavila.metrics.retrieval import both_scores
from lavila.models.dual_encoder import ClipDualEncoder
from lavila.models.text_tower import ClipTextConfig
from lavila.models.timesformer import TimeSformer, TimeSformerConfig
from lavila.plan.frames import FrameChoice
from lavila.plan.plans import Ranks, ViewPlan
from lavila.shards.reader import ShardSet
from lavila.tasks import Task
from lavila.tasks.dual_encoders import Encoders
from lavila.tasks.registry import task_kind
from lavila.tasks.tables import Sentences, Tables

Protocol = Literal["egtea", "mir"]
PROTOCOLS: dict[Protocol, str] = {"egtea": "egtea_zeroshot_tsf_b", "mir": "ek100_mir_zeroshot_tsf_b"}
GOALS: dict[Protocol, tuple[float, float]] = {"egtea": (8.0, 15.0), "mir": (3.0, 6.0)}  # must, aim
SECONDS, FRAMES, SIZE = 3, 16, 224
CLIPS = 24  # with few, the memory of the first batches, touched for the first time, is most of what is measured
BATCH: dict[Protocol, int] = {"egtea": 2, "mir": 8}  # clips
TOWER = TimeSformerConfig(
    image_size=SIZE, patch_size=32, width=32, depth=1, heads=2, num_frames=FRAMES, zero_time_attention=False
)
TEXT = ClipTextConfig(width=32, depth=1, heads=2)
Side = Callable[[], dict[str, float]]  # runs an evaluation once and gives its scores


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What both sides of a protocol get."""

    protocol: Protocol
    config: RunConfig
    shards: ShardSet
    tables: Tables
    task: Task
    chunks: Path
    workers: int

    @property
    def narrations(self) -> list[str]:
        """The first of each clip, by row."""
        return [texts[0] for texts in self.shards.clips.column("narrations").to_pylist()]


def setup(protocol: Protocol, material: Material, *, codec: str, workers: int) -> Setup:
    """The model and the task are the same for both sides."""
    shards = material.shard_set(SetSpec(seconds=SECONDS, codec=codec))
    settings = [f"data.val={shards.path}", f"data.frames={FRAMES}", f"data.image_size={SIZE}", "device=cpu"]
    settings += [f"data.threads={workers}", f"views.batch_size={BATCH[protocol]}"]
    config = build.with_weights(load_config(PROTOCOLS[protocol], settings), None)
    torch.manual_seed(0)
    model = ClipDualEncoder(TimeSformer(TOWER), text=TEXT, embed_dim=32).eval()
    tables = tables_of(shards) if protocol == "egtea" else retrieval_tables(shards)
    task = task_kind(config.task.name).task(model, {}, task_options(config), tables)
    return Setup(
        protocol=protocol,
        config=config,
        shards=shards,
        tables=tables,
        task=task,
        chunks=material.chunks,
        workers=workers,
    )


def retrieval_tables(shards: ShardSet) -> Tables:
    """Each clip's narration is a sentence; others fit it half."""
    texts = [texts[0] for texts in shards.clips.column("narrations").to_pylist()]
    relevancy = ((np.eye(len(texts)) + 1) / 2).astype(np.float32)
    return Tables(
        of=shards.path,
        clips=len(texts),
        sentences=lambda: Sentences(ids=[str(number) for number in range(len(texts))], texts=texts),
        relevancy=lambda rows: relevancy[rows],
    )


def ours(what: Setup) -> Side:
    """evaluate.py without its report."""
    alone = Process(rank=0, world=1, local_world=1, device=torch.device("cpu"))

    def run() -> dict[str, float]:
        with tempfile.TemporaryDirectory() as folder:
            found = evaluate_task(what.config, what.task, what.shards, alone, output=Path(folder), kept=True)
        assert found is not None and found.clips == len(what.shards)
        return {name: metric.value for name, metric in found.scores.metrics.items()}

    return run


def reference(what: Setup) -> Side:
    """One process's loop over a DataLoader that decodes with decord."""
    plan = ViewPlan(
        clip_sizes(what.shards),
        frames=FrameChoice(frames=FRAMES, sampling=what.config.data.sampling, stride=what.config.data.stride),
        views=build.view_choice(what.config),
        batch_size=BATCH[what.protocol],
        ranks=Ranks(),
    )
    data = what.config.data
    job = Job(
        shards=what.shards,
        plan=plan,
        frames=FrameChoice(frames=FRAMES),
        crop=None,
        views=build.view_choice(what.config),
        batch_size=BATCH[what.protocol],
        workers=what.workers,
        pictures=Pictures(mean=data.mean, std=data.std),  # type: ignore[arg-type]
        chunks=what.chunks,
        tars=(),
    )
    epochs = decord_chunks.make(job)
    encoders = Encoders(what.task.model, task_options(what.config))
    rows = [[clip.row for clip in plan.batch(0, step)] for step in range(plan.steps)]
    score = {"egtea": _reference_egtea, "mir": _reference_mir}[what.protocol]

    @torch.no_grad()
    def run() -> dict[str, float]:
        return score(what, encoders, zip(epochs(0), rows, strict=True))

    return run


def _view_features(encoders: Encoders, batch: Tensor) -> Iterator[Tensor]:
    """[B,D] of one view of the clips [B,V,C,T,H,W] after the other."""
    model = encoders.inner
    assert isinstance(model, ClipDualEncoder)
    for view in range(batch.shape[1]):
        yield normalize(model.encode_video(batch[:, view].contiguous()), dim=-1)


def _reference_egtea(what: Setup, encoders: Encoders, batches: Iterator[tuple[Tensor, list[int]]]) -> dict[str, float]:
    texts = what.tables.class_texts["action"]
    classes = torch.stack([normalize(encoders.texts(list(said)).mean(0), dim=0) for said in texts])
    labels, guesses = what.tables.labels("action"), []
    for batch, _ in batches:
        views = torch.stack([features @ classes.T for features in _view_features(encoders, batch)])
        guesses.append(views.amax(0).softmax(1).argmax(1))
    confusion = confusion_matrix(torch.cat(guesses).numpy(), labels, num_classes=len(texts))
    return {"action_mean_class": mean_class_accuracy(confusion, absent_as_zero=True)}


def _reference_mir(what: Setup, encoders: Encoders, batches: Iterator[tuple[Tensor, list[int]]]) -> dict[str, float]:
    narrations, videos, texts = what.narrations, [], []
    for batch, rows in batches:
        videos += list(_view_features(encoders, batch))
        texts.append(encoders.texts([narrations[row] for row in rows]))
    similarity = (torch.cat(videos) @ torch.cat(texts).T).numpy()
    average_precision, gain = both_scores(similarity, what.tables.relevancy(np.arange(len(similarity))))
    return {"map": 100 * average_precision.mean, "ndcg": 100 * gain.mean}


def model_alone(what: Setup) -> Side:
    """The forward passes of ours."""
    encoders = Encoders(what.task.model, task_options(what.config))
    views = build.view_choice(what.config).computed
    portion = max(1, what.config.views.view_batch_size // views)
    video = torch.randn(portion, views, FRAMES, 3, SIZE, SIZE).transpose(2, 3)  # as the loader's lies in memory

    @torch.no_grad()
    def run() -> dict[str, float]:
        for start in range(0, len(what.shards), portion):
            encoders.views(video[: len(what.shards) - start])
        return {}

    return run


def measure(what: Setup, *, rounds: int) -> dict[str, Any]:
    """Seconds a clip of each side, and the ratios of the reference's to ours."""
    sides: dict[str, Side] = {"ours": ours(what), "reference": reference(what), "model": model_alone(what)}
    scores = {name: side() for name, side in sides.items()}  # also warms up
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for number in range(rounds):
        names = list(sides) if number % 2 == 0 else list(sides)[::-1]
        for name in names:
            wall, cores = time.perf_counter(), core_seconds()
            sides[name]()
            spent[name].append((time.perf_counter() - wall, core_seconds() - cores))
    clips = len(what.shards)
    seconds = {
        name: {
            "wall": statistics.median(w for w, _ in both) / clips,
            "cores": statistics.median(c for _, c in both) / clips,
        }
        for name, both in spent.items()
    }
    ratios = {
        clock: statistics.median(
            theirs[place] / ours_[place] for ours_, theirs in zip(spent["ours"], spent["reference"], strict=True)
        )
        for place, clock in enumerate(("wall", "cores"))
    }
    return {
        "protocol": what.protocol,
        "codec": what.shards.codec,
        "clips": clips,
        "views": build.view_choice(what.config).computed,
        "seconds_a_clip": seconds,
        "times_as_fast": ratios,
        "goal": GOALS[what.protocol],
        "scores": scores,
        "rounds": rounds,
        "workers": what.workers,
    }


def table(report: dict[str, Any]) -> str:
    """The Markdown of docs/PERFORMANCE.md."""
    rows = report["rows"]
    about = report["machine"]
    lines = [
        f"`python -m benchmarks.evaluation end_to_end`, {about['cores']} cores of {about['processor']}, "
        f"{rows[0]['workers']} workers; medians of {rows[0]['rounds']} rounds; {FRAMES} frames at {SIZE} pixels, clips "
        f"of {SECONDS} s, chunks of {report['chunk_seconds']} s. Core times count all processes.",
        "",
        "| protocol | codec | ours, s a clip (cores) | reference (cores) | model alone (cores) | times as fast, wall "
        "| in core time | must, aim |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        seconds = [
            f"{row['seconds_a_clip'][name]['wall']:.3f} ({row['seconds_a_clip'][name]['cores']:.3f})"
            for name in ("ours", "reference", "model")
        ]
        ratios = [f"{row['times_as_fast'][clock]:.1f}x" for clock in ("wall", "cores")]
        goal = "{:.0f}x, {:.0f}x".format(*row["goal"])
        name = f"{row['protocol']}, {row['views']} view{'s' if row['views'] > 1 else ''}"
        lines.append(f"| {' | '.join([name, row['codec'], *seconds, *ratios, goal])} |")
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="timings of each side (5)")
    parser.add_argument("--workers", type=int, default=2, help="threads of ours, processes of the reference (2)")
    parser.add_argument(
        "--video-seconds", type=int, default=300, help="of a chunk of the reference (300, as published)"
    )
    parser.add_argument("--codecs", nargs="+", default=["vp9", "h264"], help="of our shard sets (vp9 h264)")
    parser.add_argument("--dry-run", action="store_true", help="tiny footage, one round; writes nothing")
    args = parser.parse_args(argv)
    if reason := decord_chunks.needs(None):  # type: ignore[arg-type]
        parser.error(reason)
    if args.dry_run:
        args.codecs, args.rounds = args.codecs[:1], 1
        material = Material.tiny(SCRATCH / "evaluation-tiny")
    else:
        folder = SCRATCH / f"evaluation-{args.video_seconds}s"
        material = Material(folder=folder, video_seconds=args.video_seconds, clips={SECONDS: CLIPS})
    rows = []
    for codec in args.codecs:
        for protocol in PROTOCOLS:
            row = measure(setup(protocol, material, codec=codec, workers=args.workers), rounds=args.rounds)
            print(json.dumps(row), flush=True)
            rows.append(row)
    if args.dry_run:
        return 0
    about = machine("torch", "av", "decord")
    report = {"machine": about, "chunk_seconds": args.video_seconds, "rows": rows}
    text = table(report)
    print(text)
    common.RESULTS.mkdir(parents=True, exist_ok=True)
    (common.RESULTS / "evaluation_end_to_end.json").write_text(json.dumps(report, indent=1) + "\n")
    fill_docs("evaluation-end-to-end", text)
    return 0
