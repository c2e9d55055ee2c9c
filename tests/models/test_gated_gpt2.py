"""The gated GPT-2 by itself: against transformers' GPT-2, its cache, its tied embedding."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from lavila.models.gated_gpt2 import GatedGpt2, GatedGpt2Config, load_gpt2, product

TINY = GatedGpt2Config(
    vocab_size=50, positions=16, width=24, depth=3, heads=2, cross_attention_every=2, end_token=49, dropout=0.0
)


def decoder_of(config: GatedGpt2Config = TINY) -> GatedGpt2:
    """A decoder in which every parameter matters: gates open, biases not zero."""
    torch.manual_seed(0)
    decoder = GatedGpt2(config).eval()
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return decoder


def saved_gpt2(folder: Path, **changes: Any) -> GPT2LMHeadModel:
    torch.manual_seed(1)
    sizes = {"vocab_size": 50, "n_positions": 16, "n_embd": 24, "n_layer": 3, "n_head": 2}
    config = GPT2Config(**(sizes | changes), bos_token_id=49, eos_token_id=49)
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return model


def some_tokens(*shape: int) -> Tensor:
    return torch.randint(0, 50, shape, generator=torch.Generator().manual_seed(2))


def test_with_closed_gates_it_is_the_gpt2_of_transformers(tmp_path: Path) -> None:
    theirs = saved_gpt2(tmp_path)
    decoder = GatedGpt2(TINY).eval()
    load_gpt2(decoder, tmp_path)
    tokens = some_tokens(4, 16)
    with torch.no_grad():
        ours = decoder(tokens, decoder.look(torch.randn(2, 5, 24)))
        torch.testing.assert_close(ours, theirs(tokens).logits, rtol=1e-5, atol=1e-5)


def test_loading_gpt2_leaves_cross_attention_at_its_start(tmp_path: Path) -> None:
    saved_gpt2(tmp_path)
    decoder = decoder_of()
    start = {name: tensor.clone() for name, tensor in decoder.state_dict().items()}
    load_gpt2(decoder, tmp_path)
    kept = {name for name, tensor in decoder.state_dict().items() if torch.equal(tensor, start[name])}
    assert kept == {name for name in start if decoder.is_cross_attention(name)}
    assert {name.split(".")[2] for name in kept} == {"0", "2"}
    assert len(kept) == 2 * 16


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_embd": 32}, r"transformer\.wte\.weight \[50, 32\].*\[50, 24\]"),
        ({"n_layer": 4}, r"transformer\.h\.3\.attn"),
        ({"n_layer": 2}, r"transformer\.h\.2\.attn"),
    ],
)
def test_gpt2_of_other_sizes_is_refused(tmp_path: Path, change: dict[str, int], message: str) -> None:
    saved_gpt2(tmp_path, **change)
    decoder = GatedGpt2(TINY)
    before = decoder.lm_head.weight.clone()
    with pytest.raises(ValueError, match=message):
        load_gpt2(decoder, tmp_path)
    assert torch.equal(decoder.lm_head.weight, before)


def test_gpt2_without_some_weights_is_refused(tmp_path: Path) -> None:
    saved_gpt2(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    gone = next(name for name in weights if name.endswith("h.1.mlp.c_fc.weight"))
    save_file(
        {name: w for name, w in weights.items() if name != gone}, tmp_path / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(ValueError, match=r"transformer\.h\.1\.mlp\.c_fc\.weight"):
        load_gpt2(GatedGpt2(TINY), tmp_path)


def test_gpt2_that_is_not_there_is_named_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere") as caught:
        load_gpt2(GatedGpt2(TINY), tmp_path / "nowhere")
    assert str(tmp_path / "nowhere") in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("first", [1, 5])
def test_cache_gives_what_the_whole_prefix_gives(first: int) -> None:
    decoder, tokens = decoder_of(), some_tokens(6, 16)
    seen = decoder.look(torch.randn(2, 5, 24))
    with torch.no_grad():
        whole = decoder(tokens, seen)
        cache = decoder.new_cache(6, 16)
        steps = [decoder(tokens[:, :first], seen, cache)]
        steps += [decoder(tokens[:, place : place + 1], seen, cache) for place in range(first, 16)]
    torch.testing.assert_close(torch.cat(steps, dim=1), whole, rtol=1e-5, atol=1e-5)
    assert whole.std() > 0.1


def test_cache_reordered_continues_from_other_sequences() -> None:
    decoder, tokens = decoder_of(), some_tokens(4, 8)
    seen = decoder.look(torch.randn(2, 5, 24))
    rows = torch.tensor([1, 1, 3, 2])
    with torch.no_grad():
        cache = decoder.new_cache(4, 8)
        decoder(tokens[:, :7], seen, cache)
        cache.take(rows)
        step = decoder(tokens[rows, 7:], seen, cache)
        torch.testing.assert_close(step[:, 0], decoder(tokens[rows], seen)[:, -1], rtol=1e-5, atol=1e-5)


def test_few_rows_are_multiplied_as_many_are() -> None:
    x, weight, bias = torch.randn(40, 7), torch.randn(5, 7), torch.randn(5)
    with torch.no_grad():
        for rows in (1, 3, 32, 33, 40):
            wanted = x[:rows] @ weight.t()
            torch.testing.assert_close(product(x[:rows], weight), wanted)
            torch.testing.assert_close(product(x[None, :rows], weight, bias), wanted[None] + bias)


def test_weights_lie_by_output_whatever_file_they_come_from() -> None:
    decoder = decoder_of()
    layer = decoder.blocks[0].mlp.c_fc
    assert layer.weight.shape == (24, 96) and layer.weight.t().is_contiguous()
    state = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in decoder.state_dict().items()}
    for assign in (False, True):
        other = GatedGpt2(TINY)
        other.load_state_dict(state, assign=assign)
        weight = other.blocks[0].mlp.c_fc.weight
        assert weight.t().is_contiguous() and torch.equal(weight, layer.weight)


def test_sequences_of_a_clip_see_that_clip() -> None:
    decoder, tokens = decoder_of(), some_tokens(6, 4)
    visual = torch.randn(2, 5, 24)
    with torch.no_grad():
        shared = decoder(tokens, decoder.look(visual))
        torch.testing.assert_close(shared, decoder(tokens, decoder.look(visual.repeat_interleave(3, dim=0))))
        assert not torch.allclose(shared, decoder(tokens, decoder.look(visual.flip(0))))


def test_loading_keeps_the_embedding_tied() -> None:
    state = decoder_of().state_dict()
    assert state["lm_head.weight"].data_ptr() == state["transformer.wte.weight"].data_ptr()
    copies = {name: tensor.clone() for name, tensor in state.items()}
    with torch.device("meta"):
        decoder = GatedGpt2(TINY)
    decoder.load_state_dict(copies, assign=True)
    assert decoder.lm_head.weight is decoder.transformer.wte.weight
    copies["lm_head.weight"][0, 0] += 1
    with pytest.raises(RuntimeError, match=r"lm_head.weight.*transformer.wte.weight"):
        decoder.load_state_dict(copies)


def test_gradient_checkpointing_changes_nothing() -> None:
    tokens, visual = some_tokens(2, 8), torch.randn(2, 5, 24)
    results = []
    for checkpointing in (False, True):
        decoder = decoder_of(dataclasses.replace(TINY, gradient_checkpointing=checkpointing, dropout=0.2)).train()
        calls: list[int] = []
        decoder.blocks[1].ln_1.register_forward_hook(lambda *_: calls.append(1))  # noqa: B023 - used within this turn
        torch.manual_seed(0)  # the recomputed blocks must drop the same channels
        decoder(tokens, decoder.look(visual)).square().mean().backward()
        assert len(calls) == 1 + checkpointing
        results.append({name: parameter.grad for name, parameter in decoder.named_parameters()})
    for name, grad in results[0].items():
        assert grad is not None
        torch.testing.assert_close(results[1][name], grad, rtol=1e-5, atol=1e-7, msg=name)


def test_dropout_only_while_training() -> None:
    decoder, tokens, visual = (
        decoder_of(dataclasses.replace(TINY, dropout=0.5)),
        some_tokens(2, 8),
        torch.randn(2, 5, 24),
    )
    with torch.no_grad():
        seen = decoder.look(visual)
        assert torch.equal(decoder(tokens, seen), decoder(tokens, seen))
        decoder.train()
        assert not torch.equal(decoder(tokens, seen), decoder(tokens, seen))


@pytest.mark.parametrize(("shape", "clips"), [((2, 17), 2), ((3, 4), 2), ((4,), 2), ((2, 0), 2)])
def test_tokens_that_do_not_fit_are_refused(shape: tuple[int, ...], clips: int) -> None:
    decoder = GatedGpt2(TINY)
    with pytest.raises(ValueError, match=r"\[N, L\].*16 tokens"):
        decoder(torch.zeros(shape, dtype=torch.long), decoder.look(torch.randn(clips, 5, 24)))


def test_a_full_cache_takes_no_more_tokens() -> None:
    decoder, tokens = GatedGpt2(TINY).eval(), some_tokens(2, 4)
    seen, cache = decoder.look(torch.randn(2, 5, 24)), decoder.new_cache(2, 4)
    decoder(tokens, seen, cache)
    with pytest.raises(ValueError, match=r"4 tokens"):
        decoder(tokens[:, :1], seen, cache)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": 5}, "width=24.*heads=5"),
        ({"end_token": 50}, "end_token=50.*0 to 49"),
        ({"cross_attention_every": 0}, "cross_attention_every=0"),
        ({"dropout": 1.0}, "dropout=1.0"),
    ],
)
def test_impossible_configs_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **change)
