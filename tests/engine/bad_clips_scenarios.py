"""What test_bad_clips.py has three ranks do. Arguments: FOLDER WHOLE_SET HARMED_SET.

Each rank writes to FOLDER/rank-<n>.json how each scenario ended. In the last one a rank kills itself.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from lavila.config.load import load_config
from lavila.engine import trainer
from lavila.engine.distributed import Process, join
from tests.engine.interrupted import clips_seen
from tests.engine.ranks_scenarios import outcome

HANGING_RANK, DYING_RANK = 1, 2


def main(folder: Path, whole: Path, harmed: Path, process: Process) -> None:
    trainer.join = lambda device: nullcontext(process)  # type: ignore[attr-defined]
    ended: dict[str, Any] = {}

    def run(name: str, shards: Path, *overrides: str) -> None:
        settings = [f"data.train={shards}", f"run_dir={folder / name}", "data.batch_size=12", *overrides]
        ended[name] = outcome(trainer.train, load_config(folder / "tiny.yaml", settings))
        (folder / f"rank-{process.rank}.json").write_text(json.dumps(ended))

    with clips_seen() as rows:
        run("harmed", harmed)
    ended["rows"] = rows
    run("too many", harmed, "data.max_bad_clips=2")
    real, answer = os.pread, threading.Event()

    def read(descriptor: int, *arguments: Any) -> bytes:
        if Path(f"/proc/self/fd/{descriptor}").readlink().name == "shard-000007.tar":
            answer.wait()
        return real(descriptor, *arguments)

    if process.rank == HANGING_RANK:
        os.pread = read
    run("hung", whole, "data.read_seconds=0.5")
    answer.set()
    step = trainer.Trainer._pass

    def dying(self: Any, *arguments: Any, **named: Any) -> Any:
        if process.rank == DYING_RANK and self.state.progress.updates == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(self, *arguments, **named)

    trainer.Trainer._pass = dying  # type: ignore[method-assign]
    run("dead", whole)


if __name__ == "__main__":
    with join("cpu") as joined:
        main(*map(Path, sys.argv[1:]), joined)
