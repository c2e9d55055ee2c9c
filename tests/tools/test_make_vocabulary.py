"""tools/make_vocabulary.py: a vocabulary from a shard set's narrations, for a narrator without GPT-2's."""

from __future__ import annotations

from pathlib import Path

import make_vocabulary
import pytest

from lavila.models.tokenizers import Gpt2Tokenizer, learn_vocabulary
from lavila.shards.captions import write_captions
from lavila.shards.reader import ShardSet
from tests.commands import run_here


def test_narrations_become_few_tokens(vp9_shards: ShardSet, tmp_path: Path) -> None:
    done = run_here(make_vocabulary.main, ["--shards", vp9_shards.path, "--size", 300, "--out", tmp_path / "words"])
    assert done.returncode == 0 and str(tmp_path / "words") in done.stdout
    tokenizer = Gpt2Tokenizer(tmp_path / "words")
    assert tokenizer.vocab_size <= 300 and tokenizer.end_id == tokenizer.vocab_size - 1
    text = vp9_shards.clips["narrations"][0].as_py()[0]
    tokens = tokenizer([text, "über 切る"])
    assert tokens.mask[0].sum() < len(text) / 2  # bytes, were nothing joined
    assert [tokenizer.decode(ids.tolist()) for ids in tokens.ids] == [text, "über 切る"]


def test_words_of_captions_tables_count(vp9_shards: ShardSet, tmp_path: Path) -> None:
    ids = vp9_shards.clips["clip_id"].to_pylist()
    write_captions(tmp_path / "words.parquet", [(ids[0], ["xylophone"] * 3, None)], source="machine")
    made = ["--captions", tmp_path / "words.parquet", "--size", 300, "--out", tmp_path / "words"]
    assert run_here(make_vocabulary.main, ["--shards", vp9_shards.path, *made]).returncode == 0
    assert int(Gpt2Tokenizer(tmp_path / "words")(["xylophone"]).mask.sum()) == 3  # one word between two end tokens


def test_the_same_texts_give_the_same_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        learn_vocabulary(["cut the leek", "cut the onion"] * 2, tmp_path / name, size=280)
    for file in ("vocab.json", "merges.txt"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_a_vocabulary_is_not_lost_under_another_one(vp9_shards: ShardSet, tmp_path: Path) -> None:
    """A narrator that was trained with it would say other words, and no file of it would show why."""
    made = ["--shards", vp9_shards.path, "--out", tmp_path / "words", "--size"]
    assert run_here(make_vocabulary.main, [*made, 300]).returncode == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "words").iterdir()}
    assert sorted(before) == ["merges.txt", "vocab.json"]
    assert run_here(make_vocabulary.main, [*made, 300]).returncode == 0  # the same again
    done = run_here(make_vocabulary.main, [*made, 260])
    assert done.returncode == 1 and str(tmp_path / "words") in done.stderr and done.stderr.count("\n") == 1
    assert {path.name: path.read_bytes() for path in (tmp_path / "words").iterdir()} == before


@pytest.mark.parametrize(("change", "named"), [({"--size": 100}, "size=100"), ({"--shards": "nowhere"}, "nowhere")])
def test_what_cannot_be_is_said_in_one_line(
    vp9_shards: ShardSet, tmp_path: Path, change: dict[str, object], named: str
) -> None:
    given = {"--shards": vp9_shards.path, "--out": tmp_path / "words"} | change
    done = run_here(make_vocabulary.main, [word for pair in given.items() for word in pair])
    assert done.returncode == 1 and named in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "words").exists()
