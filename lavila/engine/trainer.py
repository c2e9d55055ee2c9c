"""The one trainer."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel

from lavila.config.load import flatten, load_config, to_dict, to_yaml
from lavila.config.schema import Precision, RunConfig
from lavila.data.loader import ClipLoader
from lavila.data.shards import ShardSet
from lavila.engine import build, checkpoint
from lavila.engine.checkpoint import TrainState
from lavila.engine.distributed import Process, join, mean_over_ranks
from lavila.engine.evaluator import evaluate_task
from lavila.engine.optim import LearningRate, build_optimizer
from lavila.engine.reporting import MetricsLog, append_stage, read_stages
from lavila.models.checkpoints import TrainedOn, trained_on
from lavila.records import VideoBatch
from lavila.tasks import Task

log = logging.getLogger(__name__)


def train(config: RunConfig) -> Path:
    """Train as the config says, from the newest checkpoint of the run if there is one. Returns the last checkpoint."""
    with join(config.device.value) as process:
        started = time.perf_counter()
        shards = build.shard_set(config, "train")
        classes = build.head_classes(config, shards)
        found = checkpoint.find(Path(config.run_dir), config.resume)
        origin = found or config.model.init
        trained = trained_on(origin) if origin else None
        config = build.with_statistics(config, trained)
        _check_classes(config, shards, classes, resumed=trained if found else None)
        loader = build.training_loader(config, shards, process)
        model = build.classifier(config, classes).to(process.device)
        trainer = Trainer(
            config, process, loader=loader, task=build.build_task(config, model, classes), classes=classes
        )
        resumed_at = trainer.state.progress["updates"]
        last = trainer.fit()
        if process.is_main and trainer.state.progress["updates"] > resumed_at:
            # A run in several parts took the sum of them (a part that was killed noted nothing).
            before = read_stages(config.run_dir).get("train", 0.0) if resumed_at else 0.0
            append_stage(config.run_dir, "train", before + time.perf_counter() - started)
    return last


def _check_classes(config: RunConfig, shards: ShardSet, classes: build.Classes, *, resumed: TrainedOn | None) -> None:
    """Class names of what is trained on against the checkpoint's, and of what is validated on against both."""
    if resumed is not None:
        build.check_classes(classes, resumed.classes, of=shards.path, wanted_by=resumed.file)
    if config.evaluate_every_epochs:
        val = build.shard_set(config, "val")
        build.check_classes(build.head_classes(config, val), classes, of=val.path, wanted_by=shards.path)


@dataclass
class _Meter:
    """Sums between two lines of the log."""

    logs: list[dict[str, torch.Tensor]] = field(default_factory=list)
    clips: int = 0
    wait: float = 0.0
    since: float = field(default_factory=time.perf_counter)

    def add(self, logs: dict[str, torch.Tensor], clips: int) -> None:
        self.logs.append(logs)  # left on the device: looking at a number would make the host wait for it
        self.clips += clips

    def means(self) -> dict[str, float]:
        """Mean of each number, the same keys on every rank; an accuracy is NaN where no clip has the label."""
        stacked = {name: torch.stack([log[name] for log in self.logs]).double() for name in self.logs[0]}
        return {name: float(v.mean() if name == "loss" else v.nanmean()) for name, v in stacked.items()}


