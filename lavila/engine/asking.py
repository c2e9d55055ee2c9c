"""What `tools/demo.py` does: indexes videos, and serves the page on which they are searched."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from lavila.demo.index_plan import IndexOptions
from lavila.demo.library import make_library
from lavila.demo.narrate import NarrateOptions
from lavila.demo.narrators import OpenNarrator, open_narrator
from lavila.demo.search import Searcher
from lavila.demo.serving import Listening, listen, serve
from lavila.demo.transcripts import Transcripts
from lavila.engine.distributed import join
from lavila.engine.embedding import Say, make_index, open_encoder_on
from lavila.engine.narrating import vocabulary_of
from lavila.models.captioner import PUBLISHED

MADE = "made"  # folder of the index that takes strips, copies and narrations


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the command line says; see `tools/demo.py --help`."""

    videos: list[Path]
    model: str
    vocabulary: str
    narrator: str | None
    narrator_vocabulary: str | None
    subject: str
    index: Path
    window: float
    every: float
    batch_size: int
    device: str
    host: str
    port: int
    suggest: list[str]
    open: bool

    def __post_init__(self) -> None:
        self.options()

    def options(self) -> IndexOptions:
        """How videos become windows. FootageError for numbers that cannot be."""
        return IndexOptions(window=self.window, every=self.every, batch_size=self.batch_size)


def run(asked: Asked, *, say: Say) -> None:
    """Index, and serve until Ctrl-C. Raises UserErrors of the parts."""
    listening = listen(asked.host, asked.port)  # before the work, in case that the port is taken
    with join(asked.device) as process:
        encoder = open_encoder_on(process.device, asked.model, vocabulary=asked.vocabulary)
        narrator = _narrator(asked, process.device, half=encoder.half) if asked.narrator else None
        index = make_index(asked.index, asked.videos, encoder, asked.options(), process, say=say)
        made = asked.index / MADE
        transcripts = Transcripts(made / "narrations", narrator, NarrateOptions(subject=asked.subject))
        library = make_library(Searcher(index, encoder.text), transcripts, cache=made, suggestions=asked.suggest)
        serve(library, listening, ready=lambda url: _say_where(listening, url, asked, say), browser=asked.open)


def _narrator(asked: Asked, device: torch.device, *, half: bool) -> OpenNarrator:
    assert asked.narrator is not None
    vocabulary = asked.narrator_vocabulary or vocabulary_of(asked.narrator)
    return open_narrator(asked.narrator, vocabulary=vocabulary, options=PUBLISHED, seed=0, device=device, half=half)


def _say_where(listening: Listening, url: str, asked: Asked, say: Say) -> None:
    say(f"\nThe page is at {url}")
    if listening.token:
        say("Other machines reach it, and whoever has this token may see the videos.")
    if asked.suggest:
        say("Try: " + "; ".join(f'"{words}"' for words in asked.suggest))
    say("Ctrl-C ends it.")
