"""Text towers: causality, their start, weights of DistilBERT from a local folder."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from lavila.models.text_tower import (
    CausalAttention,
    ClipTextConfig,
    ClipTextTransformer,
    DistilBertTextConfig,
    distilbert,
    load_distilbert,
)

CLIP = ClipTextConfig(vocab_size=50, context_length=12, width=16, depth=3, heads=4)
BERT = DistilBertTextConfig(vocab_size=50, context_length=12, width=16, depth=2, heads=2, hidden_width=32)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    config = transformers.DistilBertConfig(
        vocab_size=50, max_position_embeddings=12, dim=16, n_layers=2, n_heads=2, hidden_dim=32
    )
    transformers.DistilBertForMaskedLM(config).save_pretrained(tmp_path)  # as the published one: with a head on top
    return tmp_path


def test_attention_equals_torchs_under_a_causal_mask() -> None:
    torch.manual_seed(0)
    ours = CausalAttention(16, heads=4)
    torch.nn.init.normal_(ours.in_proj_bias)
    theirs = torch.nn.MultiheadAttention(16, 4, batch_first=True)
    theirs.load_state_dict(ours.state_dict())  # the same names
    x = torch.randn(3, 7, 16)
    later = torch.ones(7, 7, dtype=torch.bool).triu(1)
    expected, _ = theirs(x, x, x, attn_mask=later, need_weights=False)
    torch.testing.assert_close(ours(x), expected)


def test_a_token_sees_itself_and_those_before_it() -> None:
    model = ClipTextTransformer(CLIP)
    x = torch.randn(1, 6, 16)
    changed = x.clone()
    changed[:, 3] += 1
    with torch.no_grad():
        moved = (model(changed) - model(x)).abs().amax(-1)[0]
    assert moved[:3].max() == 0
    assert moved[3:].min() > 0


def test_the_start_is_clips() -> None:
    torch.manual_seed(0)
    config = ClipTextConfig(width=256, depth=4, heads=4)
    state = ClipTextTransformer(config).state_dict()
    for name, std in (
        ("attn.in_proj_weight", 256**-0.5),
        ("attn.out_proj.weight", (2 * 4 * 256) ** -0.5),
        ("mlp.c_fc.weight", (2 * 256) ** -0.5),
        ("mlp.c_proj.weight", (2 * 4 * 256) ** -0.5),
    ):
        assert state[f"resblocks.2.{name}"].std().item() == pytest.approx(std, rel=0.02), name


def test_distilbert_weights_come_from_a_folder(saved: Path) -> None:
    model = distilbert(BERT).eval()
    load_distilbert(model, saved)
    theirs = transformers.DistilBertModel.from_pretrained(saved).eval()
    tokens, mask = torch.randint(1, 50, (2, 12)), torch.ones(2, 12)
    with torch.no_grad():
        ours = model(tokens, attention_mask=mask, position_ids=torch.arange(12)[None]).last_hidden_state
        assert torch.equal(ours, theirs(tokens, attention_mask=mask).last_hidden_state)


def test_distilbert_weights_that_lack_a_tensor_are_refused(saved: Path) -> None:
    path = saved / "model.safetensors"
    state = load_file(path)
    del state["distilbert.transformer.layer.1.ffn.lin1.weight"]
    save_file(state, path, metadata={"format": "pt"})
    model = distilbert(BERT)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"transformer\.layer\.1\.ffn\.lin1\.weight"):
        load_distilbert(model, saved)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_distilbert_weights_of_another_size_are_refused(saved: Path) -> None:
    other = distilbert(dataclasses.replace(BERT, hidden_width=64))
    with pytest.raises(ValueError, match=r"ffn\.lin1\.weight \[32, 16\].*\[64, 16\]"):
        load_distilbert(other, saved)


def test_distilbert_weights_that_are_nowhere_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    for source in (tmp_path / "nothing", "distilbert-base-uncased-that-is-not-cached"):
        with pytest.raises(ValueError, match=str(source)) as caught:
            load_distilbert(distilbert(BERT), source)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("config", "change", "message"),
    [
        (CLIP, {"heads": 5}, "width=16.*heads=5"),
        (CLIP, {"depth": 0}, "depth=0"),
        (BERT, {"hidden_width": 0}, "hidden_width=0"),
        (BERT, {"dropout": 1.0}, r"dropout=1\.0"),
    ],
)
def test_impossible_configs_are_refused(config: Any, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(config, **change)
