"""A small command for the tests of jobs: each rank notes where it runs, then does what its argument says.

    python tests/slurm/ranks.py FOLDER WHAT

It imports nothing that takes time. Each start appends a line to FOLDER/rank-<n>.jsonl.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

SHOWN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "SLURM_NODEID")
STOPPED = 75


def main(folder: Path, what: str, *further: str) -> None:
    rank = int(os.environ["RANK"])
    element = os.environ.get("SLURM_ARRAY_TASK_ID")
    name = f"rank-{rank}" if element is None else f"element-{element}"
    helper = subprocess.Popen(["sleep", "600"]) if what == "stop" else None
    stopped = False

    def stop(number: int, frame: object) -> None:
        nonlocal stopped
        stopped = True

    signal.signal(signal.SIGTERM, stop)
    line = {key: os.environ.get(key) for key in SHOWN} | {"further": further, "pid": os.getpid()}
    file = folder / f"{name}.jsonl"
    again = file.exists()
    with file.open("a") as lines:
        lines.write(json.dumps(line) + "\n")
    print(f"hello from {name}", flush=True)
    if what == "die" and rank == 1:
        while not (folder / "rank-0.jsonl").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "fail" and element == "1":
        sys.exit(3)
    if what in ("done", "fail") or again:
        return
    for _ in range(6000):
        time.sleep(0.1)
        if stopped:
            (folder / f"{name}.saved").write_text("" if helper is None else str(helper.poll()))
            if helper is not None:
                helper.kill()
            sys.exit(STOPPED)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
