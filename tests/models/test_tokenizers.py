"""CLIP's tokenizer against the reference (golden/tokenizer.json), BERT's and GPT-2's on tiny vocabularies."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch

from lavila.models import tokenizers as text_module
from lavila.models.tokenizers import BertTokenizer, ClipTokenizer, Gpt2Tokenizer, Tokenizer, TokenizerError
from tests.golden_files import golden_json

START, END = 49406, 49407
LONG = "word " * 120


@pytest.fixture(scope="module")
def clip() -> ClipTokenizer:
    return ClipTokenizer()


@pytest.fixture(scope="module")
def cases() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = golden_json("tokenizer")["cases"]
    return found


@pytest.fixture
def bert_folder(tmp_path: Path) -> Path:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "open", "##s", "the", "fridge", "c", "#"]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n")
    return tmp_path


@pytest.fixture
def gpt2_folder(tmp_path: Path) -> Path:
    merges = [("o", "p"), ("op", "en"), ("e", "n"), ("Ġ", "t")]
    pieces = ["!", "o", "p", "e", "n", "t", "s", "Ġ", "op", "en", "open", "Ġt", "<|endoftext|>"]
    (tmp_path / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(pieces)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(map(" ".join, merges)) + "\n")
    return tmp_path


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def test_clip_ids_equal_the_reference(clip: ClipTokenizer, cases: list[dict[str, Any]]) -> None:
    assert len(cases) == 71
    tokens = clip([case["text"] for case in cases])
    assert tokens.ids.dtype == torch.int64
    assert tokens.mask.dtype == torch.bool
    for case, ids, mask in zip(cases, tokens.ids, tokens.mask, strict=True):
        assert ids.tolist() == case["ids"] + [0] * (77 - len(case["ids"])), case["text"]
        assert int(ids.argmax()) == case["feature_position"], case["text"]
        length = min(77, case["num_tokens_untruncated"])
        assert mask.tolist() == [True] * length + [False] * (77 - length), case["text"]


def test_clip_cleaning_equals_the_reference(cases: list[dict[str, Any]]) -> None:
    for case in cases:
        assert ClipTokenizer.clean(case["text"]) == case["cleaned"]
    # Repairing leaves escapes alone where there is a tag: only here do both of the later passes show.
    assert ClipTokenizer.clean("<b> Salt &amp;amp; pepper") == "<b> salt & pepper"


def test_clip_keep_end_differs_only_in_texts_that_are_too_long(
    clip: ClipTokenizer, cases: list[dict[str, Any]]
) -> None:
    texts = [case["text"] for case in cases]
    reference, kept = clip(texts), ClipTokenizer("keep_end")(texts)
    assert torch.equal(reference.mask, kept.mask)
    cut = [case["truncated"] for case in cases]
    assert sum(cut) == 2
    changed = (reference.ids != kept.ids).nonzero().tolist()
    assert changed == [[row, 76] for row, was_cut in enumerate(cut) if was_cut]
    assert all(kept.ids[row, 76] == END for row, _ in changed)


def test_clip_context_cuts_and_pads(clip: ClipTokenizer) -> None:
    for context in (2, 5, 300):
        for mode, last in (("reference", clip(["word"]).ids[0, 1]), ("keep_end", END)):
            ids = ClipTokenizer(mode, context=context)([LONG]).ids  # type: ignore[arg-type]
            assert ids.shape == (1, context)
            assert ids[0, 0] == START
            if context < 122:
                assert ids[0, -1] == last
            else:
                assert ids[0, 121:123].tolist() == [END, 0]


def test_clip_vocabulary_has_the_embeddings_size_and_survives_pickling(clip: ClipTokenizer) -> None:
    assert clip.vocab_size == 49408  # rows of token_embedding in the published layouts
    again = pickle.loads(pickle.dumps(clip))  # as a data worker gets it
    assert torch.equal(again(["#C C opens the fridge"]).ids, clip(["#C C opens the fridge"]).ids)


def test_no_texts_give_no_rows(clip: ClipTokenizer) -> None:
    assert clip([]).ids.shape == (0, 77)
    assert clip([]).mask.shape == (0, 77)


def test_bert_pieces_and_mask(bert_folder: Path) -> None:
    tokens = BertTokenizer(bert_folder, context=8)(["#C C Opens the fridge", "the", "the " * 20])
    assert tokens.ids.tolist() == [[2, 10, 9, 9, 5, 6, 7, 3], [2, 7, 3, 0, 0, 0, 0, 0], [2, *[7] * 6, 3]]
    assert tokens.mask.sum(1).tolist() == [8, 3, 8]
    assert tokens.mask[1, :3].all()
    assert BertTokenizer(bert_folder).vocab_size == 11


def test_gpt2_pieces_and_mask(gpt2_folder: Path) -> None:
    tokenizer = Gpt2Tokenizer(gpt2_folder, context=5)
    tokens = tokenizer(["open t", "!", "t t t t t t"])
    assert tokens.ids.tolist() == [[12, 10, 11, 12, 0], [12, 0, 12, 0, 0], [12, 5, 11, 11, 11]]
    assert tokens.mask.sum(1).tolist() == [4, 3, 5]  # '!' is 0 as padding is, yet counts
    assert tokenizer.vocab_size == 13


def test_gpt2_decodes_up_to_the_next_end(gpt2_folder: Path) -> None:
    tokenizer = Gpt2Tokenizer(gpt2_folder, context=8)
    for text in ("open t", "", "!"):
        assert tokenizer.decode(tokenizer([text]).ids[0].tolist()) == text
    assert tokenizer.decode([10, 11]) == "open t"  # neither begun nor ended
    assert tokenizer.decode([12, 10, 12, 11, 12]) == "open"


def test_vocabularies_that_transformers_wrote_are_read(
    bert_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    import transformers

    folder = tmp_path_factory.mktemp("saved")
    transformers.BertTokenizer.from_pretrained(bert_folder).save_pretrained(folder)
    text = ["opens the fridge"]
    assert torch.equal(BertTokenizer(folder)(text).ids, BertTokenizer(bert_folder)(text).ids)


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    ("kind", "files"), [(BertTokenizer, "vocab.txt"), (Gpt2Tokenizer, "vocab.json and merges.txt")]
)
def test_missing_vocabularies_are_named(kind: Any, files: str, tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=rf"{files}.*tokenizer.json"):
        kind(tmp_path)  # transformers itself makes a vocabulary of special tokens here, and says nothing
    for source in ("a-name-that-is-not-cached", tmp_path / "no_such_folder"):
        with pytest.raises(TokenizerError, match=r"hf download.*--local-dir") as caught:
            kind(source)
        assert str(source) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_missing_open_clip_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_module.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(TokenizerError, match="pip install open_clip_torch"):
        ClipTokenizer()


def test_wrong_arguments_are_refused(clip: ClipTokenizer, bert_folder: Path) -> None:
    with pytest.raises(ValueError, match=r"mode='keep'.*\['keep_end', 'reference'\]"):
        ClipTokenizer("keep")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="context=1"):
        ClipTokenizer(context=1)
    tokenizers: list[Tokenizer] = [clip, BertTokenizer(bert_folder)]
    for tokenizer in tokenizers:
        with pytest.raises(TypeError, match=r"texts='open door'"):
            tokenizer("open door")
