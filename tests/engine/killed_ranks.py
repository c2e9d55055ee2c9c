"""Two ranks that are killed at random moments and started again, until their training ends.

    python tests/engine/killed_ranks.py CONFIG --kills N --moment any|saving --seed S

The ranks are forked from this process, which has imported everything and computed nothing: a start takes a tenth of a
second in place of ten. Prints a line of JSON for each kill. Each kill is SIGKILL for both ranks, or for one of them,
and then the other one has to end by itself.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

from benchmarks.ports import free_ports
from lavila.config.load import load_config
from lavila.config.schema import RunConfig
from lavila.engine.command_line import compute_the_same_bits, start_log
from lavila.engine.trainer import train
from lavila.report.files import read_metrics

RANKS = 2
PATIENCE_SECONDS = 120.0


def start(config: RunConfig) -> list[int]:
    """Fork the ranks. Returns their process ids."""
    (port,) = free_ports(1)
    found = []
    for rank in range(RANKS):
        sys.stdout.flush()
        if (child := os.fork()) == 0:
            os.environ |= {
                "RANK": str(rank), "WORLD_SIZE": str(RANKS), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(RANKS),
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
            }  # fmt: skip
            run(config)
        found.append(child)
    return found


def run(config: RunConfig) -> None:
    status = 1
    try:
        start_log()
        train(config)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def lines_of(run_dir: Path) -> int:
    with contextlib.suppress(ValueError):
        return len(read_metrics(run_dir / "metrics.jsonl"))
    return 0


def wait_for_moment(run_dir: Path, children: list[int], moment: str, chance: random.Random) -> bool:
    """Wait until it is time to kill. False where the training has ended before."""
    began, wanted = time.monotonic(), chance.randint(1, 5)
    before = lines_of(run_dir)
    while True:
        if any(os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) for child in children):
            return False
        assert time.monotonic() - began < PATIENCE_SECONDS, "the ranks do nothing"
        # A resume drops lines, so the count may fall first.
        before = min(before, lines_of(run_dir))
        ready = lines_of(run_dir) >= before + wanted
        if ready and (moment == "any" or list((run_dir / "checkpoints").glob(".step-*.tmp"))):
            time.sleep(chance.uniform(0, 0.05 if moment == "any" else 0.02))
            return True
        time.sleep(0.001)


def main() -> None:
    # What a training imports only when it comes to it: seconds of every start.
    for name in ("torch._dynamo", "torch.distributed.checkpoint.state_dict_saver", "torch.distributed.checkpoint"):
        importlib.import_module(name)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--moment", choices=("any", "saving"), default="any")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    compute_the_same_bits()  # as train.py does
    config, chance = load_config(given.config), random.Random(given.seed)
    run_dir = Path(config.run_dir)
    for number in range(given.kills):
        children = start(config)
        assert wait_for_moment(run_dir, children, given.moment, chance), "the training ended before all kills"
        victims = children if number % 2 == 0 else [chance.choice(children)]
        temporary = [path.name for path in (run_dir / "checkpoints").glob(".step-*.tmp")]
        for child in victims:
            os.kill(child, signal.SIGKILL)
        began = time.monotonic()
        for child in children:
            os.waitpid(child, 0)
        line = {"lines": lines_of(run_dir), "killed": len(victims), "saving": temporary}
        print(json.dumps(line | {"seconds": round(time.monotonic() - began, 2)}), flush=True)
    statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in start(config)]
    assert statuses == [0] * RANKS, statuses


if __name__ == "__main__":
    main()
