"""Strips of frames: pictures of a few seconds of a video side by side in one JPEG, made once and kept."""

from __future__ import annotations

import hashlib
import io
import math
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from lavila.data.host.colour import rgb_picture
from lavila.data.host.decode import planes_of
from lavila.errors import UserError
from lavila.files import whole_file
from lavila.ingest.converter import Converter
from lavila.ingest.source_video import SourceVideo
from lavila.ingest.video_files import Limits, find_parts

WIDTH, HEIGHT = 320, 180  # pixels of a frame of a strip; a picture of another shape has black edges
SHORT_SIDE = 192  # pixels to which a frame is scaled first: the next multiple of 16 above HEIGHT
NEARLY = 0.04  # a picture whose shape differs by so small a share is cropped; no black line is left at its edge
MOST_FRAMES = 12
JPEG_QUALITY = 78
GAP_SECONDS = 2.0  # a longer gap between two frames is skipped by a seek instead of decoded
LIMIT = Limits(seconds=60)
LOCKS = 64
MOST_BYTES = 2**30  # of the kept strips together: about 15,000 strips of eight frames


class StripError(UserError):
    """A strip that cannot be."""


def version_of(video: Path) -> str:
    """What changes when a video does: names, sizes and times of its files. Raises EncodeError where there is none."""
    files = [(part.path.name, part.path.stat()) for part in find_parts(video)]
    return repr([(str(video.absolute()), name, stat.st_size, stat.st_mtime_ns) for name, stat in files])


class Strips:
    """Draws strips, and keeps them in a folder. Several threads may ask at the same time.

    The folder keeps `most_bytes`, and one strip at the least: those that were asked for last, in this run or before.
    """

    def __init__(self, folder: Path, *, most_bytes: int = MOST_BYTES) -> None:
        self._folder = folder
        self._most_bytes = most_bytes
        self._locks = [threading.Lock() for _ in range(LOCKS)]
        self._kept: dict[Path, int] | None = None  # bytes of each file, the one that was asked for last at the end
        self._of_kept = threading.Lock()

    def strip(self, video: Path, start: float, stop: float, *, frames: int) -> Path:
        """The file of a JPEG: `frames` pictures of WIDTH x HEIGHT, at equal distances in [start, stop] seconds.

        Raises StripError for seconds or numbers that cannot be, EncodeError for a video that cannot be read there.
        """
        if not (0 <= start < stop < math.inf) or not 1 <= frames <= MOST_FRAMES:
            raise StripError(
                f"{frames} frames from {start:g} to {stop:g} s: a strip has 1 to {MOST_FRAMES} frames between two "
                "ascending seconds"
            )
        key = hashlib.sha256(f"{version_of(video)}|{start:.3f}|{stop:.3f}|{frames}".encode()).hexdigest()
        file = self._folder / key[:2] / f"{key[2:32]}.jpg"
        with self._locks[int(key[:8], 16) % LOCKS]:
            if not file.is_file():
                step = (stop - start) / frames
                data = draw_strip(video, [start + (number + 0.5) * step for number in range(frames)])
                file.parent.mkdir(parents=True, exist_ok=True)
                with whole_file(file) as out:
                    out.write(data)
            self._keep(file)
        return file

    def _keep(self, file: Path) -> None:
        """Note that a strip was asked for, and remove those that nobody has asked for longest."""
        with self._of_kept:
            if self._kept is None:  # what earlier runs have left
                there = [(path, path.stat()) for path in self._folder.glob("*/*.jpg")]
                self._kept = {path: stat.st_size for path, stat in sorted(there, key=lambda one: one[1].st_atime_ns)}
            self._kept.pop(file, None)
            stat = file.stat()
            self._kept[file] = stat.st_size
            with suppress(OSError):  # a disk that became read-only. The time of change stays: browsers ask by it
                os.utime(file, ns=(time.time_ns(), stat.st_mtime_ns))
            excess = sum(self._kept.values()) - self._most_bytes
            while excess > 0 and len(self._kept) > 1:
                oldest = next(iter(self._kept))
                excess -= self._kept.pop(oldest)
                with suppress(OSError):
                    oldest.unlink(missing_ok=True)


def draw_strip(video: Path, seconds: Sequence[float]) -> bytes:
    """A JPEG of the frames at some ascending seconds. After the end of the video the last frame is repeated.

    Raises EncodeError where the video cannot be read there.
    """
    with SourceVideo(video, LIMIT) as source:
        pictures = [_picture(picture) for picture in _pictures(source, seconds)]
    if not pictures:
        raise StripError(f"{video}: has no frame at {seconds[0]:.2f} s")
    pictures += [pictures[-1]] * (len(seconds) - len(pictures))
    sheet = Image.new("RGB", (WIDTH * len(pictures), HEIGHT))
    for number, picture in enumerate(pictures):
        sheet.paste(picture, (number * WIDTH, 0))
    buffer = io.BytesIO()
    sheet.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


def _pictures(source: SourceVideo, seconds: Sequence[float]) -> Iterator[Any]:
    """The frames as upright pictures, [H, W, 3] RGB."""
    convert: Converter | None = None
    cuts = [place for place, (a, b) in enumerate(pairwise(seconds), start=1) if b - a > GAP_SECONDS]
    for first, last in pairwise([0, *cuts, len(seconds)]):
        for frame in source.frames_at(Fraction(second) for second in seconds[first:last]):
            convert = convert or Converter(frame, source.header, short_side=SHORT_SIDE, fit="crop")
            converted = convert(frame)  # holds the memory of `planes`
            planes = planes_of(converted)
            out = np.empty((len(planes.luma), planes.width, 3), np.uint8)
            rgb_picture(planes, out)
            yield out


def _picture(picture: Any) -> Image.Image:
    image = Image.fromarray(picture)
    near = abs(image.width * HEIGHT / (image.height * WIDTH) - 1) <= NEARLY
    return (ImageOps.fit if near else ImageOps.pad)(image, (WIDTH, HEIGHT), Image.Resampling.BICUBIC)
