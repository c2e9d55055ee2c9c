"""Two ranks train under torchrun's agent; one kills itself once, and the agent starts both again. Argument: CONFIG."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from pathlib import Path
from typing import Any

from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from lavila.config.load import load_config
from lavila.engine import trainer
from lavila.engine.command_line import compute_the_same_bits
from tests import forks

RANK, UPDATES = 1, 5  # who dies, and after how many updates


def train(config: str) -> None:
    """What a rank does."""
    compute_the_same_bits()  # as train.py does
    make_pass = trainer.Trainer._pass

    def dying(self: Any, *arguments: Any, **named: Any) -> Any:
        mark = Path(config).with_suffix(".killed")
        if int(os.environ["RANK"]) == RANK and self.state.progress.updates == UPDATES and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return make_pass(self, *arguments, **named)

    trainer.Trainer._pass = dying  # type: ignore[method-assign]
    trainer.train(load_config(config))


def main(config: str) -> None:
    """What `torchrun --standalone --nproc-per-node 2 --max-restarts 1` does, but the ranks are forked from a server."""
    multiprocessing.get_context("forkserver").set_forkserver_preload(list(forks.PRELOADED))
    launch = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=2, run_id=Path(config).parent.name, rdzv_backend="c10d",
        rdzv_endpoint="localhost:0", max_restarts=1, start_method="forkserver",
    )  # fmt: skip
    elastic_launch(launch, train)(config)


if __name__ == "__main__":
    from tests.engine import killed_once  # where the ranks find `train`

    killed_once.main(sys.argv[1])
