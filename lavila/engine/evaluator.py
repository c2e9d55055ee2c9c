"""The one evaluator: every clip exactly once over all ranks, fused over its views, into a report one can look at."""

from __future__ import annotations

import heapq
import logging
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from lavila.checkpoints.store import TrainedOn, load_model, trained_on
from lavila.config.load import to_dict
from lavila.config.schema import RunConfig
from lavila.data.loader import BadClip, ClipLoader
from lavila.engine import build
from lavila.engine.distributed import Process, gather_to_main, join, on_main, sum_over_ranks
from lavila.engine.precision import Arithmetic
from lavila.engine.predictions import KEPT, PredictionParts, PredictionWriter, predictions_folder
from lavila.engine.published import published_scores
from lavila.engine.run_folder import subject_of
from lavila.engine.saved import FROZEN, PREDICTED, Saved, open_saved, save, write_texts
from lavila.errors import UserError
from lavila.metrics.epic_submissions import SupervisionLevels
from lavila.plan.plans import ViewPlan
from lavila.records import VideoBatch
from lavila.report.compose import (
    LISTED_MISTAKES,
    Circumstances,
    Evaluation,
    Scored,
    Setting,
    Subject,
    compose,
    pictures_of,
    shown_rows,
    strip_of,
)
from lavila.report.environment import best_effort, environment
from lavila.report.figures import SINGLE_FRAME, ReportPictures
from lavila.report.files import append_stage, write_report
from lavila.shards.reader import ShardSet
from lavila.tasks import NoModel, Predictions, Task, TaskFacts

log = logging.getLogger(__name__)

LOG_SECONDS = 15.0


class EvaluationError(UserError):
    """An evaluation that has nothing to say."""


@dataclass
class _Seen:
    """What one rank knows when it has gone through its clips."""

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
    Where the config names saved predictions, these are scored again, without a model; their report is written anew.
    """
    with join(config.device) as process:
        if config.predictions:
            return _score_again(config, process) if process.is_main else None
        ready = prepare(config, process)
        config, subject, shards, task, notes = ready.config, ready.subject, ready.shards, ready.task, ready.notes
        kept = config.keep_predictions or bool(config.submission)
        result = evaluate_task(config, task, shards, process, output=subject.output, kept=kept)
        if result is None:
            return None
        best_effort("stages.jsonl", lambda: append_stage(subject.output, "evaluate", result.seconds), None)
        published = published_scores(config, ready.trained.file, dataset=str(shards.manifest["dataset"]))
        machine = environment(process.device, ranks=process.world)
        beside = Circumstances(machine=machine, notes=notes, published=published)
        if kept:
            save(config, Saved(subject=subject, made=result, beside=beside, task_facts=ready.facts))
        page = _report(config, subject, shards, result, beside, process)
        _submit(config, task, subject.output / KEPT, subject.output)  # last: where there is no challenge, all is kept
        return page


def prepare_saved(config: RunConfig) -> tuple[Saved, ShardSet, Task]:
    """Saved predictions before they are scored again: what is known of them, their shard set and their task."""
    saved, shards = open_saved(config)
    task = build.build_task(config, NoModel(), saved.task_facts, shards)
    task.know_texts(saved.texts)
    return saved, shards, task


def _score_again(config: RunConfig, process: Process) -> Path:
    """The report of saved predictions, which lies beside their folder."""
    saved, shards, task = prepare_saved(config)
    result = Evaluation(**vars(_scored(task, Path(config.predictions))), **vars(saved.made))
    page = _report(config, saved.subject, shards, result, saved.beside, process)
    _submit(config, task, Path(config.predictions), saved.subject.output)
    return page


def _submit(config: RunConfig, task: Task, predictions: Path, output: Path) -> None:
    """Write the file for the benchmark's challenge, if the config asks for it."""
    if config.submission:
        pretraining, labels, data = config.submission
        levels = SupervisionLevels(pretraining=pretraining, training_labels=labels, training_data=data)
        log.info("for the challenge: %s", task.submit(PredictionParts(predictions, PREDICTED), output, levels))


def _report(
    config: RunConfig, subject: Subject, shards: ShardSet, result: Evaluation, beside: Circumstances, process: Process
) -> Path:
    """Log the metrics and write report.json and report.html, on the main rank."""
    for name, metric in result.scores.metrics.items():  # first of all, whatever the report meets
        log.info("%-18s %s", name, metric)
    setting = setting_of(config)
    report = compose(setting, subject, shards, result, beside)
    pictures = best_effort("pictures", lambda: _pictures(config, setting, shards, result, process), ReportPictures())
    write_report(subject.output, report, pictures=pictures, history=subject.history)
    return subject.output / "report.html"


def setting_of(config: RunConfig) -> Setting:
    """What a report says of how an evaluation was asked for."""
    return Setting(
        name=config.name,
        data=config.data.val,
        frames=config.data.frames,
        mean=config.data.mean,
        std=config.data.std,
        views=build.view_choice(config),
        fusion=config.views.fusion,
        config=to_dict(config),
    )


def _pictures(
    config: RunConfig, setting: Setting, shards: ShardSet, result: Evaluation, process: Process
) -> ReportPictures:
    """What the model saw of the clips that the report shows: they are loaded once more, now that they are known."""
    alone = replace(process, rank=0, world=1)
    strips: dict[int, Any] = {}
    for batch in build.view_loader(config, shards, alone, rows=shown_rows(shards, result)):
        strips |= {int(row): strip_of(setting, batch.video[place]) for place, row in enumerate(batch.rows)}
    return pictures_of(setting, shards, result, strips)


