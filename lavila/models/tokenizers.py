"""Text to token ids: the tokenizers of CLIP, BERT and GPT-2 with one call, `tokenizer(texts) -> Tokens`.

CLIP's byte-pair merges come with the open_clip_torch package. BERT's and GPT-2's vocabularies are in no package. Give a
folder that holds them, or their name on the Hugging Face hub, from which transformers fetches them once.
"""

from __future__ import annotations

import gzip
import html
import importlib.util
import itertools
import json
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor

from lavila.errors import UserError, one_line
from lavila.files import user_path, whole_file

CONTEXT = 77  # number of tokens of a text in all published models
CLIP_MERGES = 49152 - 256 - 2
CLIP_START, CLIP_END = "<|startoftext|>", "<|endoftext|>"
CLIP_WORD = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
WORD_END = "</w>"

# reference: a text that is too long loses its end token, as in LaViLa. Its feature is then that of the start token, the
# same for all such texts. keep_end: the last token of a text that is too long becomes the end token.
Truncation = Literal["reference", "keep_end"]


class TokenizerError(UserError):
    """A vocabulary that is missing or not whole."""


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """The input of a text tower."""

    ids: Tensor  # int64 [B, L], 0 after the end of a text
    mask: Tensor  # bool [B, L], True at the tokens of a text and its special tokens


class Tokenizer(Protocol):
    """The interface of all tokenizers."""

    context: int  # L, the number of tokens to which every text is cut or padded
    vocab_size: int  # ids are below this

    def __call__(self, texts: Sequence[str]) -> Tokens: ...


class ClipTokenizer:
    """CLIP's lower-cased byte-pair encoding. mode: see `Truncation`. ValueError for another mode or context < 2."""

    def __init__(self, mode: Truncation = "reference", *, context: int = CONTEXT) -> None:
        if mode not in get_args(Truncation):
            raise ValueError(f"mode={mode!r}: expected one of {sorted(get_args(Truncation))}")
        self.mode = mode
        self.context = _checked(context)
        merges = _clip_merges()
        self._byte_letters = _byte_letters()
        letters = list(self._byte_letters.values())
        pieces = [*letters, *(letter + WORD_END for letter in letters), *map("".join, merges), CLIP_START, CLIP_END]
        self._ids = {piece: number for number, piece in enumerate(pieces)}
        self._ranks = {pair: rank for rank, pair in enumerate(merges)}
        self._words: dict[str, list[int]] = {special: [self._ids[special]] for special in (CLIP_START, CLIP_END)}
        self.vocab_size = len(pieces)

    def __call__(self, texts: Sequence[str]) -> Tokens:
        """The token ids of each text, with start and end token."""
        start, end = self._ids[CLIP_START], self._ids[CLIP_END]
        rows = [[start, *self._encode(text), end][: self.context] for text in _checked_texts(texts)]
        if self.mode == "keep_end":
            rows = [[*row[:-1], end] for row in rows]
        return _padded(rows, self.context)

    @staticmethod
    def clean(text: str) -> str:
        """The text in lower case, with single spaces, and without broken encodings and HTML escapes."""
        import ftfy

        repaired: str = ftfy.fix_text(text)
        # Twice, as in CLIP, since captions from the web are often escaped twice.
        return " ".join(html.unescape(html.unescape(repaired)).split()).lower()

    def _encode(self, text: str) -> list[int]:
        import regex

        ids: list[int] = []
        for word in regex.findall(CLIP_WORD, self.clean(text), regex.IGNORECASE):
            if word not in self._words:
                self._words[word] = self._merge(word)
            ids += self._words[word]
        return ids

    def _merge(self, word: str) -> list[int]:
        """The ids of the pieces of a word. Neighbours are joined in the order in which training joined them."""
        pieces = [self._byte_letters[byte] for byte in word.encode()]
        pieces[-1] += WORD_END
        while len(pieces) > 1:
            pair = min(itertools.pairwise(pieces), key=lambda pair: self._ranks.get(pair, len(self._ranks)))
            if pair not in self._ranks:
                break
            joined: list[str] = []
            place = 0
            while place < len(pieces):
                found = tuple(pieces[place : place + 2]) == pair
                joined.append("".join(pair) if found else pieces[place])
                place += 2 if found else 1
            pieces = joined
        return [self._ids[piece] for piece in pieces]


class BertTokenizer:
    """BERT's word pieces, lower-cased, between [CLS] and [SEP]; a text that is too long keeps its [SEP].

    source: a folder with vocab.txt or tokenizer.json, or a name on the hub (DistilBERT has BERT's vocabulary).
    TokenizerError if there is no vocabulary.
    """

    def __init__(self, source: str | Path = "distilbert-base-uncased", *, context: int = CONTEXT) -> None:
        import transformers

        self.context = _checked(context)
        folder = vocabulary_folder(source, ("vocab.txt",))
        self._tokenizer: Any = transformers.BertTokenizer.from_pretrained(folder)
        self.vocab_size = len(self._tokenizer)

    def __call__(self, texts: Sequence[str]) -> Tokens:
        """The token ids of each text, with [CLS] and [SEP]."""
        encoded = self._tokenizer(_checked_texts(texts), truncation=True, max_length=self.context)
        return _padded(encoded["input_ids"], self.context)


