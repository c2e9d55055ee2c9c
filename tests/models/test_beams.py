"""Beam search: the likeliest text, beams that are drawn, and groups of beams that pay for what others chose."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.nn.functional import softmax

from lavila.models.beams import beam_search
from lavila.models.generation import ClipWriter, GenerationConfig, clip_generators, filter_logits
from tests.models.tiny_decoder import END, VOCABULARY, decoder_of, score_all


def test_drawn_beams_follow_the_decoder() -> None:
    """One step of two beams from one start: the pair of tokens is drawn without replacement."""
    decoder, visual = decoder_of(), torch.randn(1, 3, 16)
    config = GenerationConfig(max_length=2, num_beams=2, num_return_sequences=2, temperature=0.7, top_p=0.8)
    clips = 3000
    with torch.no_grad():
        many = visual.expand(clips, -1, -1)
        found = beam_search(ClipWriter(decoder, many), config, generator=torch.Generator().manual_seed(0))
        logits = decoder(torch.tensor([[END]]), decoder.look(visual))[:, 0]
    kept = softmax(filter_logits(logits, config, at_least=2), -1)[0]
    assert 4 <= (kept > 0).sum() < VOCABULARY
    # Four candidates are drawn, and the two likeliest are kept. So count the sets of four by their likeliest pair.
    shares = torch.zeros(VOCABULARY)
    names = kept.nonzero()[:, 0].tolist()
    for drawn in itertools.permutations(names, 4):
        chance, left = 1.0, 1.0
        for token in drawn:
            chance, left = chance * float(kept[token]) / left, left - float(kept[token])
        for token in sorted((token for token in drawn), key=lambda token: -float(kept[token]))[:2]:
            shares[token] += chance
    first = found.tokens[..., 1].flatten()
    torch.testing.assert_close(torch.bincount(first, minlength=VOCABULARY) / clips, shares, rtol=0, atol=0.04)


def test_drawn_beams_depend_on_the_clip_and_seed_alone() -> None:
    decoder, visual, ids = decoder_of(end_bias=1.0), torch.randn(5, 3, 16), ["a", "b", "c", "d", "e"]
    config = GenerationConfig(max_length=12, num_beams=3, num_return_sequences=2, temperature=0.8, top_k=6)

    def texts(clips: list[int], seed: int = 0) -> list[list[list[int]]]:
        generator = clip_generators(seed, [ids[clip] for clip in clips])
        with torch.no_grad():
            return beam_search(ClipWriter(decoder, visual[clips]), config, generator=generator).ids()

    together = texts([0, 1, 2, 3, 4])
    assert texts([3, 0]) == [together[3], together[0]]
    assert texts([0, 1, 2, 3, 4], seed=1) != together
    with torch.no_grad():
        found = beam_search(ClipWriter(decoder, visual), config, generator=clip_generators(0, ids))
        for clip in range(5):
            for text, value in zip(found.ids()[clip], found.nll[clip].tolist(), strict=True):
                whole = torch.tensor([[END, *text, END]])[:, :12]
                wanted = score_all(decoder, visual[clip : clip + 1], whole).item() / (whole.shape[1] - 1)
                assert value == pytest.approx(wanted, rel=1e-5)


def test_a_penalty_makes_the_groups_of_beams_differ() -> None:
    decoder, visual = decoder_of(end_bias=-5.0), torch.randn(2, 3, 16)
    same = {"num_beams": 6, "num_beam_groups": 3, "num_return_sequences": 6, "max_length": 5}

    def first_tokens(penalty: float) -> int:
        with torch.no_grad():
            found = beam_search(ClipWriter(decoder, visual), GenerationConfig(**same, diversity_penalty=penalty))
        return len({text[0] for text in found.ids()[0]})

    assert first_tokens(0.0) < first_tokens(50.0)
    assert first_tokens(50.0) >= 3


def test_wide_enough_beams_find_the_likeliest_text() -> None:
    decoder, visual = decoder_of(end_bias=1.0), torch.randn(1, 3, 16)
    words = torch.arange(VOCABULARY - 1)
    texts = torch.cartesian_prod(torch.tensor([END]), words, words, words)
    with torch.no_grad():
        nll = score_all(decoder, visual, texts)
        config = GenerationConfig(max_length=4, num_beams=VOCABULARY**2, num_return_sequences=2, length_penalty=0.0)
        found = beam_search(ClipWriter(decoder, visual), config)
    assert found.beam_score is not None
    surprise = -found.beam_score[0]
    ended = found.tokens[0] == END
    for tokens, ends, value in zip(found.tokens[0], ended, surprise, strict=True):
        if ends.sum() == 1:  # a text of full length
            row = (texts == tokens).all(1).nonzero().item()
            assert value.item() == pytest.approx(nll[int(row)].item(), rel=1e-5)
    assert surprise[0] <= surprise[1]
    assert surprise[0] <= nll.min() + 1e-5
    with torch.no_grad():  # the mean over a text's tokens and its end token
        for text, mean, value in zip(found.ids()[0], found.nll[0], surprise, strict=True):
            tokens = torch.tensor([[END, *text, END]])[:, :4]
            assert mean.item() == pytest.approx(value.item() / (tokens.shape[1] - 1), rel=1e-5)
            assert value.item() == pytest.approx(score_all(decoder, visual, tokens).item(), rel=1e-5)