def evaluate_task(
    config: RunConfig, task: Task, shards: ShardSet, process: Process, *, output: Path, kept: bool = False
) -> Evaluation | None:
    """Predictions and scores of a task on a shard set; None on the other ranks.

    The predictions lie in a temporary folder in `output` meanwhile, and with `kept` in `output`/predictions afterwards.
    On every rank: EvaluationError where no clip could be evaluated, LoaderError where too many could not.
    """
    started = time.perf_counter()
    arithmetic = Arithmetic.of_evaluation(config, process.device)
    loader = build.view_loader(config, shards, process)
    training = task.model.training
    task.model.eval()
    with predictions_folder(output, process, kept=kept) as folder:
        with arithmetic.autocast():
            texts = task.know_texts(None)
        if process.is_main:
            write_texts(folder, texts)
        seen = _predict(config, task, loader, folder, arithmetic, process)
        task.model.train(training)
        ranks = gather_to_main(seen)  # every rank has written its parts when it is here
        if ranks is None:
            return None
        scored = _scored(task, folder)
        bad = sum(len(one.bad_clips) for one in ranks)
        beside = f"; {bad} could not be read or decoded" if bad else ""
        log.info("%s: scores of %d of %d clips%s", shards.path, scored.clips, len(shards), beside)
        seconds = time.perf_counter() - started
        return Evaluation(
            **vars(scored),
            bad_clips=[clip for one in ranks for clip in one.bad_clips],
            seconds=seconds,
            data_wait_percent=100 * sum(one.wait_seconds for one in ranks) / len(ranks) / seconds,
            decoder=loader.decoder,
            precision=arithmetic.precision,
        )


def _predict(
    config: RunConfig, task: Task, loader: ClipLoader, folder: Path, arithmetic: Arithmetic, process: Process
) -> _Seen:
    """Predictions of this rank's clips, written to the folder."""
    clips = len(loader.shard_set)
    predictions = PredictionWriter(folder, f"{PREDICTED}-{process.rank}")
    frozen = PredictionWriter(folder, f"{FROZEN}-{process.rank}")
    began = logged = time.perf_counter()
    for batch in _forward_passes(loader):
        process.alive()
        batch = arithmetic.fitted(batch)
        with arithmetic.autocast():
            predictions.add(task.predict(batch), batch.clip_ids)
            if config.views.single_frame_control:
                middle = batch.video[:, :, :, batch.video.shape[3] // 2].unsqueeze(3).expand_as(batch.video)
                frozen.add(task.predict(replace(batch, video=middle)), batch.clip_ids)
        if process.is_main and time.perf_counter() - logged > LOG_SECONDS:
            logged = time.perf_counter()
            done = predictions.clips * process.world
            left = (logged - began) * max(clips - done, 0) / done
            log.info("evaluated %d of %d clips, %.0f s left", min(done, clips), clips, left)
    predictions.flush()
    frozen.flush()
    seen = _Seen(bad_clips=loader.bad_clips, wait_seconds=loader.wait_seconds)
    _check_clips(config, seen, loader, predictions.clips, process)
    return seen


def _forward_passes(loader: ClipLoader) -> Iterator[VideoBatch]:
    """The clips of each batch in the portions of the plan.

    The last bits of an answer depend on how many views are computed beside it, and where it lies among them: matrix
    products add up in another order. So what is computed together must not depend on ranks or on the batch size.
    """
    assert isinstance(loader.plan, ViewPlan)
    for batch in loader:
        if not len(batch):
            continue
        portions = batch.positions // loader.plan.portion
        starts = [0, *(np.flatnonzero(np.diff(portions)) + 1).tolist()]
        for start, stop in zip(starts, [*starts[1:], len(batch)], strict=True):
            yield batch.part(start, stop)


def _check_clips(config: RunConfig, seen: _Seen, loader: ClipLoader, good: int, process: Process) -> None:
    """Counted over all ranks, so that all of them stop together."""
    counts = {"good": float(good), "bad": float(len(seen.bad_clips))}
    totals = sum_over_ranks(counts, device=process.device)
    loader.check_bad_clips(round(totals["bad"]))
    if not totals["good"]:
        bad = f"; {seen.bad_clips[0].clip_id}: {seen.bad_clips[0].reason}" if seen.bad_clips else ""
        raise EvaluationError(f"{config.data.val}: not one clip could be evaluated{bad}")


def _scored(task: Task, folder: Path) -> Scored:
    """What the predictions of all ranks are worth: scores, controls, and the worst mistakes."""
    predictions, frozen = PredictionParts(folder, PREDICTED), PredictionParts(folder, FROZEN)
    scores = task.score(predictions)
    assert set(scores.metrics) <= set(task.metric_names), "keep_best could not name a metric"
    if frozen.clips:
        metrics = task.score(frozen).metrics
        names = [headline.metric for headline in scores.headlines if headline.metric in metrics]
        stills = {f"{SINGLE_FRAME}{name}": metrics[name] for name in names}
        scores = replace(scores, controls=scores.controls | stills)
    cases = _worst_cases(task, predictions)
    return Scored(clips=predictions.clips, scores=scores, logged=dict(task.logged), cases=cases)


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
