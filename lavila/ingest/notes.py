"""What a user should know of clips that were stored: shortened ones, estimated frame rates, unusual pictures.

All of it follows from the rows of the clips, so it does not depend on which run stored them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lavila.files import whole_file
from lavila.shards.format import NOTES

SPARE_FRAMES = 2  # by so many frames the rules that turn seconds into frames may differ from the stated length
STORED_STOP = "stored_stop_second"  # entry of a clip's `extra`, if the end of the video shortens the clip
ESTIMATED = "fps_estimated"  # entry of a row whose video states no plausible frame rate; no column of the table
KIND = "picture_kind"  # entry of a row whose pictures are unusual, as of `PictureKind.row`; no column of the table
KIND_NOTES = {  # entry of `PictureKind.row` -> what is done with such pictures
    "hdr": "HDR, shown as ordinary video (tone mapping of BT.2390, colours of BT.709)",
    "projection": "spherical, shown as the pictures lie in the file, not as a view of them",
}
MANY = 0.5  # share of shortened clips from which on the videos may be another edition
COUNTS = ("shortened", "estimated_rates", "hdr_videos", "spherical_videos")  # entries of the manifest


def stored_stop(start: float, stop: float, *, num_frames: int, fps: float) -> dict[str, str]:
    """The entry of `extra` for a clip of which less is stored than the annotation says; else nothing."""
    end = start + num_frames / fps
    return {STORED_STOP: f"{end:.3f}"} if stop - end > SPARE_FRAMES / fps else {}


def many_shortened(shortened: int, clips: int) -> bool:
    """Whether so many clips reach beyond the ends of their videos that the annotations may be of other videos."""
    return shortened > MANY * clips


@dataclass
class Notes:
    """Passes the rows of a set on, and writes notes.jsonl when they have all passed."""

    folder: Path
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTS, 0))

    def each(self, rows: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
        """The rows. `counts` is complete when they have all passed."""
        shortened: list[dict[str, Any]] = []
        rates: dict[str, float] = {}
        kinds: dict[str, dict[str, str]] = {}
        for row in rows:
            if (end := row["extra"].get(STORED_STOP)) is not None:
                missing = row["stop_second"] - float(end)
                ids = {name: row[name] for name in ("clip_id", "video_id", "stop_second")}
                shortened.append({**ids, STORED_STOP: float(end), "missing_seconds": round(missing, 3)})
            if row.get(ESTIMATED):
                rates[row["video_id"]] = row["source_fps"]
            if row.get(KIND):
                kinds.setdefault(row["video_id"], {}).update(row[KIND])
            yield row
        hdr, spherical = (sum(name in kind for kind in kinds.values()) for name in KIND_NOTES)
        self.counts.update(
            shortened=len(shortened), estimated_rates=len(rates), hdr_videos=hdr, spherical_videos=spherical
        )
        lines = [{"note": "shortened by the end of its video", **one} for one in shortened]
        lines += [
            {"note": "frame rate estimated from the times", "video_id": name, "fps": fps} for name, fps in rates.items()
        ]
        lines += [
            {"note": KIND_NOTES[name], "video_id": video, name: kind}
            for video, kinds_of in kinds.items()
            for name, kind in kinds_of.items()
        ]
        if not lines:
            (self.folder / NOTES).unlink(missing_ok=True)
            return
        with whole_file(self.folder / NOTES) as file:
            file.write("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode())


def note_lines(manifest: Mapping[str, Any]) -> list[str]:
    """What a manifest counts, as text: nothing where there is nothing to know."""
    shortened, rates, clips = manifest.get("shortened", 0), manifest.get("estimated_rates", 0), manifest["clips"]
    lines = []
    if shortened:
        lines.append(f"{shortened:,} of {clips:,} clips are shortened by the end of their video; see {NOTES}")
    if many_shortened(shortened, clips):
        lines.append("most clips reach beyond their video: the videos may be another edition than the annotations")
    for count, name in (("hdr_videos", "hdr"), ("spherical_videos", "projection")):
        if videos := manifest.get(count, 0):
            lines.append(f"{videos:,} videos are {KIND_NOTES[name]}; see {NOTES}")
    if rates:
        lines.append(f"{rates:,} videos state no plausible frame rate; it is estimated from the times, see {NOTES}")
    return lines
