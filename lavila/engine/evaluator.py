"""The one evaluator: every clip exactly once over all ranks, fused over its views, into a report one can look at."""

from __future__ import annotations

import heapq
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lavila.checkpoints.store import load_model, trained_on
from lavila.config.schema import RunConfig
from lavila.data.loader import BadClip, ClipLoader
from lavila.engine import build
from lavila.engine.distributed import Process, gather_to_main, join, on_main, sum_over_ranks
from lavila.engine.precision import Arithmetic
from lavila.engine.run_folder import subject_of
from lavila.errors import UserError
from lavila.records import VideoBatch
from lavila.report.compose import (
    SHOWN_CLIPS,
    SHOWN_MISTAKES,
    Evaluation,
    compose,
    mistakes_of,
    pictures_of,
    strip_of,
)
from lavila.report.environment import best_effort, environment
from lavila.report.figures import ReportPictures
from lavila.report.files import append_stage, write_report
from lavila.shards.reader import ShardSet
from lavila.tasks import Predictions, Task, concatenate

log = logging.getLogger(__name__)

LOG_SECONDS = 15.0


class EvaluationError(UserError):
    """An evaluation that has nothing to say."""


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
        wrong: list[dict[str, Any]] = best_effort("mistakes", lambda: mistakes_of(shards, result), [])
        machine = environment(process.device, ranks=process.world)
        report = compose(config, subject, shards, result, machine, wrong=wrong) | {"notes": notes}
        pictures = best_effort("pictures", lambda: pictures_of(config, shards, result, wrong), ReportPictures())
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
            seen.pictures[row] = strip_of(config, batch.video[i])
        target = predicted.targets[head][i]
        if target < 0 or answer[i] == target:
            continue
        entry = (float(confidence[i]), row)
        if len(seen.mistakes) < SHOWN_MISTAKES:
            heapq.heappush(seen.mistakes, (*entry, strip_of(config, batch.video[i])))
        elif entry > seen.mistakes[0][:2]:
            heapq.heapreplace(seen.mistakes, (*entry, strip_of(config, batch.video[i])))