class Trainer:
    """Steps a task over a loader; logs, saves and resumes."""

    def __init__(self, config: RunConfig, process: Process, *, loader: ClipLoader, task: Task, classes: build.Classes):
        self.config, self.process, self.loader, self.task, self.classes = config, process, loader, task, classes
        self.run_dir = Path(config.run_dir)
        self.precision = pick_precision(config.optim.precision, process.device)
        model = task.model
        optimizer = build_optimizer(model, config.optim)
        scaler = torch.amp.GradScaler(process.device.type, enabled=self.precision is torch.float16)
        progress = {"epoch": 0, "step": 0, "updates": 0}
        self.state = TrainState(model=model, optimizer=optimizer, scaler=scaler, progress=progress)
        self.updates_per_epoch = len(loader) // config.optim.accumulate
        self.rate = LearningRate.of(config.optim, model, steps=self.updates_per_epoch)
        self.newest = checkpoint.find(self.run_dir, config.resume)
        if self.newest is not None:
            checkpoint.load(self.newest, self.state, process=process)
            loader.load_state_dict(progress)
            if process.is_main:
                self._tell_what_changed(self.newest)
        if process.world > 1:
            device_ids = [process.device.index] if process.device.type == "cuda" else None
            task.model = DistributedDataParallel(model, device_ids=device_ids)

    def fit(self) -> Path:
        """All epochs that are left. Returns the newest checkpoint's folder."""
        config, progress = self.config, self.state.progress
        if self.process.is_main:
            self.run_dir.mkdir(parents=True, exist_ok=True)
            (self.run_dir / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
            self.metrics = MetricsLog(self.run_dir / "metrics.jsonl")
            self.metrics.truncate_after(progress["updates"])
            log.info("%s", self._summary())
            if progress["epoch"] >= config.optim.epochs:
                log.info(
                    "this run has its %d epochs already; for more raise optim.epochs, for another run give run_dir=... "
                    "or resume=none", progress["epoch"],
                )  # fmt: skip
        while progress["epoch"] < config.optim.epochs:
            self._epoch()
            progress.update(epoch=progress["epoch"] + 1, step=0)
            self.loader.set_epoch(progress["epoch"])
            self._save()
            if config.evaluate_every_epochs and progress["epoch"] % config.evaluate_every_epochs == 0:
                self._validate()
        assert self.newest is not None
        return self.newest

    def _epoch(self) -> None:
        """The rest of the current epoch."""
        config, progress, meter, clips = self.config, self.state.progress, _Meter(), 0
        self.task.model.train()
        waited = self.loader.wait_seconds
        for batch in self.loader:
            progress["step"] += 1
            clips += len(batch)
            last_pass = progress["step"] % config.optim.accumulate == 0
            meter.add(self._pass(batch, update=last_pass), len(batch))
            if not last_pass:
                continue
            progress["updates"] += 1
            if progress["updates"] % config.log_every_steps == 0 or progress["step"] == len(self.loader):
                meter.wait = self.loader.wait_seconds - waited
                self._log(meter)
                meter, waited = _Meter(), self.loader.wait_seconds
            if config.checkpoint_every_steps and progress["updates"] % config.checkpoint_every_steps == 0:
                self._save()
        if not mean_over_ranks({"clips": float(clips)}, device=self.process.device)["clips"] and self.loader.bad_clips:
            bad = self.loader.bad_clips[-1]
            raise TrainingError(
                f"{config.data.train}: not one clip of epoch {progress['epoch'] + 1} could be decoded, the last being "
                f"{bad.clip_id} in {bad.shard} ({bad.reason}); make the shards again"
            )

    def _pass(self, batch: VideoBatch, *, update: bool) -> dict[str, torch.Tensor]:
        """Forward and backward of one batch; with `update`, the optimiser's step as well."""
        optim, state = self.config.optim, self.state
        # Dropout and stochastic depth depend on the place in the run alone, so that a resumed run repeats them.
        seed = np.random.SeedSequence(
            [self.config.seed, state.progress["epoch"], state.progress["step"], self.process.rank]
        )
        torch.manual_seed(int(seed.generate_state(1, np.uint64)[0] >> 1))
        model = self.task.model
        if isinstance(model, DistributedDataParallel):
            model.require_backward_grad_sync = update
        with torch.autocast(
            self.process.device.type, dtype=self.precision, enabled=self.precision is not torch.float32
        ):
            loss, logs = self.task.step(batch)
        state.scaler.scale(loss / optim.accumulate).backward()
        if update:
            self.rate.set(state.optimizer.param_groups, state.progress["updates"])
            if optim.clip_grad_norm:
                state.scaler.unscale_(state.optimizer)
                torch.nn.utils.clip_grad_norm_(state.model.parameters(), optim.clip_grad_norm)
            state.scaler.step(state.optimizer)
            state.scaler.update()
            state.optimizer.zero_grad(set_to_none=True)
        return logs

    def _log(self, meter: _Meter) -> None:
        progress, seconds = self.state.progress, time.perf_counter() - meter.since
        values = meter.means() | {"data_wait_percent": 100 * meter.wait / seconds}
        # A loss that is NaN on one rank must show, so it becomes infinite: NaN is what the mean leaves out.
        values["loss"] = math.inf if math.isnan(values["loss"]) else values["loss"]
        values = mean_over_ranks(values, device=self.process.device)
        self._check_finite("loss", finite=math.isfinite(values["loss"]))
        if not self.process.is_main:
            return
        rate = meter.clips * self.process.world / seconds
        values |= {"lr": self.state.optimizer.param_groups[-1]["lr"], "clips_per_second": rate}
        if self.process.device.type == "cuda":
            values["memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
        self.metrics.log(step=progress["updates"], epoch=progress["epoch"], **values)
        total = self.updates_per_epoch * self.config.optim.epochs
        left = (total - progress["updates"]) * seconds * self.config.optim.accumulate / len(meter.logs)
        accuracy = " ".join(f"{name} {value:.1f}" for name, value in values.items() if name.endswith("_top1"))
        log.info(
            "epoch %d/%d step %d/%d  loss %.3f  %s  lr %.2e  %.0f clips/s  data wait %.1f %%  %s left",
            progress["epoch"] + 1, self.config.optim.epochs, progress["updates"], total, values["loss"], accuracy,
            values["lr"], rate, values["data_wait_percent"], _clock(left),
        )  # fmt: skip

    def _tell_what_changed(self, found: Path) -> None:
        """Settings that differ from those of the checkpoint: allowed, but never unnoticed."""
        before, now = (flatten(to_dict(c)) for c in (load_config(found / "config.yaml"), self.config))
        changed = [f"{key}={value} (was {before[key]})" for key, value in now.items() if before[key] != value]
        if changed:
            log.warning("resumed with other settings than the checkpoint's: %s", ", ".join(changed))

    def _validate(self) -> None:
        config = build.single_view(self.config)
        result = evaluate_task(config, self.task, build.shard_set(config, "val"), self.process)
        if result is not None:
            named = {f"val_{name}": value for name, value in result.scores.metrics.items() if name.endswith("_top1")}
            self.metrics.log(step=self.state.progress["updates"], epoch=self.state.progress["epoch"], **named)
            log.info("validation, one view: %s", " ".join(f"{name} {value:.1f}" for name, value in named.items()))

    def _check_finite(self, what: str, *, finite: bool) -> None:
        if not finite:
            raise TrainingError(
                f"the {what} is not finite at step {self.state.progress['updates']}; lower optim.lr, set "
                "optim.clip_grad_norm, or train in fp32 (optim.precision=fp32), and go on from the newest checkpoint"
            )

    def _save(self) -> None:
        # A ruined model must not take the place of a sound checkpoint.
        finite = all(bool(parameter.isfinite().all()) for parameter in self.state.model.parameters())
        self._check_finite("model", finite=finite)
        self.newest = checkpoint.save(
            self.run_dir,
            self.state,
            process=self.process,
            config_yaml=to_yaml(self.config),
            extra=build.checkpoint_facts(self.config, self.classes),
            keep=self.config.keep_checkpoints,
        )

    def _summary(self) -> str:
        parameters = sum(p.numel() for p in self.state.model.parameters())
        precision = str(self.precision).removeprefix("torch.")
        return (
            f"{self.config.name}: {parameters / 1e6:.1f} M parameters, {len(self.loader.shard_set)} clips, "
            f"{self.updates_per_epoch} steps of {self.config.data.batch_size} clips an epoch, "
            f"{self.process.world} rank(s) on {self.process.device.type}, {precision}, decoder {self.loader.decoder}"
        )


class TrainingError(ValueError):
    """Training that cannot go on, told in one line."""


def pick_precision(precision: Precision, device: torch.device) -> torch.dtype:
    """The number type of autocast. auto: bf16 where the GPU computes in it, else fp16; fp32 on the CPU."""
    if precision is Precision.auto:
        if device.type != "cuda":
            return torch.float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    if precision is Precision.fp16 and device.type != "cuda":
        raise TrainingError("optim.precision=fp16 needs a GPU; use fp32 or bf16 on the CPU")
    return {Precision.fp32: torch.float32, Precision.bf16: torch.bfloat16, Precision.fp16: torch.float16}[precision]


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
