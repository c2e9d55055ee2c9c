"""What tasks with a dual encoder share: fresh models, tokens, features, facts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from lavila.models.dual_encoder import ClipDualEncoder, DistilBertDualEncoder
from lavila.models.timesformer import TimeSformer
from lavila.tasks import ModelParts, TaskError, Temperature
from lavila.tasks.dual_encoders import DualEncoderKind, Encoders, make_tokenizer
from lavila.tasks.tables import Tables
from tests.tasks.dual import TEXT, tiny_model, tiny_options, tiny_tower, word_batch

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "take", "plate", "put", "cup"]
TEXTS = ["take plate", "put cup", "take the blue cup", "#C C holds on", "a"]


@pytest.fixture
def vocabulary(tmp_path: Path) -> str:
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    return str(tmp_path)


def test_the_facts_are_how_words_become_tokens() -> None:
    kind, tables = DualEncoderKind(), Tables(of="here")
    ours = kind.facts(tiny_options(), tables)
    assert ours == {"tokenizer": "clip", "context_length": 16}
    bert = kind.facts(tiny_options(text=replace(TEXT, kind="distilbert")), tables)
    kind.check(ours, ours, of="here", wanted_by="there")
    kind.check(ours, {}, of="here", wanted_by="a published file")
    with pytest.raises(TaskError, match=r"tokenizer clip.*there.*tokenizer bert"):
        kind.check(ours, bert, of="here", wanted_by="there")
    with pytest.raises(TaskError, match=r"context_length 16.*there.*context_length 77"):
        kind.check(ours, {"context_length": 77}, of="here", wanted_by="there")


@pytest.mark.parametrize("kind", ["clip", "distilbert"])
def test_features_of_texts_do_not_depend_on_blocks_or_on_what_stands_beside(kind: str, vocabulary: str) -> None:
    text = replace(TEXT, kind=kind, vocabulary=vocabulary, init="random")  # type: ignore[arg-type]
    options = tiny_options(text=text)
    encoders = Encoders(tiny_model(options), options)
    found = encoders.texts(TEXTS)
    assert found.shape == (5, 8) and torch.allclose(found.norm(dim=1), torch.ones(5))
    alone = torch.cat([encoders.texts([text]) for text in TEXTS])
    assert torch.allclose(found, alone, atol=1e-6)
    padded = make_tokenizer(text)(TEXTS)
    whole = nn.functional.normalize(encoders.inner.encode_text(padded.ids, padded.mask), dim=-1)  # type: ignore[operator]
    assert torch.allclose(found, whole, atol=1e-6)  # padding changes nothing
    assert encoders.tokens(TEXTS)[0].shape[1] < 16


def test_features_of_views_have_a_row_for_each_view() -> None:
    batch = word_batch([["a"]] * 3, views=2)
    for size in (1, 4, 16):
        options = tiny_options(view_batch_size=size)
        found = Encoders(tiny_model(), options).views(batch.video)
        assert found.shape == (3, 2, 8) and torch.allclose(found.norm(dim=2), torch.ones(3, 2))
    assert Encoders(tiny_model(), tiny_options()).views(batch.video[:0]).shape == (0, 2, 8)


def test_a_batch_without_a_clip_reaches_all_parameters() -> None:
    model = tiny_model()
    found = Encoders(model, tiny_options()).pairs(torch.zeros(0, 3, 2, 16, 16), [])
    assert found["video_embed"].shape == found["text_embed"].shape == (0, 8)
    (found["video_embed"].sum() + found["text_embed"].sum() + 0 * found["temperature_scale"]).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_only_a_dual_encoder_with_the_right_vocabulary_will_do(vocabulary: str) -> None:
    with pytest.raises(TaskError, match="TimeSformer"):
        Encoders(tiny_tower(), tiny_options())
    options = tiny_options(text=replace(TEXT, kind="distilbert", vocabulary=vocabulary, init="random"))
    model = tiny_model(options)
    assert isinstance(model, DistilBertDualEncoder) and model.vocabulary == len(WORDS)
    Path(vocabulary, "vocab.txt").write_text("\n".join([*WORDS, "more"]) + "\n")
    with pytest.raises(TaskError, match=r"10 ids.*takes 9 ids"):
        Encoders(model, options)
    with pytest.raises(TaskError, match=r"texts of 77 tokens.*16 tokens"):
        Encoders(tiny_model(), tiny_options(text=replace(TEXT, context=77)))


def test_a_model_to_start_from_is_taken_over_whole() -> None:
    start, tower = tiny_model(seed=1), tiny_tower(drop_path=0.2, gradient_checkpointing=True)
    tower.load_state_dict(start.visual.state_dict())
    options = tiny_options(gradient_checkpointing=True, temperature=Temperature(start=0.5))
    model = DualEncoderKind().model(ModelParts(tower=tower, start=start), {}, options)
    assert isinstance(model, ClipDualEncoder)
    assert model.visual.config == tower.config and model.transformer.config.gradient_checkpointing
    ours = model.state_dict()
    assert all(torch.equal(tensor, ours[name]) for name, tensor in start.state_dict().items())
    with pytest.raises(TaskError, match=r"model\.embed_dim=9.*model\.embed_dim=8"):
        DualEncoderKind().model(ModelParts(tower=tower, start=start), {}, replace(options, embed_dim=9))
    wider = replace(options, text=replace(TEXT, width=32))
    with pytest.raises(TaskError, match=r"model\.text\.width=32.*model\.text\.width=16"):
        DualEncoderKind().model(ModelParts(tower=tower, start=start), {}, wider)


def test_a_tower_alone_gets_a_fresh_text_tower() -> None:
    tower = tiny_tower()
    for start in (None, TimeSformer(tower.config)):
        model = DualEncoderKind().model(ModelParts(tower=tower, start=start), {}, tiny_options())
        assert model.visual is tower and not model.logit_scale.requires_grad
        assert float(model.temperature_scale()) == pytest.approx(1 / 0.07)


def test_weights_of_a_distilbert_that_are_not_there_are_named(vocabulary: str) -> None:
    text = replace(TEXT, kind="distilbert", vocabulary=vocabulary, init=f"{vocabulary}/none")
    with pytest.raises(TaskError, match=r"model\.text\.init=.*none"):
        tiny_model(tiny_options(text=text))
