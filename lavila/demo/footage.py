"""Windows of a video as the input of models. Each frame is decoded and drawn once, although windows overlap.

The frames of a window are those that a clip of the same seconds would have in a shard set, and the pictures are made in
the same way: `ingest.converter` turns a frame upright, shrinks it and converts its colours, and `data.host.render` cuts
out the square that a model sees. Only the lossy coding between the two is missing.
"""

from __future__ import annotations

import logging
import math
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence, Sized
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from lavila.data.host.colour import Bytes, Floats, Planes, rgb_picture
from lavila.data.host.decode import planes_of
from lavila.data.host.render import ClipRenderer
from lavila.data.pictures import PictureSpec
from lavila.errors import UserError
from lavila.ingest.converter import SIDE_MULTIPLE, Converter
from lavila.ingest.notes import KIND_NOTES
from lavila.ingest.source_video import SourceVideo
from lavila.ingest.video_files import EncodeError, Limits
from lavila.plan.crops import crop_offsets, resized_size
from lavila.plan.frames import FrameChoice, choose_frames, frame_span
from lavila.records import VIDEO_SUFFIXES, ClipPlan, Frames

log = logging.getLogger(__name__)

T = TypeVar("T")
S = TypeVar("S", bound=Sized)

SHORT_SIDE = 288  # pixels: the default of shard sets, so that models see pictures like those that they were trained on
SEEK_SECONDS = 10.0  # a longer gap between two wanted frames is skipped; groups of pictures are seldom longer
AT_ONCE = 1000  # windows that are planned together: what a damaged frame makes plan again
GRAIN = 8  # pixels: changes are measured between squares of this side, in which the coder's noise averages out
CHANGED_SHARE = 99.0  # percentile of the squares that decides, so that a moving hand counts as much as a moving camera
NO_LIMIT = Limits(seconds=1e7)  # a long video may take as long as it wants; its reader can stop it


