"""Makes texts by sampling, and scores given texts; `beams` searches for likely ones.

A `Writer` is a decoder at work: it takes the last token of every sequence and gives the scores of the next one. What
chooses among them is the same for narrators (`ClipWriter`) and paraphrasers (`lavila.models.paraphraser`).

Shape suffixes of names: B clips (or captions to paraphrase), R texts of a clip, N sequences (those of a clip lie next
to each other), L tokens of a sequence with the beginning token, V vocabulary, M visual tokens of a clip, D width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from lavila.models.gated_gpt2 import GatedGpt2
from lavila.models.token_cache import TokenCache, survivors

ROWS_AT_ONCE = 4  # of float32 [N, 50257]; see `choose`

Generators = torch.Generator | Sequence[torch.Generator] | None


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """How texts are chosen. ValueError for impossible values, and for values that exclude each other."""

    num_return_sequences: int = 1  # R, the number of texts of a clip
    max_length: int = 77  # the largest L, with the beginning token
    temperature: float = 1.0  # logits are divided by this before the filters
    top_k: int | None = None  # only the k likeliest tokens; 1 is greedy
    top_p: float | None = None  # only the likeliest tokens that together reach this probability
    num_beams: int = 1  # above 1: beam search, which samples where temperature, top_k or top_p is given
    num_beam_groups: int = 1  # number of equal groups of beams; groups do not compete with each other
    # Takes this off a token's log-probability for each beam of an earlier group that chooses the token in the same
    # step, so that groups differ. LaViLa's narrator has none, and then all groups find the same texts.
    diversity_penalty: float = 0.0
    length_penalty: float = 1.0  # beam search divides a text's log-probability by its length to this power
    # Sampling stops when every text has ended, and each text leaves the batch when it ends. False: all are written on
    # to max_length, as in the reference; what follows the end means nothing.
    early_stopping: bool = True

    def __post_init__(self) -> None:
        for name, least in (("num_return_sequences", 1), ("max_length", 2), ("num_beams", 1), ("num_beam_groups", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least {least}")
        if not self.temperature > 0:
            raise ValueError(f"temperature={self.temperature}: must be greater than 0; top_k=1 is greedy")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k={self.top_k}: must be at least 1, or None to keep all tokens")
        if self.top_p is not None and not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"top_p={self.top_p}: must be above 0 and at most 1, or None to keep all tokens")
        if self.num_beams % self.num_beam_groups:
            raise ValueError(f"num_beams={self.num_beams} is not a multiple of num_beam_groups={self.num_beam_groups}")
        if self.diversity_penalty < 0 or (self.diversity_penalty and self.num_beam_groups == 1):
            raise ValueError(
                f"diversity_penalty={self.diversity_penalty} with num_beam_groups={self.num_beam_groups}: "
                "must be at least 0, and 0 unless there are several groups of beams"
            )
        if self.num_beams == 1:
            return
        if self.num_return_sequences > self.num_beams:
            raise ValueError(
                f"num_return_sequences={self.num_return_sequences}: {self.num_beams} beams give at most as many texts"
            )
        if self.samples and self.num_beam_groups > 1:
            raise ValueError(
                f"num_beam_groups={self.num_beam_groups} with temperature={self.temperature}, top_k={self.top_k}, "
                f"top_p={self.top_p}: groups of beams do not sample; leave these out or set num_beam_groups=1"
            )

    @property
    def samples(self) -> bool:
        """Whether beams are drawn at random."""
        return (self.temperature, self.top_k, self.top_p) != (1.0, None, None)

    @property
    def sequences(self) -> int:
        """The number of sequences that are written at once for each clip."""
        return max(self.num_return_sequences, self.num_beams)


class Writer(Protocol):
    """A decoder that writes sequences of some clips, token by token."""

    clips: int  # B
    begin: int  # the first token of every sequence
    end: int  # the token that ends a text
    pad: int  # fills up what follows a text
    device: torch.device

    def start(self, sequences: int, max_length: int) -> None:
        """Get ready for `sequences` sequences, an equal number for each clip, of up to max_length tokens."""

    def step(self, token_N: Tensor) -> Tensor:
        """The last token of each sequence, int64 [N] -> logits of its next token, float32 or float64 [N,V]."""
        ...

    def take(self, rows_N: Tensor) -> None:
        """Let sequence i continue the one at rows_N[i]. There may be fewer than before; rows may repeat."""


class ClipWriter:
    """A narrator's decoder at work on clips, given by their visual tokens [B,M,D]. See `Writer`."""

    def __init__(self, decoder: GatedGpt2, visual_BMD: Tensor) -> None:
        self.decoder, self.seen = decoder, decoder.look(visual_BMD)
        self.clips, self.device = len(visual_BMD), visual_BMD.device
        self.begin = self.end = decoder.config.end_token
        self.pad = decoder.config.pad_token
        self.cache: TokenCache
        self.seen.pack()

    def start(self, sequences: int, max_length: int) -> None:
        self.cache = self.decoder.new_cache(sequences, max_length)

    def step(self, token_N: Tensor) -> Tensor:
        return exact(self.decoder(token_N[:, None], self.seen, self.cache)[:, -1])

    def take(self, rows_N: Tensor) -> None:
        self.seen.take(rows_N, self.cache.sequences)
        self.cache.take(rows_N)


