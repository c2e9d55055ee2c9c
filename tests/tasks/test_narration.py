"""Narration: the narrator's loss and likelihoods, what it writes, and the scores of that."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lavila.metrics.units import Unit
from lavila.models.generation import GenerationConfig
from lavila.models.narrator import Narrator
from lavila.models.tokenizers import Gpt2Tokenizer, learn_vocabulary
from lavila.tasks import ModelParts, NarrationOptions, NoModel, Predictions, TaskError, TaskOptions
from lavila.tasks.narration import Narration, NarrationTask
from lavila.tasks.tables import Tables
from tests.tasks.dual import tiny_model, tiny_tower, word_batch

ROOT = Path(__file__).parents[2]
WORDS = NarrationOptions(
    width=16, depth=2, heads=2, queries=3, context=16, vocabulary=str(ROOT / "assets/toy_vocabulary"), init="random",
    dropout=0.0, writes=GenerationConfig(num_return_sequences=3, max_length=12, top_p=0.95, temperature=0.7),
)  # fmt: skip
TABLES = Tables(of="here")


def options(**changes: Any) -> TaskOptions:
    return TaskOptions(narration=replace(WORDS, **changes))


def fresh(chosen: TaskOptions, *, start: nn.Module | None = None, seed: int = 0) -> Narrator:
    torch.manual_seed(seed)
    return Narration().model(ModelParts(tower=tiny_tower(), start=start), {}, chosen)


def task(**changes: Any) -> NarrationTask:
    chosen = options(**changes)
    made = Narration().task(fresh(chosen).eval(), {}, chosen, TABLES)
    assert isinstance(made, NarrationTask)
    return made


def open_gates(narrator: Narrator) -> None:
    """Have the texts depend on the clip, as after training."""
    with torch.no_grad():
        for name, parameter in narrator.named_parameters():
            if ".alpha_" in name:
                parameter.fill_(1.0)


def test_the_loss_is_that_of_the_whole_context_without_computing_its_padding() -> None:
    one = task()
    batch = word_batch([["the camera pans left"], ["the ruins"]])
    loss, logs = one.step(batch)
    ids = one.tokenizer(batch.captions()).ids
    logits = one.model(batch.video[:, 0], ids[:, :-1])
    whole = nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], ignore_index=0, reduction="none").mean()
    assert float(loss.detach()) == pytest.approx(float(whole.detach()), rel=1e-5)
    assert set(logs) == {"loss", *one.logged} and 0 <= float(logs["token_accuracy"]) <= 100
    by_token, _ = task(average="tokens").step(batch)
    counted = int((ids[:, 1:] != 0).sum())
    assert float(by_token.detach()) == pytest.approx(float(whole.detach()) * ids[:, 1:].numel() / counted, rel=1e-5)


def test_clips_without_words_weigh_nothing_and_a_batch_of_them_still_has_gradients() -> None:
    one = task()
    some, _ = one.step(word_batch([["the ruins"], []]))
    batch = word_batch([["the ruins"], []])
    alone, _ = one.step(batch.part(0, 1))
    assert float(some.detach()) == pytest.approx(float(alone.detach()), rel=1e-6)
    loss, logs = one.step(batch.part(1, 2))
    loss.backward()
    assert float(loss.detach()) == 0 and np.isnan(float(logs["token_accuracy"]))
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in one.model.parameters())


def test_it_learns_to_say_what_it_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")  # Java takes seconds to start
    one = task(writes=GenerationConfig(top_k=1, max_length=12))
    batch = word_batch([["the camera pans left over the ruins"], ["it zooms in on the woods"]])
    one.model.train()
    optimizer = torch.optim.AdamW(one.model.parameters(), lr=1e-2)
    for _ in range(80):
        loss, _ = one.step(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    one.model.eval()
    found = one.predict(batch)
    assert found.columns["said"].tolist() == batch.captions()
    scores = one.score([found])
    assert scores.metrics["token_accuracy"].value == 100.0
    assert 1.0 <= scores.metrics["perplexity"].value < 1.5 and scores.metrics["perplexity"].lower_is_better
    assert scores.metrics["cider"].unit is Unit.fraction and scores.metrics["rouge_l"].value == pytest.approx(1.0)
    assert scores.metrics["cider"].value > scores.controls["most_frequent_cider"].value
    assert scores.controls["captions"].value == 2
    (samples,) = scores.sections
    assert "Java" in samples.note
    assert samples.type == "galleries" and [entry["title"] for entry in samples.values] == batch.captions()


def test_texts_do_not_depend_on_the_clips_beside_them() -> None:
    one = task()
    open_gates(one.model)
    batch = word_batch([["a"], ["b"], ["c"]])
    together = one.predict(batch).columns
    for place in range(3):
        alone = one.predict(batch.part(place, place + 1)).columns
        assert alone["said"][0] == together["said"][place]
        assert alone["nll"][0] == pytest.approx(together["nll"][place], rel=1e-5)
    other = Narration().task(one.model, {}, options(seed=1), TABLES).predict(batch).columns
    assert other["said"].tolist() != together["said"].tolist()


def test_references_are_what_people_wrote_each_on_a_line() -> None:
    one = task()
    batch = word_batch(
        [["a  cup\nfalls", "machine words", "it falls"], []], sources=[["human", "machine", "human"], []]
    )
    found = one.predict(batch).columns
    assert found["references"].tolist() == ["a cup falls\nit falls", ""]
    assert found["tokens"][1] == 0 and one.wrongness(one.predict(batch))[1] == -np.inf


def test_scores_are_over_clips_with_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    columns = {
        "nll": np.array([np.log(2.0), np.log(4.0), 50.0]),
        "free_nll": np.array([np.log(8.0), np.log(8.0), 50.0]),
        "tokens": np.array([1, 3, 0]),
        "right": np.array([1, 1, 0]),
        "references": np.array(["open the door", "wash the cup\nclean a cup", ""]),
        "said": np.array(["open the door", "cut bread", "no one asked"]),
        "said_nll": np.array([0.1, 0.2, 0.3]),
    }
    parts = [Predictions(rows=np.array([4, 5, 6]), columns=columns)]
    one = Narration().task(NoModel(), {}, options(), TABLES)
    scores = one.score(parts)
    assert scores.metrics["perplexity"].value == pytest.approx(3.0)
    assert scores.metrics["token_perplexity"].value == pytest.approx(np.exp((np.log(2) + 3 * np.log(4)) / 4))
    assert scores.metrics["free_perplexity"].value == pytest.approx(8.0)
    assert scores.metrics["token_accuracy"].value == pytest.approx(50.0)
    assert scores.controls["captions"].value == 2
    assert one.case(parts[0], 1)["truth"] == {"narration": "wash the cup"}
    empty = {name: column[2:] for name, column in columns.items()}
    with pytest.raises(TaskError, match="here"):
        one.score([Predictions(rows=np.array([6]), columns=empty)])


def test_without_writing_there_are_likelihoods_alone() -> None:
    one = task(writes=None)
    found = one.predict(word_batch([["the ruins"]]))
    assert set(found.columns) == {"nll", "tokens", "right", "references"}
    scores = one.score([found])
    assert set(scores.metrics) == {"token_accuracy", "perplexity", "token_perplexity"} and not scores.sections


def test_views_beyond_one_are_refused() -> None:
    with pytest.raises(TaskError, match=r"views\.clips=1"):
        task().predict(word_batch([["a"]], views=2))


def test_backbone_is_what_comes_from_other_models() -> None:
    one = task()
    outside = {name for name, _ in one.model.named_parameters() if not one.in_backbone(name)}
    assert {"img_queries", "img_attn_pool.to_q.weight", "text_decoder.transformer.h.0.alpha_cattn"} <= outside
    assert not any(name.startswith("visual.") or "transformer.h.0.attn." in name for name in outside)


def test_a_narrator_is_taken_over_with_its_words() -> None:
    start = fresh(options(), seed=3)
    taken = fresh(options(dropout=0.5), start=start)
    assert taken.text_decoder.config.dropout == 0.5
    ours, theirs = taken.state_dict(), start.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours if not name.startswith("visual."))
    with pytest.raises(TaskError, match=r"model\.decoder\.width=32.*model\.decoder\.width=16"):
        fresh(options(width=32), start=start)


def test_a_tower_of_a_dual_encoder_gets_a_fresh_decoder() -> None:
    assert isinstance(fresh(options(), start=tiny_model()), Narrator)


def test_models_and_vocabularies_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="narrator_tsf_b_gpt2"):
        Narration().task(tiny_model(), {}, options(), TABLES)
    learn_vocabulary(["other words altogether"] * 3, tmp_path, size=300)
    with pytest.raises(TaskError, match=str(tmp_path)):
        Narration().task(fresh(options()), {}, options(vocabulary=str(tmp_path)), TABLES)
    with pytest.raises(TaskError, match=r"model\.decoder\.init"):
        fresh(options(init=str(tmp_path)))
    ids = json.loads((tmp_path / "vocab.json").read_text())
    (tmp_path / "vocab.json").write_text(json.dumps({piece: (i + 1) % len(ids) for piece, i in ids.items()}))
    with pytest.raises(TaskError, match="end token at id 0"):
        fresh(options(vocabulary=str(tmp_path)))
    facts = Narration().facts(options(), TABLES)
    with pytest.raises(TaskError, match=r"context_length 16.*context_length 77"):
        Narration().check(facts, {**facts, "context_length": 77}, of="here", wanted_by="there")


def test_the_toy_vocabulary_knows_the_sample_sentences() -> None:
    tokenizer = Gpt2Tokenizer(WORDS.vocabulary)
    for text, most in (("the camera rotates counter-clockwise over the hillside", 12), ("any other word", 20)):
        tokens = tokenizer([text])
        assert int(tokens.mask.sum()) <= most and tokenizer.decode(tokens.ids[0].tolist()) == text
