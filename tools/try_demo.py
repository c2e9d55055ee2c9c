"""Makes something to search in, and opens the demo's page on it. `make demo` runs it, on a fresh machine in minutes.

A tiny dual encoder learns from the sample dataset what a camera does and where, as in `make learn`. Then tools/demo.py
indexes other videos, of moments of the footage that the encoder has not seen. Every step is a command that is shown
before it runs, and what is there already is kept.
"""

from __future__ import annotations

if __name__ == "__main__":
    from lavila.interrupts import end_early, run_main

    end_early()

from pathlib import Path

from lavila.arguments import parser_of
from lavila.walkthroughs.demo import RUNS, steps
from lavila.walkthroughs.steps import run_command, run_steps, show


def main() -> int:
    root = Path(__file__).resolve().parents[1]
    parser = parser_of(__doc__)
    parser.add_argument("--no-open", action="store_true", help="open no browser")
    parser.add_argument("--port", default="8765", metavar="N", help="of the page (%(default)s)")
    asked = parser.parse_args()
    *before, demo = steps(["--port", asked.port, *["--no-open"] * asked.no_open])
    if status := run_steps("try_demo", before, root=root, stages=RUNS):
        return status
    show(demo.command)
    try:
        return run_command(demo.command, root=root)
    except KeyboardInterrupt:  # the page was ended; the demo has said so
        return 0


if __name__ == "__main__":
    run_main(main)
