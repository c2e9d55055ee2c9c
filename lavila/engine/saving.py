"""When a run saves, and what a save that fails means for it. Training waits for a copy of the state alone."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.distributed import ProcessGroup

from lavila.config.load import to_yaml
from lavila.config.schema import RunConfig
from lavila.engine.checkpoint import FOLDER, Best, TrainState, best_of, note_if_best, step_name, torn
from lavila.engine.distributed import Process, gather_to_all, leave, on_main, second_group, sum_over_ranks
from lavila.engine.signals import Stopped, Wish
from lavila.engine.writing import Beside, SaveFailed, Staged, Staging, reserve, save, stage, write
from lavila.errors import UserError
from lavila.metrics.units import Metric
from lavila.report.files import METRICS_FILE, MetricsLog

log = logging.getLogger(__name__)

SPARE_BYTES = 64 * 2**20  # that stay free beside a checkpoint, for logs and for what the file system itself needs


class TrainingError(UserError):
    """Training that cannot continue."""


class Saver:
    """Saves a run's state into its folder. Every rank has one, and all call its methods at the same places.

    A save copies the state, and a thread writes the copy while training continues; so the newest checkpoint is known
    after `finish`. One that cannot be written is named in the log, and the run continues with the older ones.
    extra: what the model file says beside the weights. newest: the run's newest checkpoint so far.
    """

    def __init__(
        self, config: RunConfig, process: Process, state: TrainState, *, extra: dict[str, str], newest: Path | None
    ) -> None:
        self.config, self.process, self.state, self.newest = config, process, state, newest
        self._extra = extra
        self._config_yaml = to_yaml(config)
        self._run_dir = Path(config.run_dir)
        self._saved_at = time.monotonic()
        background = config.engine.save_in_background
        self._staging = Staging() if background else None
        self._group: ProcessGroup | None = None  # for the thread's messages, made at the first save
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")  # starts with the first save
        self._writing: Future[Path] | None = None
        self._reserving: Future[None] | None = None

    def start(self) -> None:
        """Have the thread get memory for the copies, before the first save wants it."""
        if self._staging is not None:
            self._reserving = self._thread.submit(reserve, self.state, process=self.process, staging=self._staging)

    def wish(self) -> Wish:
        """SAVE on the main rank, whose clock decides, once `checkpoint_every_minutes` have passed since a save."""
        minutes = self.config.checkpoint_every_minutes
        due = minutes and self.process.is_main and time.monotonic() - self._saved_at > 60 * minutes
        return Wish.SAVE if due else Wish.NOTHING

    def is_due(self, wish: Wish) -> bool:
        """Whether the update that was just done is to be saved; `wish`: what any rank wishes."""
        every = self.config.checkpoint_every_steps
        return bool(every and self.state.progress.updates % every == 0) or bool(wish & (Wish.SAVE | Wish.STOP))

    @property
    def is_saved(self) -> bool:
        """Whether the newest checkpoint has the state of this moment. True is certain only after `finish`."""
        return self.newest is not None and self.newest.name == step_name(self.state.progress.updates)

    def save(self, *, meter: dict[str, Any], metrics: MetricsLog | None) -> None:
        """Begin to save the state of this moment. TrainingError, and no checkpoint, where the model is ruined.

        meter: what this rank has summed up since the last line of the log. metrics: on the main rank the lines so far;
        they reach the disk before the checkpoint is whole, since a resume does not write them again.
        """
        self.finish()
        if self._reserving is not None:
            self._reserving.result()
        # A ruined model must not take the place of a sound checkpoint. A sum is finite where all its numbers are.
        sums = torch.stack([parameter.detach().sum() for parameter in self.state.model.parameters()])
        if not bool(sums.isfinite().all()):
            raise TrainingError(
                f"the model is not finite at step {self.state.progress.updates}; lower optim.lr, set "
                "optim.clip_grad_norm, or train in fp32 (optim.precision=fp32), and continue from the newest checkpoint"
            )
        self._saved_at = time.monotonic()
        logs = () if metrics is None else (metrics.path,)
        beside = replace(self._beside(self._run_dir), meters=gather_to_all(meter), logs=logs)
        staged = stage(self.state, process=self.process, beside=beside, staging=self._staging)
        needed = round(sum_over_ranks({"bytes": float(staged.bytes)}, device=self.process.device)["bytes"])
        if reason := on_main(lambda: self._why_not(staged.name, needed, metrics)):
            log.warning("%s; training continues, and the newest checkpoint is %s", reason, self.newest)
            return
        if self._group is None:
            self._group = second_group()
        self._writing = self._thread.submit(self._write, staged)
        if self._staging is None:
            self.finish()

    def _write(self, staged: Staged) -> Path:
        try:
            return write(self._run_dir, staged, process=self.process, group=self._group)
        except SaveFailed as error:  # the log has it at once, and not when the next save begins
            log.warning("%s; training continues, and the older checkpoints stay", error)
            raise

    def finish(self) -> None:
        """Wait for the save that is being written, if one is."""
        writing, self._writing = self._writing, None
        if writing is None:
            return
        try:
            self.newest = writing.result()
        except SaveFailed:  # the thread has said so
            return

    def check_end(self) -> None:
        """TrainingError where the end of training could not be saved."""
        self.finish()
        if not self.is_saved:
            raise TrainingError(
                f"{self._run_dir}: the state after the last update, {self.state.progress.updates}, could not be saved; "
                f"make room, and the same command continues from {self.newest or 'the start'}"
            )

    def stopped(self, *, by: str) -> Stopped:
        """How a run ends that a signal has stopped; `by`: its name, empty on a rank that did not get it."""
        self.finish()
        updates = self.state.progress.updates
        if self.is_saved:
            kept = f"{self.newest} has its state"
        else:
            kept = (
                f"it could not be saved, and {self.newest} is the newest checkpoint"
                if updates
                else "nothing was to save"
            )
        return Stopped(
            f"training stopped after update {updates}, since {by or 'a signal'} asked for it; {kept}, and the same "
            "command continues"
        )

    def close(self) -> None:
        """Wait for what is being written, whatever becomes of it."""
        self._thread.shutdown()
        leave(self._group)

    def keep_apart(self, folder: Path) -> Path:
        """Write this moment's state, for a look at it, into a folder of checkpoints elsewhere; gives the checkpoint.

        One that is there already is left: the run was here before, and continued from an earlier checkpoint.
        """
        there = folder / FOLDER / step_name(self.state.progress.updates)
        if on_main(lambda: torn(there) is not None):
            save(folder, self.state, process=self.process, beside=self._beside(folder))
        return there

    def _beside(self, run_dir: Path) -> Beside:
        """What stays in `run_dir` beside the newest checkpoints is the best by `keep_best`."""
        best = best_of(run_dir / FOLDER, metric=self.config.keep_best)
        return Beside(
            config_yaml=self._config_yaml,
            extra=self._extra,
            keep=self.config.keep_checkpoints,
            spared=best.checkpoint if best else "",
        )

    def _why_not(self, name: str, needed: int, metrics: MetricsLog | None) -> str:
        """What speaks against the save before it begins, as the main rank sees it; empty = nothing."""
        free = shutil.disk_usage(self._run_dir).free
        if free < needed + SPARE_BYTES:
            return (
                f"{self._run_dir}: {name} is not saved, for {free / 1e6:,.0f} MB are free, and it takes "
                f"{needed / 1e6:,.0f} MB with {SPARE_BYTES / 1e6:,.0f} MB to spare; make room"
            )
        try:
            if metrics is not None:
                metrics.write_all()
        except OSError as error:
            return f"{name} is not saved, for {METRICS_FILE} cannot be written ({error.strerror}); make room"
        return ""

    def compare_with_best(self, named: Mapping[str, Metric]) -> None:
        """Note whether the newest checkpoint is the best so far; `named`: what the main rank knows it to be worth."""
        self.finish()
        on_main(lambda: self._compare_with_best(named))

    def _compare_with_best(self, named: Mapping[str, Metric]) -> None:
        metric = self.config.keep_best
        if metric not in named:
            raise TrainingError(f"keep_best={metric}: no such metric; the evaluation has {', '.join(named)}")
        if not self.is_saved or self.newest is None:
            log.warning("%s of update %d counts for no best: it is not saved", metric, self.state.progress.updates)
            return
        found = named[metric]
        lower = found.lower_is_better
        best = Best(checkpoint=self.newest.name, metric=metric, value=found.value, lower_is_better=lower)
        note_if_best(self._run_dir / FOLDER, best)
