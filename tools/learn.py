"""Shows that training works: from random weights, on the sample dataset, on a CPU. `make learn` runs it.

It runs the quickstart's steps, and then pre-trains a dual encoder on the same clips and their sentences. The dual
encoder is evaluated as published ones are: zero-shot classification, multi-instance retrieval, multiple choice. A
narrator learns to say the sentences over the dual encoder's frozen tower, and writes about clips that it has not seen.
A table shows every score beside its bar; the exit status is 1 where a score is below. Every step is a command that is
shown before it runs. What is there already is kept, trained models too.
"""

from __future__ import annotations

if __name__ == "__main__":
    from lavila.interrupts import end_early, run_main

    end_early()

import sys
from collections.abc import Sequence
from pathlib import Path

from lavila.arguments import parser_of
from lavila.engine.command_line import run_tool
from lavila.files import user_path
from lavila.report.files import write_json_atomic
from lavila.walkthroughs.learning import RUNS, data_steps, outcomes, reword, seed_steps, table
from lavila.walkthroughs.steps import run_steps

ROOT = Path(__file__).resolve().parents[1]


def main(arguments: Sequence[str] | None = None, *, root: Path = ROOT) -> int:
    """See the module's docstring. root: the checkout, whose commands run and whose reports are read."""
    parser = parser_of(__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], metavar="N", help="default 0")
    parser.add_argument(
        "--reword",
        type=user_path,
        nargs=2,
        metavar=("FROM", "TO"),
        help="one of the steps: only write EgoMCQ's questions anew",
    )
    asked = parser.parse_args(arguments)
    if asked.reword:
        return run_tool("learn", lambda: reword(*asked.reword), interrupted="nothing was written")
    seeds = list(dict.fromkeys(asked.seeds))
    steps = [*data_steps(), *(step for seed in seeds for step in seed_steps(seed))]
    if status := run_steps("learn", steps, root=root, stages=RUNS):
        return status
    found = [one for seed in seeds for one in outcomes(seed, root=root)]
    write_json_atomic(root / RUNS / "learn.json", {"scores": [one._asdict() | one.bar._asdict() for one in found]})
    print(f"\n{table(found)}\n")
    if below := [one for one in found if not one.reached]:
        print(f"learn: {len(below)} of {len(found)} scores are below their bar", file=sys.stderr)
    return 1 if below else 0


if __name__ == "__main__":
    run_main(main)
