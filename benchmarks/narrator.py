"""How fast the narrator samples, beside a decoder that recomputes the prefix for every token, and the machine's limit.

    python -m benchmarks.narrator [--model base|xl] [--sequences 10] [--length 77] [--threads N] [--device cpu]

The weights are random, of the published sizes (GPT-2, or GPT-2 XL with cross-attention in every second block). There
is one clip, and its texts do not end early. Ours caches keys and values of the prefix and of the clip. The other side
does as the reference does: for every token, the decoder reads the whole prefix of every sequence, and a copy of the
clip's tokens for each. The limit is one product of all weights with one token of every sequence, for every token. No
decoder can write without it.

Both decoders have the same weights and run in turn in one process. The prefix is timed at six lengths; the trapezoid
rule gives the time of all tokens. Times on a CPU are process time, which other work on the machine disturbs least.
Numbers are medians of five. Writes benchmarks/results/narrator.json and the table of docs/PERFORMANCE.md between its
markers.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import softmax

from benchmarks import common
from benchmarks.common import fill_docs, machine
from lavila.models.gated_gpt2 import GatedGpt2, GatedGpt2Config
from lavila.models.generation import GenerationConfig, draw, filter_logits, sample

SIZES = {
    "base": GatedGpt2Config(),
    "xl": GatedGpt2Config(width=1600, depth=48, heads=25, cross_attention_every=2),
    "tiny": GatedGpt2Config(vocab_size=100, positions=128, width=32, depth=2, heads=2, end_token=99),
}
QUERIES, PREFIXES = 256, 6


def clock(device: str) -> float:
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


@torch.no_grad()
def recomputed(decoder: GatedGpt2, visual_NMD: Tensor, config: GenerationConfig, length: int) -> Tensor:
    """The next token of every sequence after a prefix of `length` tokens, from nothing but the prefix and the clip."""
    prefix = torch.full((len(visual_NMD), length), decoder.config.end_token, device=visual_NMD.device)
    logits_NV = decoder(prefix, decoder.look(visual_NMD))[:, -1]
    probability_NV = softmax(filter_logits(logits_NV, config), dim=-1)
    return draw(probability_NV, torch.rand(len(visual_NMD), device=visual_NMD.device))


def one_pass(decoder: GatedGpt2, sequences: int) -> Callable[[], None]:
    """Every weight matrix that a token meets, times one token of every sequence."""
    # Positions are looked up, and the clip's keys and values are computed once for all tokens: neither counts.
    unmet = ("wpe.weight", "crossattention.c_attn.weight")
    matrices = [p.detach() for name, p in decoder.named_parameters() if p.ndim == 2 and not name.endswith(unmet)]
    # Conv1D holds [in, out]; word embeddings, which give the logits, [vocabulary, width].
    matrices = [w.T if len(w) == decoder.config.vocab_size else w for w in matrices]
    tokens = [torch.randn(sequences, len(w), device=w.device) for w in matrices]

    def run() -> None:
        for x, w in zip(tokens, matrices, strict=True):
            torch.mm(x, w)

    return run


def measure(args: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    config = GenerationConfig(
        num_return_sequences=args.sequences, max_length=args.length, top_p=0.95, early_stopping=False
    )
    with torch.device(args.device):
        decoder = GatedGpt2(SIZES[args.model]).eval()
        visual_BMD = torch.randn(1, QUERIES, decoder.config.width)
    visual_NMD = visual_BMD.repeat_interleave(args.sequences, 0)
    steps = args.length - 1
    lengths = sorted({round(1 + i * (steps - 1) / (PREFIXES - 1)) for i in range(PREFIXES)})
    limit = one_pass(decoder, args.sequences)

    def ours() -> None:
        with torch.no_grad():
            sample(decoder, visual_BMD, config)

    jobs: dict[str, Callable[[], object]] = {"ours": ours, "limit": lambda: [limit() for _ in range(steps)]}
    jobs |= {str(length): lambda length=length: recomputed(decoder, visual_NMD, config, length) for length in lengths}  # type: ignore[misc]
    spent: dict[str, list[float]] = {name: [] for name in jobs}
    for number in range(args.rounds + 1):
        for name, job in jobs.items():
            started = clock(args.device)
            job()
            if number:  # the first round warms up
                spent[name].append(clock(args.device) - started)
    seconds = {name: statistics.median(times) for name, times in spent.items()}
    at = [seconds[str(length)] for length in lengths]
    # Half a step at either end: lengths 1 .. steps are steps + 1 edges apart.
    reference = (
        float(torch.trapezoid(torch.tensor(at), torch.tensor(lengths, dtype=torch.float))) + (at[0] + at[-1]) / 2
    )
    return {
        "model": args.model,
        "sequences": args.sequences,
        "length": args.length,
        "device": args.device,
        "threads": args.threads,
        "parameters": sum(parameter.numel() for parameter in decoder.parameters()),
        "ours_seconds": seconds["ours"],
        "limit_seconds": seconds["limit"],
        "reference_seconds": reference,
        "reference_seconds_at": dict(zip(map(str, lengths), at, strict=True)),
        "times_as_fast": reference / seconds["ours"],
        "at_the_limit": reference / seconds["limit"],
        "tokens_per_second": args.sequences * steps / seconds["ours"],
        "rounds": args.rounds,
        "machine": machine("torch", gpu=torch.cuda.get_device_name() if args.device != "cpu" else None),
    }


def table(rows: list[dict[str, Any]]) -> str:
    lines = ["| narrator | texts of a clip | on | times as fast | at the limit |", "| --- " * 5 + "|"]
    for row in rows:
        place = row["machine"]["gpu"] or f"CPU, {row['threads']} thread{'s' * (row['threads'] > 1)}"
        texts = f"{row['sequences']} x {row['length']} tokens"
        lines.append(f"| {row['model']} | {texts} | {place} | {row['times_as_fast']:.1f} | {row['at_the_limit']:.1f} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=["base", "xl"], default="base", help="GPT-2 or GPT-2 XL (base)")
    parser.add_argument("--sequences", type=int, default=10, help="texts of a clip (10)")
    parser.add_argument("--length", type=int, default=77, help="tokens of a text (77)")
    parser.add_argument("--rounds", type=int, default=5, help="timings of each figure (5)")
    parser.add_argument(
        "--threads", type=int, default=len(os.sched_getaffinity(0)), help="threads on a CPU (all cores)"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dry-run", action="store_true", help="run a tiny model once; write nothing")
    args = parser.parse_args(argv)
    if args.dry_run:
        args.model, args.length, args.rounds = "tiny", 9, 1
    row = measure(args)
    print(f"{row['times_as_fast']:.1f} times as fast as recomputing the prefix; at the limit {row['at_the_limit']:.1f}")
    if args.dry_run:
        print(json.dumps(row))
        return 0
    path = common.RESULTS / "narrator.json"
    rows = json.loads(path.read_text())["rows"] if path.is_file() else []
    same = ("model", "sequences", "length", "device", "threads")
    rows = [old for old in rows if any(old[name] != row[name] for name in same)] + [row]
    path.write_text(json.dumps({"rows": rows}, indent=1) + "\n")
    fill_docs("narrator", table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