class Gpt2Tokenizer:
    """GPT-2's byte pairs between two end-of-text tokens; a text that is too long loses its end, as in LaViLa.

    source: a folder with vocab.json and merges.txt or with tokenizer.json, or a name on the hub. TokenizerError where
    there is no vocabulary.
    """

    def __init__(self, source: str | Path = "gpt2", *, context: int = CONTEXT) -> None:
        import transformers

        self.context = _checked(context)
        folder = vocabulary_folder(source, ("vocab.json", "merges.txt"))
        self._tokenizer: Any = transformers.GPT2Tokenizer.from_pretrained(folder)
        self.vocab_size = len(self._tokenizer)
        self.end_id: int = self._tokenizer.eos_token_id  # begins a text as well

    def __call__(self, texts: Sequence[str]) -> Tokens:
        """Token ids of each text, both end-of-text tokens included. Padding is 0, which is an ordinary id as well."""
        encoded = self._tokenizer(_checked_texts(texts), add_special_tokens=False)["input_ids"]
        return _padded([[self.end_id, *ids, self.end_id][: self.context] for ids in encoded], self.context)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of one row of ids: from after the begin token, where there is one, to the next end token."""
        words = list(ids)
        if words[:1] == [self.end_id]:
            del words[0]
        if self.end_id in words:
            words = words[: words.index(self.end_id)]
        text: str = self._tokenizer.decode(words, clean_up_tokenization_spaces=False)
        return text


def learn_vocabulary(texts: Iterable[str], folder: Path, *, size: int) -> int:
    """Learn byte pairs from texts and write vocab.json and merges.txt, which `Gpt2Tokenizer` reads, into a folder.

    For a narrator that starts at random, without GPT-2's vocabulary. size: ids at most, 257 or more:
    each byte and the end token have one. Returns the number of ids, which few texts make smaller. The same texts give
    the same files. ValueError for a smaller size. TokenizerError where another vocabulary is in the folder: models were
    perhaps trained with it, and would read other words.
    """
    from tokenizers import ByteLevelBPETokenizer

    least = len(_byte_letters()) + 1
    if size < least:
        raise ValueError(f"size={size}: each byte and the end token have an id; give {least} or more")
    tokenizer: Any = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(texts, size - 1, min_frequency=2, show_progress=False)
    # The end token comes last, as in GPT-2's: id 0 fills up texts.
    ids = {**tokenizer.get_vocab(), CLIP_END: tokenizer.get_vocab_size()}
    ordered = {piece: ids[piece] for piece in sorted(ids, key=ids.__getitem__)}
    text, file = json.dumps(ordered, ensure_ascii=False), folder / "vocab.json"
    if file.exists() and file.read_text(encoding="utf-8") != text:
        raise TokenizerError(
            f"{folder}: holds another vocabulary, with which models may have been trained; remove it, or give another "
            "folder"
        )
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as made:
        tokenizer.save_model(made)
        with whole_file(folder / "merges.txt") as out:
            out.write((Path(made) / "merges.txt").read_bytes())
    with whole_file(file) as out:  # last, for it says that both are there
        out.write(text.encode())
    return len(ids)


def _padded(rows: Sequence[Sequence[int]], context: int) -> Tokens:
    ids = torch.zeros(len(rows), context, dtype=torch.int64)
    mask = torch.zeros(len(rows), context, dtype=torch.bool)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = True
    return Tokens(ids=ids, mask=mask)


def _checked(context: int) -> int:
    if context < 2:
        raise ValueError(f"context={context}: a text has at least its start and its end token; give 2 or more")
    return context


def _checked_texts(texts: Sequence[str]) -> list[str]:
    if isinstance(texts, str):
        raise TypeError(f"texts={texts!r}: expected a list of texts; for one text give [text]")
    return list(texts)


def _byte_letters() -> dict[int, str]:
    """A visible character for each byte, in the order of CLIP's vocabulary: those that print are themselves."""
    printing = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printing]
    return {byte: chr(byte) for byte in printing} | {byte: chr(256 + i) for i, byte in enumerate(others)}


def _clip_merges() -> list[tuple[str, str]]:
    """The pairs of pieces in the order in which they are joined. open_clip's package has them; it is not imported."""
    spec = importlib.util.find_spec("open_clip")
    if spec is None or spec.origin is None:
        raise TokenizerError("CLIP's vocabulary comes with open_clip, which is missing: pip install open_clip_torch")
    path = Path(spec.origin).with_name("bpe_simple_vocab_16e6.txt.gz")
    if not path.is_file():
        raise TokenizerError(f"{path} is missing: install open_clip_torch again")
    lines = gzip.decompress(path.read_bytes()).decode("utf-8").split("\n")[1 : CLIP_MERGES + 1]
    merges = [(first, second) for first, second in (line.split() for line in lines)]
    if len(merges) != CLIP_MERGES:
        raise TokenizerError(f"{path}: {len(merges)} merges instead of {CLIP_MERGES}; install open_clip_torch again")
    return merges


def vocabulary_folder(source: str | Path, files: tuple[str, ...]) -> Path:
    """The folder of the vocabulary that a path or a hub name means.

    This checks it, since transformers may make a vocabulary of the special tokens alone if it finds none.
    """
    wanted = f"{' and '.join(files)}, or tokenizer.json"
    folder = user_path(source)
    if folder.is_dir():
        if (folder / "tokenizer.json").is_file() or all((folder / name).is_file() for name in files):
            return folder
        raise TokenizerError(f"{folder} holds no vocabulary: expected {wanted}; copy them there")
    from transformers.utils import cached_file

    try:
        found = [Path(str(cached_file(str(source), name))) for name in files]
    except OSError as error:
        raise TokenizerError(
            f"no vocabulary at {str(source)!r}: not a folder, not in the cache of transformers, and not available from "
            f"the hub ({one_line(error)}). Where there is a network, run "
            f"'hf download {source} {' '.join(files)} --local-dir DIR', copy DIR here and give its path"
        ) from error
    return found[0].parent
