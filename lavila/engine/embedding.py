"""What `tools/embed_videos.py` does: an index of videos, made by any number of processes, and cuts of what it finds."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch

from lavila.demo.cuts import cut
from lavila.demo.encoders import OpenEncoder, open_encoder
from lavila.demo.index import Index, open_index
from lavila.demo.index_plan import IndexOptions, plan_index
from lavila.demo.indexing import Progress, embed, index_lock, publish
from lavila.demo.search import Searcher
from lavila.engine.distributed import Process, barrier, join, on_main
from lavila.errors import UserError, listed
from lavila.files import is_below, unwritable
from lavila.models.generation import decoder_type
from lavila.report.charts import duration

Say = Callable[[str], None]

DONE, NOT_DONE = 0, 1
SAY_SECONDS = 2.0  # between two lines of progress


class EmbeddingError(UserError):
    """Arguments that do not go together."""


@dataclass(frozen=True, kw_only=True)
class Embedding:
    """The arguments of tools/embed_videos.py, as its --help describes them. EmbeddingError where they contradict."""

    videos: list[Path]
    model: str
    vocabulary: str
    out: Path
    window: float
    every: float
    batch_size: int
    device: str
    query: str | None
    cut: Path | None
    margin: float
    limit: int

    def __post_init__(self) -> None:
        if self.cut is not None and self.query is None:
            raise EmbeddingError("--cut writes what --query finds: give a sentence with --query")
        if self.query is not None and not self.query.strip():
            raise EmbeddingError("--query: is empty, and finds nothing; give a sentence")
        if self.cut is not None and (inside := next((path for path in self.videos if is_below(self.cut, path)), None)):
            raise EmbeddingError(
                f"--cut {self.cut}: lies in --videos {inside}, so the next run would take the cuts for videos; give a "
                "folder elsewhere"
            )
        if self.cut is not None and (there := unwritable(self.cut)):
            raise EmbeddingError(f"--cut {self.cut}: {there} is no folder that can be written to; give another one")
        for name, least in (("limit", 1), ("margin", 0)):
            if not least <= getattr(self, name) < math.inf:
                raise EmbeddingError(f"--{name} {getattr(self, name)}: must be at least {least}, and finite")
        self.options()

    def options(self) -> IndexOptions:
        """How videos become windows. FootageError for numbers that cannot be."""
        return IndexOptions(window=self.window, every=self.every, batch_size=self.batch_size)


def run(wanted: Embedding, *, say: Say) -> int:
    """Embed, search and cut. Returns the exit status. Raises UserErrors of the parts."""
    with join(wanted.device) as process:
        encoder = open_encoder_on(process.device, wanted.model, vocabulary=wanted.vocabulary)
        index = make_index(wanted.out, wanted.videos, encoder, wanted.options(), process, say=say)
        if not process.is_main:
            return DONE
        if wanted.query is not None:
            _search(wanted, index, encoder, say)
        return NOT_DONE if any(video.reason for video in index.videos) else DONE


def open_encoder_on(device: torch.device, checkpoint: str, *, vocabulary: str) -> OpenEncoder:
    """A dual encoder in the arithmetic that a device is quick at. Raises as `open_encoder`."""
    half = device.type == "cuda" and decoder_type(device) is torch.bfloat16
    return open_encoder(checkpoint, vocabulary=vocabulary, device=device, half=half)


def make_index(
    folder: Path, videos: Sequence[Path], encoder: OpenEncoder, options: IndexOptions, process: Process, *, say: Say
) -> Index:
    """As `demo.indexing.update_index`, with a share of the work for each process; every rank calls this."""
    say = say if process.is_main else (lambda line: None)
    with ExitStack() as held:
        on_main(lambda: held.enter_context(index_lock(folder)))
        plan = on_main(lambda: plan_index(folder, videos, encoder, options))
        if gone := plan.removed:
            say(f"{folder}: without {counted(gone)} that it had, gone or not among --videos: {listed(gone, most=3)}")
        embed(
            plan,
            encoder,
            batch_size=options.batch_size,
            share=(process.rank, process.world),
            report=_Reporting(say, processes=process.world),
        )
        barrier()
        on_main(lambda: publish(plan, is_last=True))
    index = open_index(folder)
    readable = [video for video in index.videos if video.moments]
    seconds = sum(video.duration for video in readable)
    say(f"{index.folder}: {index.moments.num_rows:,} moments of {counted(readable)}, {duration(seconds)}")
    for video in index.videos:
        if video.reason:
            say(f"{'in part' if video.moments else 'left out'}: {video.reason}")
    return index


def counted(videos: Sequence[object]) -> str:
    """1 video, 2 videos."""
    return f"{len(videos):,} video{'s' * (len(videos) != 1)}"


def _search(wanted: Embedding, index: Index, encoder: OpenEncoder, say: Say) -> None:
    assert wanted.query is not None
    hits = Searcher(index, encoder.text).find(wanted.query, limit=wanted.limit)
    for place, hit in enumerate(hits, start=1):
        say(f"{place:3}  {hit.score:+.3f}  {hit.start:9.2f} - {hit.stop:.2f} s  {hit.video}")
        if wanted.cut is not None:
            say(f"     {cut(index, hit, wanted.cut, margin=wanted.margin, place=place)}")


class _Reporting:
    """Prints a line now and then."""

    def __init__(self, say: Say, *, processes: int) -> None:
        self._say, self._last = say, 0.0
        self._whose = f" of the first of {processes} processes" if processes > 1 else ""

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        if now - self._last < SAY_SECONDS and progress.done < progress.of:
            return
        self._last = now
        left = f", {duration(progress.seconds_left)} left" if progress.done < progress.of else ""
        self._say(f"{progress.done:,} of {progress.of:,} windows{self._whose}{left}: {progress.video}")
