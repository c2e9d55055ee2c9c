"""TensorBoard and Weights & Biases beside metrics.jsonl. What goes wrong with them never ends a run."""

from __future__ import annotations

import logging
import math
import uuid
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from lavila.config.load import to_dict
from lavila.config.schema import ConfigError, LogConfig, RunConfig

log = logging.getLogger(__name__)

TENSORBOARD_FOLDER = "tensorboard"
WANDB_RUN = "wandb-run"  # file in the run folder: the id of its run there, which a resumed run continues


class Tracker(Protocol):
    """One that numbers are given to."""

    def log(self, values: Mapping[str, float], *, step: int) -> None:
        """Take the numbers of an update."""
        ...

    def close(self) -> None:
        """Write what waits."""
        ...


def check_trackers(config: LogConfig) -> None:
    """ConfigError where what `log` asks for is not installed, with the command that installs it."""
    for name in ("tensorboard", "wandb"):
        if getattr(config, name) and find_spec(name) is None:
            raise ConfigError(
                f"log.{name}=true, but {name} is not installed; run pip install 'lavila[{name}]', or log.{name}=false"
            )


class Trackers:
    """Those that the config asks for. One that fails is named in the log and left out from then on."""

    def __init__(self, config: RunConfig, run_dir: Path, *, step: int) -> None:
        """`step`: updates that are done; what a tracker has of later ones is of a run that was killed."""
        self._open: dict[str, Tracker] = {}
        makers: dict[str, Callable[[], Tracker]] = {
            "tensorboard": lambda: _TensorBoard(run_dir / TENSORBOARD_FOLDER, step=step),
            "wandb": lambda: _Wandb(config, run_dir),
        }
        for name, make in makers.items():
            if getattr(config.log, name):
                try:
                    self._open[name] = make()
                except Exception as error:
                    self._leave_out(name, error)

    def log(self, values: Mapping[str, Any], *, step: int) -> None:
        """Give each the finite numbers among `values`."""
        numbers = {name: float(v) for name, v in values.items() if isinstance(v, int | float) and math.isfinite(v)}
        self._each(lambda tracker: tracker.log(numbers, step=step))

    def close(self) -> None:
        """Close all of them; safe to call twice."""
        self._each(lambda tracker: tracker.close())
        self._open = {}

    def _each(self, do: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._open.items()):
            try:
                do(tracker)
            except Exception as error:
                del self._open[name]
                self._leave_out(name, error)

    def _leave_out(self, name: str, error: Exception) -> None:
        reason = " ".join(str(error).split())
        log.warning("log.%s: gets no more numbers (%s: %s); metrics.jsonl does", name, type(error).__name__, reason)


class _TensorBoard:
    def __init__(self, folder: Path, *, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # an extra

        self._writer = SummaryWriter(str(folder), purge_step=step + 1)

    def log(self, values: Mapping[str, float], *, step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    def __init__(self, config: RunConfig, run_dir: Path) -> None:
        file = run_dir / WANDB_RUN
        if not file.is_file():
            file.write_text(f"{uuid.uuid4().hex[:12]}\n", encoding="utf-8")
        self._run = import_module("wandb").init(
            project=config.log.wandb_project,
            name=config.name,
            id=file.read_text(encoding="utf-8").strip(),
            resume="allow",
            dir=str(run_dir),
            config=to_dict(config),
        )

    def log(self, values: Mapping[str, float], *, step: int) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()
