"""Whether a browser can play a video, and a copy that it can play where not.

The copy is H.264 and AAC in MP4. Its second 0 is the video's first frame, as in the index. It is made once, and lies
beside the index.
"""

from __future__ import annotations

import hashlib
import heapq
import mimetypes
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import count
from pathlib import Path
from typing import Any

import av

from lavila.demo.chores import Chore, Chores, Progress
from lavila.demo.footage import NO_LIMIT
from lavila.demo.strips import version_of
from lavila.files import whole_path
from lavila.ingest.converter import Converter
from lavila.ingest.source_video import SourceVideo, probe_video
from lavila.ingest.video_files import Deadline, Part, find_parts, open_video
from lavila.libav import DAMAGE

# What Debian's Chromium 156 plays, of 31 pairs of container and codec that were tried. Other browsers play less of
# Matroska; a browser that fails asks for the copy, too.
PLAYED = {
    ".mp4": {"h264", "vp9", "av1"},
    ".m4v": {"h264", "vp9", "av1"},
    ".mov": {"h264"},
    ".webm": {"vp8", "vp9", "av1"},
    ".mkv": {"h264", "vp8", "vp9"},  # it seeks in AV1 to the wrong frame
}
TYPES = {".mp4": "video/mp4", ".m4v": "video/mp4", ".mov": "video/mp4", ".webm": "video/webm", ".mkv": "video/webm"}
SHORT_SIDE = 720  # pixels of a copy
KEY_SECONDS = 2  # from one keyframe of a copy to the next, so that it seeks at once
SOUND_RATE = 48_000
X264 = {"preset": "veryfast", "crf": "23"}


@dataclass(frozen=True, kw_only=True)
class Playback:
    """How a browser plays a video."""

    direct: bool  # whether it can play the file itself
    lead: float  # seconds of sound before the first frame; where the file itself plays, its clock is so much ahead


def playback(video: Path) -> Playback:
    """How a browser plays a video. Raises EncodeError for one that cannot be read."""
    parts = find_parts(video)
    container, stream = open_video(parts[0], NO_LIMIT, Deadline(str(video), NO_LIMIT.seconds))
    with container:
        played = PLAYED.get(video.suffix.lower(), set())
        lead = 0.0
        if stream.start_time is not None and container.start_time is not None:
            lead = float(stream.start_time * stream.time_base) - container.start_time / av.time_base
        return Playback(direct=video.is_file() and stream.codec_context.name in played, lead=max(lead, 0.0))


def media_type(video: Path) -> str:
    """The type under which browsers play what they can of a file."""
    return TYPES.get(video.suffix.lower()) or mimetypes.guess_type(video.name)[0] or "video/mp4"