@dataclass(frozen=True, kw_only=True)
class Narrations:
    """Texts of B clips, R of each, and how likely they are.

    tokens: int64 [B,R,L]. The beginning token comes first, then the text, then the end token unless the text was cut at
    max_length; ignore what follows. lengths: int64 [B,R], the number of tokens of each text without beginning and end.

    nll: float64 [B,R], mean nats of a token, the end token included and the beginning token not: minus the
    log-probability that the decoder gives the text, whatever temperature and filters chose it. exp(nll) is the
    perplexity of the text. entropy: float64 [B,R], the mean entropy in nats of the distributions of those tokens, from
    sampling only. exp(entropy) is what the reference reports as the perplexity ("ppl") of a sampled text.
    beam_score: float64 [B,R], from beam search only, by which it ranks texts: log-probability over
    length**length_penalty, where the length counts the beginning token and not the end token.
    step_nll, step_entropy: float64 [B,R,L-1], the values that are averaged, 0 where nothing counts.
    """

    tokens: Tensor
    lengths: Tensor
    nll: Tensor
    entropy: Tensor | None = None
    beam_score: Tensor | None = None
    step_nll: Tensor | None = None
    step_entropy: Tensor | None = None

    def ids(self) -> list[list[list[int]]]:
        """Token ids of each text of each clip, without beginning and end token: ready for a tokenizer's `decode`."""
        return [
            [row[1 : 1 + length] for row, length in zip(rows, lengths, strict=True)]
            for rows, lengths in zip(self.tokens.tolist(), self.lengths.tolist(), strict=True)
        ]


def clip_generators(seed: int, clip_ids: Sequence[str]) -> list[torch.Generator]:
    """A generator of random numbers for each clip, which depends on the seed and the clip's id alone.

    With them a clip's texts depend neither on the other clips of the batch nor on rank or order.
    """
    # PyTorch's generator on the CPU uses 32 bits of a seed. Two of many clips may share their numbers, which does no
    # harm: they choose among different distributions.
    digests = [hashlib.blake2b(f"{seed}/{clip_id}".encode(), digest_size=4).digest() for clip_id in clip_ids]
    return [torch.Generator().manual_seed(int.from_bytes(digest)) for digest in digests]


def keep_top_k(logits_NV: Tensor, k: int, *, at_least: int = 1) -> Tensor:
    """Set all but the max(k, at_least) largest logits of each row to -inf.

    Logits equal to the smallest kept one stay.
    """
    k = min(max(k, at_least), logits_NV.shape[-1])
    return logits_NV.masked_fill(logits_NV < logits_NV.topk(k).values[..., -1:], -torch.inf)


def keep_nucleus(logits_NV: Tensor, p: float, *, at_least: int = 1) -> Tensor:
    """Set all but the fewest likeliest tokens that together exceed the probability p to -inf.

    Of equal logits the first ones stay.
    """
    weight_NV = (logits_NV - logits_NV.amax(-1, keepdim=True)).exp()
    return logits_NV.masked_fill(outside_nucleus(weight_NV, p, at_least=at_least), -torch.inf)


def outside_nucleus(weight_NV: Tensor, p: float, *, at_least: int = 1) -> Tensor:
    """The tokens that `keep_nucleus` drops, bool [N,V]. weight: probabilities times any number for each row."""
    sorted_NV = _ascending(weight_NV)
    running_NV = sorted_NV.cumsum(-1, dtype=torch.float64)
    # A token stays unless the likelier ones are enough: unless it and the less likely ones have less than 1 - p.
    first_N1 = torch.searchsorted(running_NV, (1 - p) * running_NV[:, -1:])
    first_N1 = first_N1.clamp(max=weight_NV.shape[1] - at_least)
    least_N1 = sorted_NV.gather(-1, first_N1)
    outside_NV = weight_NV < least_N1
    equal_N1 = (first_N1 > 0) & (sorted_NV.gather(-1, (first_N1 - 1).clamp(min=0)) == least_N1)
    if bool(equal_N1.any()):
        room_N1 = weight_NV.shape[1] - first_N1 - (weight_NV > least_N1).sum(-1, keepdim=True)
        equal_NV = weight_NV == least_N1
        outside_NV |= equal_NV & (equal_NV.cumsum(-1) > room_N1)
    return outside_NV


