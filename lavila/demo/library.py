"""What the demo's server serves: an index, a search in it, and what is made of its videos on demand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lavila.demo.exports import to_annotations, to_csv, to_json
from lavila.demo.index import Index, IndexedVideo, Seconds
from lavila.demo.playable import Copies
from lavila.demo.search import Hit, Searcher
from lavila.demo.similarity import Scores
from lavila.demo.strips import Strips
from lavila.demo.transcripts import Transcripts
from lavila.errors import UserError, shown

EXPORTS = ("csv", "json", "annotations")
MOST_HITS = 500
MOST_WORDS = 1000  # characters of a query


class WantedError(UserError):
    """A request that cannot be answered."""


class NoVideoError(WantedError):
    """A request for a video that the library does not have."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is looked for: words, or moments like those of a stretch of a video."""

    query: str = ""
    like: tuple[str, float, float] | None = None  # name of a video, seconds
    videos: tuple[str, ...] | None = None  # only in these; None = in all
    limit: int = 48

    def __post_init__(self) -> None:
        if bool(self.query.strip()) == (self.like is not None):
            raise WantedError("a search needs either words (q) or an example (like, from, to)")
        if len(self.query) > MOST_WORDS:
            raise WantedError(f"a query has at most {MOST_WORDS:,} characters; this one has {len(self.query):,}")
        if not 1 <= self.limit <= MOST_HITS:
            raise WantedError(f"limit={self.limit}: give 1 to {MOST_HITS}")
        if self.like and not 0 <= self.like[1] < self.like[2]:
            raise WantedError(f"from={self.like[1]:g}, to={self.like[2]:g}: give two ascending seconds")


@dataclass(frozen=True, kw_only=True)
class Exported:
    """Hits as a file."""

    name: str
    media_type: str
    data: bytes


@dataclass(frozen=True, kw_only=True)
class Library:
    """Videos that can be searched and watched."""

    search: Searcher
    strips: Strips
    copies: Copies
    transcripts: Transcripts
    suggestions: tuple[str, ...] = ()  # queries to try

    @property
    def index(self) -> Index:
        """What is searched."""
        return self.search.index

    def video(self, name: str) -> IndexedVideo:
        """A video by its name. NoVideoError for every other text, such as a path."""
        found = self.index.by_name.get(name)
        if found is None:
            raise NoVideoError(f"no video {shown(name)} here")
        return found

    def path(self, name: str) -> Path:
        """The file or folder of a video. NoVideoError where there is none, or it has gone."""
        path = Path(self.video(name).path)
        if not path.exists():
            raise NoVideoError(f"{name}: its file has gone since it was indexed; start the command again")
        return path

    def hits(self, wanted: Wanted) -> Sequence[Hit]:
        """The best moments first."""
        for name in wanted.videos or ():
            self.video(name)
        if wanted.like:
            self.video(wanted.like[0])
            return self.search.like(*wanted.like, limit=wanted.limit, videos=wanted.videos)
        return self.search.find(wanted.query, limit=wanted.limit, videos=wanted.videos)

    def export(self, wanted: Wanted, kind: str) -> Exported:
        """The hits as a file. kind: one of EXPORTS."""
        if kind not in EXPORTS:
            raise WantedError(f"format={shown(kind)}: give {' or '.join(EXPORTS)}")
        hits = self.hits(wanted)
        if kind == "csv":
            return Exported(name="moments.csv", media_type="text/csv", data=to_csv(hits).encode())
        if kind == "json":
            return Exported(name="moments.json", media_type="application/json", data=to_json(hits).encode())
        text = wanted.query or "like {} from {:g} to {:g}".format(*(wanted.like or ("", 0, 0)))
        return Exported(name="moments.pkl", media_type="application/octet-stream", data=to_annotations(hits, text))

    def curve(self, wanted: Wanted, name: str) -> tuple[Seconds, Scores]:
        """How well each moment of a video fits."""
        self.video(name)
        if wanted.like:
            self.video(wanted.like[0])
            return self.search.curve_like(*wanted.like, name)
        return self.search.curve(wanted.query, name)

    def close(self) -> None:
        """Stop the work in the background."""
        self.copies.close()
        self.transcripts.close()


def make_library(
    search: Searcher, transcripts: Transcripts, *, cache: Path, suggestions: Sequence[str] = ()
) -> Library:
    """The library whose strips and copies lie in `cache`."""
    return Library(
        search=search,
        strips=Strips(cache / "strips"),
        copies=Copies(cache / "copies"),
        transcripts=transcripts,
        suggestions=tuple(suggestions),
    )
