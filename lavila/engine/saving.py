"""When a run saves, and which of its checkpoints stay."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path

from lavila.config.load import to_yaml
from lavila.config.schema import RunConfig
from lavila.engine import checkpoint
from lavila.engine.checkpoint import Beside, Best, TrainState, best_of, note_if_best
from lavila.engine.distributed import Process, on_main
from lavila.engine.signals import Wish
from lavila.errors import UserError
from lavila.metrics.units import Metric

log = logging.getLogger(__name__)


class TrainingError(UserError):
    """Training that cannot go on."""


class Saver:
    """Saves a run's state into its folder. Every rank has one, and all call its methods at the same places.

    extra: what the model file says beside the weights. newest: the run's newest checkpoint so far.
    """

    def __init__(
        self, config: RunConfig, process: Process, state: TrainState, *, extra: dict[str, str], newest: Path | None
    ) -> None:
        self.config, self.process, self.state, self.newest = config, process, state, newest
        self._extra = extra
        self._run_dir = Path(config.run_dir)
        self._saved_at = time.monotonic()

    def wish(self) -> Wish:
        """SAVE on the main rank, whose clock decides, once `checkpoint_every_minutes` have passed since a save."""
        minutes = self.config.checkpoint_every_minutes
        due = minutes and self.process.is_main and time.monotonic() - self._saved_at > 60 * minutes
        return Wish.SAVE if due else Wish.NOTHING

    def is_due(self, wish: Wish) -> bool:
        """Whether the update that was just done is to be saved; `wish`: what any rank wishes."""
        every = self.config.checkpoint_every_steps
        return bool(every and self.state.progress.updates % every == 0) or bool(wish & (Wish.SAVE | Wish.STOP))

    def save(self) -> None:
        """Save the state of this moment. TrainingError, and no checkpoint, where the model is ruined."""
        # A ruined model must not take the place of a sound checkpoint.
        if not all(bool(parameter.isfinite().all()) for parameter in self.state.model.parameters()):
            raise TrainingError(
                f"the model is not finite at step {self.state.progress.updates}; lower optim.lr, set "
                "optim.clip_grad_norm, or train in fp32 (optim.precision=fp32), and go on from the newest checkpoint"
            )
        self.newest = self.write(self._run_dir)
        self._saved_at = time.monotonic()

    def write(self, run_dir: Path) -> Path:
        """A checkpoint of this moment. What stays in `run_dir` beside the newest ones is the best by `keep_best`."""
        best = best_of(run_dir / checkpoint.FOLDER, metric=self.config.keep_best)
        beside = Beside(
            config_yaml=to_yaml(self.config),
            extra=self._extra,
            keep=self.config.keep_checkpoints,
            spared=best.checkpoint if best else "",
        )
        return checkpoint.save(run_dir, self.state, process=self.process, beside=beside)

    def compare_with_best(self, named: Mapping[str, Metric]) -> None:
        """Note whether the newest checkpoint is the best so far; `named`: what the main rank knows it to be worth."""
        on_main(lambda: self._compare_with_best(named))

    def _compare_with_best(self, named: Mapping[str, Metric]) -> None:
        metric = self.config.keep_best
        if metric not in named:
            raise TrainingError(f"keep_best={metric}: no such metric; the evaluation has {', '.join(named)}")
        assert self.newest is not None
        found = named[metric]
        lower = found.lower_is_better
        best = Best(checkpoint=self.newest.name, metric=metric, value=found.value, lower_is_better=lower)
        note_if_best(self._run_dir / checkpoint.FOLDER, best)
