"""The one evaluator: every clip exactly once over all ranks, fused over its views, into a report one can look at."""

from __future__ import annotations

import heapq
import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lavila.checkpoints.store import TrainedOn, load_model, trained_on
from lavila.config.schema import RunConfig
from lavila.data.loader import BadClip, ClipLoader
from lavila.engine import build
from lavila.engine.distributed import Process, gather_to_main, join, on_main, sum_over_ranks
from lavila.engine.precision import Arithmetic
from lavila.engine.predictions import PredictionParts, PredictionWriter, predictions_folder
from lavila.engine.run_folder import subject_of
from lavila.errors import UserError
from lavila.records import VideoBatch
from lavila.report.compose import (
    LISTED_MISTAKES,
    SHOWN_CLIPS,
    SHOWN_MISTAKES,
    Evaluation,
    Subject,
    compose,
    mistakes_of,
    pictures_of,
    strip_of,
)
from lavila.report.environment import best_effort, environment
from lavila.report.figures import SINGLE_FRAME, ReportPictures
from lavila.report.files import append_stage, write_report
from lavila.shards.reader import ShardSet
from lavila.tasks import Predictions, Task, TaskFacts

log = logging.getLogger(__name__)

LOG_SECONDS = 15.0
PREDICTED, FROZEN = "predicted", "frozen"  # kinds of parts; frozen: of views whose frames are all the middle one


class EvaluationError(UserError):
    """An evaluation that has nothing to say."""


@dataclass
class _Seen:
    """What one rank collects while it goes through its clips."""

    pictures: dict[int, npt.NDArray[np.uint8]] = field(default_factory=dict)
    mistakes: list[tuple[float, int, npt.NDArray[np.uint8]]] = field(default_factory=list)  # heap: wrongness, -row
    bad_clips: list[BadClip] = field(default_factory=list)
    wait_seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """An evaluation before its first batch."""

    config: RunConfig  # with what the weights decide
    subject: Subject
    trained: TrainedOn
    shards: ShardSet
    facts: TaskFacts
    task: Task
    notes: list[str]  # what is done otherwise than in the model's training


def prepare(config: RunConfig, process: Process) -> Prepared:
    """Find and read the model, and check it against config and shard set. Writes nothing; every rank calls this."""
    subject = on_main(lambda: subject_of(Path(config.run_dir), config.checkpoint))
    trained = trained_on(subject.model)
    config = build.with_weights(config, trained)
    shards = build.shard_set(config, "val")
    facts = build.task_facts(config, shards)
    build.task_kind(config).check(facts, trained.task_facts, of=shards.path, wanted_by=trained.file)
    for note in (notes := build.departures(config, trained)):
        log.warning("%s: %s", trained.file, note)
    data = config.data
    model = load_model(trained.file, num_frames=data.frames, image_size=data.image_size, device=process.device)
    task = build.build_task(config, model, facts, shards)
    return Prepared(config=config, subject=subject, trained=trained, shards=shards, facts=facts, task=task, notes=notes)


def evaluate(config: RunConfig) -> Path | None:
    """Evaluate a checkpoint on the validation set and write the report. Returns report.html on the main rank.

    The run folder's report is of the run's newest checkpoint; that of any other model lies under `evaluations/` in it.
    """
    with join(config.device.value) as process:
        ready = prepare(config, process)
        config, subject, shards, task, notes = ready.config, ready.subject, ready.shards, ready.task, ready.notes
        result = evaluate_task(config, task, shards, process, output=subject.output)
        if result is None:
            return None
        for name, metric in result.scores.metrics.items():  # first of all, whatever the report meets
            log.info("%-18s %s", name, metric)
        best_effort("stages.jsonl", lambda: append_stage(subject.output, "evaluate", result.seconds), None)
        wrong: list[dict[str, Any]] = best_effort("mistakes", lambda: mistakes_of(shards, result), [])
        machine = environment(process.device, ranks=process.world)
        report = compose(config, subject, shards, result, machine, wrong=wrong) | {"notes": notes}
        pictures = best_effort("pictures", lambda: pictures_of(config, shards, result, wrong), ReportPictures())
        write_report(subject.output, report, pictures=pictures, history=subject.history)
    return subject.output / "report.html"


def evaluate_task(
    config: RunConfig, task: Task, shards: ShardSet, process: Process, *, output: Path
) -> Evaluation | None:
    """Predictions and scores of a task on a shard set; None on the other ranks.

    The predictions lie in a temporary folder in `output` meanwhile. On every rank: EvaluationError where no clip could
    be evaluated, LoaderError where too many could not.
    """
    started = time.perf_counter()
    arithmetic = Arithmetic.of_evaluation(config, process.device)
    loader = build.view_loader(config, shards, process)
    training = task.model.training
    task.model.eval()
    with predictions_folder(output, process) as folder:
        seen = _predict(config, task, loader, folder, arithmetic, process)
        task.model.train(training)
        ranks = gather_to_main(seen)  # every rank has written its parts when it is here
        if ranks is None:
            return None
        how = {"decoder": loader.decoder, "precision": arithmetic.precision.value}
        return _combine(task, folder, ranks, started=started, how=how)


