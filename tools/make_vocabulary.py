"""Learns a vocabulary for a narrator from a shard set's narrations, where GPT-2's cannot be fetched.

    python tools/make_vocabulary.py --shards data/ego4d/shards/train --size 8000 --out data/vocabulary
    python train.py --config narrator_tsf_b_gpt2 model.decoder.vocabulary=data/vocabulary model.decoder.init=random

A narrator with this vocabulary starts with a language model of random weights; published narrators have GPT-2's.
"""

from __future__ import annotations

if __name__ == "__main__":
    from lavila.interrupts import end_early, run_main

    end_early()

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from lavila.arguments import parser_of
from lavila.errors import UserError
from lavila.files import explained, user_path
from lavila.models.tokenizers import learn_vocabulary
from lavila.shards.captions import OWN, Captions
from lavila.shards.reader import open_shard_set


def narrations(shards: Path, tables: Sequence[str]) -> Iterator[str]:
    """Each narration of each clip of a shard set, and of its captions tables."""
    shard_set = open_shard_set(shards)
    captions = Captions(shard_set, tables)
    for row in range(len(shard_set)):
        yield from captions.of(row)[0]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = parser_of(__doc__)
    parser.add_argument("--shards", type=user_path, required=True, metavar="DIR", help="shard set with narrations")
    parser.add_argument(
        "--captions", nargs="+", default=[OWN], metavar="TABLE", help=f"captions tables, as in data.captions ({OWN})"
    )
    parser.add_argument("--size", type=int, default=8000, help="ids at most (%(default)s)")
    parser.add_argument(
        "--out", type=user_path, required=True, metavar="DIR", help="folder for vocab.json and merges.txt"
    )
    asked = parser.parse_args(arguments)
    try:
        ids = learn_vocabulary(narrations(asked.shards, asked.captions), asked.out, size=asked.size)
    except (UserError, ValueError) as error:
        problem = str(error)
    except OSError as error:
        problem = explained(error)
    else:
        print(f"{asked.out}: {ids} ids; name it in model.decoder.vocabulary, with model.decoder.init=random")
        return 0
    print(f"make_vocabulary: error: {problem}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    run_main(main)
