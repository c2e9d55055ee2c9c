"""Says the captions of a table in other words, clip by clip, so that a killed run continues.

What is done lies in a journal beside the table to come: an entry for each clip, in the order of the input.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from lavila.journal import Entry, Journal
from lavila.models.generation import GenerationConfig, Generators, clip_generators
from lavila.models.paraphraser import PUBLISHED
from lavila.shards.captions import CaptionError, read_captions, write_captions
from lavila.shards.format import CLIPS
from lavila.shards.reader import open_shard_set

SOURCE = "rephrased"
CLIPS_AT_ONCE = 1024  # rows of the input that are in memory
# The tag of Ego4D's narrations: "#C C picks a cup". A paraphraser sees "C picks a cup".
TAG = re.compile(r"\s*(#\s*[CO])\s+(?=\S)", re.IGNORECASE)
PUNCTUATION = re.compile(r"[^\w\s'#-]|(?<!\w)['-]|['-](?!\w)")


@dataclass(frozen=True, kw_only=True)
class Rephrasing:
    """What decides the words. The defaults are LaViLa's: the three likeliest of 20, without punctuation."""

    choice: GenerationConfig = PUBLISHED
    keep: int = 3  # at most this many paraphrases of a caption
    punctuation: bool = False  # whether paraphrases keep theirs
    seed: int = 0  # of sampling; each caption has its own random numbers


class Paraphrases(Protocol):
    """What makes paraphrases: see `paraphraser.Paraphraser`."""

    def __call__(
        self, captions: Sequence[str], config: GenerationConfig, *, generator: Generators = None
    ) -> list[list[tuple[str, float]]]: ...


def settings_of(
    *,
    number: int | None = None,
    keep: int | None = None,
    max_length: int | None = None,
    sampled: tuple[float, float] | None = None,
    punctuation: bool = False,
    seed: int = 0,
) -> Rephrasing:
    """The published settings with changes; None leaves one as published.

    number: of paraphrases made of a caption. keep: of those, at most. max_length: tokens of a paraphrase with the first
    one. sampled: temperature and nucleus (top-p) of sampling, which takes the place of the search. Raises CaptionError
    for impossible values.
    """
    number = number or PUBLISHED.num_beams
    if sampled is None:
        changes: dict[str, Any] = dict.fromkeys(("num_beams", "num_beam_groups", "num_return_sequences"), number)
    else:
        changes = {"num_beams": 1, "num_beam_groups": 1, "diversity_penalty": 0.0, "num_return_sequences": number}
        changes |= dict(zip(("temperature", "top_p"), sampled, strict=True))
    try:
        choice = replace(PUBLISHED, max_length=max_length or PUBLISHED.max_length, **changes)
    except ValueError as error:  # such as a temperature of 0
        raise CaptionError(str(error)) from None
    kept = {} if keep is None else {"keep": keep}
    return Rephrasing(choice=choice, **kept, punctuation=punctuation, seed=seed)


def captions_of(captions: Path | None, shards: Path | None) -> tuple[pa.Table, Path]:
    """The clips (clip_id, narrations) of a captions table, or else of a shard set, and the file that holds them."""
    if captions is not None:
        return read_captions(captions), captions
    assert shards is not None, "one of them is given"
    shard_set = open_shard_set(shards)
    return shard_set.clips.select(["clip_id", "narrations"]), shard_set.path / CLIPS


def journal_path(out: Path) -> Path:
    return out.with_name(f"{out.name}.journal.jsonl")


def about_run(captions: Path, model: str, settings: Rephrasing) -> dict[str, Any]:
    """What a journal must agree on. captions: the file of the captions."""
    with captions.open("rb") as file:
        digest = hashlib.file_digest(file, "blake2b").hexdigest()[:32]
    return {"captions": digest, "model": model, "settings": asdict(settings)}


def rephrase(
    table: pa.Table, paraphraser: Paraphrases, journal: Journal, settings: Rephrasing, *, batch_size: int
) -> Iterator[int]:
    """Rephrase the clips of a table that are not in the journal. Yields how many clips each batch finished.

    table: has columns clip_id and narrations. batch_size: the number of captions at once, or of one clip if it has
    more.
    """
    todo = _clips(table, skip=journal.done)
    batch: list[tuple[str, list[str]]] = []
    for clip in todo:
        batch.append(clip)
        if sum(len(captions) for _, captions in batch) >= batch_size:
            journal.add(_rephrased(batch, paraphraser, settings))
            yield len(batch)
            batch = []
    if batch:
        journal.add(_rephrased(batch, paraphraser, settings))
        yield len(batch)


def write_rephrased(out: Path, journal: Journal) -> tuple[int, int]:
    """Write the captions table of a finished journal. Returns the numbers of clips and of clips without a paraphrase.

    The latter are left out. The journal stays.
    """
    empty = sum(not entry["narrations"] for entry in journal.entries())
    rows = ((one["clip_id"], one["narrations"], one["scores"]) for one in journal.entries() if one["narrations"])
    return write_captions(out, rows, source=SOURCE), empty


def _clips(table: pa.Table, *, skip: int) -> Iterator[tuple[str, list[str]]]:
    for batch in table.select(["clip_id", "narrations"]).slice(skip).to_batches(max_chunksize=CLIPS_AT_ONCE):
        for row in batch.to_pylist():
            yield row["clip_id"], [caption for caption in row["narrations"] if caption.strip()]


def _rephrased(clips: Sequence[tuple[str, list[str]]], paraphraser: Paraphrases, settings: Rephrasing) -> list[Entry]:
    """The journal's entry of each clip."""
    captions = [caption for _, texts in clips for caption in texts]
    names = [f"{clip_id}/{place}" for clip_id, texts in clips for place in range(len(texts))]
    generators = clip_generators(settings.seed, names)
    plain = [TAG.sub("", caption, count=1) if TAG.match(caption) else caption for caption in captions]
    found = paraphraser(plain, settings.choice, generator=generators) if plain else []
    answers = iter(found)
    entries: list[Entry] = []
    for clip_id, texts in clips:
        kept = [answer for caption in texts for answer in chosen(caption, next(answers), settings)]
        scores = [math.exp(nll) for _, nll in kept]
        entries.append({"clip_id": clip_id, "narrations": [text for text, _ in kept], "scores": scores})
    return entries


def chosen(caption: str, answers: Iterable[tuple[str, float]], settings: Rephrasing) -> list[tuple[str, float]]:
    """The first `keep` answers that differ from the caption and from each other by more than case and punctuation.

    They get the caption's tag.
    """
    tag = TAG.match(caption)
    seen = {_words(caption[tag.end() :] if tag else caption)}
    kept: list[tuple[str, float]] = []
    for answer, nll in answers:
        text = " ".join((answer if settings.punctuation else PUNCTUATION.sub(" ", answer)).split())
        words = _words(text)
        if words and words not in seen and len(kept) < settings.keep:
            seen.add(words)
            kept.append((f"{tag[1]} {text}" if tag else text, nll))
    return kept


def _words(text: str) -> str:
    return " ".join(PUNCTUATION.sub(" ", text.casefold()).split())
