"""`--dry-run`: all that comes before the first step, shapes of a batch, and an estimate of memory. Writes nothing.

What a run would stop at is raised here, as the same error: config, shard sets, labels, captions, checkpoint, heads,
vocabulary, damaged clips in the first batch. A model is built and its weights are read, for that is where they are
checked.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import closing

from lavila.config.schema import RunConfig
from lavila.data.loader import ClipLoader
from lavila.engine import build, evaluator
from lavila.engine.distributed import barrier, join, on_main
from lavila.engine.memory import PassSize, evaluation_memory, training_memory
from lavila.engine.precision import Arithmetic
from lavila.engine.run_folder import check_writable
from lavila.engine.trainer import Trainer, prepare
from lavila.errors import UserError
from lavila.records import VideoBatch
from lavila.shards.reader import open_shard_set
from lavila.tasks import TaskFacts
from lavila.tasks.words import CONTEXT

log = logging.getLogger(__name__)


class DryRunError(UserError):
    """Something that would be met at the first step."""


def check_training(config: RunConfig) -> None:
    """All that `train` does before its first step. Every rank calls this."""
    with join(config.device) as process:
        trainer = prepare(config, process)
        for shards in (trainer.loader.shard_set, *(one.shards for one in trainer.evaluations)):
            open_shard_set(shards.path)  # strictly: a run survives some missing tars, and now they can still be copied
        log.info("%s", trainer.summary())
        log.info("%s", _start(trainer))
        batch = _first_batch(trainer.loader)
        log.info("a batch of training on a rank: %s", shapes(batch))
        for evaluation in trainer.evaluations:
            first = _first_batch(build.view_loader(evaluation.config, evaluation.shards, process))
            every, clips = evaluation.every_epochs, len(evaluation.shards)
            log.info("evals.%s, every %d epoch(s): %d clips, a batch: %s", evaluation.name, every, clips, shapes(first))
        size = _pass_size(batch, trainer.task_facts, clips=trainer.loader.plan.largest_batch)
        state = trainer.state
        memory = training_memory(state.model, state.optimizer, size, trainer.arithmetic, ranks=process.world)
        log.info("memory of a step: %s", memory)
        barrier()
        log.info("dry run: training would start; nothing was written")


def check_evaluation(config: RunConfig) -> None:
    """All that `evaluate` does before its first batch is predicted, or its first saved prediction read.

    Every rank calls this.
    """
    with join(config.device) as process:
        if config.predictions:
            saved, shards, _ = evaluator.prepare_saved(config)
            on_main(lambda: check_writable(saved.subject.output))
            log.info("%s of %s on %s: %d clips", config.predictions, saved.subject.model, shards.path, len(shards))
            log.info("dry run: they would be scored again; nothing was written")
            return
        ready = evaluator.prepare(config, process)
        config = ready.config
        open_shard_set(ready.shards.path)
        on_main(lambda: check_writable(ready.subject.output))
        facts = build.task_kind(config).describe(ready.facts)
        log.info("%s on %s: %d clips, %s", ready.trained.file, ready.shards.path, len(ready.shards), facts)
        loader = build.view_loader(config, ready.shards, process)
        batch = _first_batch(loader)
        log.info("a batch on a rank: %s", shapes(batch))
        views = loader.plan.largest_batch * batch.video.shape[1]
        size = _pass_size(batch, ready.facts, clips=min(config.views.view_batch_size, views))
        arithmetic = Arithmetic.of_evaluation(config, process.device)
        log.info("memory of a forward pass: %s", evaluation_memory(ready.task.model, size, arithmetic))
        barrier()
        log.info("dry run: the evaluation would start; nothing was written")


def shapes(batch: VideoBatch) -> str:
    """Shapes and number types of a batch, in one line."""
    kind = str(batch.video.dtype).removeprefix("torch.")
    labels = ", ".join(f"{name} {list(values.shape)}" for name, values in batch.labels.items())
    texts = sum(len(texts) for texts in batch.narrations)
    return (
        f"video {list(batch.video.shape)} {kind} (clips, views, channels, frames, height, width); labels {labels}; "
        + (f"narrations {texts}")
    )


def _start(trainer: Trainer) -> str:
    config, progress = trainer.config, trainer.state.progress
    if trainer.saver.newest is None:
        return f"starts from model.init={config.model.init}"
    done = f"epoch {progress.epoch} of {config.optim.epochs}, update {progress.epoch_updates} of the next"
    return f"continues from {trainer.saver.newest}: {done}"


def _first_batch(loader: ClipLoader) -> VideoBatch:
    batches = iter(loader)
    assert isinstance(batches, Iterator)
    with closing(batches):  # type: ignore[type-var]
        batch: VideoBatch | None = next(batches, None)
    if batch is None or not len(batch):
        reason = f" ({loader.bad_clips[0].clip_id}: {loader.bad_clips[0].reason})" if loader.bad_clips else ""
        raise DryRunError(f"{loader.shard_set.path}: not one clip of the first batch can be decoded{reason}")
    return batch


def _pass_size(batch: VideoBatch, facts: TaskFacts, *, clips: int) -> PassSize:
    channels, frames, height, width = batch.video.shape[2:]
    video = (channels, frames, height, width)
    return PassSize(clips=clips, video=video, texts=clips, text_tokens=facts.get(CONTEXT, 0))
