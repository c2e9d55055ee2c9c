"""How fast the narrator samples, beside a decoder that recomputes the prefix for every token, and the machine's limit.

    python -m benchmarks.narrator [--model base|xl] [--sequences 10] [--length 77] [--clips 16] [--threads N]
                                  [--device cpu]

The weights are random, of the published sizes (GPT-2, or GPT-2 XL with cross-attention in every second block).

Sampling: one clip, whose texts do not end early. Ours caches keys and values of the prefix and of the clip. The other
side does as the reference does: for every token, the decoder reads the whole prefix of every sequence, and a copy of
the clip's tokens for each; its weights lie in memory as GPT-2's do. The limit is one product of all weights with one
token of every sequence, for every token, in the faster of two orders. No decoder of float32 weights can write without
it. Where the device multiplies bfloat16 in hardware, ours is timed with such weights as well.

Labelling: several clips, whose texts end after 12 tokens on average and at different steps; all at once, and one clip
after the other, with the same seeds. Both sides are ours. The texts that are equal are counted.

All sides have the same weights and run in turn in one process. The prefix is timed at six lengths; the trapezoid rule
gives the time of all tokens. Times on a CPU are process time, which other work on the machine disturbs least. Numbers
are medians of five. Writes benchmarks/results/narrator.json and the table of docs/PERFORMANCE.md between its markers.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import softmax

from benchmarks import common
from benchmarks.common import fill_docs, machine
from lavila.models import gated_gpt2
from lavila.models.gated_gpt2 import Conv1D, GatedGpt2, GatedGpt2Config
from lavila.models.generation import (
    ClipWriter,
    GenerationConfig,
    clip_generators,
    decoder_type,
    draw,
    filter_logits,
    sample,
)

SIZES = {
    "base": GatedGpt2Config(),
    "xl": GatedGpt2Config(width=1600, depth=48, heads=25, cross_attention_every=2),
    "tiny": GatedGpt2Config(vocab_size=100, positions=128, width=32, depth=2, heads=2, end_token=99),
}
QUERIES, PREFIXES = 256, 6
MEAN_TOKENS = 12  # of a text, when labelling

Jobs = dict[str, Callable[[], object]]


def clock(device: str) -> float:
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def seconds_of(jobs: Jobs, *, rounds: int, device: str) -> dict[str, float]:
    """The median time of each job. They run in turn; the first round warms up."""
    spent: dict[str, list[float]] = {name: [] for name in jobs}
    for number in range(rounds + 1):
        for name, job in jobs.items():
            started = clock(device)
            job()
            if number:
                spent[name].append(clock(device) - started)
    return {name: statistics.median(times) for name, times in spent.items()}


@contextmanager
def as_gpt2() -> Iterator[None]:
    """Products of few rows as of many: as the reference multiplies."""
    few, gated_gpt2.FEW_ROWS = gated_gpt2.FEW_ROWS, 0
    try:
        yield
    finally:
        gated_gpt2.FEW_ROWS = few


def reference_of(decoder: GatedGpt2) -> GatedGpt2:
    """The same decoder, whose weights lie in memory as GPT-2's do."""
    reference = copy.deepcopy(decoder)
    for layer in reference.modules():
        if isinstance(layer, Conv1D):
            layer.weight.data = layer.weight.data.contiguous()
    return reference


def recomputed(decoder: GatedGpt2, visual_NMD: Tensor, config: GenerationConfig, length: int) -> Tensor:
    """The next token of every sequence after a prefix of `length` tokens, from nothing but the prefix and the clip."""
    prefix = torch.full((len(visual_NMD), length), decoder.config.end_token, device=visual_NMD.device)
    with as_gpt2():
        logits_NV = decoder(prefix, decoder.look(visual_NMD))[:, -1]
    probability_NV = softmax(filter_logits(logits_NV, config), dim=-1)
    return draw(probability_NV, torch.rand(len(visual_NMD), device=visual_NMD.device))