def _ascending(x_NV: Tensor) -> Tensor:
    """The values of each row, the smallest first."""
    if x_NV.device.type != "cpu":
        return x_NV.sort().values
    # On a CPU numpy sorts with vector instructions: 25 times as fast as PyTorch for 10 rows of GPT-2's vocabulary,
    # where PyTorch's sort takes a third of the time of a whole step.
    return torch.from_numpy(np.sort(x_NV.detach().numpy(), axis=-1))


def filter_logits(logits_NV: Tensor, config: GenerationConfig, *, at_least: int = 1) -> Tensor:
    """Temperature, then top-k, then nucleus. The filters keep at_least tokens."""
    logits_NV = logits_NV / config.temperature
    if config.top_k is not None:
        logits_NV = keep_top_k(logits_NV, config.top_k, at_least=at_least)
    if config.top_p is not None:
        logits_NV = keep_nucleus(logits_NV, config.top_p, at_least=at_least)
    return logits_NV


def draw(weight_NV: Tensor, uniform_N: Tensor) -> Tensor:
    """Draw a token id for each row: the first one whose running sum of weights exceeds that share in [0, 1) of all.

    weight: probabilities times any number for each row.
    """
    running_NV = weight_NV.cumsum(-1, dtype=torch.float64)
    return torch.searchsorted(running_NV, uniform_N.double()[:, None] * running_NV[:, -1:], right=True)[:, 0]


@dataclass(frozen=True)
class Drawn:
    """The next token of each sequence, and what the unfiltered distributions say of it."""

    token_N: Tensor
    nll_N: Tensor  # minus the token's log-probability
    entropy_N: Tensor

    @classmethod
    def from_logits(cls, logits_NV: Tensor, config: GenerationConfig, uniform_N: Tensor) -> Drawn:
        """Apply `filter_logits` and draw. uniform: a number in [0, 1) for each row."""
        shifted_NV = (logits_NV - logits_NV.amax(-1, keepdim=True)).clamp_(min=-1e4)  # finite: 0 * -inf is no entropy
        weight_NV = shifted_NV.exp()
        total_N = weight_NV.sum(-1)
        entropy_N = total_N.log() - torch.linalg.vecdot(weight_NV, shifted_NV) / total_N
        if config.temperature != 1.0:
            weight_NV = (shifted_NV / config.temperature).exp_()
        if config.top_k is not None:
            weight_NV = torch.where(keep_top_k(shifted_NV, config.top_k).isneginf(), 0, weight_NV)
        if config.top_p is not None:
            weight_NV = torch.where(outside_nucleus(weight_NV, config.top_p), 0, weight_NV)
        token_N = draw(weight_NV, uniform_N)
        return cls(token_N, total_N.log() - shifted_NV.gather(1, token_N[:, None])[:, 0], entropy_N)


def decoder_type(device: torch.device | str) -> torch.dtype:
    """bfloat16 where a device multiplies it in hardware, otherwise float32.

    In bfloat16 a decoder reads half as many bytes for each token, and its texts differ from those of float32.
    """
    if torch.device(device).type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    found = torch.cpu.get_capabilities()
    return torch.bfloat16 if found.get("amx_bf16") or found.get("avx512_bf16") else torch.float32


def choose(logits_NV: Tensor, config: GenerationConfig, uniform_N: Tensor) -> Drawn:
    """`Drawn.from_logits`, on a CPU for few rows at a time, whose arrays stay in the processor's cache."""
    if logits_NV.device.type != "cpu":
        return Drawn.from_logits(logits_NV, config, uniform_N)
    parts = zip(logits_NV.split(ROWS_AT_ONCE), uniform_N.split(ROWS_AT_ONCE), strict=True)
    drawn = [Drawn.from_logits(rows, config, uniform) for rows, uniform in parts]
    return Drawn(
        *(torch.cat(column) for column in zip(*((d.token_N, d.nll_N, d.entropy_N) for d in drawn), strict=True))
    )


