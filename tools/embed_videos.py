"""Turns one's own videos into features with times: a vector for each window of each video.

    python tools/embed_videos.py --videos holidays --model lavila_tsf_b_ep5 --out features
    torchrun --nproc-per-node 8 tools/embed_videos.py --videos archive --model lavila_tsf_l_ep3 --out features
    python tools/embed_videos.py --videos holidays --model lavila_tsf_b_ep5 --out features \\
           --query "a dog runs" --cut found --margin 2      # the best moments, as files

Each frame is decoded once, although windows overlap. The same command continues after an interruption; later it embeds
only what is new or has changed, and drops what is gone. docs/SEARCH.md says what the folder holds, and how to read it.

Exit status: 0 all done, 1 an error or a video that cannot be read (it is listed), 2 wrong arguments, 130 interrupted.
"""

from __future__ import annotations

if __name__ == "__main__":
    from lavila.interrupts import end_early, run_main

    end_early()

import argparse
import functools
from collections.abc import Sequence

from lavila.arguments import parser_of
from lavila.engine.command_line import compute_the_same_bits, leave_cores_to_others, run_tool, start_log
from lavila.errors import UserError
from lavila.files import user_path


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = parser_of(__doc__)
    add = p.add_argument
    add("--videos", type=user_path, nargs="+", required=True, metavar="PATH", help="videos, or folders of videos")
    add("--model", required=True, metavar="PATH|NAME", help="a dual encoder: a run's checkpoints, or a name of the zoo")
    add("--out", type=user_path, default="features", metavar="DIR", help="the folder of features (%(default)s)")
    add("--window", default=2.0, type=float, metavar="S", help="seconds that a vector stands for (2)")
    add("--every", default=1.0, type=float, metavar="S", help="seconds from one window to the next (1)")
    add("--device", default="auto", choices=["auto", "cpu", "cuda"], help="auto: cuda where there is one")
    add("--batch-size", default=16, type=int, metavar="N", help="windows of a forward pass (16)")
    add(
        "--vocabulary", default="distilbert-base-uncased", metavar="DIR|NAME", help="where --model's text tower is BERT"
    )
    add = p.add_argument_group("a search in them").add_argument
    add("--query", metavar="SENTENCE", help="print the moments that it fits best")
    add("--limit", default=10, type=int, metavar="N", help="moments (10)")
    add("--cut", type=user_path, metavar="DIR", help="write these moments as mp4 files")
    add("--margin", default=1.0, type=float, metavar="S", help="seconds before and after a moment that is cut (1)")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool. Returns the exit status."""
    leave_cores_to_others()
    compute_the_same_bits()
    p = parser()
    args = p.parse_args(argv)

    def work() -> int:
        from lavila.engine.embedding import Embedding, run  # after parsing, so that --help is quick

        try:
            wanted = Embedding(**vars(args))
        except UserError as error:
            p.error(str(error))
        start_log()
        return run(wanted, say=functools.partial(print, flush=True))

    return run_tool("embed_videos", work, interrupted="finished work is kept, and the same command continues")


if __name__ == "__main__":
    run_main(main)