def _predict(
    config: RunConfig, task: Task, loader: ClipLoader, folder: Path, arithmetic: Arithmetic, process: Process
) -> _Seen:
    """Predictions of this rank's clips, written to the folder."""
    clips = len(loader.shard_set)
    shown = {int(row) for row in np.linspace(0, clips - 1, SHOWN_CLIPS)}
    predictions = PredictionWriter(folder, f"{PREDICTED}-{process.rank}")
    frozen = PredictionWriter(folder, f"{FROZEN}-{process.rank}")
    seen, began = _Seen(), time.perf_counter()
    logged = began
    for batch in loader:
        if not len(batch):
            continue
        batch = arithmetic.fitted(batch)
        with arithmetic.autocast():
            predictions.add(predicted := task.predict(batch))
            if config.views.single_frame_control:
                middle = batch.video[:, :, :, batch.video.shape[3] // 2].unsqueeze(3).expand_as(batch.video)
                frozen.add(task.predict(replace(batch, video=middle)))
        _collect_pictures(config, batch, task.wrongness(predicted), shown, seen)
        if process.is_main and time.perf_counter() - logged > LOG_SECONDS:
            logged = time.perf_counter()
            done = predictions.clips * process.world
            left = (logged - began) * max(clips - done, 0) / done
            log.info("evaluated %d of %d clips, %.0f s left", min(done, clips), clips, left)
    predictions.flush()
    frozen.flush()
    seen.bad_clips, seen.wait_seconds = loader.bad_clips, loader.wait_seconds
    _check_clips(config, seen, loader, predictions.clips, process)
    return seen


def _check_clips(config: RunConfig, seen: _Seen, loader: ClipLoader, good: int, process: Process) -> None:
    """Counted over all ranks, so that all of them stop together."""
    counts = {"good": float(good), "bad": float(len(seen.bad_clips))}
    totals = sum_over_ranks(counts, device=process.device)
    loader.check_bad_clips(round(totals["bad"]))
    if not totals["good"]:
        bad = f"; {seen.bad_clips[0].clip_id}: {seen.bad_clips[0].reason}" if seen.bad_clips else ""
        raise EvaluationError(f"{config.data.val}: not one clip could be evaluated{bad}")


def _combine(task: Task, folder: Path, ranks: Sequence[_Seen], *, started: float, how: dict[str, str]) -> Evaluation:
    """What all ranks found: scores, controls, and the clips to show."""
    predictions, frozen = PredictionParts(folder, PREDICTED), PredictionParts(folder, FROZEN)
    scores = task.score(predictions)
    if frozen.clips:
        metrics = task.score(frozen).metrics
        names = [headline.metric for headline in scores.headlines if headline.metric in metrics]
        stills = {f"{SINGLE_FRAME}{name}": metrics[name] for name in names}
        scores = replace(scores, controls=scores.controls | stills)
    worst = heapq.nlargest(SHOWN_MISTAKES, (item for one in ranks for item in one.mistakes), key=lambda item: item[:2])
    pictures = {row: frames for one in ranks for row, frames in one.pictures.items()}
    seconds = time.perf_counter() - started
    return Evaluation(
        clips=predictions.clips,
        scores=scores,
        logged=dict(task.logged),
        cases=_worst_cases(task, predictions),
        pictures=pictures | {-place: frames for _, place, frames in worst if -place not in pictures},
        bad_clips=[clip for one in ranks for clip in one.bad_clips],
        seconds=seconds,
        data_wait_percent=100 * sum(one.wait_seconds for one in ranks) / len(ranks) / seconds,
        **how,
    )


def _worst_cases(task: Task, parts: Iterable[Predictions]) -> list[dict[str, Any]]:
    """`row` and `Task.case` of the worst mistakes, the worst first; of equals the one with the smaller row."""
    worst: list[tuple[float, int, dict[str, Any]]] = []
    for part in parts:
        wrongness = task.wrongness(part)
        places = [int(place) for place in np.argsort(-wrongness, kind="stable")[:LISTED_MISTAKES]]
        found = [
            (float(wrongness[place]), -int(part.rows[place]), task.case(part, place))
            for place in places
            if wrongness[place] > -np.inf
        ]
        worst = heapq.nlargest(LISTED_MISTAKES, worst + found, key=lambda item: item[:2])
    return [{"row": -place, **case} for _, place, case in worst]


def _collect_pictures(
    config: RunConfig, batch: VideoBatch, wrongness: npt.NDArray[np.floating[Any]], shown: set[int], seen: _Seen
) -> None:
    """Keep the pictures of the clips to show, and of the worst mistakes so far."""
    for i, row in enumerate(batch.rows.tolist()):
        if row in shown:
            seen.pictures[row] = strip_of(config, batch.video[i])
        entry = (float(wrongness[i]), -row)
        if entry[0] == -np.inf:
            continue
        if len(seen.mistakes) < SHOWN_MISTAKES:
            heapq.heappush(seen.mistakes, (*entry, strip_of(config, batch.video[i])))
        elif entry > seen.mistakes[0][:2]:
            heapq.heapreplace(seen.mistakes, (*entry, strip_of(config, batch.video[i])))
