"""Runs the whole way at once: sample dataset, shards, training, evaluation, report. `make quickstart` calls it.

Every step is a command that you would type for real data. The script prints each before it runs it. It keeps what an
earlier run made, so a second run does only what is missing.
"""

from __future__ import annotations

if __name__ == "__main__":
    from lavila.interrupts import end_early, run_main

    end_early()

import time
from pathlib import Path

from lavila.arguments import parser_of
from lavila.walkthroughs.quickstart import RUN, steps
from lavila.walkthroughs.steps import run_steps


def main() -> int:
    parser_of(__doc__).parse_args()
    began = time.perf_counter()
    if status := run_steps("quickstart", steps(), root=Path(__file__).resolve().parents[1], stages=RUN):
        return status
    print(
        f"\nDone in {time.perf_counter() - began:.0f} s. Look at the report:\n\n    {RUN}/report.html\n\n"
        "Next, with EPIC-KITCHENS-100 at hand, make its shards and train on them:\n\n"
        "    python tools/shard_videos.py --dataset ek100_cls --annotations epic-kitchens-100-annotations "
        "--videos EPIC-KITCHENS --split train --out data/ek100/shards/train"
    )
    return 0


if __name__ == "__main__":
    run_main(main)
