"""The one trainer."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel

from lavila.checkpoints.errors import CheckpointError
from lavila.checkpoints.store import TrainedOn, trained_on
from lavila.config.load import flatten, to_dict, to_yaml
from lavila.config.schema import RunConfig
from lavila.data.loader import ClipLoader
from lavila.engine import build, checkpoint
from lavila.engine.checkpoint import Facts, Progress, TrainState
from lavila.engine.distributed import Process, join, mean_over_ranks, on_main, sum_over_ranks
from lavila.engine.evaluator import evaluate_task
from lavila.engine.optim import LearningRate, build_optimizer
from lavila.engine.precision import Arithmetic
from lavila.engine.run_folder import read_config, set_aside, start_from
from lavila.errors import UserError
from lavila.metrics.units import Metric
from lavila.plan.plans import TrainingPlan
from lavila.records import VideoBatch
from lavila.report.files import METRICS_FILE, MetricsLog, append_stage
from lavila.shards.reader import ShardSet
from lavila.tasks import Task, TaskFacts

log = logging.getLogger(__name__)


def train(config: RunConfig) -> Path:
    """Train as the config says, from the checkpoint that `resume` means. Returns the last checkpoint."""
    with join(config.device.value) as process:
        shards = build.shard_set(config, "train")
        found = on_main(lambda: start_from(Path(config.run_dir), config.resume))
        trained = trained_on(found) if found else build.start_weights(config)
        config = build.with_weights(config, trained)
        facts = build.task_facts(config, shards)
        _check_facts(config, shards, facts, resumed=trained if found else None)
        loader = build.training_loader(config, shards, process)
        model = build.fresh_model(config, facts, resumed=found is not None).to(process.device)
        task = build.build_task(config, model, facts, shards)
        trainer = Trainer(config, process, loader=loader, task=task, facts=facts, found=found)
        return trainer.fit()


def _check_facts(config: RunConfig, shards: ShardSet, facts: TaskFacts, *, resumed: TrainedOn | None) -> None:
    """What is trained on against the checkpoint, and what is validated on against both."""
    kind = build.task_kind(config)
    if resumed is not None:
        kind.check(facts, resumed.task_facts, of=shards.path, wanted_by=resumed.file)
    if config.evaluate_every_epochs:
        val = build.shard_set(config, "val")
        kind.check(build.task_facts(config, val), facts, of=val.path, wanted_by=shards.path)


@dataclass
class _Meter:
    """Sums between two lines of the log."""

    logs: list[dict[str, torch.Tensor]] = field(default_factory=list)
    clips: int = 0
    wait: float = 0.0
    since: float = field(default_factory=lambda: time.perf_counter())

    def add(self, logs: dict[str, torch.Tensor], clips: int) -> None:
        self.logs.append(logs)  # left on the device: looking at a number would make the host wait for it
        self.clips += clips

    def means(self) -> dict[str, float]:
        """Mean of each number, the same keys on every rank; NaN where no batch says anything of it."""
        stacked = {name: torch.stack([log[name] for log in self.logs]).double() for name in self.logs[0]}
        return {name: float(v.mean() if name == "loss" else v.nanmean()) for name, v in stacked.items()}


class Trainer:
    """Steps a task over a loader; logs, saves and resumes.

    found: the whole checkpoint to go on from; None = start afresh. CheckpointError where that would repeat or miss
    clips of an epoch.
    """

    def __init__(
        self,
        config: RunConfig,
        process: Process,
        *,
        loader: ClipLoader,
        task: Task,
        facts: TaskFacts,
        found: Path | None = None,
    ):
        assert isinstance(loader.plan, TrainingPlan)
        self.config, self.process, self.loader, self.task, self.task_facts = config, process, loader, task, facts
        self.run_dir, self.newest = Path(config.run_dir), found
        self.arithmetic = Arithmetic.of_training(config, process.device)
        model = task.model
        self.state = TrainState(
            model=model,
            optimizer=build_optimizer(model, config.optim, in_backbone=task.in_backbone),
            scaler=torch.amp.GradScaler(process.device.type, enabled=self.arithmetic.scales_loss),
            progress=Progress(),
            order=loader.plan.order,
        )
        self.updates_per_epoch = len(loader) // config.optim.accumulate
        self.rate = LearningRate.of(config.optim, model, steps=self.updates_per_epoch, in_backbone=task.in_backbone)
        if found is not None:
            self._resume(found)
        self.earlier = replace(self.state.progress)  # what was done before this process started
        self.good_clips = 0  # of the current epoch, by this rank since it started
        self.began = time.perf_counter()
        if process.world > 1:
            device_ids = [process.device.index] if process.device.type == "cuda" else None
            task.model = DistributedDataParallel(model, device_ids=device_ids)

    def fit(self) -> Path:
        """All epochs that are left. Returns the newest checkpoint's folder."""
        config, progress = self.config, self.state.progress
        changed = self._changed_settings() if self.process.is_main else ""
        if self.newest is not None and progress.epoch >= config.optim.epochs:
            log.info(
                "this run has its %d epochs already; for more raise optim.epochs, for another run give run_dir=... or "
                "resume=aside%s", progress.epoch, f". Of no effect: {changed}" if changed else "",
            )  # fmt: skip
            return self.newest
        if changed:
            log.warning("resumed with other settings than the checkpoint's: %s", changed)
        on_main(self._open_run_folder)
        while progress.epoch < config.optim.epochs:
            self._epoch()
            self._end_epoch()
            self._save()
            if config.evaluate_every_epochs and progress.epoch % config.evaluate_every_epochs == 0:
                self._validate()
        if self.process.is_main:
            append_stage(self.run_dir, "train", self._seconds())
        assert self.newest is not None
        return self.newest

    def _resume(self, found: Path) -> None:
        facts = checkpoint.load(found, self.state, process=self.process)
        progress = self.state.progress
        if progress.epoch_updates:
            self._check_same_order(found, facts)
        passes = progress.epoch_updates * self.config.optim.accumulate
        self.loader.load_state_dict({"epoch": progress.epoch, "step": passes})

    def _check_same_order(self, found: Path, facts: Facts) -> None:
        """In mid-epoch the rest of the clips is known only as long as what decides their order stays."""
        was, now = facts.order, self.state.order
        names = [name for name in was | now if was.get(name) != now.get(name)]
        if names:
            changes = ", ".join(f"{name} is {now.get(name)} and was {was.get(name)}" for name in names)
            end = checkpoint.newest_epoch_end(found.parent)
            elsewhere = f"; or start another run from the end of an epoch (resume={end} run_dir=...)" if end else ""
            raise CheckpointError(
                f"{found}: was saved after {facts.progress.epoch_updates} updates of an epoch, and {changes}: the rest "
                f"of the epoch would repeat clips and miss others. Go on with what was until an epoch ends{elsewhere}; "
                "or start afresh (resume=aside). optim.accumulate and the number of ranks may change at any time"
            )

    def _open_run_folder(self) -> None:
        """On the main rank: make room if asked to, and begin the files of the run."""
        if self.config.resume == "aside" and (kept := set_aside(self.run_dir)):
            log.info("the older run is kept as %s", kept)
        self.run_dir.mkdir(parents=True, exist_ok=True)
        (self.run_dir / "config.yaml").write_text(to_yaml(self.config), encoding="utf-8")
        self.metrics = MetricsLog(self.run_dir / METRICS_FILE)
        if dropped := self.metrics.truncate_after(self.state.progress.updates):
            log.info("%s: dropped %d lines of updates that will be done again", self.metrics.path, dropped)
        log.info("%s", self._summary())

    def _epoch(self) -> None:
        """The rest of the current epoch."""
        config, progress, meter = self.config, self.state.progress, _Meter()
        self.task.model.train()
        waited = self.loader.wait_seconds
        for number, batch in enumerate(self.loader):
            part = number % config.optim.accumulate
            last_part = part == config.optim.accumulate - 1
            self.good_clips += len(batch)
            meter.add(self._pass(batch, part=part, update=last_part), len(batch))
            if not last_part:
                continue
            progress.updates += 1
            progress.epoch_updates += 1
            ended = progress.epoch_updates == self.updates_per_epoch
            if progress.updates % config.log_every_steps == 0 or ended:
                meter.wait = self.loader.wait_seconds - waited
                self._log(meter)
                meter, waited = _Meter(), self.loader.wait_seconds
            every = config.checkpoint_every_steps
            if every and progress.updates % every == 0 and not ended:  # what an epoch ends with is saved once, after it
                saving = time.perf_counter()
                self._save()
                meter.since += time.perf_counter() - saving

    def _end_epoch(self) -> None:
        progress = self.state.progress
        good, bad = self._count_clips(sum_over_ranks(self._own_clips(), device=self.process.device))
        if not good and bad:
            last = self.loader.bad_clips[-1] if self.loader.bad_clips else None
            told = f", the last being {last.clip_id} in {last.shard} ({last.reason})" if last else ""
            raise TrainingError(
                f"{self.config.data.train}: not one clip of epoch {progress.epoch + 1} could be decoded{told}; "
                "make the shards again"
            )
        progress.epoch += 1
        progress.epoch_updates = progress.good_clips = progress.bad_clips = 0
        self.earlier, self.good_clips = replace(progress, seconds=self.earlier.seconds), 0
        self.loader.set_epoch(progress.epoch)

    def _own_clips(self) -> dict[str, float]:
        return {"good_clips": float(self.good_clips), "bad_clips": float(len(self.loader.bad_clips))}

    def _count_clips(self, sums: dict[str, float]) -> tuple[int, int]:
        """Good and bad clips of the epoch over all ranks, those before a resume included.

        sums: `_own_clips` summed over the ranks. LoaderError, on every rank, where more are bad than allowed.
        """
        progress = self.state.progress
        progress.good_clips = self.earlier.good_clips + round(sums["good_clips"])
        progress.bad_clips = self.earlier.bad_clips + round(sums["bad_clips"])
        self.loader.check_bad_clips(progress.bad_clips)
        return progress.good_clips, progress.bad_clips

    def _seconds(self) -> float:
        """Time spent on training, earlier parts of the run included as far as they were saved."""
        return self.earlier.seconds + time.perf_counter() - self.began

    def _pass(self, batch: VideoBatch, *, part: int, update: bool) -> dict[str, torch.Tensor]:
        """Forward and backward of part `part` of an update; with `update`, the optimiser's step as well."""
        optim, state, progress = self.config.optim, self.state, self.state.progress
        # Dropout and stochastic depth depend on the place in the run alone, so that a resumed run repeats them.
        number = progress.epoch_updates * optim.accumulate + part + 1
        seed = np.random.SeedSequence([self.config.seed, progress.epoch, number, self.process.rank])
        torch.manual_seed(int(seed.generate_state(1, np.uint64)[0] >> 1))
        model = self.task.model
        if isinstance(model, DistributedDataParallel):
            model.require_backward_grad_sync = update
        with self.arithmetic.autocast():
            loss, logs = self.task.step(self.arithmetic.fitted(batch))
        state.scaler.scale(loss / optim.accumulate).backward()
        if update:
            # By epochs, not by updates so far: after a resume with another batch size, epochs have another length.
            place = progress.epoch * self.updates_per_epoch + progress.epoch_updates
            self.rate.set(state.optimizer.param_groups, place)
            if optim.clip_grad_norm:
                state.scaler.unscale_(state.optimizer)
                torch.nn.utils.clip_grad_norm_(state.model.parameters(), optim.clip_grad_norm)
            state.scaler.step(state.optimizer)
            state.scaler.update()
            state.optimizer.zero_grad(set_to_none=True)
            self.task.after_update()
        return logs

    def _log(self, meter: _Meter) -> None:
        progress, seconds = self.state.progress, time.perf_counter() - meter.since
        values = meter.means() | {"data_wait_percent": 100 * meter.wait / seconds}
        # A loss that is NaN on one rank must show, so it becomes infinite: NaN is what the mean leaves out.
        values["loss"] = math.inf if math.isnan(values["loss"]) else values["loss"]
        clips = self._own_clips()
        values = mean_over_ranks(values | clips, device=self.process.device)
        self._count_clips({name: values.pop(name) * self.process.world for name in clips})
        self._check_finite("loss", finite=math.isfinite(values["loss"]))
        if not self.process.is_main:
            return
        rate = meter.clips * self.process.world / seconds
        values |= {"lr": self.state.optimizer.param_groups[-1]["lr"], "clips_per_second": rate}
        if self.process.device.type == "cuda":
            values["memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
        self.metrics.log(step=progress.updates, epoch=progress.epoch, **values)
        epochs = self.config.optim.epochs
        left = (epochs - progress.epoch) * self.updates_per_epoch - progress.epoch_updates
        seconds_left = left * seconds * self.config.optim.accumulate / len(meter.logs)
        beside = " ".join(f"{name} {Metric(values[name], unit)}" for name, unit in self.task.logged.items())
        log.info(
            "epoch %d/%d step %d/%d  loss %.3f  %s  lr %.2e  %.0f clips/s  data wait %.1f %%  %s left",
            progress.epoch + 1, epochs, progress.updates, progress.updates + left, values["loss"], beside,
            values["lr"], rate, values["data_wait_percent"], _clock(seconds_left),
        )  # fmt: skip

    def _changed_settings(self) -> str:
        """Settings that differ from those of the checkpoint: allowed, but never unnoticed. "" where none do."""
        if self.newest is None:
            return ""
        if (found := read_config(self.newest)) is None:
            return f"not known, for {self.newest / checkpoint.CONFIG} cannot be read"
        before, now = flatten(found), flatten(to_dict(self.config))
        now.pop("resume"), before.pop("resume", None)  # how a run was started is no setting of it
        told = [f"{key}={value} (was {before[key]})" for key, value in now.items() if before.get(key, value) != value]
        told += [f"{key}={value} (a setting that is new)" for key, value in now.items() if key not in before]
        told += [f"{key} (was {value}; no such setting now)" for key, value in before.items() if key not in now]
        return ", ".join(told)

    def _validate(self) -> None:
        config = build.single_view(self.config)
        shards = build.shard_set(config, "val")
        task = build.build_task(config, self.state.model, self.task_facts, shards)
        result = evaluate_task(config, task, shards, self.process, output=self.run_dir)
        if result is not None:
            names = [headline.metric for headline in result.scores.headlines]
            named = {f"val_{name}": result.scores.metrics[name] for name in names}
            values = {name: metric.value for name, metric in named.items()}
            self.metrics.log(step=self.state.progress.updates, epoch=self.state.progress.epoch, **values)
            log.info("validation, one view: %s", " ".join(f"{name} {metric}" for name, metric in named.items()))

    def _check_finite(self, what: str, *, finite: bool) -> None:
        if not finite:
            raise TrainingError(
                f"the {what} is not finite at step {self.state.progress.updates}; lower optim.lr, set "
                "optim.clip_grad_norm, or train in fp32 (optim.precision=fp32), and go on from the newest checkpoint"
            )

    def _save(self) -> None:
        # A ruined model must not take the place of a sound checkpoint.
        finite = all(bool(parameter.isfinite().all()) for parameter in self.state.model.parameters())
        self._check_finite("model", finite=finite)
        self._count_clips(sum_over_ranks(self._own_clips(), device=self.process.device))
        self.state.progress.seconds = self._seconds()
        self.newest = checkpoint.save(
            self.run_dir,
            self.state,
            process=self.process,
            config_yaml=to_yaml(self.config),
            extra=build.checkpoint_facts(self.config, self.task_facts),
            keep=self.config.keep_checkpoints,
        )

    def _summary(self) -> str:
        parameters = sum(p.numel() for p in self.state.model.parameters())
        return (
            f"{self.config.name}: {parameters / 1e6:.1f} M parameters, {len(self.loader.shard_set)} clips, "
            f"{self.updates_per_epoch} steps of {self.config.data.batch_size} clips an epoch, "
            f"{self.process.world} rank(s) on {self.process.device.type}, {self.arithmetic.precision.value}, "
            f"decoder {self.loader.decoder}"
        )


class TrainingError(UserError):
    """Training that cannot go on."""


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