class FootageError(UserError):
    """Windows that a video cannot have, or a folder without videos."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """A stretch of a video, in seconds from its first frame."""

    start: float
    stop: float


@dataclass(frozen=True, kw_only=True)
class Look:
    """The pictures that a model wants of a window."""

    frames: int  # T
    size: int  # side of the square pictures, pixels
    mean: tuple[float, float, float]  # R, G, B on 0..255
    std: tuple[float, float, float]  # R, G, B on 0..255


@dataclass(frozen=True, kw_only=True)
class WindowPictures:
    """A window as models and people see it."""

    window: Window
    videos: tuple[Floats, ...]  # for each look float32 [T, C, H, W], normalised
    middle: Bytes  # [H, W, 3] RGB, the whole picture in the middle of the window
    change: float  # levels of 255 by which the picture changes from one chosen frame to the next, at most


@dataclass(frozen=True, kw_only=True)
class LostWindow:
    """A window without pictures."""

    window: Window
    reason: str


def find_videos(path: Path, *, without: Path | None = None) -> list[Path]:
    """The videos that a path means: itself, or all videos below a folder, by name.

    A folder that is named like a video (`x.mp4/0.mp4, 300.mp4`) is one video. Hidden files and folders are left out:
    macOS writes a `._x.mp4` beside each video on a foreign disk. without: a folder that is left out, too.
    FootageError where there is none.
    """
    if path.is_file() or (path.is_dir() and path.suffix.lower() in VIDEO_SUFFIXES):
        if not _has_plain_name(path):
            raise FootageError(f"{_readable(path)}: its name is not UTF-8; give it another name")
        return [path]
    if not path.is_dir():
        raise FootageError(f"{path}: no such video or folder; give the path of a video file, or of a folder of them")
    passed = [] if without is None else [without.resolve()]
    found = []
    for video in _videos_below(path, passed):
        if _has_plain_name(video):
            found.append(video)
        else:
            log.warning("%s: left out, since its name is not UTF-8; give it another name", _readable(video))
    if not found:
        raise FootageError(f"{path}: holds no video; looked for files that end in {', '.join(VIDEO_SUFFIXES)}")
    return found


def _videos_below(folder: Path, passed: Sequence[Path]) -> list[Path]:
    """passed: folders that are not looked into, and those above this one: a link may lead back to one of them."""
    real = folder.resolve()
    if real in passed:
        return []
    try:
        entries = sorted(folder.iterdir())
    except PermissionError as error:
        log.warning("%s: cannot be looked into (%s); its videos are left out", folder, error.strerror)
        return []
    found: list[Path] = []
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.suffix.lower() in VIDEO_SUFFIXES:
            found.append(entry)
        elif entry.is_dir():
            found += _videos_below(entry, [*passed, real])
    return found


def _has_plain_name(video: Path) -> bool:
    """Whether the path is text. Names in another coding, as from an old archive, fit into no table and no address."""
    return _readable(video) == str(video)


def _readable(video: Path) -> str:
    """The path as text, with a mark for each byte that is none."""
    return os.fsencode(video).decode(errors="replace")


def windows_of(start: float, stop: float, *, every: float, length: float) -> list[Window]:
    """Windows of `length` seconds that begin every `every` seconds from `start`, up to `stop`.

    The last windows are shorter where they would reach beyond `stop`. Those of less than half the length are left out,
    unless there is no other.
    """
    if not every > 0 or not length > 0:
        raise FootageError(f"windows of {length:g} s every {every:g} s: both must be above 0")
    if not stop > start:
        return []
    count = math.ceil((stop - start) / every - 1e-9)
    starts = (start + number * every for number in range(count))
    found = [Window(start=begin, stop=min(begin + length, stop)) for begin in starts]
    whole = [window for window in found if window.stop - window.start >= length / 2 - 1e-9]
    return whole or found[:1]


def uncovered(covered: Iterable[tuple[float, float]], *, start: float, stop: float) -> list[tuple[float, float]]:
    """The parts of [start, stop) that no interval covers, ascending. Seconds."""
    found, reached = [], start
    for first, last in sorted(covered):
        if first > reached:
            found.append((reached, min(first, stop)))
        reached = max(reached, last)
        if reached >= stop:
            break
    if reached < stop:
        found.append((reached, stop))
    return [(first, last) for first, last in found if last > first]


def read_windows(path: Path, windows: Sequence[Window], looks: Sequence[Look]) -> Iterator[WindowPictures | LostWindow]:
    """The pictures of each window, in order, or why there are none.

    windows: ascending starts. A window that reaches past the video's last frame is cut there; one that begins after it
    is lost. After a damaged frame the next window begins anew, so that damage costs only the windows that need it.

    Raises:
        EncodeError: the file is not a readable video.
    """
    left = deque(windows)
    while left:
        group, done = list(islice(left, AT_ONCE)), 0
        with SourceVideo(path, NO_LIMIT) as source:
            try:
                for pictures in _read(source, group, looks):
                    left.popleft()
                    done += 1
                    yield pictures
            except EncodeError as error:
                yield LostWindow(window=left.popleft(), reason=str(error))
                continue
            if done == len(group):  # the video has not ended
                continue
            end, why = float(source.end + 1 / source.fps), _why_it_ended(source, left)
        if left[0].start < end >= left[0].stop:  # it was cut there, and still has no frame
            yield LostWindow(window=left.popleft(), reason=why)
        late = [window for window in left if window.start >= end]
        left = deque(replace(window, stop=min(window.stop, end)) for window in left if window.start < end)
        if not left:
            yield from (LostWindow(window=window, reason=why) for window in late)
            return
        left.extend(late)


def read_or_lose(path: Path, windows: Sequence[Window], looks: Sequence[Look]) -> Iterator[WindowPictures | LostWindow]:
    """As `read_windows`; a file that cannot be opened loses all its windows."""
    try:
        yield from read_windows(path, windows, looks)
    except EncodeError as error:  # raised by opening it, before the first window
        yield from (LostWindow(window=window, reason=str(error)) for window in windows)


def _why_it_ended(source: SourceVideo, left: Sequence[Window]) -> str:
    """The reason for windows after the last frame."""
    try:
        source.check_reached(Fraction(left[-1].stop))
    except EncodeError as error:
        return str(error)
    return f"{source.path}: the window begins after the last frame, which is at {float(source.end):.2f} s"


def one_ahead(items: Iterator[T]) -> Iterator[T]:
    """The same items; a thread makes the next one while the caller uses this one. FFmpeg and our kernels allow it."""
    end = object()
    with ThreadPoolExecutor(1, thread_name_prefix="footage") as pool:
        coming = pool.submit(next, items, end)
        while (item := coming.result()) is not end:
            coming = pool.submit(next, items, end)
            yield item  # type: ignore[misc]


@dataclass(frozen=True, kw_only=True)
class _Drawn:
    """One frame of the video, for every model and for people."""

    pictures: tuple[Floats, ...]  # for each look [C, H, W]
    squares: Floats  # mean luma of each square of GRAIN pixels
    whole: Bytes | None  # [H, W, 3] RGB, where it is in the middle of a window


def _read(source: SourceVideo, windows: Sequence[Window], looks: Sequence[Look]) -> Iterator[WindowPictures]:
    """The windows in order, until the video ends."""
    chosen = [[_frames(source, window, look) for look in looks] for window in windows]
    last_of = [max(int(numbers[-1]) for numbers in of) for of in chosen]
    # The first frame that each window or a later one needs.
    needed_from = np.minimum.accumulate([min(int(numbers[0]) for numbers in of) for of in chosen][::-1])[::-1]
    middles = {int(_finest(of)[len(_finest(of)) // 2]) for of in chosen}
    wanted = sorted({int(number) for of in chosen for numbers in of for number in numbers})
    drawn: dict[int, _Drawn] = {}
    draw: _Drawing | None = None
    place, reached = 0, -1
    for stretch in _stretches(wanted, source.fps):
        frames = source.frames_at(number / source.fps for number in stretch)
        for reached, frame in zip(stretch, frames, strict=False):
            draw = draw or _Drawing(frame, source, looks)
            drawn[reached] = draw(frame, whole=reached in middles)
            while place < len(windows) and last_of[place] <= reached:
                yield _assembled(windows[place], [[drawn[n] for n in numbers.tolist()] for numbers in chosen[place]])
                place += 1
            for old in [n for n in drawn if place == len(windows) or n < needed_from[place]]:
                del drawn[old]
        if reached < stretch[-1]:
            return  # the video has ended


def _frames(source: SourceVideo, window: Window, look: Look) -> Frames:
    """The numbers of the frames of a window in the video, [T], as for a clip of Ego4D."""
    start, stop = frame_span(window.start, window.stop, float(source.fps), "duration")
    frames: Frames = choose_frames(stop - start, FrameChoice(frames=look.frames), clips=1)[0]
    return frames + np.int32(start)


def _stretches(numbers: Sequence[int], fps: Fraction) -> Iterator[list[int]]:
    """The numbers of frames that are decoded in one go, without those of long gaps between."""
    longest = SEEK_SECONDS * fps
    cuts = [place for place, (a, b) in enumerate(pairwise(numbers), start=1) if b - a > longest]
    for start, stop in pairwise([0, *cuts, len(numbers)]):
        yield list(numbers[start:stop])


@cache
def _say_once(path: Path, note: str, kind: str) -> None:
    log.warning("%s: %s (%s)", path, note, kind)


class _Drawing:
    """Draws frames of one size for every look."""

    def __init__(self, first: Any, source: SourceVideo, looks: Sequence[Look]) -> None:
        side = max([SHORT_SIDE, *(look.size for look in looks)])
        side += -side % SIDE_MULTIPLE
        self._convert = Converter(first, source.header, short_side=side, fit="crop")
        for name, kind in self._convert.kind.row().items():
            _say_once(source.path, KIND_NOTES[name], kind)
        height, width = self._convert.sizes.stored
        self._looks = [(look.size, ClipRenderer(_spec(look)), _plan(height, width, look.size)) for look in looks]

    def __call__(self, frame: Any, *, whole: bool) -> _Drawn:
        converted = self._convert(frame)  # holds the memory of `planes`
        planes = planes_of(converted)
        picture = np.empty((len(planes.luma), planes.width, 3), np.uint8) if whole else None
        if picture is not None:
            rgb_picture(planes, picture)
        pictures = tuple(self._draw(planes, *look) for look in self._looks)
        return _Drawn(pictures=pictures, squares=_squares(planes), whole=picture)

    def _draw(self, planes: Planes, size: int, renderer: ClipRenderer, plan: ClipPlan) -> Floats:
        out: Floats = np.empty((3, size, size), np.float32)
        renderer.render(plan, [planes], out[None, None, None])
        return out


def _spec(look: Look) -> PictureSpec:
    return PictureSpec(
        frames=1,
        size=look.size,
        view_grid=(1, 1),
        cuts_window=False,
        pads_black=False,
        mean=look.mean,
        std=look.std,
    )


def _plan(height: int, width: int, size: int) -> ClipPlan:
    """The centre square of one frame."""
    resized = resized_size(height, width, size)
    return ClipPlan(
        position=0,
        row=0,
        frames=np.zeros((1, 1), np.int32),
        window=(0, 0, height, width),
        resized=resized,
        crops=crop_offsets(*resized, size, "center"),
        flip=False,
        caption=0.0,
    )


def _squares(planes: Planes) -> Floats:
    rows, columns = max(len(planes.luma) // GRAIN, 1), max(planes.width // GRAIN, 1)
    luma = planes.luma[: rows * GRAIN, : columns * GRAIN]
    means: Floats = luma.reshape(rows, GRAIN, columns, GRAIN).mean((1, 3), dtype=np.float32)
    return means


def _assembled(window: Window, drawn: Sequence[Sequence[_Drawn]]) -> WindowPictures:
    """drawn: for each look its frames in order."""
    finest = _finest(drawn)
    steps = [np.percentile(np.abs(a.squares - b.squares), CHANGED_SHARE) for a, b in pairwise(finest) if a is not b]
    middle = finest[len(finest) // 2].whole
    assert middle is not None
    return WindowPictures(
        window=window,
        videos=tuple(np.stack([one.pictures[look] for one in frames]) for look, frames in enumerate(drawn)),
        middle=middle,
        change=max(map(float, steps), default=0.0) if len(finest) > 1 else math.inf,  # one frame says nothing of it
    )


def _finest(of: Sequence[S]) -> S:
    """What belongs to the look with the most frames."""
    return max(of, key=len)
