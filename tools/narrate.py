"""Says what happens in clips and videos: labels for training, or a line of text for each moment of one's own video.

    python tools/narrate.py --video my.mp4                            # subtitles and a page, in my.mp4.narration
    torchrun --nproc-per-node 8 tools/narrate.py --shards data/ego4d/shards/train --out narrated.parquet
    python tools/narrate.py --video videos --every 1 --window 2 --out dense.pkl    # labels of every window
    python tools/narrate.py --video videos --uncovered ego4d_train.pkl --out rest.pkl

With --shards, or where --out is a .parquet or .pkl file, it labels. Any number of processes may share the work: ranks
of torchrun, or elements of a SLURM job array. The same command continues after an interruption; finished work is kept.
docs/NARRATOR.md says more.

Exit status: 0 all done, 1 not, 2 wrong arguments, 130 interrupted.
"""

from __future__ import annotations

if __name__ == "__main__":
    from lavila.interrupts import end_early, run_main

    end_early()

import argparse
import functools
import os
from collections.abc import Sequence

from lavila.arguments import parser_of
from lavila.engine.command_line import compute_the_same_bits, leave_cores_to_others, run_tool, start_log
from lavila.errors import UserError
from lavila.files import user_path


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = parser_of(__doc__)
    what = p.add_mutually_exclusive_group(required=True)
    what.add_argument("--shards", type=user_path, metavar="DIR", help="label the clips of this shard set")
    what.add_argument("--video", type=user_path, nargs="+", metavar="PATH", help="videos, or folders of videos")
    add = p.add_argument
    add(
        "--out",
        type=user_path,
        metavar="PATH",
        help="labels: a .parquet or .pkl file; else a folder (beside each video)",
    )
    add("--checkpoint", default="narrator_tsf_b_gpt2", metavar="PATH|NAME", help="a narrator (%(default)s of the zoo)")
    add("--vocabulary", metavar="DIR|NAME", help="a folder, or a hub name (as the narrator's config says, else gpt2)")
    add("--device", default="auto", choices=["auto", "cpu", "cuda"], help="auto: cuda where there is one")
    add("--precision", default="auto", choices=["auto", "fp32", "bf16"], help="of the weights; auto: bf16 on GPUs")
    add("--batch-size", type=int, metavar="N", help="clips of a forward pass (labels: 16, else 4)")

    add = p.add_argument_group("how texts are chosen; the defaults are LaViLa's").add_argument
    add("--num-return-sequences", type=int, metavar="N", help="texts of a clip (10, or the number of beams)")
    add("--top-p", type=float, metavar="P", help="likeliest tokens that together reach P (0.95; none with beams)")
    add("--top-k", type=int, metavar="K", help="likeliest K tokens; 1 is greedy (no limit)")
    add("--temperature", type=float, metavar="T", help="divides logits (0.7; 1 with beams)")
    add("--num-beams", default=1, type=int, metavar="N", help="beam search above 1 (1)")
    add("--max-length", default=77, type=int, metavar="L", help="tokens of a text (77)")
    add("--seed", default=0, type=int, help="decides the texts, with the ids of clips (0)")

    add = p.add_argument_group("labels").add_argument
    add(
        "--format", choices=["captions", "lavila-pkl"], help="captions table, or LaViLa's pickle (by the name of --out)"
    )
    add("--except", nargs="+", default=[], dest="captioned", metavar="TABLE",
        help="leave out clips of --shards that have words in these captions tables; own = the set's")  # fmt: skip
    add("--uncovered", type=user_path, metavar="FILE", help="only what no clip of this Ego4D-style pickle covers")
    add("--decoder", default="auto", choices=["auto", "nvdec", "dali_cpu", "host"], help="of --shards (auto)")
    add("--max-bad-clips", default=100, type=int, metavar="N", help="more clips without pictures are an error (100)")

    add = p.add_argument_group("videos").add_argument
    add("--window", default=2.0, type=float, metavar="S", help="seconds that a text speaks of (2)")
    add("--every", default=2.0, type=float, metavar="S", help="seconds from one window to the next (2)")
    add("--between", nargs=2, type=float, metavar="S", help="only from this second to that")

    add = p.add_argument_group("one's own video").add_argument
    add("--choose", default="agreement", choices=["agreement", "likelihood"], help="how the best text is found")
    add("--dual-encoder", metavar="PATH|NAME", help="let this dual encoder find the best text")
    add("--dual-vocabulary", default="distilbert-base-uncased", metavar="DIR|NAME", help="where its text tower is BERT")
    add("--still", default=3.0, type=float, metavar="L", help="skip where less changes, in levels of 255; 0: never (3)")
    add("--subject", default="#C C", metavar="WORDS", help="who wears the camera, as in 'the camera wearer' (#C C)")
    add("--embed", default=64.0, type=float, metavar="MIB", help="put videos up to this size into the page (64)")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool. Returns the exit status."""
    leave_cores_to_others()
    compute_the_same_bits()
    p = parser()
    args = p.parse_args(argv)

    def work() -> int:
        from lavila.engine.narrating import Wanted, run  # after parsing, so that --help is quick

        try:
            wanted = Wanted(**vars(args))
        except UserError as error:
            p.error(str(error))
        start_log()
        return run(wanted, os.environ, say=functools.partial(print, flush=True))

    return run_tool("narrate", work, interrupted="finished work is kept, and the same command continues")


if __name__ == "__main__":
    run_main(main)