def sample(writer: Writer, config: GenerationConfig, *, generator: Generators = None) -> Narrations:
    """Sample texts; the result says how likely and how uncertain each is.

    generator: one for all clips, or one for each, so that a clip's random numbers do not depend on the other clips.
    They are drawn on its device. With one for each, a clip has the same texts in any batch, as long as products of
    other sizes have the same last bits; `lavila.models.captioner.Captioner` says where they have.
    """
    sequences, steps = writer.clips * config.num_return_sequences, config.max_length - 1
    uniform_BRL = uniform(writer.clips, (config.num_return_sequences, steps), generator)
    uniform_NL = uniform_BRL.flatten(0, 1).to(writer.device)
    tokens_NL = torch.full((sequences, config.max_length), writer.end, device=writer.device)
    tokens_NL[:, 0] = writer.begin
    nll_NL = torch.zeros((sequences, steps), dtype=torch.float64, device=writer.device)
    entropy_NL = torch.zeros_like(nll_NL)
    writer.start(sequences, config.max_length)
    row_N = torch.arange(sequences, device=writer.device)  # of the sequences that are being written
    token_N = tokens_NL[:, 0]
    for step in range(steps):
        logits_NV = writer.step(token_N)
        drawn = choose(logits_NV, config, uniform_NL[row_N, step])
        token_N = tokens_NL[row_N, step + 1] = drawn.token_N
        nll_NL[row_N, step], entropy_NL[row_N, step] = drawn.nll_N.double(), drawn.entropy_N.double()
        going_N = token_N != writer.end
        if not config.early_stopping or bool(going_N.all()):
            continue
        rows_N = survivors(going_N)
        if not len(rows_N):
            tokens_NL = tokens_NL[:, : step + 2]
            break
        writer.take(rows_N)
        row_N, token_N = row_N[rows_N], token_N[rows_N]
    return _sampled(writer, tokens_NL, nll_NL, entropy_NL)


def _sampled(writer: Writer, tokens_NL: Tensor, nll_NL: Tensor, entropy_NL: Tensor) -> Narrations:
    """The narrations of sampled sequences: every value counts up to the one of the end token."""
    steps = tokens_NL.shape[1] - 1
    lengths_N = text_lengths(tokens_NL, writer.end)
    counted_NL = torch.arange(steps, device=writer.device) <= lengths_N[:, None]
    nll_NL, entropy_NL = nll_NL[:, :steps] * counted_NL, entropy_NL[:, :steps] * counted_NL
    nll_N, entropy_N = (x_NL.sum(1) / counted_NL.sum(1) for x_NL in (nll_NL, entropy_NL))
    tokens, lengths, nll, entropy, step_nll, step_entropy = (
        torch.unflatten(x, 0, (writer.clips, -1)) for x in (tokens_NL, lengths_N, nll_N, entropy_N, nll_NL, entropy_NL)
    )
    return Narrations(
        tokens=tokens, lengths=lengths, nll=nll, entropy=entropy, step_nll=step_nll, step_entropy=step_entropy
    )


def text_lengths(tokens_NL: Tensor, end: int) -> Tensor:
    """The number of tokens between the beginning token and the next end token, or the last place. int64 [N]."""
    return (tokens_NL[:, 1:] == end).long().cummax(1).values.logical_not().sum(1)


def score(decoder: GatedGpt2, visual_BMD: Tensor, target_BL: Tensor, *, teacher_forcing: bool) -> Narrations:
    """Score one text of each clip, and give the decoder's likeliest tokens. R is 1.

    target: int64 [B,L], padded with the pad token. teacher_forcing: True: the decoder reads the target; False: its
    own tokens. nll: mean of minus the log-probability over the target's tokens, without pad tokens. tokens and lengths
    are those of the decoder.
    """
    seen, end = decoder.look(visual_BMD), decoder.config.end_token
    top1_BL = torch.full_like(target_BL, end)
    if teacher_forcing:
        logits_BLV = decoder(target_BL[:, :-1], seen)
        top1_BL[:, 1:] = logits_BLV.argmax(-1)
    else:
        cache, steps = decoder.new_cache(*target_BL.shape), []
        for step in range(target_BL.shape[1] - 1):
            steps.append(decoder(top1_BL[:, step : step + 1], seen, cache))
            top1_BL[:, step + 1] = steps[-1][:, -1].argmax(-1)
        logits_BLV = torch.cat(steps, dim=1)
    labels_BL, pad = target_BL[:, 1:], decoder.config.pad_token
    nll_BL = cross_entropy(exact(logits_BLV).transpose(1, 2), labels_BL, ignore_index=pad, reduction="none").double()
    nll_B = nll_BL.sum(1) / (labels_BL != pad).sum(1).clamp(min=1)  # 0 for a text without tokens
    lengths_B = text_lengths(top1_BL, end)
    return Narrations(tokens=top1_BL[:, None], lengths=lengths_B[:, None], nll=nll_B[:, None], step_nll=nll_BL[:, None])


def uniform(clips: int, shape: tuple[int, ...], generator: Generators) -> Tensor:
    """Random numbers in [0, 1), float64 [clips, *shape]."""
    if generator is None or isinstance(generator, torch.Generator):
        device = generator.device if generator is not None else "cpu"
        return torch.rand(clips, *shape, generator=generator, device=device, dtype=torch.float64)
    if len(generator) != clips:
        raise ValueError(f"{len(generator)} generators for {clips} clips: give one for each, or one for all")
    return torch.stack([torch.rand(shape, generator=one, device=one.device, dtype=torch.float64) for one in generator])


def exact(logits: Tensor) -> Tensor:
    """The logits in float32 or better, since sums over the vocabulary lose too much in half precision."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
