"""Says the captions of a table in other words, clip by clip, so that a killed run continues.

What is done lies in a journal beside the table to come: a line for each clip, in the order of the input. The last line
may be torn; it is cut off, and its clip is done again.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from lavila.models.generation import GenerationConfig, Generators, clip_generators
from lavila.models.paraphraser import PUBLISHED
from lavila.shards.captions import CaptionError, Words, write_captions

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


class Journal:
    """The finished clips of a run. CaptionError where the file belongs to a run with other settings."""

    def __init__(self, path: Path, about: dict[str, Any]) -> None:
        self.path = path
        if path.exists():
            self.done = self._whole_lines(about)
        else:
            self.done = 0
            path.write_text(json.dumps(about) + "\n", encoding="utf-8")

    def append(self, rows: Iterable[Words]) -> None:
        """Add finished clips; they are on the disk when this returns."""
        with self.path.open("a", encoding="utf-8") as file:
            for row in rows:
                file.write(json.dumps(row) + "\n")
                self.done += 1
            file.flush()
            os.fsync(file.fileno())

    def rows(self) -> Iterator[Words]:
        """The finished clips in order: clip id, narrations, scores."""
        with self.path.open(encoding="utf-8") as file:
            next(file)
            for line in file:
                clip_id, narrations, scores = json.loads(line)
                yield clip_id, narrations, scores

    def _whole_lines(self, about: dict[str, Any]) -> int:
        """The number of finished clips. Cuts off a torn line."""
        lines = -1
        with self.path.open("rb+") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    file.seek(-len(line), 1)
                    file.truncate()
                    break
                if lines < 0:
                    self._check(line, about)
                lines += 1
        if lines < 0:
            self.path.write_text(json.dumps(about) + "\n", encoding="utf-8")
        return max(lines, 0)

    def _check(self, line: bytes, about: dict[str, Any]) -> None:
        try:
            found = json.loads(line)
            differing = [name for name in about if json.loads(json.dumps(about[name])) != found[name]]
        except (ValueError, KeyError, TypeError):
            raise CaptionError(
                f"{self.path}: is not the journal of a rephrasing; remove it or give another --out"
            ) from None
        if differing:
            raise CaptionError(
                f"{self.path}: belongs to a run with another {' and '.join(differing)}; give the same options, "
                "or remove the file to begin anew"
            )


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
    more. CaptionError if the journal's last clip is not the table's.
    """
    todo = _clips(table, skip=journal.done)
    batch: list[tuple[str, list[str]]] = []
    for clip in todo:
        batch.append(clip)
        if sum(len(captions) for _, captions in batch) >= batch_size:
            journal.append(_rephrased(batch, paraphraser, settings))
            yield len(batch)
            batch = []
    if batch:
        journal.append(_rephrased(batch, paraphraser, settings))
        yield len(batch)


def write_rephrased(out: Path, journal: Journal) -> tuple[int, int]:
    """Write the captions table of a finished journal. Returns the numbers of clips and of clips without a paraphrase.

    The latter are left out. The journal stays.
    """
    empty = sum(not narrations for _, narrations, _ in journal.rows())
    return write_captions(out, (row for row in journal.rows() if row[1]), source=SOURCE), empty


def _clips(table: pa.Table, *, skip: int) -> Iterator[tuple[str, list[str]]]:
    for batch in table.select(["clip_id", "narrations"]).slice(skip).to_batches(max_chunksize=CLIPS_AT_ONCE):
        for row in batch.to_pylist():
            yield row["clip_id"], [caption for caption in row["narrations"] if caption.strip()]


def _rephrased(
    clips: Sequence[tuple[str, list[str]]], paraphraser: Paraphrases, settings: Rephrasing
) -> Iterator[Words]:
    captions = [caption for _, texts in clips for caption in texts]
    names = [f"{clip_id}/{place}" for clip_id, texts in clips for place in range(len(texts))]
    generators = clip_generators(settings.seed, names)
    plain = [TAG.sub("", caption, count=1) if TAG.match(caption) else caption for caption in captions]
    found = paraphraser(plain, settings.choice, generator=generators) if plain else []
    answers = iter(found)
    for clip_id, texts in clips:
        kept = [answer for caption in texts for answer in chosen(caption, next(answers), settings)]
        scores = [math.exp(nll) for _, nll in kept]
        yield clip_id, [text for text, _ in kept], scores


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
