"""The one evaluator: every clip exactly once over all ranks, fused over its views, into a report one can look at."""

from __future__ import annotations

import heapq
import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import interpolate

from lavila.config.load import to_dict
from lavila.config.schema import RunConfig
from lavila.data.loader import BadClip, ClipLoader
from lavila.data.shards import ShardSet
from lavila.engine import build
from lavila.engine.distributed import Process, gather_to_main, join, on_main, sum_over_ranks
from lavila.engine.environment import best_effort, environment
from lavila.engine.precision import Arithmetic
from lavila.engine.reporting import ReportPictures, ViewStrip, append_stage, read_stages, view_labels, write_report
from lavila.engine.run_folder import Subject, subject_of
from lavila.models.checkpoints import load_model, trained_on
from lavila.records import VideoBatch
from lavila.tasks import Predictions, Scores, Task, concatenate

log = logging.getLogger(__name__)

SHOWN_CLIPS, SHOWN_MISTAKES, LISTED_MISTAKES = 4, 6, 60
STRIP_VIEWS, STRIP_FRAMES, STRIP_PIXELS = 6, 8, 112
LOG_SECONDS = 15.0
OF_TRAINING = (  # sections and settings of a config that an evaluation does not use
    "seed", "resume", "checkpoint_every_steps", "keep_checkpoints", "log_every_steps", "evaluate_every_epochs", "model",
    "optim",
)  # fmt: skip


class EvaluationError(ValueError):
    """An evaluation that has nothing to say, told in one line."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What an evaluation found, on the main rank."""

    predictions: Predictions
    scores: Scores
    controls: dict[str, float]  # percent
    pictures: dict[int, npt.NDArray[np.uint8]]  # row -> [views, frames, H, W, 3] of the clips to show
    bad_clips: list[BadClip]
    seconds: float
    data_wait_percent: float
    decoder: str
    precision: str  # fp32, bf16 or fp16


@dataclass
class _Seen:
    """What one rank collects while it goes through its clips."""

    predictions: list[Predictions] = field(default_factory=list)
    frozen: list[Predictions] = field(default_factory=list)  # of views whose frames are all the middle one
    pictures: dict[int, npt.NDArray[np.uint8]] = field(default_factory=dict)
    mistakes: list[tuple[float, int, npt.NDArray[np.uint8]]] = field(default_factory=list)  # heap: confidence, row
    bad_clips: list[BadClip] = field(default_factory=list)
    wait_seconds: float = 0.0


def evaluate(config: RunConfig) -> Path | None:
    """Evaluate a checkpoint on the validation set and write the report. Returns report.html on the main rank.

    The run folder's report is of the run's newest checkpoint; that of any other model lies under `evaluations/` in it.
    """
    with join(config.device.value) as process:
        subject = on_main(lambda: subject_of(Path(config.run_dir), config.checkpoint))
        trained = trained_on(subject.model)
        config = build.with_statistics(config, trained)
        shards = build.shard_set(config, "val")
        classes = build.head_classes(config, shards)
        build.check_classes(classes, trained.classes, of=shards.path, wanted_by=trained.file)
        for note in (notes := build.departures(config, trained)):
            log.warning("%s: %s", trained.file, note)
        data = config.data
        model = load_model(trained.file, num_frames=data.frames, image_size=data.image_size, device=process.device)
        task = build.build_task(config, model, classes)
        result = evaluate_task(config, task, shards, process)
        if result is None:
            return None
        for name, value in result.scores.metrics.items():  # first of all, whatever the report meets
            log.info("%-18s %6.2f %%", name, value)
        best_effort("stages.jsonl", lambda: append_stage(subject.output, "evaluate", result.seconds), None)
        wrong: list[dict[str, Any]] = best_effort("mistakes", lambda: _mistakes(shards, result), [])
        report = _report(config, subject, shards, result, process, wrong=wrong) | {"notes": notes}
        pictures = best_effort("pictures", lambda: _pictures(config, shards, result, wrong), ReportPictures())
        write_report(subject.output, report, pictures=pictures, history=subject.history)
    return subject.output / "report.html"


