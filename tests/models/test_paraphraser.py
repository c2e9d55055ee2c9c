"""Paraphrasers: against transformers' own search, the groups of beams, and what is said where one is missing."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import log_softmax
from transformers import GPT2Config, GPT2LMHeadModel

from lavila.models.beams import beam_search
from lavila.models.generation import GenerationConfig, clip_generators, sample
from lavila.models.paraphraser import PARAPHRASER, CaptionWriter, Paraphraser, ParaphraserError, load_paraphraser
from lavila.models.tokenizers import TokenizerError
from tests.models.tiny_paraphraser import save_paraphraser

CAPTIONS = ["C picks a cup", "C opens the door, and looks around", "x"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_paraphraser(tmp_path_factory.mktemp("t5"))


@pytest.fixture(scope="module")
def paraphraser(folder: Path) -> Paraphraser:
    return load_paraphraser(folder)


def writer_of(paraphraser: Paraphraser, captions: list[str]) -> CaptionWriter:
    return CaptionWriter(paraphraser.model, paraphraser.tokenizer, captions)


def theirs(paraphraser: Paraphraser, caption: str, **options: Any) -> list[list[int]]:
    """The ids of transformers' own generation, without special tokens."""
    encoded = paraphraser.tokenizer([caption], return_tensors="pt")
    rows = paraphraser.model.generate(**encoded, do_sample=False, max_length=12, **options).tolist()
    return [[token for token in row if token > 1] for row in rows]


@torch.no_grad()
def next_log(paraphraser: Paraphraser, caption: str, prefix: list[int]) -> Tensor:
    """Log-probabilities of the token after a prefix, computed from nothing but caption and prefix."""
    encoded = paraphraser.tokenizer([caption], return_tensors="pt")
    logits = paraphraser.model(**encoded, decoder_input_ids=torch.tensor([[0, *prefix]]), use_cache=False).logits
    return log_softmax(logits[0, -1].double(), -1)


@torch.no_grad()
def test_greedy_texts_are_those_of_transformers(paraphraser: Paraphraser) -> None:
    config = GenerationConfig(top_k=1, max_length=12)
    wanted = [theirs(paraphraser, caption)[0] for caption in CAPTIONS]
    assert [texts[0] for texts in sample(writer_of(paraphraser, CAPTIONS), config).ids()] == wanted
    # With a token of one text as the end token, that text leaves the batch early.
    writer = writer_of(paraphraser, CAPTIONS)
    writer.end = wanted[1][2]
    cut = [text[: text.index(writer.end)] if writer.end in text else text for text in wanted]
    assert len(cut[1]) < max(map(len, cut))
    assert [texts[0] for texts in sample(writer, config).ids()] == cut


@torch.no_grad()
def test_nll_is_that_of_the_whole_text(paraphraser: Paraphraser) -> None:
    config = GenerationConfig(num_return_sequences=4, max_length=12)
    found = sample(writer_of(paraphraser, CAPTIONS), config, generator=clip_generators(0, CAPTIONS))
    for caption, texts, values in zip(CAPTIONS, found.ids(), found.nll.tolist(), strict=True):
        for text, value in zip(texts, values, strict=True):
            whole = [*text, 1][:11]
            logs = [next_log(paraphraser, caption, whole[:place])[token] for place, token in enumerate(whole)]
            assert value == pytest.approx(-sum(logs).item() / len(whole), rel=1e-5)  # type: ignore[union-attr]


class NeverEnding(CaptionWriter):
    def step(self, token_N: Tensor) -> Tensor:
        logits = super().step(token_N)
        logits[:, self.end] = -torch.inf
        return logits


@torch.no_grad()
def test_each_group_pays_for_what_the_groups_before_it_choose(paraphraser: Paraphraser) -> None:
    """Groups of one beam that do not end: each step takes the best token after the penalties."""
    penalty, length = 0.7, 6
    config = GenerationConfig(
        num_beams=4, num_beam_groups=4, num_return_sequences=4, diversity_penalty=penalty, max_length=length
    )
    for caption in CAPTIONS:
        prefixes: list[list[int]] = [[] for _ in range(4)]
        scores = [0.0] * 4
        for _ in range(length - 1):
            taken: list[int] = []
            for group, prefix in enumerate(prefixes):
                log = next_log(paraphraser, caption, prefix)
                log[1] = -torch.inf
                log = log_softmax(log, -1)
                for token in taken:
                    log[token] -= penalty
                token = int(log.argmax())
                taken.append(token)
                scores[group] += float(log[token])
                prefix.append(token)
        writer = NeverEnding(paraphraser.model, paraphraser.tokenizer, [caption])
        found = beam_search(writer, config)
        assert found.beam_score is not None
        best_first = sorted(range(4), key=lambda group: -scores[group])
        assert found.ids()[0] == [prefixes[group] for group in best_first]
        assert (found.beam_score[0] * length).tolist() == pytest.approx([scores[group] for group in best_first])
        assert len({tuple(prefix) for prefix in prefixes}) > 2


