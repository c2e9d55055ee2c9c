"""Shows what a shard set holds, checks whether it is sound, and draws some of its clips.

    python tools/inspect_shards.py data/ek100/train
    python tools/inspect_shards.py data/ek100/train --verify
    python tools/inspect_shards.py data/ek100/train --add-checksums
    python tools/inspect_shards.py data/ek100/train --preview 12 --out sheet.png

Without options the command reads the tables only.

--verify reads every byte (checksums, tar members, indexes, tables) and decodes every frame of every clip, with the
decoder that training uses on this machine. It writes clips that do not decode to quarantine.jsonl; training and
evaluation leave those out. It replaces an earlier quarantine.jsonl, or removes it when every clip is sound. A worker
needs about 200 MiB, whatever the length of a clip.

--add-mapped adds the tables that are read in place (clips.arrow) to a set without them. Opening the set then takes a
moment and no memory, however many clips it has. Of the other files only shard_set.json changes.

--add-checksums adds checksums to a set without them (format 2). Each later read compares them. The command reads every
tar first, and stops unless all match the manifest (SHA-256). It changes the tables and shard_set.json; edited labels
stay, and tars do not change.

Exit status: 0 sound, 1 problems found, 2 wrong arguments, 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from tqdm import tqdm

from lavila.cluster.workers import Progress, WorkerDied
from lavila.errors import UserError
from lavila.inspection.facts import SHOWN, describe, shard_set_facts
from lavila.shards.checksums import add_checksums
from lavila.shards.format import QUARANTINE, read_manifest
from lavila.shards.reader import ShardSet, open_shard_set
from lavila.shards.writer import add_mapped

NVDEC_WORKERS = 8  # each has its CUDA context on the GPU, and the GPU has fewer decoding units than that


def parse_count(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    description, epilog = (__doc__ or "").split("\n\n", 1)
    p = argparse.ArgumentParser(
        description=description, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = p.add_argument
    add("folder", type=Path, metavar="DIR", help="a shard set made by tools/shard_videos.py")
    add("--verify", action="store_true", help="check every byte and decode every clip; write quarantine.jsonl")
    add("--workers", default=0, type=int, metavar="N", help="processes that check; 0 = one for each core (0)")
    add("--preview", type=parse_count, metavar="N", help="draw a contact sheet of N clips; needs --out")
    add("--out", type=Path, metavar="PNG", help="the picture that --preview makes")
    add(
        "--add-mapped",
        action="store_true",
        help="write clips.arrow anew, the mapped form of clips.parquet",
    )
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
    if args.workers < 0:
        p.error(f"--workers {args.workers}: give 0 or more")


def verify(shard_set: ShardSet, *, workers: int) -> dict[str, object]:
    """Check all of it, and write the quarantine; returns the findings."""
    import torch

    from lavila.data.pictures import choose_decoder
    from lavila.inspection.verify import verify_shard_set, write_quarantine
    from lavila.inspection.videos import TrainingDecoder

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    decoder = choose_decoder("auto", codec=shard_set.codec, device=device)
    cores = len(os.sched_getaffinity(0))
    workers = workers or (min(cores, NVDEC_WORKERS) if decoder == "nvdec" else cores)
    stored = shard_set.clips if shard_set.chunks is None else shard_set.chunks
    total = stored.num_rows + len(shard_set.shards)
    with tqdm(total=total, unit="item", desc=f"tars and videos, {decoder}", dynamic_ncols=True) as bar:

        def show(progress: Progress) -> None:
            bar.set_postfix(bad=progress.failed, refresh=False)
            bar.update(progress.stored + progress.failed - bar.n)

        verdict = verify_shard_set(shard_set, TrainingDecoder(decoder=decoder), workers=workers, on_progress=show)
    write_quarantine(shard_set.path, verdict.bad)
    return {"decoder": decoder, "problems": verdict.problems, "quarantine": [asdict(one) for one in verdict.bad]}


def verdict_text(shard_set: ShardSet, found: dict[str, object]) -> str:
    """The first findings of a verification, as lines to print."""
    problems, bad = found["problems"], found["quarantine"]
    assert isinstance(problems, list) and isinstance(bad, list)
    clips = f"{len(shard_set):,} clips"
    if not problems and not bad:
        return f"sound: checksums, members, indexes and tables agree; all {clips} decode with {found['decoder']}"
    lines = [f"problem: {text}" for text in problems[:SHOWN]]
    lines += [f"problem: and {len(problems) - SHOWN} more; --json lists all"] if len(problems) > SHOWN else []
    lines += [f"bad clip: {one['clip_id']} in {one['shard']}: {one['reason']}" for one in bad[:SHOWN]]
    lines += [f"bad clip: and {len(bad) - SHOWN:,} more"] if len(bad) > SHOWN else []
    if bad:
        where = shard_set.path / QUARANTINE
        lines.append(f"{len(bad):,} of {clips} are listed in {where} and left out of training and evaluation")
    else:
        lines.append(f"all {clips} decode with {found['decoder']}")
    return "\n".join(lines)


def add_checksums_to(folder: Path, *, threads: int) -> None:
    """Add checksums to a set that has none, with a bar of the bytes read."""
    total = sum(entry["bytes"] for entry in read_manifest(folder)["shards"])
    with tqdm(total=total, unit="B", unit_scale=True, desc="tars", dynamic_ncols=True) as bar:

        def show(size: int) -> None:
            bar.update(size)

        written = add_checksums(folder, threads=threads or len(os.sched_getaffinity(0)), on_progress=show)
    print(f"written: {', '.join(written)}" if written else f"{folder}: has checksums already", file=sys.stderr)


def work(args: argparse.Namespace) -> int:
    """Do what is asked for; returns the exit status."""
    if args.add_checksums:
        add_checksums_to(args.folder, threads=args.workers)
    if args.add_mapped:
        written = add_mapped(args.folder)
        print(f"written: {', '.join(written)}", file=sys.stderr)
    shard_set = open_shard_set(args.folder)
    facts = shard_set_facts(shard_set)
    plain = "utf" not in (sys.stdout.encoding or "").lower()
    if not args.json:
        print(describe(facts, plain=plain), flush=True)
    sound = True
    if args.verify:
        found = verify(shard_set, workers=args.workers)
        sound = not found["problems"] and not found["quarantine"]
        facts |= {"verified": found, "quarantine": len(found["quarantine"])}  # type: ignore[arg-type]
        if not args.json:
            print("\n" + verdict_text(shard_set, found))
            shard_set = open_shard_set(args.folder)  # with the new quarantine
    try:
        if args.preview is not None:
            from lavila.inspection.preview import write_preview

            width, height = write_preview(shard_set, args.preview, args.out)
            facts["preview"] = {"path": str(args.out), "width": width, "height": height}
            if not args.json:
                print(f"\ncontact sheet: {args.out} ({width}x{height} pixels)")
    finally:  # if drawing fails, the result of hours of verification is still printed
        if args.json:
            print(json.dumps(facts, indent=1))
    return 0 if sound else 1


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns the exit status."""
    p = parser()
    args = p.parse_args(argv)
    check_arguments(p, args)
    try:
        return work(args)
    except KeyboardInterrupt:
        before = (
            f": {QUARANTINE} is as it was before, and no clip is left out because of this run" if args.verify else ""
        )
        print(f"\ninspect_shards: interrupted{before}", file=sys.stderr)
        return 130
    except WorkerDied as error:
        cause = str(error).partition(";")[0]
        problem = f"{cause}; {QUARANTINE} is as it was before: run again, with fewer --workers if memory is short"
    except (UserError, OSError) as error:
        problem = str(error)
    print(f"inspect_shards: error: {problem}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