def evaluate_task(config: RunConfig, task: Task, shards: ShardSet, process: Process) -> Evaluation | None:
    """Predictions and scores of a task on a shard set; None on the other ranks.

    On every rank: EvaluationError where no clip could be evaluated, LoaderError where too many could not.
    """
    started = time.perf_counter()
    arithmetic = Arithmetic.of_evaluation(config, process.device)
    loader = build.view_loader(config, shards, process)
    shown = {int(row) for row in np.linspace(0, len(shards) - 1, SHOWN_CLIPS)}
    training = task.model.training
    task.model.eval()
    seen, told = _Seen(), started
    for batch in loader:
        if not len(batch):
            continue
        batch = arithmetic.fitted(batch)
        with arithmetic.autocast():
            seen.predictions.append(predicted := task.predict(batch))
            if config.views.single_frame_control:
                middle = batch.video[:, :, :, batch.video.shape[3] // 2].unsqueeze(3).expand_as(batch.video)
                seen.frozen.append(task.predict(replace(batch, video=middle)))
        _collect_pictures(config, batch, predicted, shown, seen)
        if process.is_main and time.perf_counter() - told > LOG_SECONDS:
            told = time.perf_counter()
            done = sum(len(part.rows) for part in seen.predictions) * process.world
            left = (told - started) * max(len(shards) - done, 0) / done
            log.info("evaluated %d of %d clips, %.0f s left", min(done, len(shards)), len(shards), left)
    task.model.train(training)
    seen.bad_clips, seen.wait_seconds = loader.bad_clips, loader.wait_seconds
    _check_clips(config, seen, loader, process)
    parts = gather_to_main(seen)
    if parts is None:
        return None
    how = {"decoder": loader.decoder, "precision": arithmetic.precision.value}
    return _combine(task, parts, seconds=time.perf_counter() - started, how=how)


def _check_clips(config: RunConfig, seen: _Seen, loader: ClipLoader, process: Process) -> None:
    """Counted over all ranks, so that all of them stop together."""
    good = sum(len(part.rows) for part in seen.predictions)
    counts = {"good": float(good), "bad": float(len(seen.bad_clips))}
    totals = sum_over_ranks(counts, device=process.device)
    loader.check_bad_clips(round(totals["bad"]))
    if not totals["good"]:
        bad = f"; {seen.bad_clips[0].clip_id}: {seen.bad_clips[0].reason}" if seen.bad_clips else ""
        raise EvaluationError(f"{config.data.val}: not one clip could be evaluated{bad}")


def _combine(task: Task, parts: Sequence[_Seen], *, seconds: float, how: dict[str, str]) -> Evaluation:
    predictions = concatenate([p for part in parts for p in part.predictions])
    scores = task.score(predictions)
    controls = {}
    for head, targets in predictions.targets.items():
        if (targets >= 0).any():
            counts = np.bincount(targets[targets >= 0])
            controls[f"chance_{head}_top1"] = 100.0 / predictions.scores[head].shape[1]
            controls[f"largest_class_{head}_top1"] = float(counts.max() / counts.sum() * 100)
    frozen = [p for part in parts for p in part.frozen]
    if frozen:
        metrics = task.score(concatenate(frozen)).metrics
        controls |= {f"single_frame_{name}": metrics[name] for name in metrics if name.endswith("_top1")}
    worst = heapq.nlargest(
        SHOWN_MISTAKES, (item for part in parts for item in part.mistakes), key=lambda item: item[:2]
    )
    pictures = {row: frames for part in parts for row, frames in part.pictures.items()}
    return Evaluation(
        predictions=predictions,
        scores=scores,
        controls=controls,
        pictures=pictures | {row: frames for _, row, frames in worst if row not in pictures},
        bad_clips=[clip for part in parts for clip in part.bad_clips],
        seconds=seconds,
        data_wait_percent=100 * sum(part.wait_seconds for part in parts) / len(parts) / seconds,
        **how,
    )


def _collect_pictures(
    config: RunConfig, batch: VideoBatch, predicted: Predictions, shown: set[int], seen: _Seen
) -> None:
    """Keep the pictures of the clips to show, and of the most confident mistakes of the first head so far."""
    head = next(iter(predicted.scores))
    confidence, answer = predicted.scores[head].max(1), predicted.scores[head].argmax(1)
    for i, row in enumerate(batch.rows.tolist()):
        if row in shown:
            seen.pictures[row] = _strip(config, batch.video[i])
        target = predicted.targets[head][i]
        if target < 0 or answer[i] == target:
            continue
        entry = (float(confidence[i]), row)
        if len(seen.mistakes) < SHOWN_MISTAKES:
            heapq.heappush(seen.mistakes, (*entry, _strip(config, batch.video[i])))
        elif entry > seen.mistakes[0][:2]:
            heapq.heapreplace(seen.mistakes, (*entry, _strip(config, batch.video[i])))


def _spread(count: int, most: int) -> list[int]:
    return sorted({int(i) for i in np.linspace(0, count - 1, min(count, most))})


def _strip(config: RunConfig, views_VCTHW: torch.Tensor) -> npt.NDArray[np.uint8]:
    """What the model saw of a clip, normalisation undone: some views and frames, [v, t, h, w, 3] uint8."""
    some = views_VCTHW[_strip_views(views_VCTHW.shape[0])][:, :, _spread(views_VCTHW.shape[2], STRIP_FRAMES)].float()
    mean = torch.tensor(config.data.mean, device=some.device).view(1, 3, 1, 1, 1)
    std = torch.tensor(config.data.std, device=some.device).view(1, 3, 1, 1, 1)
    pictures = (some * std + mean).transpose(1, 2).flatten(0, 1)
    if pictures.shape[-1] > STRIP_PIXELS:
        pictures = interpolate(pictures, size=STRIP_PIXELS, mode="bilinear", antialias=True)
    rounded = pictures.round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()
    return rounded.reshape(some.shape[0], some.shape[2], *rounded.shape[1:])


def _strip_views(views: int) -> list[int]:
    return list(range(min(views, STRIP_VIEWS)))


def _report(
    config: RunConfig,
    subject: Subject,
    shards: ShardSet,
    result: Evaluation,
    process: Process,
    *,
    wrong: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    views = config.views
    computed = math.prod(_view_grid(config))
    total = views.clips * (1 if views.crops.value == "center" else 3)
    seconds: dict[str, float] = best_effort("stages.jsonl", lambda: _stages(subject), {})
    trained_with = {} if subject.trained_with is None else {"trained_with": subject.trained_with}
    return {
        "name": config.name,
        "dataset": {
            "name": shards.manifest["dataset"],
            "split": shards.manifest["split"],
            "clips": len(shards),
            "seconds": shards.manifest["seconds"],
            "path": config.data.val,
        },
        "checkpoint": subject.model,
        "metrics": result.scores.metrics,
        "controls": result.controls,
        "views": {
            "clips": views.clips,
            "crops": total // views.clips,
            "crops_rule": views.crops.value,
            "total": total,
            "computed": computed,
            "frames": config.data.frames,
            "fusion": views.fusion.value,
        },
        "seconds": seconds,
        "data_wait_percent": {"evaluate": result.data_wait_percent}
        | _training_figure(subject, "data_wait_percent", "train"),
        "throughput": {"evaluate_views_per_second": len(result.predictions.rows) * computed / result.seconds}
        | _training_figure(subject, "clips_per_second", "train_clips_per_second"),
        "clips": {
            "total": len(shards),
            "evaluated": len(result.predictions.rows),
            "failed": [{"clip_id": clip.clip_id, "reason": clip.reason} for clip in result.bad_clips]
            + [{"clip_id": name, "reason": f"in quarantine: {why}"} for name, why in shards.quarantine.items()],
        },
        "heads": result.scores.heads,
        "mistakes": [{key: value for key, value in entry.items() if key != "row"} for entry in wrong[:LISTED_MISTAKES]],
        "environment": environment(process) | {"decoder": result.decoder, "precision": result.precision},
        "config": {name: value for name, value in to_dict(config).items() if name not in OF_TRAINING},
        **trained_with,
    }


def _view_grid(config: RunConfig) -> tuple[int, int]:
    """Temporal clips, and spatial crops that are computed."""
    return config.views.clips, 3 if config.views.crops.value == "three" else 1


def _pictures(
    config: RunConfig, shards: ShardSet, result: Evaluation, wrong: Sequence[Mapping[str, Any]]
) -> ReportPictures:
    grid, rows = _view_grid(config), {entry["row"] for entry in wrong}
    strips = {row: _view_strip(shards, row, frames, grid) for row, frames in result.pictures.items()}
    return ReportPictures(
        views=[strip for row, strip in strips.items() if row not in rows][:SHOWN_CLIPS],
        mistakes=[strips[entry["row"]] for entry in wrong[:LISTED_MISTAKES] if entry["row"] in strips],
    )


def _view_strip(shards: ShardSet, row: int, frames: npt.NDArray[np.uint8], grid: tuple[int, int]) -> ViewStrip:
    clip = shards.clips.slice(row, 1).to_pylist()[0]
    labels = view_labels(clips=grid[0], crops=grid[1], tall=clip["height"] > clip["width"])
    title = clip["narrations"][0] if clip["narrations"] else clip["clip_id"]
    size = f"{clip['width']}x{clip['height']}"
    return ViewStrip(
        clip_id=clip["clip_id"],
        title=title,
        subtitle=f"{clip['num_frames'] / clip['fps']:.1f} s at {clip['fps']:.4g} frames/s, {size}",
        frames=frames,
        labels=[labels[i] for i in _strip_views(len(labels))],
    )


def _mistakes(shards: ShardSet, result: Evaluation) -> list[dict[str, Any]]:
    """Clips whose first head is wrong, the most confident mistake first."""
    predictions, heads = result.predictions, result.scores.heads
    head = next(iter(heads), None)
    if head is None:
        return []
    scores, targets = predictions.scores[head], predictions.targets[head]
    wrong = np.flatnonzero((targets >= 0) & (scores.argmax(1) != targets))
    order = wrong[np.argsort(-scores[wrong].max(1), kind="stable")]
    entries = []
    for i in order:
        row = int(predictions.rows[i])
        clip = shards.clips.slice(row, 1).to_pylist()[0]
        known = [name for name in heads if predictions.targets[name][i] >= 0]
        entries.append(
            {
                "row": row,
                "clip_id": clip["clip_id"],
                "narration": clip["narrations"][0] if clip["narrations"] else "",
                "truth": {name: heads[name]["classes"][int(predictions.targets[name][i])] for name in known},
                "predicted": {
                    name: heads[name]["classes"][int(predictions.scores[name][i].argmax())] for name in known
                },
                "confidence": float(scores[i].max()),
            }
        )
    return entries


def _stages(subject: Subject) -> dict[str, float]:
    """Seconds of each stage; those of training are the checkpoint's own, whatever the run went on to do."""
    stages = read_stages(subject.output)
    last = {"evaluate": stages.pop("evaluate")}
    stages.pop("train", None)
    return stages | ({"train": subject.progress.seconds} if subject.progress else {}) | last


def _training_figure(subject: Subject, name: str, key: str) -> dict[str, float]:
    """The median of a logged number over the checkpoint's training, where that is known."""
    values = [line[name] for line in subject.history if line.get(name) is not None]
    return {key: float(np.median(values))} if values and math.isfinite(np.median(values)) else {}