@torch.no_grad()
def test_without_a_penalty_all_groups_say_the_same(paraphraser: Paraphraser) -> None:
    config = GenerationConfig(num_beams=3, num_beam_groups=3, num_return_sequences=3, max_length=8)
    assert len({text for text, _ in paraphraser(CAPTIONS[:1], config)[0]}) == 1


def test_a_caption_has_the_same_paraphrases_in_any_batch(paraphraser: Paraphraser) -> None:
    published = GenerationConfig(
        num_beams=5, num_beam_groups=5, num_return_sequences=5, diversity_penalty=0.7, max_length=12
    )
    drawn = GenerationConfig(num_return_sequences=3, temperature=0.7, top_p=0.9, max_length=12)
    for config in (published, drawn):
        together = paraphraser(CAPTIONS, config, generator=clip_generators(5, CAPTIONS))
        for caption, texts in zip(CAPTIONS, together, strict=True):
            (alone,) = paraphraser([caption], config, generator=clip_generators(5, [caption]))
            assert [text for text, _ in alone] == [text for text, _ in texts]


def test_the_word_before_the_answer_is_taken_off(paraphraser: Paraphraser, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        paraphraser.tokenizer, "batch_decode", lambda rows, **_: ["paraphrasedoutput: C takes a cup "] * len(rows)
    )
    ((answer, _),) = paraphraser(CAPTIONS[:1], GenerationConfig(max_length=4))[0:1][0]
    assert answer == "C takes a cup"


def test_a_sentencepiece_vocabulary(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = pytest.importorskip("sentencepiece").SentencePieceTrainer
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).unlink()
    with pytest.raises(TokenizerError, match=r"spiece\.model"):  # and no vocabulary of special tokens alone
        load_paraphraser(tmp_path)
    (tmp_path / "text").write_text("the man picks a cup\nc opens the door\n" * 20)
    trainer.train(
        input=str(tmp_path / "text"), model_prefix=str(tmp_path / "spiece"), vocab_size=60, hard_vocab_limit=False,
        character_coverage=1.0, pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
    )  # fmt: skip
    (tmp_path / "tokenizer_config.json").write_text('{"extra_ids": 0, "tokenizer_class": "T5Tokenizer"}')
    assert load_paraphraser(tmp_path).tokenizer("the man")["input_ids"][-1] == 1
    # As without the package.
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", refuse)
    with pytest.raises(ParaphraserError, match=r"lavila\[rephrase\]"):
        load_paraphraser(tmp_path)


def refuse(*_: object) -> None:
    raise ValueError("`tiktoken` is required to read a `tiktoken` file")


def test_without_a_paraphraser_the_way_to_one_is_said(tmp_path: Path) -> None:
    with pytest.raises(ParaphraserError, match="nowhere") as caught:
        load_paraphraser(tmp_path / "nowhere")
    for part in (f"hf download {PARAPHRASER} --local-dir DIR", "--model DIR", "spiece.model"):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_model_of_another_kind_is_refused(tmp_path: Path) -> None:
    GPT2LMHeadModel(GPT2Config(vocab_size=50, n_positions=16, n_embd=8, n_layer=1, n_head=1)).save_pretrained(tmp_path)
    with pytest.raises(ParaphraserError, match="gpt2"):
        load_paraphraser(tmp_path)


def test_a_model_without_some_weights_is_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    weights = load_file(folder / "model.safetensors")
    gone = next(name for name in weights if name.startswith("decoder.block.1"))
    kept = {name: weight for name, weight in weights.items() if name != gone}
    save_file(kept, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ParaphraserError, match=gone.replace(".", r"\.")):
        load_paraphraser(tmp_path)
