"""Makes an index of videos, or brings one up to date: only what is new or changed is embedded.

    videos --plan--> stretches of windows --footage--> pictures --encoder--> parts --publish--> the index

Windows overlap, and each frame is decoded once. Parts are written every few seconds, so the same command continues
after a kill at any moment, with any number of processes. `plan_index` and `publish` are for one process; between them
any number of processes may `embed` a share each. `update_index` is all three for one process.
"""

from __future__ import annotations

import fcntl
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.numpy import save_file

from lavila.demo.encoders import OpenEncoder, Vectors
from lavila.demo.footage import (
    LostWindow,
    WindowPictures,
    one_ahead,
    read_or_lose,
    uncovered,
    windows_of,
)
from lavila.demo.index import (
    VECTORS,
    WORK,
    Index,
    IndexedVideo,
    IndexFolderError,
    Seconds,
    open_index,
    read_about,
    read_matrix,
    write_moments,
)
from lavila.demo.index_plan import (
    IndexOptions,
    IndexPlan,
    PlannedVideo,
    Stretch,
    may_come_back,
    parts_of,
    plan_index,
)
from lavila.files import whole_path

PART_SECONDS = 20.0  # of work that a kill can cost
PUBLISH_SECONDS = 60.0  # between two updates of the table while videos are embedded
WAITS = "is not embedded yet"


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a process is with its share."""

    done: int  # windows
    of: int
    seconds_left: float  # as the pace so far says
    video: str  # the name of the one in work


Report = Callable[[Progress], None]
"""Hears of progress, after each forward pass."""


def update_index(
    folder: str | Path,
    videos: Sequence[Path],
    encoder: OpenEncoder,
    options: IndexOptions,
    *,
    report: Report = lambda progress: None,
) -> Index:
    """Make the index of some videos, or bring it up to date. Videos that it held and that are not given leave it.

    videos: files, and folders of videos. A video that cannot be read is listed in the index, with the reason.

    Raises:
        FootageError: a path without a video; windows that cannot be.
        IndexFolderError: the folder holds an index of another model or other windows, is in use, or cannot be written.
    """
    with index_lock(Path(folder)):
        plan = plan_index(Path(folder), videos, encoder, options)
        embed(plan, encoder, batch_size=options.batch_size, report=report)
        publish(plan, is_last=True)
    return open_index(folder)


@contextmanager
def index_lock(folder: Path) -> Iterator[None]:
    """Keep other processes from working on an index at the same time. IndexFolderError where one does."""
    with _writing(folder):
        (folder / WORK).mkdir(parents=True, exist_ok=True)
        (folder / VECTORS).mkdir(exist_ok=True)
        file = (folder / WORK / "lock").open("w")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise IndexFolderError(
                f"{folder}: another process is working on this index; wait for it, or give another folder"
            ) from None
        yield


def embed(
    plan: IndexPlan,
    encoder: OpenEncoder,
    *,
    batch_size: int,
    share: tuple[int, int] = (0, 1),
    report: Report = lambda progress: None,
) -> None:
    """Embed a share of what is left, and write it as parts.

    share: (i, n): the i-th of n equal shares. The first one updates the table every now and then.
    """
    stretches = _share(plan.left, *share)
    of = sum(stretch.stop - stretch.first for stretch in stretches)
    windows = _windows(plan, stretches, encoder)
    groups = iter(lambda: list(islice(windows, batch_size)), [])
    part: _Part | None = None
    done, began, published = 0, time.perf_counter(), time.perf_counter()
    for group in one_ahead(groups):
        for stretch, number, one, vector in _embedded(group, encoder):
            if part is None or part.stretch is not stretch:
                if part is not None:
                    part.write(plan)
                part = _Part(stretch=stretch, first=number)
            part.add(one, vector)
        now = time.perf_counter()
        if part is not None and now - part.begun > PART_SECONDS:
            part.write(plan)
        if share[0] == 0 and now - published > PUBLISH_SECONDS:
            publish(plan, is_last=False)
            published = time.perf_counter()
        done += len(group)
        left = (of - done) * (now - began) / done
        report(Progress(done=done, of=of, seconds_left=left, video=plan.videos[group[-1][0].place].video.name))
    if part is not None:
        part.write(plan)


def _share(stretches: Sequence[Stretch], index: int, of: int) -> list[Stretch]:
    """The index-th of `of` shares, in one run of windows, so that few frames are decoded by two processes."""
    total = sum(stretch.stop - stretch.first for stretch in stretches)
    low, high = total * index // of, total * (index + 1) // of
    found, before = [], 0
    for stretch in stretches:
        count = stretch.stop - stretch.first
        first, stop = max(low - before, 0), min(high - before, count)
        if first < stop:
            found.append(replace(stretch, first=stretch.first + first, stop=stretch.first + stop))
        before += count
    return found


Seen = tuple[Stretch, int, WindowPictures | LostWindow]
"""A window of a stretch: its number in the video, and its pictures."""


def _windows(plan: IndexPlan, stretches: Sequence[Stretch], encoder: OpenEncoder) -> Iterator[Seen]:
    for stretch in stretches:
        video = plan.videos[stretch.place].video
        windows = windows_of(0, video.duration, every=plan.settings.every, length=plan.settings.window)
        seen = read_or_lose(Path(video.path), windows[stretch.first : stretch.stop], [encoder.look])
        for number, one in enumerate(seen, stretch.first):
            yield stretch, number, one


def _embedded(
    group: Sequence[Seen], encoder: OpenEncoder
) -> Iterator[tuple[Stretch, int, WindowPictures | LostWindow, Vectors | None]]:
    """Each window with its vector, or without where it has no pictures."""
    pictures = [one.videos[0] for _, _, one in group if isinstance(one, WindowPictures)]
    vectors = iter(encoder.embed(torch.from_numpy(np.stack(pictures)).transpose(1, 2)) if pictures else ())
    for stretch, number, one in group:
        vector = next(vectors) if isinstance(one, WindowPictures) else None
        if vector is not None and not np.isfinite(vector).all():
            one, vector = LostWindow(window=one.window, reason="the model gives no finite numbers for it"), None
        yield stretch, number, one, vector


class _Part:
    """Windows that follow each other, before they are written."""

    def __init__(self, *, stretch: Stretch, first: int) -> None:
        self.stretch = stretch
        self._begin(first)

    def _begin(self, first: int) -> None:
        self.first = self.stop = first
        self.begun = time.perf_counter()
        self._vectors: list[Vectors] = []
        self._times: list[tuple[float, float]] = []
        self._lost: list[str] = []

    def add(self, one: WindowPictures | LostWindow, vector: Vectors | None) -> None:
        self.stop += 1
        if isinstance(one, LostWindow):
            self._lost.append(f"{one.window.start:g} s: {one.reason}")
        else:
            assert vector is not None
            self._vectors.append(vector)
            self._times.append((one.window.start, one.window.stop))

    def write(self, plan: IndexPlan) -> None:
        """Write what is there, and begin anew after it."""
        if self.stop == self.first:
            return
        key, dimensions = plan.videos[self.stretch.place].key, plan.settings.dimensions
        file = plan.folder / WORK / f"{key}-{self.first:07d}-{self.stop:07d}.safetensors"
        vectors = np.stack(self._vectors) if self._vectors else np.zeros((0, dimensions), np.float16)
        times = np.array(self._times, np.float64).reshape(-1, 2)
        _save(file, vectors, times, {"lost": json.dumps(self._lost)})
        self._begin(self.stop)


def publish(plan: IndexPlan, *, is_last: bool) -> None:
    """Join the parts of videos that are complete, and write the table of the index.

    is_last: all is embedded, so remove what no video of the index needs.
    """
    parts = parts_of(plan.folder)
    videos: list[IndexedVideo] = []
    times: list[tuple[Seconds, Seconds]] = []
    nothing = np.zeros(0, np.float64)
    for planned in plan.videos:
        found = _joined(plan, planned, parts.get(planned.key, [])) if planned.key else None
        videos.append(found[0] if found else replace(planned.video, file="", reason=planned.video.reason or WAITS))
        times.append(found[1] if found else (nothing, nothing))
    with _writing(plan.folder):
        write_moments(plan.folder, plan.settings, videos, times)
    if is_last:
        _clear(plan)


def _joined(
    plan: IndexPlan, planned: PlannedVideo, parts: Sequence[tuple[int, int, Path]]
) -> tuple[IndexedVideo, tuple[Seconds, Seconds]] | None:
    """A video with its number of moments, and their starts and stops; None where windows are missing."""
    file = plan.folder / VECTORS / planned.video.file
    if not file.is_file():
        if uncovered([part[:2] for part in parts], start=0, stop=planned.windows):
            return None
        _join(file, planned.video, parts, windows=planned.windows)
    for _, _, part in parts:
        part.unlink(missing_ok=True)
    about = json.loads(read_about(file)["video"])
    read = read_matrix(file, "starts", "stops")
    video = replace(planned.video, moments=len(read["starts"]), reason=about["reason"])
    return video, (read["starts"], read["stops"])


def _join(file: Path, video: IndexedVideo, parts: Sequence[tuple[int, int, Path]], *, windows: int) -> None:
    """Write the matrix of a video from its parts, which may overlap after a change of the number of processes."""
    vectors: list[Vectors] = []
    starts: list[Seconds] = []
    stops: list[Seconds] = []
    lost: list[str] = []
    reached = -np.inf
    for _, _, part in sorted(parts):
        read = read_matrix(part, "vectors", "starts", "stops")
        new = read["starts"] > reached
        vectors.append(read["vectors"][new])
        starts.append(read["starts"][new])
        stops.append(read["stops"][new])
        lost += json.loads(read_about(part)["lost"])
        if new.any():
            reached = float(read["starts"][new][-1])
    lost = list(dict.fromkeys(lost))
    reason = f"{len(lost)} of {windows} windows cannot be read, the first at {lost[0]}" if lost else ""
    times = np.stack([np.concatenate(starts), np.concatenate(stops)], axis=1)
    found = replace(video, moments=len(times), reason=reason)
    _save(file, np.concatenate(vectors), times, {"video": json.dumps(asdict(found), ensure_ascii=False)})


def _save(file: Path, vectors: Vectors, times: Seconds, about: Mapping[str, str]) -> None:
    tensors: dict[str, npt.NDArray[Any]] = {
        "vectors": np.ascontiguousarray(vectors),
        "starts": np.ascontiguousarray(times[:, 0]),
        "stops": np.ascontiguousarray(times[:, 1]),
    }
    with _writing(file), whole_path(file) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode  # as the umask says; safetensors makes files that only their owner can read
        save_file(tensors, temporary, metadata=dict(about))
        temporary.chmod(mode)


def _clear(plan: IndexPlan) -> None:
    """Remove parts that no video needs, and the matrices of videos that are gone or have changed.

    The matrix of a video that is there, but not in the index, stays: it may come back.
    """
    wanted = {planned.video.file for planned in plan.videos}
    for file in (plan.folder / WORK).glob("*.safetensors*"):
        file.unlink(missing_ok=True)
    for file in (plan.folder / VECTORS).glob("*.safetensors*"):
        if file.name not in wanted and not may_come_back(file, plan.settings):
            file.unlink(missing_ok=True)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise IndexFolderError(
            f"{path}: cannot be written ({error.strerror}); make room, change the permissions or give another folder; "
            "what is finished is kept, and the same command continues"
        ) from None
