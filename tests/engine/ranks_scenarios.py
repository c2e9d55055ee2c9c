"""What test_ranks.py has two ranks do, one thing after another, in one start of torchrun.

    torchrun --nproc-per-node 2 tests/engine/ranks_scenarios.py FOLDER

Each rank writes to FOLDER/rank-<n>.json how each scenario ended: its error, or "done". In the last scenario one rank
stops alone, as a killed one does.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from lavila.config.load import load_config
from lavila.engine import evaluator, trainer
from lavila.engine.distributed import Process, join, on_main


def outcome(work: Callable[..., object], *arguments: Any) -> str:
    try:
        work(*arguments)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "done"


def main(folder: Path, process: Process) -> None:
    # Each command would join and leave; the processes stay together here.
    trainer.join = evaluator.join = lambda device: nullcontext(process)  # type: ignore[attr-defined]
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
    config = load_config(
        folder / "tiny.yaml", [first.format("train"), "data.max_bad_clips=1", f"run_dir={folder / 'x'}"]
    )
    trainer.train(config)


if __name__ == "__main__":
    with join("cpu") as joined:
        main(Path(sys.argv[1]), joined)
