"""Makes texts with a decoder, by sampling or beam search over a token cache, and scores given texts.

Shape suffixes of names: B clips, R sequences of a clip, N = B*R sequences, L tokens of a sequence (the first is the end
token, which also begins), V vocabulary, M visual tokens of a clip, D width, G groups of beams, W beams of a group.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, log_softmax, softmax

from lavila.models.gated_gpt2 import GatedGpt2, survivors

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
    num_beams: int = 1  # above 1: beam search, which samples where temperature, top_k or top_p is given
    num_beam_groups: int = 1  # number of equal groups of beams; groups do not compete with each other
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


@dataclass(frozen=True, kw_only=True)
class Narrations:
    """Texts of B clips, R of each, and how likely they are.

    tokens: int64 [B,R,L]. The beginning token comes first, then the text, then the end token unless the text was cut at
    max_length; ignore what follows. lengths: int64 [B,R], the number of tokens of each text without beginning and end.

    nll: float [B,R], mean nats of a token, the end token included and the beginning token not: minus the
    log-probability that the decoder gives the text, whatever temperature and filters chose it. exp(nll) is the
    perplexity of the text. entropy: float [B,R], the mean entropy in nats of the distributions of those tokens, from
    sampling only. exp(entropy) is what the reference reports as the perplexity ("ppl") of a sampled text.
    beam_score: float [B,R], from beam search only, by which it ranks texts: log-probability over
    length**length_penalty, where the length counts the beginning token and not the end token.
    step_nll, step_entropy: float [B,R,L-1], the values that are averaged, 0 where nothing counts.
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
    """Set all but the fewest likeliest tokens that together exceed the probability p to -inf."""
    sorted_NV, order_NV = logits_NV.sort(descending=True, stable=True)
    probability_NV = softmax(sorted_NV, dim=-1)
    # A token is dropped if the likelier tokens before it are enough.
    gone_NV = probability_NV.cumsum(-1).roll(1, -1) > p
    gone_NV[..., :at_least] = False
    return logits_NV.masked_fill(torch.empty_like(gone_NV).scatter_(-1, order_NV, gone_NV), -torch.inf)


def filter_logits(logits_NV: Tensor, config: GenerationConfig, *, at_least: int = 1) -> Tensor:
    """Temperature, then top-k, then nucleus. The filters keep at_least tokens."""
    logits_NV = logits_NV / config.temperature
    if config.top_k is not None:
        logits_NV = keep_top_k(logits_NV, config.top_k, at_least=at_least)
    if config.top_p is not None:
        logits_NV = keep_nucleus(logits_NV, config.top_p, at_least=at_least)
    return logits_NV


def draw(probability_NV: Tensor, uniform_N: Tensor) -> Tensor:
    """Draw a token id for each row: the first one whose running sum of probabilities exceeds the number in [0, 1)."""
    running_NV = probability_NV.double().cumsum(-1)
    return torch.searchsorted(running_NV, uniform_N.double()[:, None] * running_NV[:, -1:], right=True)[:, 0]


def sample(
    decoder: GatedGpt2, visual_BMD: Tensor, config: GenerationConfig, *, generator: Generators = None
) -> Narrations:
    """Sample texts; the result says how likely and how uncertain each is.

    generator: one for all clips, or one for each, so that a clip's texts do not depend on the other clips. Random
    numbers are drawn on its device.
    """
    clips, steps, end = len(visual_BMD), config.max_length - 1, decoder.config.end_token
    sequences = clips * config.num_return_sequences
    uniform_NL = _uniform(clips, (config.num_return_sequences, steps), generator).to(visual_BMD.device).flatten(0, 1)
    seen, cache = decoder.look(visual_BMD), decoder.new_cache(sequences, config.max_length)
    tokens_NL = visual_BMD.new_full((sequences, config.max_length), end, dtype=torch.long)
    nll_NL = torch.zeros_like(tokens_NL[:, 1:], dtype=torch.promote_types(cache.blocks[0][0].dtype, torch.float32))
    entropy_NL = torch.zeros_like(nll_NL)
    row_N = torch.arange(sequences, device=visual_BMD.device)  # of the sequences that are being written
    token_N = tokens_NL[:, 0]
    for step in range(steps):
        logits_NV = _exact(decoder(token_N[:, None], seen, cache)[:, -1])
        token_N = draw(softmax(filter_logits(logits_NV, config), dim=-1), uniform_NL[row_N, step])
        log_NV = log_softmax(logits_NV, dim=-1)
        tokens_NL[row_N, step + 1] = token_N
        nll_NL[row_N, step] = -log_NV.gather(1, token_N[:, None])[:, 0]
        entropy_NL[row_N, step] = torch.special.entr(log_NV.exp()).sum(-1)
        going_N = token_N != end
        if not config.early_stopping or bool(going_N.all()):
            continue
        rows_N = survivors(going_N)
        if not len(rows_N):
            tokens_NL = tokens_NL[:, : step + 2]
            break
        seen.take(rows_N, len(row_N))
        cache.take(rows_N)
        row_N, token_N = row_N[rows_N], token_N[rows_N]
    steps = tokens_NL.shape[1] - 1
    return _sampled(tokens_NL, nll_NL[:, :steps], entropy_NL[:, :steps], clips=clips, end=end)


