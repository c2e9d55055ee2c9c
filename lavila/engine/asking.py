"""What `tools/demo.py` does: indexes videos, and serves the page on which they are searched."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from lavila.demo.encoders import open_encoder
from lavila.demo.index import Index
from lavila.demo.index_plan import IndexOptions
from lavila.demo.indexing import Progress, update_index
from lavila.demo.library import make_library
from lavila.demo.narrate import NarrateOptions
from lavila.demo.narrators import OpenNarrator, open_narrator
from lavila.demo.search import Searcher
from lavila.demo.serving import Listening, listen, serve
from lavila.demo.transcripts import Transcripts
from lavila.engine.distributed import join
from lavila.engine.narrating import vocabulary_of
from lavila.models.captioner import PUBLISHED
from lavila.models.generation import decoder_type
from lavila.report.charts import duration

Say = Callable[[str], None]

MADE = "made"  # folder of the index that takes strips, copies and narrations
SAY_SECONDS = 2.0  # between two lines of progress


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


def run(asked: Asked, *, say: Say) -> None:
    """Index, and serve until Ctrl-C. Raises UserErrors of the parts."""
    listening = listen(asked.host, asked.port)  # before the work, in case that the port is taken
    with join(asked.device) as process:
        device = process.device
        half = device.type == "cuda" and decoder_type(device) is torch.bfloat16
        encoder = open_encoder(asked.model, vocabulary=asked.vocabulary, device=device, half=half)
        narrator = _narrator(asked, device, half=half) if asked.narrator else None
        options = IndexOptions(window=asked.window, every=asked.every, batch_size=asked.batch_size)
        index = update_index(asked.index, asked.videos, encoder, options, report=_Reporting(say))
        _say_what_is_there(index, say)
        made = asked.index / MADE
        transcripts = Transcripts(made / "narrations", narrator, NarrateOptions(subject=asked.subject))
        library = make_library(Searcher(index, encoder.text), transcripts, cache=made, suggestions=asked.suggest)
        serve(library, listening, ready=lambda url: _say_where(listening, url, asked, say), browser=asked.open)


def _narrator(asked: Asked, device: torch.device, *, half: bool) -> OpenNarrator:
    assert asked.narrator is not None
    vocabulary = asked.narrator_vocabulary or vocabulary_of(asked.narrator)
    return open_narrator(asked.narrator, vocabulary=vocabulary, options=PUBLISHED, seed=0, device=device, half=half)


def _say_what_is_there(index: Index, say: Say) -> None:
    readable = [video for video in index.videos if video.moments]
    seconds = sum(video.duration for video in readable)
    say(f"{index.folder}: {index.moments.num_rows:,} moments of {len(readable):,} videos, {duration(seconds)}")
    for video in index.videos:
        if video.reason:
            say(f"{'in part' if video.moments else 'left out'}: {video.reason}")


def _say_where(listening: Listening, url: str, asked: Asked, say: Say) -> None:
    say(f"\nThe page is at {url}")
    if listening.token:
        say("Other machines reach it, and whoever has this token may see the videos.")
    if asked.suggest:
        say("Try: " + "; ".join(f'"{words}"' for words in asked.suggest))
    say("Ctrl-C ends it.")


class _Reporting:
    """Prints a line now and then."""

    def __init__(self, say: Say) -> None:
        self._say, self._last = say, 0.0

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        if now - self._last < SAY_SECONDS and progress.done < progress.of:
            return
        self._last = now
        left = f", {duration(progress.seconds_left)} left" if progress.done < progress.of else ""
        self._say(f"{progress.done:,} of {progress.of:,} windows{left}: {progress.video}")