class Copies:
    """The copies of videos in a folder; one is made at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._chores = Chores("copies")

    def file(self, video: Path) -> Path | None:
        """The finished copy, if there is one."""
        path = self._path(video)
        return path if path.is_file() else None

    def ask(self, video: Path) -> Chore:
        """Make a copy, unless there is one or it is being made. How far it is."""
        path = self._path(video)
        if path.is_file():
            return Chore(state="done", share=1.0)

        def work(progress: Progress) -> None:
            path.parent.mkdir(parents=True, exist_ok=True)
            with whole_path(path) as temporary:
                write_copy(video, temporary, progress)

        return self._chores.start(str(path), work)

    def close(self) -> None:
        """Stop; a copy that is not finished is left out."""
        self._chores.close()

    def _path(self, video: Path) -> Path:
        return self._folder / f"{hashlib.sha256(version_of(video).encode()).hexdigest()[:32]}.mp4"


def write_copy(video: Path, path: Path, progress: Progress) -> None:
    """Write the copy of a video. Raises EncodeError where the video cannot be read."""
    seconds = max(probe_video(video, NO_LIMIT).seconds, 1e-3)
    with SourceVideo(video, NO_LIMIT) as source, av.open(
        str(path), "w", format="mp4", options={"movflags": "faststart"}
    ) as output:  # fmt: skip
        pictures = _Pictures(source, output)
        sound = _Sound(video, output) if _has_sound(video) else None
        # In the order of time, as a file has them: one that is far ahead of the other would wait in memory.
        for second, packets in heapq.merge(pictures.packets(), sound.packets() if sound else (), key=lambda at: at[0]):
            output.mux(packets)
            progress(second / seconds)
        output.mux(pictures.rest())
        if sound:
            output.mux(sound.rest())


class _Pictures:
    """The frames of a video as H.264, at its rate, upright and at most SHORT_SIDE high."""

    def __init__(self, source: SourceVideo, output: Any) -> None:
        self._source = source
        self._stream = output.add_stream("libx264", rate=source.fps, options=X264)
        self._stream.pix_fmt = "yuv420p"
        self._stream.codec_context.gop_size = max(round(KEY_SECONDS * source.fps), 1)
        first = next(source.frames_at([Fraction(0)]))
        self._convert = Converter(first, source.header, short_side=SHORT_SIDE, fit="pad")
        self._stream.height, self._stream.width = self._convert.sizes.stored

    def packets(self) -> Iterator[tuple[float, list[Any]]]:
        """(second, packets that are ready) after each frame."""
        fps = self._source.fps
        for number, frame in enumerate(self._source.frames_at(number / fps for number in count())):
            picture = self._convert(frame)
            picture.pts, picture.time_base, picture.pict_type = number, 1 / fps, 0
            yield float(number / fps), self._stream.encode(picture)

    def rest(self) -> list[Any]:
        packets: list[Any] = self._stream.encode(None)
        return packets


class _Sound:
    """The sound of a video as AAC."""

    def __init__(self, video: Path, output: Any) -> None:
        self._video = video
        self._stream = output.add_stream("aac", rate=SOUND_RATE, layout="stereo")
        self._fifo = av.AudioFifo()

    def packets(self) -> Iterator[tuple[float, list[Any]]]:
        """(second, packets that are ready) after each frame of the encoder. Damaged sound is left out."""
        size = self._stream.codec_context.frame_size or 1024
        done = 0
        for part in find_parts(self._video):
            for begins, frame in _sounds(part):
                at = round((float(part.start) + begins) * SOUND_RATE)
                missing = at - done - self._fifo.samples
                if missing > SOUND_RATE // 10:  # a gap is silence
                    self._fifo.write(_silence(missing))
                frame.pts = None
                self._fifo.write(frame)
                while (whole := self._fifo.read(size)) is not None:
                    yield done / SOUND_RATE, self._encode(whole, done)
                    done += whole.samples
        if (last := self._fifo.read(0, partial=True)) is not None:
            yield done / SOUND_RATE, self._encode(last, done)

    def _encode(self, frame: Any, at: int) -> list[Any]:
        frame.pts, frame.time_base = at, Fraction(1, SOUND_RATE)
        packets: list[Any] = self._stream.encode(frame)
        return packets

    def rest(self) -> list[Any]:
        packets: list[Any] = self._stream.encode(None)
        return packets


def _has_sound(video: Path) -> bool:
    return any(True for part in find_parts(video) for _ in _sounds(part))


def _sounds(part: Part) -> Iterator[tuple[float, Any]]:
    """(second after the first picture, resampled frame) of a file's sound, as far as it can be decoded."""
    resampler = av.AudioResampler(format="fltp", layout="stereo", rate=SOUND_RATE)
    container, pictures = open_video(part, NO_LIMIT, Deadline(part.name, NO_LIMIT.seconds))
    with container:
        stream = container.streams.best("audio")
        if stream is None:
            return
        start = float((pictures.start_time or 0) * pictures.time_base)
        try:
            for frame in container.decode(stream):
                begins = -1.0 if frame.pts is None else float(frame.pts * frame.time_base) - start
                if begins >= 0:  # what comes before the first picture is left out
                    for one in resampler.resample(frame):
                        yield begins, one
        except DAMAGE:
            return


def _silence(samples: int) -> Any:
    frame = av.AudioFrame(format="fltp", layout="stereo", samples=samples)
    for plane in frame.planes:
        plane.update(bytes(plane.buffer_size))
    frame.sample_rate = SOUND_RATE
    return frame