def one_pass(decoder: GatedGpt2, sequences: int, *, columns: bool) -> Callable[[], None]:
    """Every weight matrix that a token meets, times one token of every sequence; tokens are rows or columns."""
    # Positions are looked up, and the clip's keys and values are computed once for all tokens: neither counts.
    unmet = ("wpe.weight", "crossattention.c_attn.weight")
    matrices = [p.detach() for name, p in decoder.named_parameters() if p.ndim == 2 and not name.endswith(unmet)]
    # Conv1D's weight is [in, out]; word embeddings, which give the logits, are [vocabulary, width].
    matrices = [w if len(w) == decoder.config.vocab_size else w.T for w in matrices]
    tokens = [torch.randn(sequences, w.shape[1], device=w.device) for w in matrices]

    def run() -> None:
        for x, w in zip(tokens, matrices, strict=True):
            torch.mm(w, x.T) if columns else torch.mm(x, w.T)

    return run


def measure_sampling(args: argparse.Namespace, decoder: GatedGpt2) -> dict[str, Any]:
    config = GenerationConfig(
        num_return_sequences=args.sequences, max_length=args.length, top_p=0.95, early_stopping=False
    )
    visual_BMD = torch.randn(1, QUERIES, decoder.config.width, device=args.device)
    visual_NMD = visual_BMD.repeat_interleave(args.sequences, 0)
    steps = args.length - 1
    lengths = sorted({round(1 + i * (steps - 1) / (PREFIXES - 1)) for i in range(PREFIXES)})
    reference = reference_of(decoder)
    jobs: Jobs = {"ours": lambda: sample(ClipWriter(decoder, visual_BMD), config)}
    if decoder_type(args.device) is torch.bfloat16:
        half = copy.deepcopy(decoder).to(torch.bfloat16)
        jobs["ours_bf16"] = lambda: sample(ClipWriter(half, visual_BMD), config)
    for columns in (False, True):
        run = one_pass(decoder, args.sequences, columns=columns)
        jobs[f"limit_{columns}"] = lambda run=run: [run() for _ in range(steps)]  # type: ignore[misc]
    jobs |= {
        str(length): lambda length=length: recomputed(reference, visual_NMD, config, length)  # type: ignore[misc]
        for length in lengths
    }
    seconds = seconds_of(jobs, rounds=args.rounds, device=args.device)
    at = [seconds[str(length)] for length in lengths]
    # Half a step at either end: lengths 1 .. steps are steps + 1 edges apart.
    whole = float(torch.trapezoid(torch.tensor(at), torch.tensor(lengths, dtype=torch.float))) + (at[0] + at[-1]) / 2
    limit = min(seconds["limit_False"], seconds["limit_True"])
    half_seconds = seconds.get("ours_bf16")
    return {
        "ours_seconds": seconds["ours"],
        "ours_bf16_seconds": half_seconds,
        "limit_seconds": limit,
        "reference_seconds": whole,
        "reference_seconds_at": dict(zip(map(str, lengths), at, strict=True)),
        "times_as_fast": whole / seconds["ours"],
        "times_as_fast_bf16": whole / half_seconds if half_seconds else None,
        "at_the_limit": whole / limit,
        "tokens_per_second": args.sequences * steps / seconds["ours"],
    }


def let_texts_end(decoder: GatedGpt2, visual_BMD: Tensor) -> None:
    """Make the end token so likely that texts have MEAN_TOKENS tokens on average, through a constant channel."""
    body, end = decoder.transformer, decoder.config.end_token
    body.ln_f.weight.data[0], body.ln_f.bias.data[0] = 0.0, 1.0
    decoder.lm_head.weight.data[:, 0] = 0.0
    start = torch.full((1, 1), end, device=visual_BMD.device)
    others = decoder(start, decoder.look(visual_BMD[:1]))[0, -1].logsumexp(0)
    decoder.lm_head.weight.data[end, 0] = float(others) - math.log(MEAN_TOKENS)


