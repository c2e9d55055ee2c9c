"""How texts are chosen: the filters against figures of the reference, the draws, the work that each step does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import log_softmax, softmax

from lavila.models.beams import beam_search
from lavila.models.generation import (
    ClipWriter,
    GenerationConfig,
    clip_generators,
    decoder_type,
    draw,
    filter_logits,
    keep_nucleus,
    keep_top_k,
    sample,
)
from lavila.models.generation import score as score_texts
from tests.golden_files import GOLDEN, golden_json
from tests.models.tiny_decoder import END, VOCABULARY, decoder_of, score_all

TIED_ROW = 5  # logits with equals: which of them a nucleus cuts off depends on how the reference's sort left them


@pytest.mark.parametrize("case", sorted(golden_json("models/sampling_filters")))
def test_filters_equal_the_reference(case: str) -> None:
    golden, options = (
        load_file(GOLDEN / "models/sampling_filters.safetensors"),
        golden_json("models/sampling_filters")[case],
    )
    at_least = 2 if options["num_beams"] > 1 else 1
    logits = golden["in.logits"] / options.get("temperature", 1.0)
    if "top_k" in options:
        logits = keep_top_k(logits, options["top_k"], at_least=at_least)
    if "top_p" in options:
        logits = keep_nucleus(logits, options["top_p"], at_least=at_least)
    theirs, probabilities = golden[f"out.{case}.logits"], golden[f"out.{case}.probs"]
    assert logits.isfinite().sum(1).tolist() == options["kept"]
    assert torch.equal(logits[:TIED_ROW], theirs[:TIED_ROW])
    assert torch.equal(logits[TIED_ROW].sort().values, theirs[TIED_ROW].sort().values)
    torch.testing.assert_close(softmax(logits, -1)[:TIED_ROW], probabilities[:TIED_ROW], rtol=1e-6, atol=1e-7)
    if at_least == 1:
        chosen = {name: options[name] for name in ("temperature", "top_k", "top_p") if name in options}
        assert torch.equal(filter_logits(golden["in.logits"], GenerationConfig(**chosen)), logits)


def test_draws_follow_the_probabilities_and_never_take_what_is_removed() -> None:
    probability = torch.tensor([0.0, 0.5, 0.0, 0.3, 0.2, 0.0])
    uniform = torch.rand(20000, generator=torch.Generator().manual_seed(0))
    tokens = draw(probability.expand(len(uniform), -1), uniform)
    shares = torch.bincount(tokens, minlength=6) / len(uniform)
    torch.testing.assert_close(shares, probability, rtol=0, atol=0.02)
    edges = torch.tensor([0.0, 0.49999, 0.5, 0.79999, 0.8, 1 - 2.0**-24])
    assert draw(probability.expand(6, -1), edges).tolist() == [1, 1, 3, 3, 4, 4]


def test_sampled_tokens_follow_the_decoder() -> None:
    decoder, visual = decoder_of(), torch.randn(1, 3, 16)
    config = GenerationConfig(max_length=2, num_return_sequences=4000, temperature=0.7, top_p=0.9, early_stopping=False)
    with torch.no_grad():
        found = sample(ClipWriter(decoder, visual), config, generator=torch.Generator().manual_seed(0))
        logits = decoder(torch.tensor([[END]]), decoder.look(visual))[:, 0]
    wanted = softmax(filter_logits(logits, config), -1)[0]
    assert 2 < (wanted > 0).sum() < VOCABULARY
    shares = torch.bincount(found.tokens[0, :, 1], minlength=VOCABULARY) / 4000
    torch.testing.assert_close(shares, wanted, rtol=0, atol=0.03)
    assert not shares[wanted == 0].any()
    entropy = -(softmax(logits, -1) * log_softmax(logits, -1)).sum()
    assert found.entropy is not None
    torch.testing.assert_close(found.entropy, entropy.double().expand(1, 4000), rtol=1e-5, atol=1e-6)
    surprise = -log_softmax(logits, -1).double()[0, found.tokens[0, :, 1]]
    torch.testing.assert_close(found.nll[0], surprise, rtol=1e-5, atol=1e-6)


def test_a_seed_gives_the_same_texts_and_one_for_each_clip_frees_them_of_their_neighbours() -> None:
    decoder, visual = decoder_of(), torch.randn(3, 3, 16)
    config = GenerationConfig(max_length=20, num_return_sequences=4, early_stopping=False)

    def texts(clips: list[int], seeds: int | list[int]) -> Tensor:
        one = torch.Generator
        generator = one().manual_seed(seeds) if isinstance(seeds, int) else [one().manual_seed(seed) for seed in seeds]
        with torch.no_grad():
            return sample(ClipWriter(decoder, visual[clips]), config, generator=generator).tokens

    assert torch.equal(texts([0, 1, 2], 5), texts([0, 1, 2], 5))
    assert not torch.equal(texts([0, 1, 2], 5), texts([0, 1, 2], 6))
    together = texts([0, 1, 2], [7, 8, 9])
    assert torch.equal(texts([2, 0], [9, 7]), together[[2, 0]])
    assert not torch.equal(together[0, 0], together[0, 1])
    with pytest.raises(ValueError, match=r"2 generators.*3 clips"):
        texts([0, 1, 2], [7, 8])


def test_early_stopping_leaves_the_texts_and_scores_as_they_were() -> None:
    decoder, visual = decoder_of(end_bias=2.0), torch.randn(2, 3, 16)
    with torch.no_grad():
        long, short = (
            sample(
                ClipWriter(decoder, visual),
                GenerationConfig(max_length=32, num_return_sequences=3, early_stopping=stop),
                generator=torch.Generator().manual_seed(1),
            )
            for stop in (False, True)
        )
    longest = int(short.lengths.max())
    assert long.tokens.shape[2] == 32 > short.tokens.shape[2] == longest + 2
    assert short.lengths.min() < longest
    assert long.ids() == short.ids()
    # The last token is there: every text is followed by its end token.
    assert (short.tokens.gather(2, short.lengths[..., None] + 1) == END).all()
    torch.testing.assert_close(long.nll, short.nll)
    torch.testing.assert_close(long.entropy, short.entropy)


def test_a_clip_has_generators_by_its_id_and_the_seed_alone() -> None:
    def numbers(seed: int, ids: list[str]) -> list[list[float]]:
        return [torch.rand(3, generator=one).tolist() for one in clip_generators(seed, ids)]

    first = numbers(1, ["a", "b", "c"])
    assert numbers(1, ["c", "a"]) == [first[2], first[0]]
    assert len({tuple(row) for row in first + numbers(2, ["a", "b", "c"])}) == 6


def test_a_step_computes_one_token_and_a_clip_is_looked_at_once() -> None:
    decoder, visual = decoder_of(), torch.randn(2, 3, 16)
    steps: list[tuple[int, ...]] = []
    looks: list[tuple[int, ...]] = []
    decoder.transformer.wte.register_forward_hook(lambda _, inputs, __: steps.append(tuple(inputs[0].shape)))
    for block in decoder.blocks:
        block.crossattention.c_attn.register_forward_hook(lambda _, inputs, __: looks.append(tuple(inputs[0].shape)))
    with torch.no_grad():
        sample(
            ClipWriter(decoder, visual), GenerationConfig(max_length=9, num_return_sequences=5, early_stopping=False)
        )
        assert steps == [(10, 1)] * 8
        assert looks == [(2, 3, 16)] * 2
        steps.clear(), looks.clear()
        beam_search(ClipWriter(decoder, visual), GenerationConfig(max_length=9, num_beams=4))
        assert {(8, 1)} <= set(steps) <= {(8, 1), (4, 1)}  # a clip leaves when its search is done
        assert looks == [(2, 3, 16)] * 2


def test_texts_leave_the_batch_when_they_end_and_are_the_same_in_any_batch() -> None:
    """No draw here is so close to a border that the last bits of products decide it; see `sample`."""
    decoder, visual, ids = decoder_of(end_bias=1.5), torch.randn(16, 3, 16), [f"clip {number}" for number in range(16)]
    config = GenerationConfig(max_length=30, num_return_sequences=5, temperature=0.9, top_p=0.95)
    rows: list[int] = []
    decoder.transformer.wte.register_forward_hook(lambda _, inputs, __: rows.append(len(inputs[0])))

    def texts(clips: list[int]) -> list[list[list[int]]]:
        generator = clip_generators(3, [ids[clip] for clip in clips])
        with torch.no_grad():
            return sample(ClipWriter(decoder, visual[clips]), config, generator=generator).ids()

    together = texts(list(range(16)))
    lengths = [len(text) for clip in together for text in clip]
    # A text of n tokens takes n + 1 steps, for its end token, unless it is cut.
    assert rows == [sum(length >= step for length in lengths) for step in range(len(rows))]
    assert rows[0] == 80 and rows[-1] < 8 and len(set(rows)) > 8
    assert [texts([clip])[0] for clip in range(16)] == together
    assert texts([9, 2, 13]) == [together[clip] for clip in (9, 2, 13)]


def test_cached_generation_equals_the_prefix_read_anew() -> None:
    decoder, visual = decoder_of(end_bias=1.0), torch.randn(4, 3, 16)
    with torch.no_grad():
        found = sample(ClipWriter(decoder, visual), GenerationConfig(max_length=20, top_k=1))
        steps: list[Tensor] = []
        texts = torch.full((4, 1), END)
        for _ in range(19):
            steps.append(decoder(texts, decoder.look(visual))[:, -1])
            texts = torch.cat([texts, steps[-1].argmax(-1, keepdim=True)], 1)
        writer = ClipWriter(decoder, visual)
        writer.start(4, 20)
        for place, logits in enumerate(steps):
            torch.testing.assert_close(writer.step(texts[:, place]), logits, rtol=0, atol=1e-4)
    for row, text in zip(texts.tolist(), found.ids(), strict=True):
        assert text[0] == row[1 : row.index(END, 1) if END in row[1:] else None]


def test_bfloat16_only_where_the_device_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for has, wanted in (({"amx_bf16": True}, torch.bfloat16), ({"avx512_f": True}, torch.float32)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda has=has: has)
        assert decoder_type("cpu") == wanted


def test_bfloat16_weights_write_texts_and_scores_of_full_precision() -> None:
    decoder, visual = decoder_of(end_bias=1.0).to(torch.bfloat16), torch.randn(2, 3, 16)
    with torch.no_grad():
        found = sample(ClipWriter(decoder, visual), GenerationConfig(max_length=9, num_return_sequences=3))
    assert found.nll.dtype == torch.float64 and found.nll.isfinite().all()


def test_padding_is_left_out_of_scores() -> None:
    decoder, visual = decoder_of(), torch.randn(2, 3, 16)
    target = torch.tensor([[END, 3, 4, END, 0, 0], [END, 3, 4, 5, 6, END]])
    with torch.no_grad():
        found = score_texts(decoder, visual, target, teacher_forcing=True)
        alone = score_texts(decoder, visual[:1], target[:1, :4], teacher_forcing=True)
    assert found.step_nll is not None
    assert found.step_nll[0, 0, 3:].tolist() == [0, 0]
    torch.testing.assert_close(found.nll[:1], alone.nll)
    assert alone.nll[0, 0].item() * 3 == pytest.approx(score_all(decoder, visual[:1], target[:1, :4]).item(), rel=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature=0.0.*top_k=1"),
        ({"top_k": 0}, "top_k=0"),
        ({"top_p": 1.5}, "top_p=1.5"),
        ({"max_length": 1}, "max_length=1"),
        ({"num_return_sequences": 0}, "num_return_sequences=0"),
        ({"num_beams": 4, "num_beam_groups": 3}, "num_beams=4.*num_beam_groups=3"),
        ({"num_beams": 2, "num_return_sequences": 3}, "2 beams"),
        ({"num_beams": 2, "diversity_penalty": 0.5}, "diversity_penalty=0.5.*num_beam_groups=1"),
        ({"num_beams": 4, "num_beam_groups": 2, "top_p": 0.9}, "num_beam_groups=2.*top_p=0.9"),
    ],
)
def test_options_that_exclude_one_another_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GenerationConfig(**options)
