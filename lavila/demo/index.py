"""An index of videos: a vector for each window of each video, in a folder that Arrow and safetensors can read.

    INDEX/moments.arrow              Arrow IPC file: a row for each window, in the order of videos and of time
        video  dictionary<string>    name of the video
        start  double                seconds of the whole video
        stop   double
        row    int32                 its row in the video's matrix
    INDEX/vectors/NAME-KEY.safetensors   a file for each video: `vectors` float16 [N, D], rows of unit length;
                                         `starts` and `stops` float64 [N], the same seconds
    INDEX/work/                      what an unfinished run has embedded; it is empty when all is done

moments.arrow says in its metadata which models and videos it is made of, so all of an index changes at once when that
file is replaced. KEY follows from the video's name, size and time of change and from the settings: the file of a
changed video has another name, and whoever has the older table open can still read the older matrix. `update_index` is
in `lavila.demo.indexing`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from safetensors import SafetensorError, safe_open

from lavila.demo.encoders import Vectors
from lavila.errors import UserError, one_line, shown
from lavila.files import whole_path

FORMAT = 1  # raise this number when older versions cannot read a new index
MOMENTS, VECTORS, WORK = "moments.arrow", "vectors", "work"
ABOUT = b"lavila.index"  # the entry of the table's metadata

MOMENTS_SCHEMA = pa.schema(
    [
        pa.field("video", pa.dictionary(pa.int32(), pa.string()), nullable=False),
        pa.field("start", pa.float64(), nullable=False),
        pa.field("stop", pa.float64(), nullable=False),
        pa.field("row", pa.int32(), nullable=False),
    ]
)

Seconds = npt.NDArray[np.float64]


class IndexFolderError(UserError):
    """A folder that holds no index, or one that cannot be read or does not fit."""


@dataclass(frozen=True, kw_only=True)
class IndexedVideo:
    """A video of an index."""

    name: str  # unique in the index: its path from the folder that holds all its videos
    path: str  # the file, or the folder of files that are one video; absolute
    duration: float  # seconds; 0 where it cannot be read, as are the next three
    fps: float
    width: int  # pixels as coded, before rotation
    height: int
    size: int  # bytes
    mtime_ns: int  # when it was last changed
    moments: int  # N, the number of its vectors
    reason: str = ""  # why it has no or fewer vectors; "" where it has all
    file: str = ""  # its matrix in the folder of vectors; "" where it has none


@dataclass(frozen=True, kw_only=True)
class IndexSettings:
    """What decides the vectors of an index, beside its videos."""

    window: float  # seconds of a window
    every: float  # seconds from the start of one window to the next
    model: str  # the model's name, for people
    facts: dict[str, Any]  # all that decides its vectors: sha256, dimensions (D), frames, image_size and more

    @property
    def dimensions(self) -> int:
        """D"""
        return int(self.facts["dimensions"])


@dataclass(frozen=True, kw_only=True)
class Index:
    """An index as it was when it was opened."""

    folder: Path
    settings: IndexSettings
    videos: list[IndexedVideo]  # by name; those that cannot be read, too
    moments: pa.Table  # see above; rows of a video are neighbours, ascending by start

    @cached_property
    def by_name(self) -> dict[str, IndexedVideo]:
        """The videos by their names."""
        return {video.name: video for video in self.videos}

    @property
    def root(self) -> Path:
        """The folder from which the names of the videos are paths."""
        first = self.videos[0]
        return Path(first.path).parents[len(Path(first.name).parts) - 1]

    def video(self, name: str) -> IndexedVideo:
        """A video by its name. IndexFolderError where there is none."""
        if name not in self.by_name:
            raise IndexFolderError(f"{self.folder}: has no video {shown(name)}; it has {len(self.videos)}, see .videos")
        return self.by_name[name]

    def vectors(self, name: str) -> Vectors:
        """float16 [N, D] of a video, in the order of its windows.

        IndexFolderError for another name and for a file that is missing or damaged.
        """
        video = self.video(name)
        if not video.file:
            return np.zeros((0, self.settings.dimensions), np.float16)
        found = read_matrix(self.folder / VECTORS / video.file, "vectors")["vectors"]
        if found.shape != (video.moments, self.settings.dimensions) or found.dtype != np.float16:
            raise IndexFolderError(
                f"{self.folder / VECTORS / video.file}: holds {found.dtype} {list(found.shape)} instead of float16 "
                f"{[video.moments, self.settings.dimensions]}; remove it and embed the video again"
            )
        return cast(Vectors, found)


def open_index(folder: str | Path) -> Index:
    """Read the table of an index; its vectors are read when they are asked for. IndexFolderError for anything else."""
    file = Path(folder) / MOMENTS
    if not file.is_file():
        raise IndexFolderError(
            f"{folder}: holds no index, for there is no {MOMENTS}; make one with tools/embed_videos.py"
        )
    try:
        with pa.memory_map(str(file)) as mapped:
            table = pa.ipc.open_file(mapped).read_all()
        about = json.loads((table.schema.metadata or {})[ABOUT])
        if about["format"] != FORMAT:
            raise IndexFolderError(
                f"{file}: has format {shown(about['format'])}, and this version reads {FORMAT}; embed the videos again"
            )
        settings = IndexSettings(**about["settings"])
        videos = [IndexedVideo(**entry) for entry in about["videos"]]
    except (pa.ArrowInvalid, OSError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, IndexFolderError):
            raise
        raise IndexFolderError(f"{file}: is no table of an index ({one_line(error)}); embed the videos again") from None
    wanted = sum(video.moments for video in videos)
    if not table.schema.equals(MOMENTS_SCHEMA) or table.num_rows != wanted:
        raise IndexFolderError(f"{file}: its columns or rows are not those of an index; embed the videos again")
    return Index(folder=Path(folder), settings=settings, videos=videos, moments=table)


def write_moments(
    folder: Path,
    settings: IndexSettings,
    videos: Sequence[IndexedVideo],
    times: Sequence[tuple[Seconds, Seconds]],
) -> None:
    """Write moments.arrow, whole or not at all. times: for each video its starts and stops, [N] each."""
    counts = [video.moments for video in videos]
    assert counts == [len(starts) for starts, _ in times]
    names = pa.DictionaryArray.from_arrays(
        pa.array(np.repeat(np.arange(len(videos), dtype=np.int32), counts)),
        pa.array([video.name for video in videos], pa.string()),
    )
    rows = np.concatenate([np.arange(count, dtype=np.int32) for count in counts] or [np.zeros(0, np.int32)])
    starts, stops = (np.concatenate([one[k] for one in times] or [np.zeros(0)]) for k in (0, 1))
    about = {"format": FORMAT, "settings": asdict(settings), "videos": [asdict(video) for video in videos]}
    schema = MOMENTS_SCHEMA.with_metadata({ABOUT: json.dumps(about, ensure_ascii=False)})
    table = pa.Table.from_arrays([names, pa.array(starts), pa.array(stops), pa.array(rows)], schema=schema)
    with whole_path(folder / MOMENTS) as temporary, pa.ipc.new_file(str(temporary), schema) as writer:
        writer.write_table(table)


def read_matrix(path: Path, *names: str) -> dict[str, npt.NDArray[Any]]:
    """Some tensors of a file of vectors. IndexFolderError where the file is missing or damaged."""
    try:
        with safe_open(path, framework="np") as opened:
            return {name: opened.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        raise unreadable(path, error) from None


def read_about(path: Path) -> Mapping[str, str]:
    """The metadata of a file of vectors. IndexFolderError where the file is missing or damaged."""
    try:
        with safe_open(path, framework="np") as opened:
            return cast(Mapping[str, str], opened.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise unreadable(path, error) from None


def unreadable(path: Path, error: Exception) -> IndexFolderError:
    """The error for a file of vectors that cannot be read."""
    return IndexFolderError(f"{path}: cannot be read ({one_line(error)}); remove it and embed the video again")
