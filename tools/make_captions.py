"""Makes a captions table: narrations that a run adds to a shard set, or uses in place of its narrations.

    python tools/make_captions.py --ego4d ego4d_narrator.pkl --source machine --out narrator.parquet \\
        --shards data/ego4d/train
    python train.py --config NAME 'data.captions=[own, narrator.parquet]'

The run uses the table when it starts; no tar changes.

--ego4d reads LaViLa's pickles: the rephraser's (video, start, stop, narrations) and the narrator's (..., scores). Their
clips get the ids that tools/shard_videos.py gives them.

--csv reads your table. It has a header and the columns clip_id and narration; score is optional. A clip may have any
number of rows. Further columns are ignored.

--source human says that a person wrote the words. Any other word, such as rephrased or machine, says the opposite. The
command leaves out empty narrations, and clips that have no other; it counts both.

Exit status: 0 table written, 1 not, 2 wrong arguments, 130 interrupted.
"""

from __future__ import annotations

if __name__ == "__main__":
    from lavila.interrupts import end_early, run_main

    end_early()

import argparse
from collections.abc import Iterable, Sequence

from tqdm import tqdm

from lavila.annotations.ego4d import read_narrations
from lavila.arguments import parser_of
from lavila.engine.command_line import run_tool
from lavila.files import user_path
from lavila.ingest.caption_tables import coverage, gather, read_table
from lavila.shards.captions import CaptionError, Words, write_captions
from lavila.shards.reader import open_shard_set


def make_table(args: argparse.Namespace) -> None:
    """Read, check and write a table, and print the numbers."""
    if args.out.exists():
        raise CaptionError(f"--out {args.out}: is there already; remove it or give another name")
    shard_set = open_shard_set(args.shards) if args.shards else None
    print(f"reading {args.ego4d or args.csv} ...", flush=True)
    rows: Iterable[Words] = read_narrations(args.ego4d) if args.ego4d else read_table(args.csv)
    found = gather(tqdm(rows, desc="gathering", unit=" rows", mininterval=1, dynamic_ncols=True))
    if not found.narrations:
        raise CaptionError(
            f"{args.ego4d or args.csv}: holds no narrations ({found.empty} empty ones); nothing to write"
        )
    fit = coverage(shard_set, found.narrations) if shard_set else None
    bar = tqdm(
        found.rows(), total=len(found.narrations), desc="writing", unit=" clips", mininterval=1, dynamic_ncols=True
    )
    clips = write_captions(args.out, bar, source=args.source)
    total = sum(len(narrations) for narrations in found.narrations.values())
    print(f"{args.out}: {total} narrations of {clips} clips, source {args.source}")
    if found.empty:
        print(f"{found.empty} empty narrations are left out")
    if found.wordless:
        print(f"{found.wordless} clips are left out: they have no narration that is not empty")
    if fit:
        print(fit)
    print(f"      python train.py --config NAME 'data.captions=[own, {args.out}]'")


def parse_source(text: str) -> str:
    """The word for the origin of the narrations."""
    if not text.strip():
        raise argparse.ArgumentTypeError("is empty; give for example human, rephrased or machine")
    return text.strip()


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = parser_of(__doc__)
    given = p.add_mutually_exclusive_group(required=True)
    given.add_argument("--ego4d", type=user_path, metavar="FILE", help="a pickle of LaViLa's rephraser or narrator")
    given.add_argument(
        "--csv", type=user_path, metavar="FILE", help="a csv file with columns clip_id, narration[, score]"
    )
    p.add_argument("--source", required=True, type=parse_source, metavar="human|rephrased|machine|...",
        help="who or what wrote the words")  # fmt: skip
    p.add_argument(
        "--out", required=True, type=user_path, metavar="FILE", help="the captions table to write (.parquet)"
    )
    p.add_argument(
        "--shards", type=user_path, metavar="DIR", help="count the clips of this shard set that have captions"
    )
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool. Returns the exit status."""
    args = parser().parse_args(argv)
    return run_tool("make_captions", lambda: make_table(args), interrupted="nothing was written")


if __name__ == "__main__":
    run_main(main)
