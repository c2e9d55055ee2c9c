"""Shows what a shard set holds, checks whether it is sound, and draws some of its clips.

    python tools/inspect_shards.py data/ek100/train
    python tools/inspect_shards.py data/ek100/train --verify
    python tools/inspect_shards.py data/ek100/train --add-checksums
    python tools/inspect_shards.py data/ek100/train --preview 12 --out sheet.png

Without options the command reads the tables only.

--verify reads every byte (checksums, tar members, indexes, tables) and decodes every frame of every clip on the CPU. It
writes clips that do not decode to quarantine.jsonl; training and evaluation leave those out. It replaces an earlier
quarantine.jsonl, or removes it when every clip is sound. A worker needs about 200 MiB, whatever the length of a clip. A
set on a read-only disk is verified, too: the command prints the bad clips, and --quarantine FILE writes them to another
place, for data.quarantine=FILE of train.py and evaluate.py.

--nvdec N then decodes N clips, spread over the set, with the GPU's decoder, too, and compares the pictures with the
CPU's. It puts nothing into quarantine: a difference is no fault of the set.

--add-mapped adds the tables that are read in place (clips.arrow) to a set without them. Opening the set then takes a
moment and no memory, however many clips it has. Of the other files only shard_set.json changes.

--add-checksums adds checksums to a set without them (format 2). Each later read compares them. The command reads every
tar first, and stops unless all match the manifest (SHA-256). It changes the tables and shard_set.json; edited labels
stay, and tars do not change.

Exit status: 0 sound, 1 problems found, 2 wrong arguments, 130 interrupted.
"""

from __future__ import annotations

if __name__ == "__main__":
    from lavila.interrupts import end_early, run_main

    end_early()

import argparse
import json
import os
import sys
from collections.abc import Sequence
from functools import partial

from lavila.arguments import parser_of, whole_number
from lavila.engine.command_line import run_tool
from lavila.files import user_path
from lavila.inspection.session import Inspection, add_missing_checksums
from lavila.shards.format import QUARANTINE
from lavila.shards.writer import add_mapped


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = parser_of(__doc__)
    add = p.add_argument
    add("folder", type=user_path, metavar="DIR", help="a shard set made by tools/shard_videos.py")
    add("--verify", action="store_true", help="check every byte and decode every clip; write quarantine.jsonl")
    add("--quarantine", type=user_path, metavar="FILE", help="write the bad clips there; for a set on a read-only disk")
    add("--nvdec", type=whole_number(1), metavar="N", help="also decode N clips on the GPU, and compare the pictures")
    add(
        "--workers",
        default=0,
        type=whole_number(0),
        metavar="N",
        help="processes; 0 = one for each core (0)",
    )
    add("--preview", type=whole_number(1), metavar="N", help="draw a contact sheet of N clips; needs --out")
    add("--out", type=user_path, metavar="PNG", help="the picture that --preview makes")
    add("--add-mapped", action="store_true", help="write clips.arrow anew, the mapped form of clips.parquet")
    add("--add-checksums", action="store_true", help="add checksums to the tables; reads every tar")
    add("--json", action="store_true", help="print the figures as JSON instead of text")
    return p


def check_arguments(p: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End with status 2 for arguments that do not go together."""
    if (args.preview is None) != (args.out is None):
        p.error("--preview N and --out PNG go together: give both or neither")
    if args.out is not None and args.out.suffix.lower() != ".png":
        p.error(f"--out {args.out}: the picture is a PNG; give a name that ends in .png")
    if args.out is not None and not args.out.absolute().parent.is_dir():
        p.error(f"--out {args.out}: no such folder {args.out.absolute().parent}; make it first")
    if args.quarantine is not None:
        folder = args.quarantine.absolute().parent
        if not args.verify:
            p.error("--quarantine FILE says where --verify writes the bad clips: add --verify")
        if not folder.is_dir() or args.quarantine.is_dir() or not os.access(folder, os.W_OK):
            p.error(f"--quarantine {args.quarantine}: no file can be written there; give another name")


def work(args: argparse.Namespace) -> int:
    """Do what the arguments say. Returns the exit status."""
    if args.add_checksums:
        written = add_missing_checksums(args.folder, threads=args.workers)
        print(f"written: {', '.join(written)}" if written else f"{args.folder}: has checksums already", file=sys.stderr)
    if args.add_mapped:
        print(f"written: {', '.join(add_mapped(args.folder))}", file=sys.stderr)
    say = (lambda _: None) if args.json else partial(print, flush=True)
    plain = "utf" not in (sys.stdout.encoding or "").lower()
    inspection = Inspection(args.folder, workers=args.workers, say=say, plain=plain)
    if args.verify:
        inspection.verify(args.quarantine)
    if args.nvdec is not None:
        inspection.compare(args.nvdec)
    try:
        if args.preview is not None:
            inspection.preview(args.preview, args.out)
    finally:  # hours of verification are printed even if the picture cannot be drawn
        if args.json:
            print(json.dumps(inspection.facts, indent=1))
    return 0 if inspection.sound else 1


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool. Returns the exit status."""
    p = parser()
    args = p.parse_args(argv)
    check_arguments(p, args)
    kept = f"{args.quarantine or QUARANTINE} is as it was before, and no clip is left out because of this run"
    return run_tool(
        "inspect_shards", lambda: work(args), interrupted=kept if args.verify else "the same command does the rest"
    )


if __name__ == "__main__":
    run_main(main)
