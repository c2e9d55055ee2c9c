"""How dual encoders are trained: which words a clip gets, which temperature, which parameters learn."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from lavila.losses import contrastive_loss, max_margin_loss, pseudo_label_contrastive_loss
from lavila.records import HUMAN
from lavila.tasks import MarginOptions, ModelParts, Temperature
from lavila.tasks.contrastive import Contrastive
from lavila.tasks.dual_encoders import DualEncoderKind, Encoders
from lavila.tasks.retrieval import Retrieval
from lavila.tasks.tables import Sentences, Tables
from lavila.tasks.training_steps import ContrastiveStep, MaxMarginStep, words_of
from tests.tasks.dual import tiny_model, tiny_options, tiny_tower, word_batch

WORDS = [["take plate"], ["put cup"], ["open fridge", "a hand opens it"], ["wash hands"]]
RELEVANCY = np.float32([[1.0, 0.05, 0.5], [0.0, 1.0, 0.11], [0.0, 0.1, 0.0], [0.5, 0.5, 0.5]])


def retrieval_tables() -> Tables:
    sentences = Sentences(ids=["s0", "s1", "s2"], texts=["take dish", "put mug", "hold both"])
    return Tables(of="here", sentences=lambda: sentences, relevancy=lambda rows: RELEVANCY[rows])


def step(options: Any, batch: Any, **temperatures: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor], Encoders]:
    encoders = Encoders(tiny_model(), options)
    loss, logs = ContrastiveStep(options, Tables(of="here"))(encoders, batch)
    return loss, logs, encoders


def test_the_loss_is_that_of_clips_and_their_words() -> None:
    options, batch = tiny_options(), word_batch(WORDS)
    loss, logs, encoders = step(options, batch)
    found = encoders.pairs(batch.video[:, 0], batch.captions())
    wanted = contrastive_loss(found["video_embed"], found["text_embed"], logit_scale=1 / 0.07)
    assert float(loss.detach()) == pytest.approx(float(wanted.detach()), rel=1e-6) == float(logs["loss"])
    assert set(logs) == {"loss", "video_to_text", "text_to_video"}


def test_words_of_machines_have_a_temperature_of_their_own() -> None:
    batch = word_batch(WORDS, sources=[[HUMAN], ["machine"], ["rephrased", HUMAN], [HUMAN]])
    options = tiny_options(temperature=Temperature(pseudo_start=0.5))
    loss, _, encoders = step(options, batch)
    found = encoders.pairs(batch.video[:, 0], batch.captions())
    wanted = pseudo_label_contrastive_loss(
        found["video_embed"], found["text_embed"], logit_scale=1 / 0.07, pseudo_logit_scale=2.0,
        human=torch.tensor([True, False, False, True]),
    )  # fmt: skip
    assert float(loss.detach()) == pytest.approx(float(wanted.detach()), rel=1e-6)
    plain, _, _ = step(tiny_options(), batch)
    assert float(plain.detach()) != pytest.approx(float(loss.detach()), rel=1e-3)


def test_equal_words_of_other_clips_may_be_right_as_well() -> None:
    batch = word_batch([["take dish"], ["put mug"], ["take dish"], ["hold both"]])
    loss, _, encoders = step(tiny_options(same_words="positives"), batch)
    found = encoders.pairs(batch.video[:, 0], batch.captions())
    pair, words = (found["video_embed"], found["text_embed"]), torch.tensor([0, 1, 0, 2])
    wanted = contrastive_loss(*pair, logit_scale=1 / 0.07, words=words)
    assert float(loss.detach()) == pytest.approx(float(wanted.detach()), rel=1e-6)
    plain, _, _ = step(tiny_options(), batch)
    assert float(plain.detach()) > float(loss.detach()) + 0.1


def test_a_clip_without_words_takes_no_part() -> None:
    whole = word_batch(WORDS)
    batch = word_batch([*WORDS, []])
    video = torch.cat([whole.video, torch.full_like(whole.video[:1], 9.0)])
    loss, _, _ = step(tiny_options(), replace(batch, video=video))
    wanted, _, _ = step(tiny_options(), whole)
    assert float(loss.detach()) == pytest.approx(float(wanted.detach()), rel=1e-6)


def test_a_batch_without_a_clip_has_a_loss_with_a_gradient_for_all() -> None:
    for batch in (word_batch([]), word_batch([[], []])):
        loss, _, encoders = step(tiny_options(), batch)
        loss.backward()
        assert float(loss.detach()) == 0.0
        assert all(p.grad is not None for n, p in encoders.inner.named_parameters() if n != "logit_scale")


def test_clips_without_a_narration_take_the_text_of_a_class() -> None:
    texts = [["holding clothes"], ["opening a door"], ["sitting"]]
    batch = word_batch([["own words"], [], [], []], label_sets=((2,), (0, 1), (0, 1), ()))
    batch = replace(batch, draws=np.array([0.0, 0.4, 0.6, 0.0]))
    said, human = words_of(batch, texts)
    assert said == ["own words", "holding clothes", "opening a door", ""]
    assert human.tolist() == [True, True, True, False]
    assert words_of(batch)[0] == ["own words", "", "", ""]
    step = ContrastiveStep(tiny_options(), Tables(of="here", class_texts={"labels": texts}))
    loss, _ = step(Encoders(tiny_model(), tiny_options()), batch)
    assert float(loss.detach()) > 0


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("pseudo", [False, True])
def test_temperatures_learn_where_they_shall(learned: bool, pseudo: bool) -> None:
    temperature = Temperature(start=0.1, learned=learned, pseudo_start=0.2, pseudo_learned=pseudo)
    options = tiny_options(temperature=temperature)
    model = Contrastive().model(ModelParts(tower=tiny_tower()), {}, options)
    task = Contrastive().task(model, {}, options, Tables(of="here"))
    batch = word_batch(WORDS, sources=[[HUMAN], ["machine"], [HUMAN, HUMAN], ["machine"]])
    loss, _ = task.step(batch)
    loss.backward()
    assert (model.logit_scale.grad is not None) == learned
    assert (model.pseudo is not None) == pseudo
    if model.pseudo is not None:
        assert model.pseudo.logit_scale.grad is not None and float(model.pseudo.logit_scale.grad) != 0.0
        assert float(model.pseudo.logit_scale.detach().exp()) == pytest.approx(5.0)


def test_a_learned_temperature_stays_between_1_and_100_times() -> None:
    options = tiny_options(temperature=Temperature(learned=True, pseudo_learned=True))
    model = Contrastive().model(ModelParts(tower=tiny_tower()), {}, options)
    task = Contrastive().task(model, {}, options, Tables(of="here"))
    assert model.pseudo is not None
    for value, kept in ((9.0, 100.0), (-1.0, 1.0), (2.0, np.exp(2.0))):
        for scale in (model.logit_scale, model.pseudo.logit_scale):
            scale.data.fill_(value)
        task.after_update()
        for scale in (model.logit_scale, model.pseudo.logit_scale):
            assert float(scale.detach().exp()) == pytest.approx(kept, rel=1e-4)
    frozen = Contrastive().model(ModelParts(tower=tiny_tower()), {}, tiny_options())
    frozen.logit_scale.data.fill_(9.0)
    Contrastive().task(frozen, {}, tiny_options(), Tables(of="here")).after_update()
    assert float(frozen.logit_scale.detach()) == 9.0


def test_a_clip_is_paired_with_any_sentence_that_fits_it() -> None:
    """Above 0.1 only, each as likely; a clip that no sentence fits keeps its own narration."""
    training = MaxMarginStep(tiny_options(), retrieval_tables())
    drawn: list[Counter[str]] = [Counter() for _ in WORDS]
    for draw in np.linspace(0, 0.999, 60):
        texts, relevancy = training.pairs(replace(word_batch(WORDS), draws=np.full(4, draw)))
        for place, text in enumerate(texts):
            drawn[place][text] += 1
        assert relevancy[2] == 1.0 and relevancy[1] in (np.float32(1.0), np.float32(0.11))
    assert drawn[0] == {"take dish": 30, "hold both": 30} and drawn[1] == {"put mug": 30, "hold both": 30}
    assert drawn[2] == {"open fridge": 60} and len(drawn[3]) == 3
    assert training.pairs(word_batch([]))[0] == []


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("keep_diagonal", [False, True])
def test_max_margin_with_and_without_relevancy(scaled: bool, keep_diagonal: bool) -> None:
    options = tiny_options(margin=MarginOptions(margin=0.3, scaled=scaled, keep_diagonal=keep_diagonal))
    encoders, training = Encoders(tiny_model(), options), MaxMarginStep(options, retrieval_tables())
    batch = replace(word_batch(WORDS), draws=np.full(4, 0.9))
    loss, _ = training(encoders, batch)
    texts, relevancy = training.pairs(batch)
    found = encoders.pairs(batch.video[:, 0], texts)
    wanted = max_margin_loss(
        found["video_embed"], found["text_embed"], margin=0.3, keep_diagonal=keep_diagonal,
        relevancy=torch.from_numpy(relevancy) if scaled else None,
    )  # fmt: skip
    assert float(loss.detach()) == pytest.approx(float(wanted.detach()), rel=1e-6)
    assert texts[0] == "hold both" and float(loss.detach()) > 0


def test_a_learned_pseudo_temperature_is_the_models_and_starts_others() -> None:
    options = tiny_options(temperature=Temperature(pseudo_learned=True, pseudo_start=0.3))
    start = Contrastive().model(ModelParts(tower=tiny_tower()), {}, options)
    again = DualEncoderKind().model(ModelParts(tower=tiny_tower(), start=start), {}, options)
    assert again.pseudo is not None and start.architecture()["pseudo_temperature"] is True
    assert float(again.pseudo.logit_scale.detach().exp()) == pytest.approx(1 / 0.3)
    for kind, given, learns in ((Contrastive(), options, True), (Contrastive(), tiny_options(), False),
                                (Retrieval(), options, False)):  # fmt: skip
        model = kind.model(ModelParts(tower=tiny_tower(), start=start), {}, given)
        assert model.pseudo is not None and model.pseudo.logit_scale.requires_grad == learns
        assert not model.logit_scale.requires_grad
