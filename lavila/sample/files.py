"""The video files of the sample dataset: which show the same video, so that each moment is rendered once for all."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

from lavila.sample.camera import Video


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The source of every form of the data set."""

    videos: list[Video]
    seed: int
    chunk_seconds: int  # length of a file in ego4d's chunk folders


@dataclass(frozen=True, kw_only=True)
class VideoFile:
    """A file that shows frames `first` to `stop` - 1 of a video."""

    path: str  # path in the folder of the data set
    first: int
    stop: int


@dataclass(frozen=True, kw_only=True)
class Rendering:
    """One video at one frame rate, and the files that show parts of it. One process makes it."""

    video: Video
    files: list[VideoFile]

    @property
    def frames(self) -> int:
        """The number of frames that some file shows."""
        return len({number for file in self.files for number in range(file.first, file.stop)})


def gather(shown: Iterable[tuple[Video, VideoFile]]) -> list[Rendering]:
    """One rendering for all files that show the same video at the same frame rate."""
    found: dict[tuple[str, Fraction], Rendering] = {}
    for video, file in shown:
        found.setdefault((video.video_id, video.fps), Rendering(video=video, files=[])).files.append(file)
    return list(found.values())
