"""Serves a page on which one's own videos are searched with a sentence, watched, and narrated.

    python tools/demo.py --videos holidays --model lavila_tsf_b_ep5
    python tools/demo.py --videos a.mp4 b.mkv --model runs/mine/checkpoints --narrator narrator_tsf_b_gpt2

It makes the index in --index first, or brings it up to date: only what is new or changed is embedded, and the same
command continues after an interruption. The page is for this machine alone. With --host 0.0.0.0 others reach it, and it
asks them for the token that is printed. docs/DEMO.md says more.

Exit status: 0 ended by Ctrl-C, 1 an error, 2 wrong arguments.
"""

from __future__ import annotations

if __name__ == "__main__":
    from lavila.interrupts import end_early, run_main

    end_early(status=0)

import argparse
import functools
import sys
from collections.abc import Sequence

from lavila.arguments import parser_of
from lavila.engine.command_line import compute_the_same_bits, leave_cores_to_others, start_log
from lavila.errors import UserError
from lavila.files import explained, user_path


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = parser_of(__doc__)
    add = p.add_argument
    add("--videos", type=user_path, nargs="+", required=True, metavar="PATH", help="videos, or folders of videos")
    add("--model", required=True, metavar="PATH|NAME", help="a dual encoder: a run's checkpoints, or a name of the zoo")
    add("--narrator", metavar="PATH|NAME", help="a narrator, which says what happens in each video that is opened")
    add("--index", type=user_path, default="features", metavar="DIR", help="the index; also of copies (%(default)s)")
    add("--window", default=2.0, type=float, metavar="S", help="seconds of a moment (2)")
    add("--every", default=1.0, type=float, metavar="S", help="seconds from one moment to the next (1)")
    add("--device", default="auto", choices=["auto", "cpu", "cuda"], help="auto: cuda where there is one")
    add("--batch-size", default=16, type=int, metavar="N", help="moments of a forward pass (16)")
    add(
        "--vocabulary", default="distilbert-base-uncased", metavar="DIR|NAME", help="where --model's text tower is BERT"
    )
    add("--narrator-vocabulary", metavar="DIR|NAME", help="a folder or hub name (as its config says, else gpt2)")
    add("--subject", default="#C C", metavar="WORDS", help="who wears the camera, in narrations")
    add = p.add_argument_group("the page").add_argument
    add(
        "--host",
        default="127.0.0.1",
        help="where to listen; with another than this machine's own, a token is asked for",
    )
    add("--port", default=8765, type=int, help="0: any that is free (8765)")
    add("--suggest", nargs="+", default=[], metavar="WORDS", help="queries to try, which the page offers")
    add("--no-open", dest="open", action="store_false", help="open no browser")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool. Returns the exit status."""
    leave_cores_to_others()
    compute_the_same_bits()
    p = parser()
    args = p.parse_args(argv)
    try:
        from lavila.engine.asking import Asked, run  # after parsing, so that --help is quick

        try:
            asked = Asked(**vars(args))
        except UserError as error:
            p.error(str(error))
        start_log()
        run(asked, say=functools.partial(print, flush=True))
    except KeyboardInterrupt:
        print("\nended; the index keeps what is finished")
        return 0
    except UserError as error:
        problem = str(error)
    except OSError as error:
        problem = explained(error)
    else:
        return 0
    print(f"demo: error: {problem}", file=sys.stderr)
    return 1
    return 0


if __name__ == "__main__":
    run_main(main, status=0)
