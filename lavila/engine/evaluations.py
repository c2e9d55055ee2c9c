"""Evaluations during training: each has a name, an interval and settings (`evals` in a config)."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from lavila.config.load import evaluation_config
from lavila.config.schema import ConfigError, RunConfig
from lavila.engine import build
from lavila.engine.checkpoint import FOLDER, Progress
from lavila.engine.distributed import Process
from lavila.engine.evaluator import evaluate_task
from lavila.errors import UserError
from lavila.report.files import METRICS_FILE, read_metrics
from lavila.shards.reader import ShardSet
from lavila.tasks import Scores, TaskFacts


@dataclass(frozen=True, kw_only=True)
class NamedEvaluation:
    """An evaluation that is checked and ready to run."""

    name: str
    every_epochs: int
    config: RunConfig  # the run's with the evaluation's own settings
    shards: ShardSet
    facts: TaskFacts

    def is_due(self, epoch: int) -> bool:
        """Whether it follows the epoch with this number, 1 being the first."""
        return epoch > 0 and epoch % self.every_epochs == 0

    def check_model(self, model: nn.Module, *, keep_best: str) -> None:
        """Raise a UserError that begins with the evaluation's name where its task cannot ask a model of this kind.

        ConfigError where `keep_best` wants a metric that the task has not.
        """
        try:
            names = build.build_task(self.config, model, self.facts, self.shards).metric_names
        except UserError as error:
            raise type(error)(f"evals.{self.name}: {error}") from None
        name, _, metric = keep_best.partition("/")
        if name == self.name and metric not in names:
            known = ", ".join(f"{name}/{one}" for one in sorted(names))
            near = difflib.get_close_matches(metric, names, n=1)
            hint = f" Did you mean {name}/{near[0]}?" if near else ""
            raise ConfigError(f"keep_best={keep_best}: no such metric.{hint} The evaluation has {known}")

    def run(self, model: nn.Module, process: Process, *, output: Path) -> Scores | None:
        """What the model, without a wrapper, is worth; None on other ranks than the main one. Every rank calls this."""
        task = build.build_task(self.config, model, self.facts, self.shards)
        result = evaluate_task(self.config, task, self.shards, process, output=output)
        return None if result is None else result.scores


def named_evaluations(config: RunConfig, facts: TaskFacts, *, of: object) -> list[NamedEvaluation]:
    """The evaluations that a run has; facts, of: what it trains on.

    Raises a UserError that begins with the evaluation's name where one does not fit its shard set or the training.
    """
    found = []
    for name, entry in config.evals.items():
        if not entry.every_epochs:
            continue
        try:
            found.append(_named_evaluation(config, name, facts, of=of))
        except UserError as error:
            raise type(error)(f"evals.{name}: {error}") from None
    return found


def _named_evaluation(config: RunConfig, name: str, facts: TaskFacts, *, of: object) -> NamedEvaluation:
    own = evaluation_config(config, name)
    for key in ("frames", "image_size", "mean", "std"):
        ours, trained = getattr(own.data, key), getattr(config.data, key)
        if ours != trained:
            raise ConfigError(
                f"data.{key}={ours}, but the model is trained with {trained}; leave it out here, or evaluate a "
                "checkpoint of the run with evaluate.py"
            )
    # A control for the report alone, which has no report here.
    own = replace(own, views=replace(own.views, single_frame_control=False))
    shards = build.shard_set(own, "val")
    found = build.task_facts(own, shards)
    build.task_kind(own).check(found, facts, of=shards.path, wanted_by=of)
    return NamedEvaluation(
        name=name, every_epochs=config.evals[name].every_epochs, config=own, shards=shards, facts=found
    )


def missing_evaluations(
    evaluations: Sequence[NamedEvaluation], progress: Progress, *, run_dir: Path, newest: Path | None
) -> list[str]:
    """Those that are due at the place where a run continues, and that a kill prevented.

    newest: the checkpoint that it continues from.
    """
    own = run_dir / FOLDER
    if newest is None or progress.epoch_updates or newest.resolve().parent != own.resolve():
        return []
    lines = [line for line in read_metrics(run_dir / METRICS_FILE) if line.get("step") == progress.updates]
    done = {key.partition("/")[0] for line in lines for key in line if "/" in key}
    return [one.name for one in evaluations if one.is_due(progress.epoch) and one.name not in done]
