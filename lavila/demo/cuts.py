"""Cuts moments that a search found out of their videos."""

from __future__ import annotations

import re
from pathlib import Path

from lavila.demo.index import Index
from lavila.demo.search import Hit
from lavila.files import fitting_name, whole_file
from lavila.ingest.encode import EncodeSettings, Interval, encode_clip

QUALITY = EncodeSettings(codec="h264", short_side=1088, crf=20)


def cut(index: Index, hit: Hit, folder: Path, *, margin: float, place: int) -> Path:
    """Write the video of a hit with `margin` seconds before and after it. Returns the file.

    It is an mp4 of H.264 without sound, upright, at most 1088 pixels high (or wide), exact to the frame. Its name says
    the place among the hits, the video and the seconds. EncodeError where the video cannot be read any more.
    """
    video = index.video(hit.video)
    start, stop = max(hit.start - margin, 0.0), min(hit.stop + margin, video.duration)
    clip = encode_clip(Path(video.path), interval=Interval(start_second=start, stop_second=stop), settings=QUALITY)
    plain = re.sub(r"[^\w.-]", "_", Path(hit.video).with_suffix("").as_posix(), flags=re.ASCII)
    times = f"-{start:.2f}-{stop:.2f}.mp4"
    file = folder / f"{place:03d}-{fitting_name(plain, room=len(times) + 8)}{times}"
    folder.mkdir(parents=True, exist_ok=True)
    with whole_file(file) as opened:
        opened.write(clip.data)
    return file