def measure_labelling(args: argparse.Namespace, decoder: GatedGpt2) -> dict[str, Any]:
    config = GenerationConfig(num_return_sequences=args.sequences, max_length=args.length, top_p=0.95)
    visual_BMD = torch.randn(args.clips, QUERIES, decoder.config.width, device=args.device)
    let_texts_end(decoder, visual_BMD)
    names = [f"clip {number}" for number in range(args.clips)]
    texts: dict[str, list[list[list[int]]]] = {}

    def label(used: GatedGpt2, at_once: int, name: str) -> None:
        texts[name] = []
        for first in range(0, args.clips, at_once):
            clips = slice(first, first + at_once)
            found = sample(ClipWriter(used, visual_BMD[clips]), config, generator=clip_generators(0, names[clips]))
            texts[name] += found.ids()

    jobs: Jobs = {
        "one_by_one": lambda: label(decoder, 1, "one_by_one"),
        "at_once": lambda: label(decoder, args.clips, "at_once"),
    }
    if decoder_type(args.device) is torch.bfloat16:
        half = copy.deepcopy(decoder).to(torch.bfloat16)
        jobs["at_once_bf16"] = lambda: label(half, args.clips, "bf16")
    seconds = seconds_of(jobs, rounds=args.rounds, device=args.device)
    pairs = zip(texts["one_by_one"], texts["at_once"], strict=True)
    lengths = [len(text) for clip in texts["at_once"] for text in clip]
    return {
        "clips": args.clips,
        "mean_tokens": statistics.mean(lengths),
        "one_by_one_seconds": seconds["one_by_one"],
        "at_once_seconds": seconds["at_once"],
        "at_once_bf16_seconds": seconds.get("at_once_bf16"),
        "rate_at_once": seconds["one_by_one"] / seconds["at_once"],
        "texts": len(lengths),
        "texts_equal": sum(one == other for ones, others in pairs for one, other in zip(ones, others, strict=True)),
    }


@torch.no_grad()
def measure(args: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    with torch.device(args.device):
        decoder = GatedGpt2(SIZES[args.model]).eval()
    return {
        "model": args.model,
        "sequences": args.sequences,
        "length": args.length,
        "device": args.device,
        "threads": args.threads,
        "parameters": sum(parameter.numel() for parameter in decoder.parameters()),
        **measure_sampling(args, decoder),
        "labelling": measure_labelling(args, decoder),
        "rounds": args.rounds,
        "machine": machine("torch", gpu=torch.cuda.get_device_name() if args.device != "cpu" else None),
    }


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| narrator | texts of a clip | on | times as fast | with bf16 weights | at the limit of float32 "
        "| labelling, clips at once | clips/s of one by one |",
        "| --- " * 8 + "|",
    ]
    for row in rows:
        place = row["machine"]["gpu"] or f"CPU, {row['threads']} thread{'s' * (row['threads'] > 1)}"
        texts, half = f"{row['sequences']} x {row['length']} tokens", row["times_as_fast_bf16"]
        labelling = row["labelling"]
        lines.append(
            f"| {row['model']} | {texts} | {place} | {row['times_as_fast']:.1f} | {f'{half:.1f}' if half else '-'} "
            f"| {row['at_the_limit']:.1f} | {labelling['clips']} | {labelling['rate_at_once']:.1f} |"
        )
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=["base", "xl"], default="base", help="GPT-2 or GPT-2 XL (base)")
    parser.add_argument("--sequences", type=int, default=10, help="texts of a clip (10)")
    parser.add_argument("--length", type=int, default=77, help="tokens of a text (77)")
    parser.add_argument("--clips", type=int, default=16, help="clips to label at once (16)")
    parser.add_argument("--rounds", type=int, default=5, help="timings of each figure (5)")
    parser.add_argument(
        "--threads", type=int, default=len(os.sched_getaffinity(0)), help="threads on a CPU (all cores)"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dry-run", action="store_true", help="run a tiny model once; write nothing")
    args = parser.parse_args(argv)
    if args.dry_run:
        args.model, args.length, args.clips, args.rounds = "tiny", 9, 3, 1
    row = measure(args)
    print(f"{row['times_as_fast']:.1f} times as fast as recomputing the prefix; at the limit {row['at_the_limit']:.1f}")
    print(f"{args.clips} clips at once: {row['labelling']['rate_at_once']:.1f} times the rate of one by one")
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
