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

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from tqdm import tqdm

from lavila.annotations.ego4d import read_narrations
from lavila.annotations.tables import read_csv
from lavila.errors import UserError
from lavila.shards.captions import CaptionError, Words, rows_of, without_row, write_captions
from lavila.shards.reader import ShardSet, open_shard_set

EXAMPLES = 3  # clip ids shown of those that do not match


@dataclass(kw_only=True)
class Gathered:
    """The narrations of each clip, in the order in which the clips first come."""

    narrations: dict[str, list[str]] = field(default_factory=dict)
    scores: dict[str, list[float]] = field(default_factory=dict)  # scores by clip, for the clips that have any
    empty: int = 0  # number of narrations left out
    wordless: int = 0  # number of clips left out, because all their narrations are empty

    def rows(self) -> Iterator[Words]:
        """The rows of the captions table."""
        for clip_id, narrations in self.narrations.items():
            yield clip_id, narrations, self.scores.get(clip_id)


def read_table(file: Path) -> Iterator[Words]:
    """The rows of a csv file, each with its one narration. AnnotationError names file, line and column."""
    for row in read_csv(file, ("clip_id", "narration")):
        clip_id, score = row.cells["clip_id"].strip(), row.cells.get("score", "").strip()
        if not clip_id:
            raise row.error("clip_id", "is empty; give the id of a clip")
        try:
            scores = (float(score),) if score else None
        except ValueError:
            raise row.error("score", f"{score!r} is not a number; give one such as 1.25, or leave it empty") from None
        yield clip_id, (row.cells["narration"],), scores


def gather(rows: Iterable[Words]) -> Gathered:
    """All narrations of each clip; empty ones are left out with their scores.

    Raises CaptionError for a clip of which only some narrations have scores.
    """
    found = Gathered()
    for clip_id, narrations, scores in rows:
        kept = [place for place, text in enumerate(narrations) if text.strip()]
        found.empty += len(narrations) - len(kept)
        earlier = found.narrations.setdefault(clip_id, [])
        if not kept:
            continue
        if earlier and (scores is None) == (clip_id in found.scores):
            raise CaptionError(
                f"clip {clip_id!r} has narrations with and without a score; give all of them one, or none"
            )
        earlier += [narrations[place] for place in kept]
        if scores is not None:
            found.scores.setdefault(clip_id, []).extend(scores[place] for place in kept)
    wordless = [clip_id for clip_id, narrations in found.narrations.items() if not narrations]
    for clip_id in wordless:
        del found.narrations[clip_id]
    found.wordless = len(wordless)
    return found


def coverage(shard_set: ShardSet, clip_ids: Iterable[str]) -> str:
    """How a table and a shard set fit, in lines to be printed. CaptionError where they have no clip in common."""
    ours = shard_set.clips.column("clip_id")
    theirs = pa.chunked_array([pa.array(clip_ids, pa.large_string())])
    rows = rows_of(ours, among=theirs)
    bare, strangers = np.flatnonzero(rows < 0), without_row(len(theirs), rows)
    if len(bare) == len(rows):
        raise CaptionError(
            f"none of the {len(theirs)} clips, such as {theirs[0].as_py()!r}, is in {shard_set.path}, whose clips are "
            f"named like {ours[0].as_py()!r}; give the narrations of this set's clips, or another --shards"
        )
    lines = [f"{len(rows) - len(bare)} of {len(rows)} clips of {shard_set.path} have captions"]
    lines += [f"  without: {_examples(ours, bare)}"] if len(bare) else []
    lines.append(f"{len(strangers)} rows are for clips that are not in the set")
    lines += [f"  such as: {_examples(theirs, strangers)}"] if len(strangers) else []
    return "\n".join(lines)


def _examples(ids: pa.ChunkedArray, rows: npt.NDArray[np.int64]) -> str:
    shown = ", ".join(ids[row].as_py() for row in rows[:EXAMPLES].tolist())
    return f"{shown} ..." if len(rows) > EXAMPLES else shown


def make_table(args: argparse.Namespace) -> None:
    """Read, check and write; prints the counts."""
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
    """A word that says where narrations come from."""
    if not text.strip():
        raise argparse.ArgumentTypeError("is empty; give for example human, rephrased or machine")
    return text.strip()


def parser() -> argparse.ArgumentParser:
    """The command line."""
    description, epilog = (__doc__ or "").split("\n\n", 1)
    p = argparse.ArgumentParser(
        description=description, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    given = p.add_mutually_exclusive_group(required=True)
    given.add_argument("--ego4d", type=Path, metavar="FILE", help="a pickle of LaViLa's rephraser or narrator")
    given.add_argument("--csv", type=Path, metavar="FILE", help="a csv file with columns clip_id, narration[, score]")
    p.add_argument("--source", required=True, type=parse_source, metavar="human|rephrased|machine|...",
        help="who or what wrote the words")  # fmt: skip
    p.add_argument("--out", required=True, type=Path, metavar="FILE", help="the captions table to write (.parquet)")
    p.add_argument("--shards", type=Path, metavar="DIR", help="count the clips of this shard set that have captions")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns the exit status."""
    args = parser().parse_args(argv)
    try:
        make_table(args)
    except KeyboardInterrupt:
        print("\ninterrupted; nothing was written", file=sys.stderr)
        return 130
    except (UserError, OSError) as error:
        print(f"make_captions: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
