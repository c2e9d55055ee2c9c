"""Beam search for any `Writer`: the likeliest texts, beams that are drawn, and groups of beams that differ.

Shape suffixes of names: B clips that are being searched, N sequences, L tokens of a sequence with the beginning token,
V vocabulary, G groups of beams, W beams of a group, X candidates of a group.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from lavila.models.generation import GenerationConfig, Generators, Narrations, Writer, filter_logits, uniform

UNSTARTED = -1e9  # the log-probability of beams that do not exist yet


def beam_search(writer: Writer, config: GenerationConfig, *, generator: Generators = None) -> Narrations:
    """The likeliest texts that beam search finds, best first by `beam_score`.

    Each group of beams searches alone, and all groups share one pool of texts. With a diversity penalty the groups
    differ (Vijayakumar et al. 2018, "Diverse Beam Search"); `beam_score` then has the penalties in it, and `nll` has
    not. With a temperature, top_k or top_p, beams are drawn at random (see `_drawn`). generator: as in `sample`.
    """
    clips, groups, width = writer.clips, config.num_beam_groups, config.num_beams // config.num_beam_groups
    writer.start(clips * config.num_beams, config.max_length)
    beams = _Beams.at_start(writer, groups, width)
    pools = [_Pool(config) for _ in range(clips)]
    searching = list(range(clips))
    while searching and beams.tokens_NL.shape[1] < config.max_length:
        logits_NV = writer.step(beams.tokens_NL[:, -1])
        if config.samples:
            found = _drawn(beams, logits_NV, config, _of(generator, searching))
        else:
            found = _likeliest(beams, logits_NV, config.diversity_penalty)
        ended_BGX = found.token_BGX == writer.end
        _collect([pools[clip] for clip in searching], beams, found, ended_BGX)
        # Clips whose pools are done leave the batch.
        left = [place for place, clip in enumerate(searching) if not pools[clip].done]
        searching = [searching[place] for place in left]
        going_BGW = ended_BGX.int().argsort(dim=-1, stable=True)[..., :width]
        rows_N, beams = beams.grown(found, going_BGW, torch.tensor(left, dtype=torch.long, device=writer.device))
        if searching:
            writer.take(rows_N)
    texts = beams.tokens_NL.unflatten(0, (len(searching), -1)).tolist() if searching else []
    scores, logs = beams.score_BGW.flatten(1).tolist(), beams.log_BGW.flatten(1).tolist()
    for clip, rows, *values in zip(searching, texts, scores, logs, strict=True):
        for text, score, log in zip(rows, *values, strict=True):
            pools[clip].add(text, score, log)
    return _best(pools, writer)


@dataclass(frozen=True)
class _Beams:
    """The unfinished texts of the clips that are being searched."""

    tokens_NL: Tensor  # N = B * G * W
    score_BGW: Tensor  # running log-probability with the penalties, float64
    log_BGW: Tensor  # running log-probability, float64

    @classmethod
    def at_start(cls, writer: Writer, groups: int, width: int) -> _Beams:
        tokens_NL = torch.full((writer.clips * groups * width, 1), writer.begin, device=writer.device)
        score_BGW = torch.full((writer.clips, groups, width), UNSTARTED, dtype=torch.float64, device=writer.device)
        score_BGW[:, :, 0] = 0.0  # all beams of a group are equal: only one of them begins
        return cls(tokens_NL, score_BGW, score_BGW)

    def grown(self, found: _Found, going_BGW: Tensor, left_B: Tensor) -> tuple[Tensor, _Beams]:
        """The beams with one token more, and the rows from which they come. going: places among the candidates."""
        rows_N, token_N, score_BGW, log_BGW = (
            x_BGX.gather(-1, going_BGW)[left_B]
            for x_BGX in (found.row_BGX, found.token_BGX, found.score_BGX, found.log_BGX)
        )
        rows_N, token_N = rows_N.flatten(), token_N.flatten()
        return rows_N, _Beams(torch.cat([self.tokens_NL[rows_N], token_N[:, None]], dim=1), score_BGW, log_BGW)


@dataclass(frozen=True)
class _Found:
    """The candidates with which each group continues, best first: X = 2 * W of them.

    So enough are left even if the best token of every beam ends it.
    """

    score_BGX: Tensor
    log_BGX: Tensor
    row_BGX: Tensor  # the beam that the candidate extends, among all sequences
    token_BGX: Tensor

    @classmethod
    def of(cls, score_BGX: Tensor, index_BGX: Tensor, log_BGWV: Tensor) -> _Found:
        """index: beam * V + token, in a group."""
        clips, groups, width, tokens = log_BGWV.shape
        first_BG1 = torch.arange(clips * groups, device=index_BGX.device).view(clips, groups, 1) * width
        log_BGX = log_BGWV.flatten(2).gather(-1, index_BGX)
        return cls(score_BGX, log_BGX, first_BG1 + index_BGX // tokens, index_BGX % tokens)


def _likeliest(beams: _Beams, logits_NV: Tensor, penalty: float) -> _Found:
    """The candidates of the highest score, with a penalty for tokens that earlier groups choose in this step."""
    clips, groups, width = beams.score_BGW.shape
    step_BGWV = log_softmax(logits_NV, dim=-1).unflatten(0, (clips, groups, width))
    log_BGWV, score_BGWV = beams.log_BGW[..., None] + step_BGWV, beams.score_BGW[..., None] + step_BGWV
    if not penalty:
        best = score_BGWV.flatten(2).topk(2 * width)
        return _Found.of(best.values, best.indices, log_BGWV)
    taken_BV = torch.zeros(clips, logits_NV.shape[1], dtype=torch.float64, device=logits_NV.device)
    found = []
    for group in range(groups):
        score_BWV = score_BGWV[:, group] - penalty * taken_BV[:, None]
        found.append(score_BWV.flatten(1).topk(2 * width))
        # As Vijayakumar et al. do, count the tokens of the beams of this group that would stay.
        tokens_BW = found[-1].indices[:, :width] % logits_NV.shape[1]
        taken_BV.scatter_add_(1, tokens_BW, torch.ones_like(tokens_BW, dtype=torch.float64))
    return _Found.of(
        torch.stack([best.values for best in found], 1), torch.stack([best.indices for best in found], 1), log_BGWV
    )


def _drawn(beams: _Beams, logits_NV: Tensor, config: GenerationConfig, generator: Generators) -> _Found:
    """Candidates drawn without replacement, then sorted by their score.

    Their probabilities are in proportion to exp(running log-probability / temperature), among the tokens that the
    filters keep. The largest sums of that exponent and Gumbel noise are such a draw (Kool et al. 2019, "Stochastic
    Beams and Where to Find Them"). The reference divides the running total by the temperature again at each step, so
    that it compounds, and its scores are no log-probabilities.
    """
    clips, groups, width = beams.score_BGW.shape
    log_BGWV = beams.log_BGW[..., None] + log_softmax(logits_NV, dim=-1).unflatten(0, (clips, groups, width))
    # Two tokens of each beam stay, so that there are always as many candidates as needed.
    gone_NV = filter_logits(logits_NV, config, at_least=2).isneginf()
    uniform_BGWV = uniform(clips, tuple(log_BGWV.shape[1:]), generator).to(log_BGWV.device)
    key_BGWV = log_BGWV / config.temperature - (-uniform_BGWV.clamp(min=1e-300).log()).log()
    index_BGX = key_BGWV.masked_fill(gone_NV.view_as(key_BGWV), -torch.inf).flatten(2).topk(2 * width).indices
    score_BGX, order_BGX = log_BGWV.flatten(2).gather(-1, index_BGX).sort(dim=-1, descending=True, stable=True)
    return _Found.of(score_BGX, index_BGX.gather(-1, order_BGX), log_BGWV)


class _Pool:
    """The best finished texts of one clip."""

    def __init__(self, config: GenerationConfig) -> None:
        self.config = config
        # Score over length ** length_penalty, log-probability, tokens with the beginning and without the end token.
        self.texts: list[tuple[float, float, list[int]]] = []
        self.done = False

    def add(self, text: list[int], score: float, log_probability: float) -> None:
        self.texts.append((self._by_length(score, len(text)), log_probability, text))
        self.texts = sorted(self.texts, key=lambda entry: -entry[0])[: self.config.num_beams]

    def close(self, best_score: float, length: int) -> None:
        """The clip is done when its best unfinished text, at its present length, is no better than the pool's worst."""
        full = len(self.texts) == self.config.num_beams
        self.done = full and self.texts[-1][0] >= self._by_length(best_score, length)

    def _by_length(self, score: float, length: int) -> float:
        return float(score / length**self.config.length_penalty)


def _collect(pools: list[_Pool], beams: _Beams, found: _Found, ended_BGX: Tensor) -> None:
    """Put ended texts into their clips' pools. Only texts among the best `width` of their group count."""
    width, length = ended_BGX.shape[2] // 2, beams.tokens_NL.shape[1]
    clip_E, group_E, place_E = ended_BGX[..., :width].nonzero(as_tuple=True)
    columns = [x_BGX[clip_E, group_E, place_E].tolist() for x_BGX in (found.score_BGX, found.log_BGX)]
    texts = beams.tokens_NL[found.row_BGX[clip_E, group_E, place_E]].tolist()
    ended: dict[tuple[int, int], list[tuple[list[int], float, float]]] = {}
    for clip, group, text, score, log in zip(clip_E.tolist(), group_E.tolist(), texts, *columns, strict=True):
        ended.setdefault((clip, group), []).append((text, score, log))
    best = found.score_BGX[..., 0].tolist()
    for clip, pool in enumerate(pools):
        for group in range(ended_BGX.shape[1]):
            if pool.done:
                break
            for text, score, log in ended.get((clip, group), []):
                pool.add(text, score, log)
            pool.close(best[clip][group], length + 1)  # the length to which these scores belong


def _best(pools: list[_Pool], writer: Writer) -> Narrations:
    """The best texts of every pool, unfinished ones included, each followed by an end token and pad tokens."""
    config = pools[0].config
    chosen = [pool.texts[: config.num_return_sequences] for pool in pools]
    length = min(config.max_length, 1 + max(len(text) for texts in chosen for *_, text in texts))
    rows = [[(text + [writer.end] + [writer.pad] * length)[:length] for *_, text in texts] for texts in chosen]
    # Tokens that count: the beginning does not, the end does if it is there.
    nll = [[-log / (len(text) - (len(text) == config.max_length)) for _, log, text in texts] for texts in chosen]
    score = [[score for score, *_ in texts] for texts in chosen]
    return Narrations(
        tokens=torch.tensor(rows, device=writer.device),
        lengths=torch.tensor([[len(text) - 1 for *_, text in texts] for texts in chosen], device=writer.device),
        nll=torch.tensor(nll, dtype=torch.float64, device=writer.device),
        beam_score=torch.tensor(score, dtype=torch.float64, device=writer.device),
    )


def _of(generator: Generators, clips: list[int]) -> Generators:
    """The generators of some of the clips."""
    if generator is None or isinstance(generator, torch.Generator):
        return generator
    return [generator[clip] for clip in clips]
