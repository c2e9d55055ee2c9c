"""Says captions in other words with a T5 paraphraser, as LaViLa's rephraser did: a captions table in, one out.

    python tools/rephrase.py --shards data/ego4d/train --out rephrased.parquet
    python tools/rephrase.py --captions human.parquet --model t5-paraphraser/ --out rephrased.parquet
    python train.py --config NAME 'data.captions=[own, rephrased.parquet]'

--shards rephrases a shard set's own narrations, --captions those of a captions table (see tools/make_captions.py).
--model is a folder, or a name on the Hugging Face hub, from which transformers fetches the weights once. Without a
network, run 'hf download NAME --local-dir DIR' elsewhere, copy DIR and give --model DIR.

By default words are chosen as published: a search with 20 groups of one beam, in which a group pays for choosing the
word that another group has just chosen. Of the 20 paraphrases of a caption the three likeliest that differ are kept,
without punctuation. --sample draws them at random instead, from a seed of each caption's own.

Ctrl-C, a kill or a power cut costs the batch at hand: the same command continues. What is done lies in
OUT.journal.jsonl until the table is written.

Exit status: 0 table written, 1 not, 2 wrong arguments, 130 interrupted.
"""

from __future__ import annotations

if __name__ == "__main__":
    from lavila.interrupts import end_early, run_main

    end_early()

import argparse
from collections.abc import Sequence

from lavila.arguments import parser_of, whole_number
from lavila.engine.command_line import compute_the_same_bits, leave_cores_to_others, run_tool
from lavila.files import user_path


def rephrase_table(args: argparse.Namespace) -> None:
    """Read, rephrase and write, and print the numbers."""
    import torch  # after parsing, so that --help is quick
    from tqdm import tqdm

    from lavila.ingest.rephrasing import about_run, captions_of, journal_path, rephrase, settings_of, write_rephrased
    from lavila.journal import Journal
    from lavila.models.paraphraser import PARAPHRASER, load_paraphraser
    from lavila.shards.captions import CaptionError

    args.model = args.model or PARAPHRASER
    journal_file = journal_path(args.out)
    if args.out.exists() and not journal_file.exists():
        raise CaptionError(f"--out {args.out}: is there already; remove it or give another name")
    table, file = captions_of(args.captions, args.shards)
    settings = settings_of(
        number=args.number,
        keep=args.keep,
        max_length=args.max_length,
        sampled=(args.temperature, args.top_p) if args.sample else None,
        punctuation=args.punctuation,
        seed=args.seed,
    )
    journal = Journal(journal_file, settings=about_run(file, args.model, settings))
    print(f"{len(table)} clips of {args.captions or args.shards}, of which {journal.done} are done")
    if journal.done < len(table):
        device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        print(f"loading {args.model} ...", flush=True)
        paraphraser = load_paraphraser(args.model, device=device)
        with tqdm(total=len(table), initial=journal.done, unit=" clips", mininterval=1, dynamic_ncols=True) as bar:
            for clips in rephrase(table, paraphraser, journal, settings, batch_size=args.batch_size):
                bar.update(clips)
    clips, empty = write_rephrased(args.out, journal)
    journal_file.unlink()
    print(f"{args.out}: paraphrases of {clips} clips, source rephrased")
    if empty:
        print(f"{empty} clips are left out: no paraphrase of theirs differs from the caption")
    print(f"      python train.py --config NAME 'data.captions=[own, {args.out}]'")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = parser_of(__doc__)
    given = p.add_mutually_exclusive_group(required=True)
    given.add_argument("--captions", type=user_path, metavar="FILE", help="a captions table (.parquet)")
    given.add_argument(
        "--shards", type=user_path, metavar="DIR", help="a shard set, whose own narrations are rephrased"
    )
    p.add_argument(
        "--out", required=True, type=user_path, metavar="FILE", help="the captions table to write (.parquet)"
    )
    p.add_argument("--model", metavar="NAME|DIR",
        help="the paraphraser (ramsrigouthamg/t5-large-paraphraser-diverse-high-quality)")  # fmt: skip
    p.add_argument("--number", type=whole_number(2), metavar="N",
        help="paraphrases to make of each caption (20)")  # fmt: skip
    p.add_argument("--keep", type=whole_number(1), metavar="N",
        help="paraphrases to keep of each caption (3)")  # fmt: skip
    p.add_argument("--max-length", type=whole_number(2), metavar="L",
        help="tokens of a paraphrase, the first one included (77)")  # fmt: skip
    p.add_argument("--punctuation", action="store_true", help="keep the punctuation of paraphrases")
    p.add_argument("--sample", action="store_true", help="draw paraphrases at random instead of searching")
    p.add_argument("--temperature", type=float, default=1.0, help="of --sample (1.0)")
    p.add_argument("--top-p", type=float, default=0.95, help="of --sample: the nucleus to draw from (0.95)")
    p.add_argument("--seed", type=int, default=0, help="of --sample (0)")
    p.add_argument("--batch-size", type=whole_number(1), default=16, metavar="N",
        help="captions at once (16)")  # fmt: skip
    p.add_argument("--device", help="such as cpu or cuda:0 (a GPU where there is one)")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool. Returns the exit status."""
    leave_cores_to_others()
    compute_the_same_bits()
    args = parser().parse_args(argv)
    return run_tool("rephrase", lambda: rephrase_table(args), interrupted="the same command continues")


if __name__ == "__main__":
    run_main(main)