def _sampled(tokens_NL: Tensor, nll_NL: Tensor, entropy_NL: Tensor, *, clips: int, end: int) -> Narrations:
    """The narrations of sampled sequences: every value counts up to the one of the end token."""
    lengths_N = text_lengths(tokens_NL, end)
    counted_NL = torch.arange(nll_NL.shape[1], device=nll_NL.device) <= lengths_N[:, None]
    nll_NL, entropy_NL = nll_NL * counted_NL, entropy_NL * counted_NL
    nll_N, entropy_N = (x_NL.sum(1) / counted_NL.sum(1) for x_NL in (nll_NL, entropy_NL))
    tokens, lengths, nll, entropy, step_nll, step_entropy = (
        torch.unflatten(x, 0, (clips, -1)) for x in (tokens_NL, lengths_N, nll_N, entropy_N, nll_NL, entropy_NL)
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
    nll_BL = cross_entropy(_exact(logits_BLV).transpose(1, 2), labels_BL, ignore_index=pad, reduction="none")
    nll_B = nll_BL.sum(1) / (labels_BL != pad).sum(1).clamp(min=1)  # 0 for a text without tokens
    lengths_B = text_lengths(top1_BL, end)
    return Narrations(tokens=top1_BL[:, None], lengths=lengths_B[:, None], nll=nll_B[:, None], step_nll=nll_BL[:, None])


def beam_search(
    decoder: GatedGpt2, visual_BMD: Tensor, config: GenerationConfig, *, generator: Generators = None
) -> Narrations:
    """The likeliest texts that beam search finds, best first by `beam_score`.

    Each group searches alone, and all groups share one pool. As in the reference there is no penalty on likeness, so
    the groups find the same texts. With a temperature, top_k or top_p, beams are drawn instead (see `_drawn`).
    generator: as in `sample`.
    """
    clips, groups, width = len(visual_BMD), config.num_beam_groups, config.num_beams // config.num_beam_groups
    end, device = decoder.config.end_token, visual_BMD.device
    tokens_NL = visual_BMD.new_full((clips * config.num_beams, 1), end, dtype=torch.long)
    seen, cache = decoder.look(visual_BMD), decoder.new_cache(len(tokens_NL), config.max_length)
    score_BGW = torch.full((clips, groups, width), UNSTARTED, dtype=torch.float64, device=device)
    score_BGW[:, :, 0] = 0.0
    pools = [_Pool(config) for _ in range(clips)]
    searching = list(range(clips))
    while searching and tokens_NL.shape[1] < config.max_length:
        logits_NV = _exact(decoder(tokens_NL[:, -1:], seen, cache)[:, -1])
        total_BGWV = score_BGW[..., None] + log_softmax(logits_NV, dim=-1).unflatten(0, (-1, groups, width))
        best_BGX, index_BGX = _candidates(total_BGWV, logits_NV, config, _of(generator, searching))
        first_row_BG1 = torch.arange(len(searching) * groups, device=device).view(-1, groups, 1) * width
        row_BGX = first_row_BG1 + index_BGX // total_BGWV.shape[-1]
        token_BGX = index_BGX % total_BGWV.shape[-1]
        ends_BGX = token_BGX == end
        _collect([pools[clip] for clip in searching], tokens_NL, ends_BGX, best_BGX, row_BGX)
        going_BGW = ends_BGX.int().argsort(dim=-1, stable=True)[..., :width]
        # Clips whose pools are done leave the batch.
        left = [place for place, clip in enumerate(searching) if not pools[clip].done]
        searching = [searching[place] for place in left]
        left_B = torch.tensor(left, dtype=torch.long, device=device)
        score_BGW = best_BGX.gather(-1, going_BGW)[left_B]
        rows_N, token_N = (x_BGX.gather(-1, going_BGW)[left_B].flatten() for x_BGX in (row_BGX, token_BGX))
        if len(rows_N):
            seen.take(rows_N, len(tokens_NL))
            cache.take(rows_N)
        tokens_NL = torch.cat([tokens_NL[rows_N], token_N[:, None]], dim=1)
    texts = torch.unflatten(tokens_NL, 0, (len(searching), -1)).tolist() if searching else []
    for clip, rows, scores in zip(searching, texts, score_BGW.flatten(1).tolist(), strict=True):
        for text, log_probability in zip(rows, scores, strict=True):
            pools[clip].add(text, log_probability)
    return _best(pools, decoder, visual_BMD.device)


def _candidates(
    total_BGWV: Tensor, logits_NV: Tensor, config: GenerationConfig, generator: Generators
) -> tuple[Tensor, Tensor]:
    """The log-probabilities and the indices (beam * V + token) of the texts with which each group goes on, best first.

    They are twice as many as beams: enough are left even if the best token of every beam ends it. Where the
    configuration samples, they are drawn without replacement with probabilities in proportion to
    exp(total / temperature), among the tokens that the filters keep. The draw takes the largest sums of that and
    Gumbel noise (Kool et al. 2019, "Stochastic Beams and Where to Find Them"). The reference applies the temperature to
    the running total again at each step, so that it compounds; here it counts once.
    """
    width = total_BGWV.shape[2]
    if not config.samples:
        best, index = total_BGWV.flatten(2).topk(2 * width)
        return best, index
    # Two tokens of each beam stay, so that 2 * width candidates exist even if one beam is all there is ...
    kept_NV = filter_logits(logits_NV, config, at_least=2).isfinite()
    noise = _uniform(len(total_BGWV), tuple(total_BGWV.shape[1:]), generator).to(total_BGWV.device).double()
    gumbel = -(-noise.clamp(min=1e-12).log()).log()
    key = (total_BGWV / config.temperature + gumbel).masked_fill(~kept_NV.view(total_BGWV.shape), -torch.inf)
    index = key.flatten(2).topk(2 * width).indices
    best, order = total_BGWV.flatten(2).gather(-1, index).sort(dim=-1, descending=True, stable=True)
    return best, index.gather(-1, order)


class _Pool:
    """The best finished texts of one clip."""

    def __init__(self, config: GenerationConfig) -> None:
        self.config = config
        self.texts: list[tuple[float, float, list[int]]] = []  # score, log-probability, tokens without the end token
        self.done = False

    def add(self, text: list[int], log_probability: float) -> None:
        self.texts.append((self._score(log_probability, len(text)), log_probability, text))
        self.texts = sorted(self.texts, key=lambda entry: -entry[0])[: self.config.num_beams]

    def close(self, best_log_probability: float, length: int) -> None:
        """The clip is done when its best unfinished text, at its present length, is no better than the pool's worst."""
        full = len(self.texts) == self.config.num_beams
        self.done = full and self.texts[-1][0] >= self._score(best_log_probability, length)

    def _score(self, log_probability: float, length: int) -> float:
        return log_probability / length**self.config.length_penalty


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


def _best(pools: list[_Pool], decoder: GatedGpt2, device: torch.device) -> Narrations:
    """The best texts of every pool, unfinished ones included, each followed by an end token and pad tokens."""
    config = pools[0].config
    chosen = [pool.texts[: config.num_return_sequences] for pool in pools]
    length = min(config.max_length, 1 + max(len(text) for texts in chosen for *_, text in texts))
    end, pad = decoder.config.end_token, decoder.config.pad_token
    rows = [[(text + [end] + [pad] * length)[:length] for *_, text in texts] for texts in chosen]
    # Tokens that count: the beginning does not, the end does if it is there.
    nll = [[-log / (len(text) - (len(text) == config.max_length)) for _, log, text in texts] for texts in chosen]
    return Narrations(
        tokens=torch.tensor(rows, device=device),
        lengths=torch.tensor([[len(text) - 1 for *_, text in texts] for texts in chosen], device=device),
        nll=torch.tensor(nll, device=device),
        beam_score=torch.tensor([[score for score, *_ in texts] for texts in chosen], device=device),
    )


def _uniform(clips: int, shape: tuple[int, ...], generator: Generators) -> Tensor:
    """Random numbers in [0, 1), float64 [clips, *shape]."""
    if generator is None or isinstance(generator, torch.Generator):
        device = generator.device if generator is not None else "cpu"
        return torch.rand(clips, *shape, generator=generator, device=device, dtype=torch.float64)
    if len(generator) != clips:
        raise ValueError(f"{len(generator)} generators for {clips} clips: give one for each, or one for all")
    return torch.stack([torch.rand(shape, generator=one, device=one.device, dtype=torch.float64) for one in generator])


def _of(generator: Generators, clips: list[int]) -> Generators:
    """The generators of some of the clips."""
    if generator is None or isinstance(generator, torch.Generator):
        return generator
    return [generator[clip] for clip in clips]


def _exact(logits: Tensor) -> Tensor:
    """The logits in float32 or better, since sums over the vocabulary lose too much in half precision."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
