"""The one trainer."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel

from lavila.checkpoints.store import trained_on
from lavila.config.load import to_yaml
from lavila.config.schema import RunConfig
from lavila.data.loader import ClipLoader
from lavila.engine import build, checkpoint, nonfinite, run_folder
from lavila.engine.bad_clips import BadClips
from lavila.engine.checkpoint import Progress, TrainState
from lavila.engine.distributed import Process, join, mean_over_ranks, on_main, shared_store, sum_over_ranks
from lavila.engine.evaluations import NamedEvaluation, missing_evaluations, named_evaluations
from lavila.engine.meter import Meter, clock
from lavila.engine.nonfinite import BadPass, PassWatch
from lavila.engine.optim import LearningRate, build_optimizer, freeze, train_mode
from lavila.engine.precision import Arithmetic
from lavila.engine.run_folder import RunFolderError
from lavila.engine.saving import Saver, TrainingError
from lavila.engine.signals import Asked, Wish, listening
from lavila.engine.stalls import StallWatch
from lavila.engine.trackers import Trackers, check_trackers
from lavila.engine.updates import Mover, Outcome, bad_gradients
from lavila.metrics.units import Metric
from lavila.plan.plans import TrainingPlan
from lavila.records import VideoBatch
from lavila.report.files import METRICS_FILE, MetricsLog, append_stage
from lavila.tasks import Task, TaskFacts

log = logging.getLogger(__name__)


def train(config: RunConfig) -> Path:
    """Train as the config says, from the checkpoint that `resume` means. Returns the last checkpoint.

    Raises Stopped, on every rank, where a signal of `engine.stop_signals` ended training after a save.
    """
    stop, save = config.engine.stop_signals, config.engine.save_signals
    alone = run_folder.alone_in(Path(config.run_dir))
    with join(config.device) as process, listening(stop=stop, save=save) as asked, alone:
        return prepare(config, process, asked).fit()


def prepare(config: RunConfig, process: Process, asked: Asked | None = None) -> Trainer:
    """All that comes before the first step, every check of the config and its files included. Writes nothing."""
    check_trackers(config.log)
    on_main(lambda: run_folder.check_writable(Path(config.run_dir)))
    shards = build.shard_set(config, "train")
    found = on_main(lambda: run_folder.of_run(config, run_folder.start_from(Path(config.run_dir), config.resume)))
    trained = trained_on(found) if found else build.start_weights(config)
    config = build.with_weights(config, trained)
    facts = build.task_facts(config, shards)
    if found and trained:
        build.task_kind(config).check(facts, trained.task_facts, of=shards.path, wanted_by=trained.file)
    evaluations = named_evaluations(config, facts, of=shards.path)
    loader = build.training_loader(config, shards, process)
    build.check_words(config, shards, loader.captions)
    model = build.fresh_model(config, facts, resumed=found is not None).to(process.device)
    task = build.build_task(config, model, facts, shards)
    for evaluation in evaluations:
        evaluation.check_model(model, keep_best=config.keep_best)
    freeze(model, config.model.freeze)
    parts = RunParts(loader=loader, task=task, facts=facts, evaluations=evaluations)
    return Trainer(config, process, parts=parts, found=found, asked=asked)


@dataclass(frozen=True, kw_only=True)
class RunParts:
    """What a trainer works with."""

    loader: ClipLoader
    task: Task
    facts: TaskFacts  # for the checkpoints
    evaluations: list[NamedEvaluation] = field(default_factory=list)


class Trainer:
    """Steps a task over a loader; logs, saves and resumes.

    found: the whole checkpoint to continue from; None = start afresh. CheckpointError where that would repeat or miss
    clips of an epoch. asked: what signals ask for.
    """

    def __init__(
        self,
        config: RunConfig,
        process: Process,
        *,
        parts: RunParts,
        found: Path | None = None,
        asked: Asked | None = None,
    ):
        loader, task = parts.loader, parts.task
        self.asked = asked or Asked()
        assert isinstance(loader.plan, TrainingPlan)
        self.config, self.loader, self.task = config, loader, task
        self.process = process = replace(process, alive=self._alive)
        self.evaluations, self.task_facts = parts.evaluations, parts.facts
        self.run_dir = Path(config.run_dir)
        self.watch = PassWatch(process.rank)
        seconds, store = config.engine.stall_seconds, shared_store()
        self.stalls = StallWatch(rank=process.rank, world=process.world, seconds=seconds, store=store)
        self.arithmetic = Arithmetic.of_training(config, process.device)
        model = task.model
        self.state = TrainState(
            model=model,
            optimizer=build_optimizer(model, config.optim, in_backbone=task.in_backbone, ranks=process.world),
            scaler=torch.amp.GradScaler(process.device.type, enabled=self.arithmetic.scales_loss),
            progress=Progress(),
            order=loader.plan.order,
        )
        self.updates_per_epoch = len(loader) // config.optim.accumulate
        rate = LearningRate.of(config.optim, model, steps=self.updates_per_epoch, in_backbone=task.in_backbone)
        self.mover, self.outcome = Mover(state=self.state, rate=rate, optim=config.optim), Outcome.MOVED
        self.meter_before: dict[str, Any] = {}  # the state of the meter where a resumed run was
        if found is not None:
            self._resume(found)
        extra = build.checkpoint_facts(config, parts.facts)
        self.saver = Saver(config, process, self.state, extra=extra, newest=found)
        self.bad_clips = BadClips(loader, process=process, progress=self.state.progress, most=config.data.max_bad_clips)
        self.earlier_seconds = self.state.progress.seconds  # spent before this process started
        self.began = time.perf_counter()
        if process.world > 1:
            device_ids = [process.device.index] if process.device.type == "cuda" else None
            task.model = DistributedDataParallel(model, device_ids=device_ids)

    def fit(self) -> Path:
        """All epochs that are left. Returns the newest checkpoint's folder."""
        config, progress = self.config, self.state.progress
        found = self.saver.newest
        changed = run_folder.changed_settings(found, config) if self.process.is_main and found else ""
        missing = on_main(lambda: missing_evaluations(self.evaluations, progress, run_dir=self.run_dir, newest=found))
        if found is not None and progress.epoch >= config.optim.epochs and not missing:
            log.info(
                "this run has its %d epochs already; for more raise optim.epochs, for another run give run_dir=... or "
                "resume=aside%s", progress.epoch, f". Of no effect: {changed}" if changed else "",
            )  # fmt: skip
            return found
        if changed:
            log.warning("resumed with other settings than the checkpoint's: %s", changed)
        on_main(self._open_run_folder)
        self.stalls.start()
        self.saver.start()
        try:
            self._evaluate(missing)
            while progress.epoch < config.optim.epochs:
                self._stop_if_asked()
                self._epoch()
                self._end_epoch()
                self._save()
                self._stop_if_asked()  # a resume makes up for the evaluations
                self._evaluate([one.name for one in self.evaluations if one.is_due(progress.epoch)])
            self.saver.check_end()
        finally:
            self.loader.close()
            self.saver.close()
            self.stalls.end()
            if self.process.is_main:
                self.metrics.close()
                self.trackers.close()
        if self.process.is_main:
            append_stage(self.run_dir, "train", self._seconds())
        assert self.saver.newest is not None
        return self.saver.newest

    def _resume(self, found: Path) -> None:
        facts = checkpoint.load(found, self.state, process=self.process)
        progress = self.state.progress
        if progress.epoch_updates:
            checkpoint.check_same_order(found, facts, now=self.state.order)
        passes = progress.epoch_updates * self.config.optim.accumulate
        self.loader.load_state_dict({"epoch": progress.epoch, "step": passes})
        if len(facts.meters) == self.process.world:
            self.meter_before = facts.meters[self.process.rank]

    def _open_run_folder(self) -> None:
        """On the main rank: make room if asked to, and begin the files of the run."""
        if self.config.resume == "aside" and (kept := run_folder.set_aside(self.run_dir)):
            log.info("the older run is kept as %s", kept)
        try:
            self.run_dir.mkdir(parents=True, exist_ok=True)
            (self.run_dir / "config.yaml").write_text(to_yaml(self.config), encoding="utf-8")
            self.metrics = MetricsLog(self.run_dir / METRICS_FILE)
            if dropped := self.metrics.truncate_after(self.state.progress.updates):
                log.info("%s: dropped %d lines of updates that will be done again", self.metrics.path, dropped)
            self.bad_clips.open(self.run_dir)
        except OSError as error:
            raise RunFolderError(
                f"run_dir={self.run_dir} cannot be written to ({error}); make it writable, make room, or give another "
                "run_dir=..."
            ) from None
        self.trackers = Trackers(self.config, self.run_dir, step=self.state.progress.updates)
        log.info("%s", self.summary())

    def _epoch(self) -> None:
        """The rest of the current epoch."""
        config, progress = self.config, self.state.progress
        meter, self.meter_before = Meter.resumed(self.meter_before, device=self.process.device), {}
        train_mode(self.task.model)
        waited = self.loader.wait_seconds - meter.wait
        self.stalls.at("waits for a batch")
        for number, batch in enumerate(self.loader):
            self.stalls.at(f"makes update {progress.updates + 1}")
            part = number % config.optim.accumulate
            last_part = part == config.optim.accumulate - 1
            meter.add(self._pass(batch, part=part, update=last_part), len(batch))
            if not last_part:
                self.stalls.at(f"waits for a batch of update {progress.updates + 1}")
                continue
            meter.skipped += self.outcome is Outcome.SKIPPED
            meter.overflows += self.outcome is Outcome.OVERFLOW
            progress.updates += 1
            progress.epoch_updates += 1
            progress.good_clips += config.data.batch_size  # every place has a clip
            ended = progress.epoch_updates == self.updates_per_epoch
            meter.wait = self.loader.wait_seconds - waited
            if progress.updates % config.log_every_steps == 0 or ended:
                self._log(meter)
                meter, waited = Meter(), self.loader.wait_seconds
            if self.saver.is_due(self.watch.wish) and not ended:  # what an epoch ends with is saved once, after it
                saving = time.perf_counter()
                self._save(meter)
                meter.since += time.perf_counter() - saving
                if Wish.STOP in self.watch.wish:
                    raise self.saver.stopped(by=self.asked.by)
            self.stalls.at(f"waits for a batch of update {progress.updates + 1}")

    def _alive(self) -> None:
        """In the middle of an evaluation. All is saved, so a rank need not wait for others to stop."""
        self.stalls.alive()
        if Wish.STOP in self.asked.wish:
            raise self.saver.stopped(by=self.asked.by)

    def _stop_if_asked(self) -> None:
        """Between two epochs, where all is saved: Stopped on every rank if a signal asked one of them to."""
        if sum_over_ranks({"stop": float(Wish.STOP in self.asked.wish)}, device=self.process.device)["stop"]:
            raise self.saver.stopped(by=self.asked.by)

    def _end_epoch(self) -> None:
        progress = self.state.progress
        progress.epoch += 1
        progress.epoch_updates = progress.good_clips = 0
        self.bad_clips.next_epoch()
        self.loader.set_epoch(progress.epoch)

    def _seconds(self) -> float:
        """Time spent on training, earlier parts of the run included as far as they were saved."""
        return self.earlier_seconds + time.perf_counter() - self.began

    def _pass(self, batch: VideoBatch, *, part: int, update: bool) -> dict[str, torch.Tensor]:
        """Forward and backward of part `part` of an update; with `update`, the optimiser's step as well."""
        progress = self.state.progress
        # Dropout and stochastic depth depend on the place in the run alone, so that a resumed run repeats them.
        number = progress.epoch_updates * self.config.optim.accumulate + part + 1
        sequence = np.random.SeedSequence([self.config.seed, progress.epoch, number, self.process.rank])
        seed = int(sequence.generate_state(1, np.uint64)[0] >> 1)
        loss, logs = self._forward(batch, seed=seed, shared=update)
        self.watch.add(loss, batch, seed=seed)
        self.stalls.at(f"shares update {progress.updates + 1} with the other ranks")
        bad_losses = self.watch.ask(self._wish()) if update else None
        self._backward(loss)
        if bad_losses is not None:
            self._end_update(bad_losses())
        return logs

    def _forward(self, batch: VideoBatch, *, seed: int, shared: bool) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Loss and logs; shared: the backward pass will share the gradients with the other ranks."""
        torch.manual_seed(seed)
        model = self.task.model
        if isinstance(model, DistributedDataParallel):
            model.require_backward_grad_sync = shared
        with self.arithmetic.autocast():
            return self.task.step(self.arithmetic.fitted(batch))

    def _backward(self, loss: torch.Tensor) -> None:
        self.state.scaler.scale(loss / self.config.optim.accumulate).backward()

    def _wish(self) -> Wish:
        """What this rank wants all ranks to do at this update."""
        bad_clips = Wish.BAD_CLIPS if self.bad_clips.unshared else Wish.NOTHING
        return self.asked.take_save() | self.saver.wish() | bad_clips

    def _end_update(self, bad: list[BadPass]) -> None:
        """Move the weights by the gradients that were gathered, or skip that on all ranks. bad: by their losses."""
        progress, optimizer = self.state.progress, self.state.optimizer
        if Wish.BAD_CLIPS in self.watch.wish:
            self.bad_clips.share(update=progress.updates + 1)
        if bad:
            self.outcome = Outcome.SKIPPED
        else:
            # By epochs, not by updates so far: after a resume with another batch size, epochs have another length.
            self.outcome = self.mover.move(progress.epoch * self.updates_per_epoch + progress.epoch_updates)
            if self.outcome is Outcome.SKIPPED:
                bad = self.watch.whose_gradient(self._gradient_again)
        self.watch.end(skipped=self.outcome is Outcome.SKIPPED)
        optimizer.zero_grad(set_to_none=True)
        if bad:
            self._skip(bad)
        elif self.outcome is Outcome.MOVED:
            self.task.after_update()

    def _gradient_again(self, batch: VideoBatch, seed: int) -> list[str]:
        """The parameters whose gradient is not finite when this rank makes a pass again for itself alone."""
        self.state.optimizer.zero_grad(set_to_none=True)
        self._backward(self._forward(batch, seed=seed, shared=False)[0])
        return bad_gradients(self.state.model)

    def _skip(self, bad: list[BadPass]) -> None:
        """Say that the weights stay as they are, and keep a checkpoint of the first time in a row."""
        in_a_row, most = self.watch.in_a_row, self.config.optim.max_nonfinite_losses
        update, what = self.state.progress.updates + 1, nonfinite.listed(bad)
        log.warning("step %d is skipped, %s, %d in a row", update, what, in_a_row)
        folder = self.run_dir / nonfinite.FOLDER
        if in_a_row == 1:
            there = self.saver.keep_apart(folder)
            on_main(lambda: nonfinite.write_passes(there, bad))
        if in_a_row == most:
            raise TrainingError(
                f"step {update}: {what}, {most} time(s) in a row (optim.max_nonfinite_losses); the state is in "
                f"{folder}. Lower optim.lr, set optim.clip_grad_norm, or train in fp32 (optim.precision=fp32), and "
                "continue from the newest checkpoint"
            )

    def _log(self, meter: Meter) -> None:
        progress, seconds = self.state.progress, time.perf_counter() - meter.since
        values = meter.means() | {"data_wait_percent": 100 * meter.wait / seconds}
        values = mean_over_ranks(values, device=self.process.device)
        if not self.process.is_main:
            return
        rate = meter.clips * self.process.world / seconds
        values |= {"lr": self.state.optimizer.param_groups[-1]["lr"], "clips_per_second": rate}
        if self.process.device.type == "cuda":
            values["memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
        stayed = {"skipped_updates": meter.skipped, "overflowed_updates": meter.overflows}
        values |= {name: number for name, number in stayed.items() if number}
        if progress.bad_clips:
            values["bad_clips"] = progress.bad_clips  # of this epoch so far
        self._note(values)
        epochs = self.config.optim.epochs
        left = (epochs - progress.epoch) * self.updates_per_epoch - progress.epoch_updates
        seconds_left = left * seconds * self.config.optim.accumulate / len(meter.logs)
        memory = f"  memory {values['memory_gib']:.1f} GiB" if "memory_gib" in values else ""
        beside = " ".join(f"{name} {Metric(values[name], unit)}" for name, unit in self.task.logged.items())
        log.info(
            "epoch %d/%d step %d/%d  loss %.3f  %s  lr %.2e  %.0f clips/s  data wait %.1f %%%s  %s left",
            progress.epoch + 1, epochs, progress.updates, progress.updates + left, values["loss"], beside,
            values["lr"], rate, values["data_wait_percent"], memory, clock(seconds_left),
        )  # fmt: skip

    def _note(self, values: Mapping[str, float]) -> None:
        """On the main rank: numbers of the current update, for metrics.jsonl and for who else gets them."""
        progress = self.state.progress
        self.metrics.log(step=progress.updates, epoch=progress.epoch, **values)
        self.trackers.log(values, step=progress.updates)

    def _evaluate(self, names: Collection[str]) -> None:
        """Run evaluations of the newest checkpoint's weights, log their metrics, and note whether it is the best."""
        for evaluation in self.evaluations:
            if evaluation.name not in names:
                continue
            self.stalls.at(f"makes the evaluation {evaluation.name}")
            scores = evaluation.run(self.state.model, self.process, output=self.run_dir)
            named: dict[str, Metric] = {}
            if scores is not None:
                named = {f"{evaluation.name}/{name}": metric for name, metric in scores.metrics.items()}
                self._note({name: metric.value for name, metric in named.items()})
                shown = "  ".join(f"{one.metric} {scores.metrics[one.metric]}" for one in scores.headlines)
                log.info("evaluation %s: %s", evaluation.name, shown)
            if self.config.keep_best.partition("/")[0] == evaluation.name:
                self.saver.compare_with_best(named)

    def _save(self, meter: Meter | None = None) -> None:
        """Save; meter: what there is of the next line of the log."""
        self.state.progress.seconds = self._seconds()
        metrics = self.metrics if self.process.is_main else None
        self.saver.save(meter=meter.state() if meter else {}, metrics=metrics)

    def summary(self) -> str:
        """The run in one line."""
        parameters = sum(p.numel() for p in self.state.model.parameters())
        frozen = sum(p.numel() for p in self.state.model.parameters() if not p.requires_grad)
        return (
            f"{self.config.name}: {parameters / 1e6:.1f} M parameters"
            f"{f' ({frozen / 1e6:.1f} M frozen)' if frozen else ''}, {self.state.order['clips']} clips, "
            f"{self.updates_per_epoch} steps of {self.config.data.batch_size} clips an epoch, "
            f"{self.process.world} rank(s) on {self.process.device.type}, {self.arithmetic.precision}, "
            f"decoder {self.loader.decoder}"
        )
