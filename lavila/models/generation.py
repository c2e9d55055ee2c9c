"""Makes texts with a decoder, by sampling or beam search over a token cache, and scores given texts.

Shape suffixes of names: B clips, R sequences of a clip, N = B*R sequences, L tokens of a sequence (the first is the end
token, which also begins), V vocabulary, M visual tokens of a clip, D width, G groups of beams, W beams of a group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, log_softmax, softmax

from lavila.models.gated_gpt2 import GatedGpt2

UNSTARTED = -1e9  # the log-probability of beams that do not exist yet

Generators = torch.Generator | Sequence[torch.Generator] | None


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """How texts are chosen. ValueError for impossible values, and for values that exclude each other."""

    num_return_sequences: int = 1  # R, the number of texts of a clip
    max_length: int = 77  # the largest L, with the beginning token
    temperature: float = 1.0  # logits are divided by this before the filters
    top_k: int | None = None  # only the k likeliest tokens; 1 is greedy
    top_p: float | None = None  # only the likeliest tokens that together reach this probability
    num_beams: int = 1  # above 1: beam search instead of sampling
    num_beam_groups: int = 1  # number of equal groups of beams; groups do not compete with each other
    length_penalty: float = 1.0  # beam search divides a text's log-probability by its length to this power
    early_stopping: bool = (
        True  # whether sampling stops when every text has ended; tokens after an end token mean nothing
    )

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
        if self.num_beams == 1:
            return
        if self.num_return_sequences > self.num_beams:
            raise ValueError(
                f"num_return_sequences={self.num_return_sequences}: {self.num_beams} beams give at most as many texts"
            )
        if (self.temperature, self.top_k, self.top_p) != (1.0, None, None):
            raise ValueError(
                f"num_beams={self.num_beams} with temperature={self.temperature}, top_k={self.top_k}, "
                f"top_p={self.top_p}: beam search does not sample; leave them out or set num_beams=1"
            )


@dataclass(frozen=True)
class Narrations:
    """Texts of B clips, R of each.

    tokens: int64 [B,R,L]. The beginning token comes first. A text ends before the next end token; ignore what follows.
    nll: float [B,R], nats per token. The functions that make narrations say what they average. exp(nll) is the
    perplexity that the reference reports. step_nll: float [B,R,L'], the averaged values, 0 where nothing counts; None
    from beam search.
    """

    tokens: Tensor
    nll: Tensor
    step_nll: Tensor | None = None


def keep_top_k(logits_NV: Tensor, k: int, *, at_least: int = 1) -> Tensor:
    """Set all but the max(k, at_least) largest logits of each row to -inf.

    Logits equal to the smallest kept one stay.
    """
    k = min(max(k, at_least), logits_NV.shape[-1])
    return logits_NV.masked_fill(logits_NV < logits_NV.topk(k).values[..., -1:], -torch.inf)


def keep_nucleus(logits_NV: Tensor, p: float, *, at_least: int = 1) -> Tensor:
    """Set all but the fewest likeliest tokens that together exceed the probability p to -inf."""
    sorted_NV, order_NV = logits_NV.sort(descending=True, stable=True)
    probability_NV = softmax(sorted_NV, dim=-1)
    # A token is dropped if the likelier tokens before it are enough.
    gone_NV = probability_NV.cumsum(-1).roll(1, -1) > p
    gone_NV[..., :at_least] = False
    return logits_NV.masked_fill(torch.empty_like(gone_NV).scatter_(-1, order_NV, gone_NV), -torch.inf)


def filter_logits(logits_NV: Tensor, config: GenerationConfig) -> Tensor:
    """Temperature, then top-k, then nucleus."""
    logits_NV = logits_NV / config.temperature
    if config.top_k is not None:
        logits_NV = keep_top_k(logits_NV, config.top_k)
    if config.top_p is not None:
        logits_NV = keep_nucleus(logits_NV, config.top_p)
    return logits_NV


def draw(probability_NV: Tensor, uniform_N: Tensor) -> Tensor:
    """Draw a token id for each row: the first one whose running sum of probabilities exceeds the number in [0, 1)."""
    running_NV = probability_NV.double().cumsum(-1)
    return torch.searchsorted(running_NV, uniform_N.double()[:, None] * running_NV[:, -1:], right=True)[:, 0]


def sample(
    decoder: GatedGpt2, visual_BMD: Tensor, config: GenerationConfig, *, generator: Generators = None
) -> Narrations:
    """Sample texts. nll: mean entropy of the unfiltered distributions, up to the one that gave the end token.

    generator: one for all clips, or one for each, so that a clip's texts do not depend on the other clips. Random
    numbers are drawn on its device.
    """
    sequences, steps = len(visual_BMD) * config.num_return_sequences, config.max_length - 1
    uniform_NL = _uniform(len(visual_BMD), config.num_return_sequences, steps, generator).to(visual_BMD.device)
    tokens_NL = visual_BMD.new_full((sequences, config.max_length), decoder.config.end_token, dtype=torch.long)
    seen, cache = decoder.look(visual_BMD), decoder.new_cache(sequences, config.max_length)
    ended_N = torch.zeros_like(tokens_NL[:, 0], dtype=torch.bool)
    entropies: list[Tensor] = []
    counted: list[Tensor] = []
    length = config.max_length
    for step in range(steps):
        logits_NV = _exact(decoder(tokens_NL[:, step : step + 1], seen, cache)[:, -1])
        entropies.append(torch.special.entr(softmax(logits_NV, dim=-1)).sum(-1) * ~ended_N)
        counted.append(~ended_N)
        token_N = draw(softmax(filter_logits(logits_NV, config), dim=-1), uniform_NL[:, step])
        ended_N = ended_N | (token_N == decoder.config.end_token)
        if config.early_stopping and bool(ended_N.all()):
            length = step + 1  # like the reference, leave out the tokens that ended the last texts
            break
        tokens_NL[:, step + 1] = token_N
    return _narrations(tokens_NL[:, :length], torch.stack(entropies, 1), torch.stack(counted, 1), len(visual_BMD))


def score(decoder: GatedGpt2, visual_BMD: Tensor, target_BL: Tensor, *, teacher_forcing: bool) -> Narrations:
    """Score one text of each clip, and give the decoder's likeliest tokens. R is 1.

    target: int64 [B,L], padded with the pad token. teacher_forcing: True: the decoder reads the target; False: its
    own tokens. nll: mean of minus the log-probability over the target's tokens, without pad tokens.
    """
    seen = decoder.look(visual_BMD)
    top1_BL = torch.full_like(target_BL, decoder.config.end_token)
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
    nll_BL = cross_entropy(_exact(logits_BLV).transpose(1, 2), labels_BL, ignore_index=pad, reduction="none")
    return _narrations(top1_BL, nll_BL, labels_BL != pad, len(visual_BMD))


def beam_search(decoder: GatedGpt2, visual_BMD: Tensor, config: GenerationConfig) -> Narrations:
    """The likeliest texts that beam search finds, best first. nll: minus log-probability over length**length_penalty.

    Length counts the beginning token but not the end token. Each group searches alone, and all groups share one pool.
    As in the reference there is no penalty on likeness, so the groups find the same texts.
    """
    clips, groups, width = len(visual_BMD), config.num_beam_groups, config.num_beams // config.num_beam_groups
    tokens_NL = visual_BMD.new_full((clips * config.num_beams, 1), decoder.config.end_token, dtype=torch.long)
    seen, cache = decoder.look(visual_BMD), decoder.new_cache(len(tokens_NL), config.max_length)
    score_BGW = torch.full((clips, groups, width), UNSTARTED, dtype=torch.float64, device=visual_BMD.device)
    score_BGW[:, :, 0] = 0.0
    pools = [_Pool(config) for _ in range(clips)]
    first_row_BG1 = torch.arange(clips * groups, device=visual_BMD.device).view(clips, groups, 1) * width
    while tokens_NL.shape[1] < config.max_length and not all(pool.done for pool in pools):
        logits_NV = _exact(decoder(tokens_NL[:, -1:], seen, cache)[:, -1])
        total_BGWV = score_BGW[..., None] + torch.unflatten(log_softmax(logits_NV, dim=-1), 0, (clips, groups, width))
        # Twice as many candidates as beams: enough are left even if the best token of every beam ends it.
        best_BGX, index_BGX = total_BGWV.flatten(2).topk(2 * width)
        row_BGX = first_row_BG1 + index_BGX // total_BGWV.shape[-1]
        token_BGX = index_BGX % total_BGWV.shape[-1]
        ends_BGX = token_BGX == decoder.config.end_token
        _collect(pools, tokens_NL, ends_BGX, best_BGX, row_BGX)
        going_BGW = ends_BGX.int().argsort(dim=-1, stable=True)[..., :width]
        score_BGW = best_BGX.gather(-1, going_BGW)
        rows_N, token_N = (x_BGX.gather(-1, going_BGW).flatten() for x_BGX in (row_BGX, token_BGX))
        tokens_NL = torch.cat([tokens_NL[rows_N], token_N[:, None]], dim=1)
        cache.reorder(rows_N)
    return _best(pools, torch.unflatten(tokens_NL, 0, (clips, -1)), score_BGW.flatten(1), decoder)


class _Pool:
    """The best finished texts of one clip."""

    def __init__(self, config: GenerationConfig) -> None:
        self.config = config
        self.texts: list[tuple[float, list[int]]] = []
        self.done = False

    def add(self, text: list[int], log_probability: float) -> None:
        self.texts.append((log_probability / len(text) ** self.config.length_penalty, text))
        self.texts = sorted(self.texts, key=lambda entry: -entry[0])[: self.config.num_beams]

    def close(self, best_log_probability: float, length: int) -> None:
        """The clip is done when its best unfinished text, at its present length, is no better than the pool's worst."""
        full = len(self.texts) == self.config.num_beams
        self.done = full and self.texts[-1][0] >= best_log_probability / length**self.config.length_penalty


def _collect(pools: list[_Pool], tokens_NL: Tensor, ends_BGX: Tensor, best_BGX: Tensor, row_BGX: Tensor) -> None:
    """Put ended texts into their clips' pools. Only texts among the best `width` of their group count."""
    width = ends_BGX.shape[2] // 2
    tokens, ends, best, rows = (x.tolist() for x in (tokens_NL, ends_BGX[..., :width], best_BGX, row_BGX))
    for clip, pool in enumerate(pools):
        for group in range(ends_BGX.shape[1]):
            if pool.done:
                break
            for place, ended in enumerate(ends[clip][group]):
                if ended:
                    pool.add(tokens[rows[clip][group][place]], best[clip][group][place])
            pool.close(best[clip][group][0], tokens_NL.shape[1] + 1)  # the length to which these scores belong


def _best(pools: list[_Pool], tokens_BNL: Tensor, score_BN: Tensor, decoder: GatedGpt2) -> Narrations:
    """The best texts of every pool, unfinished ones included, each followed by an end token and pad tokens."""
    config = pools[0].config
    for pool, texts, scores in zip(pools, tokens_BNL.tolist(), score_BN.tolist(), strict=True):
        if not pool.done:
            for text, log_probability in zip(texts, scores, strict=True):
                pool.add(text, log_probability)
    chosen = [pool.texts[: config.num_return_sequences] for pool in pools]
    length = min(config.max_length, 1 + max(len(text) for texts in chosen for _, text in texts))
    end, pad = decoder.config.end_token, decoder.config.pad_token
    rows = [[(text + [end] + [pad] * length)[:length] for _, text in texts] for texts in chosen]
    nll = [[-value for value, _ in texts] for texts in chosen]
    return Narrations(tokens_BNL.new_tensor(rows), torch.tensor(nll, device=tokens_BNL.device))


def _narrations(tokens_NL: Tensor, nll_NL: Tensor, counted_NL: Tensor, clips: int) -> Narrations:
    """Average over the counted values. A text without any has an nll of 0."""
    nll_N = nll_NL.sum(1) / counted_NL.sum(1).clamp(min=1)
    tokens_BRL, nll_BR, step_BRL = (torch.unflatten(x, 0, (clips, -1)) for x in (tokens_NL, nll_N, nll_NL))
    return Narrations(tokens_BRL, nll_BR, step_BRL)


def _uniform(clips: int, sequences: int, steps: int, generator: Generators) -> Tensor:
    """Random numbers in [0, 1), float32 [clips * sequences, steps]."""
    if generator is None or isinstance(generator, torch.Generator):
        device = generator.device if generator is not None else "cpu"
        return torch.rand(clips * sequences, steps, generator=generator, device=device)
    if len(generator) != clips:
        raise ValueError(f"{len(generator)} generators for {clips} clips: give one for each, or one for all")
    return torch.cat([torch.rand(sequences, steps, generator=one, device=one.device) for one in generator])


def _exact(logits: Tensor) -> Tensor:
    """The logits in float32 or better, since sums over the vocabulary lose too much in half precision."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
