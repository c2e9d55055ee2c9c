"""The whole LaViLa loop on the sample dataset: a narrator writes captions, and a dual encoder trains on them as well.

A quarter of the training clips keep the captions that people wrote. A dual encoder and, over its tower, a narrator are
trained on those. The narrator labels all other clips. A second dual encoder is trained on both kinds of captions, a
third on all human captions, which a real dataset would not have. All three make about as many updates, and a table
compares them. Every step is a command that is shown before it runs. What is there already is kept, trained models too.

`--toy` runs the same commands in seconds with a model that learns nothing: it shows that the loop closes.
"""

from __future__ import annotations

if __name__ == "__main__":
    from lavila.interrupts import end_early, run_main

    end_early()

from collections.abc import Sequence
from pathlib import Path

from lavila.arguments import parser_of
from lavila.engine.command_line import run_tool
from lavila.files import user_path
from lavila.walkthroughs import quickstart
from lavila.walkthroughs.loop import SAMPLE, TOY, split, steps, table
from lavila.walkthroughs.steps import run_steps


def main(arguments: Sequence[str] | None = None) -> int:
    root = Path(__file__).resolve().parents[1]
    parser = parser_of(__doc__)
    parser.add_argument("--toy", action="store_true", help="the datasets of tools/make_toy_data.py, in seconds")
    parser.add_argument("--split", type=user_path, nargs=2, metavar=("SHARDS", "TABLE"), help="one of the steps alone")
    asked = parser.parse_args(arguments)
    if asked.split:
        return run_tool("loop", lambda: print(split(*asked.split)), interrupted="nothing was written")
    scale = TOY if asked.toy else SAMPLE
    data = [] if asked.toy else quickstart.data_steps()
    if status := run_steps("loop", [*data, *steps(scale)], root=root, stages=scale.runs):
        return status
    print(f"\n{table(scale, root=root)}\n")
    return 0


if __name__ == "__main__":
    run_main(main)
