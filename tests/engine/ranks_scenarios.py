"""What test_ranks.py has two ranks do, one thing after another. Argument: FOLDER.

Each rank writes to FOLDER/rank-<n>.json how each scenario ended: its error, or "done".
"""

from __future__ import annotations

import itertools
import json
import signal
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from lavila.config.load import load_config
from lavila.engine import build, dry_run, evaluator, trainer, writing
from lavila.engine.distributed import Process, join, on_main
from lavila.engine.optim import own_part
from lavila.records import VideoBatch
from lavila.tasks.classification import ClassificationTask
from tests.engine.interrupted import signalled
from tests.engine.spoilt import bad_gradients

# Without chance in the model, and with an optimizer that does not magnify what differs by rounding.
CONTRASTIVE = (
    "task.name=contrastive", "task.learn_temperature=true", "task.learn_pseudo_temperature=true",
    "model.text.width=16", "model.text.depth=1", "model.text.heads=2", "model.text.context=8", "model.embed_dim=8",
    "model.drop_path=0", "optim.optimizer=sgd", "optim.lr=0.01", "optim.schedule=constant", "optim.precision=fp32",
)  # fmt: skip


def outcome(work: Callable[..., object], *arguments: Any) -> str:
    try:
        work(*arguments)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "done"


def save_again(folder: Path, process: Process, overrides: list[str]) -> None:
    """What two ranks have read, each its share, they write as it is."""
    ready = trainer.prepare(load_config(folder / "tiny.yaml", [*overrides, f"run_dir={folder / 'elsewhere'}"]), process)
    own = sum(len(group["params"]) for group in own_part(ready.state.optimizer).param_groups)
    assert 0 < own < len(list(ready.state.model.parameters())), own
    beside = writing.Beside(config_yaml="", extra=build.checkpoint_facts(ready.config, ready.task_facts), keep=1)
    writing.save(folder / "again", ready.state, process=process, beside=beside)


def main(folder: Path, process: Process) -> None:
    # Each command would join and leave; the processes stay together here.
    trainer.join = evaluator.join = dry_run.join = lambda device: nullcontext(process)  # type: ignore[attr-defined]
    ended: dict[str, str] = {}

    def run(name: str, work: Callable[..., object], *overrides: str) -> None:
        config = load_config(folder / "tiny.yaml", [f"run_dir={folder / 'run'}", *overrides])
        ended[name] = outcome(work, config)
        (folder / f"rank-{process.rank}.json").write_text(json.dumps(ended))

    def only_the_main_rank_fails() -> None:
        raise ValueError(f"rank {process.rank}")

    ended["on_main raises"] = outcome(on_main, only_the_main_rank_fails)
    good, both, first = (f"data.{{}}={folder / name}" for name in ("good", "both", "first"))
    run("train", trainer.train, good.format("train"), "resume=none")
    run("evaluate", evaluator.evaluate, good.format("val"))
    run("train none", trainer.train, good.format("train"), "resume=none")
    run("train aside", trainer.train, good.format("train"), "resume=aside", "seed=1")
    few = "data.max_bad_clips=3"
    run("train, both meet bad clips", trainer.train, both.format("train"), few, f"run_dir={folder / 'both'}")
    run("train, one meets bad clips", trainer.train, first.format("train"), few, f"run_dir={folder / 'first'}")
    run("evaluate, both meet bad clips", evaluator.evaluate, both.format("val"), few)
    run("evaluate, one meets bad clips", evaluator.evaluate, first.format("val"), few)
    run("evaluate, all are bad", evaluator.evaluate, f"data.val={folder / 'none'}")
    run("validate, both meet bad clips", trainer.train, good.format("train"), both.format("val"), few,
        "evals.val.every_epochs=1", f"run_dir={folder / 'validated'}")  # fmt: skip
    for name, clips in (("good", good), ("first", first)):
        run(f"train, contrastive, {name}", trainer.train, clips.format("train"), *CONTRASTIVE,
            f"run_dir={folder / f'contrastive-{name}'}")  # fmt: skip
    again = ["optim.epochs=2", f"resume={folder / 'one' / 'checkpoints'}", good.format("train")]
    for name in ("whole", "sharded"):
        shard = f"optim.shard_state={str(name == 'sharded').lower()}"
        run(f"one rank's run, {name}", trainer.train, *again, shard, f"run_dir={folder / name}")
    for number in (signal.SIGTERM, signal.SIGUSR1):
        with signalled(ClassificationTask, number, updates=2 if process.rank == 1 else None):
            name = signal.Signals(number).name
            run(name, trainer.train, good.format("train"), f"run_dir={folder / name}")
    ended["saved again"] = outcome(save_again, folder, process, [*again, "optim.shard_state=true"])
    run("dry run", dry_run.check_training, good.format("train"), f"run_dir={folder / 'dry'}", "optim.shard_state=true")
    bad_rank, updates = 1, {1}
    step = ClassificationTask.step
    numbers = itertools.count(1)

    def hanging(self: ClassificationTask, batch: VideoBatch) -> Any:
        if next(numbers) == 3 and process.rank == bad_rank:  # in the second pass DDP itself asks the others
            time.sleep(3)
        return step(self, batch)

    ClassificationTask.step = hanging  # type: ignore[method-assign]
    run("one rank hangs", trainer.train, good.format("train"), "engine.stall_seconds=1", f"run_dir={folder / 'hangs'}")

    def spoiling(self: ClassificationTask, batch: VideoBatch) -> Any:
        loss, logs = step(self, batch)
        spoilt = process.rank == bad_rank and self.model.training and next(number) in updates
        return (loss * float("nan"), logs | {"loss": logs["loss"] * float("nan")}) if spoilt else (loss, logs)

    ClassificationTask.step = spoiling  # type: ignore[method-assign]
    number = itertools.count()
    run("a loss of one rank is not finite", trainer.train, good.format("train"), f"run_dir={folder / 'skipped'}")
    number, updates = itertools.count(), set(range(9))
    run("all losses of one rank are not finite", trainer.train, good.format("train"), f"run_dir={folder / 'stopped'}",
        "optim.max_nonfinite_losses=2")  # fmt: skip
    ClassificationTask.step = step  # type: ignore[method-assign]
    for name in ("whole", "sharded"):
        with bad_gradients(*[1] * (process.rank == bad_rank)):
            run(f"a gradient of one rank is not finite, {name}", trainer.train, good.format("train"),
                f"run_dir={folder / f'gradient-{name}'}", "checkpoint_every_steps=1", "keep_checkpoints=9",
                f"optim.shard_state={str(name == 'sharded').lower()}")  # fmt: skip
    run("train, one meets too many", trainer.train, first.format("train"), "data.max_bad_clips=1",
        f"run_dir={folder / 'too many'}")  # fmt: skip


if __name__ == "__main__":
    with join("cpu") as joined:
        main(Path(sys.argv[1]), joined)
