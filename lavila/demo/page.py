"""The page of a narrated video: the video, its captions and key frames in one HTML file that opens from the disk."""

from __future__ import annotations

import base64
import json
import mimetypes
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2

from lavila.demo.moments import Moment

THUMB_WIDTH = 160  # pixels of a key frame on the page; its picture has twice as many
MIB = 1 << 20


@dataclass(frozen=True, kw_only=True)
class PageOf:
    """What a page shows beside the moments."""

    video: Path
    seconds: float  # length of the video
    facts: Sequence[str]  # a few words each, for the line below the title
    embed_mib: float  # a video of up to so many MiB is put into the page; a larger one is referred to


def page(of: PageOf, moments: Sequence[Moment], *, folder: Path) -> str:
    """The HTML of the page, which will lie in `folder`."""
    environment = jinja2.Environment(
        autoescape=True,  # captions and names are not ours
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = resources.files("lavila.demo").joinpath("narration.html.j2").read_text(encoding="utf-8")
    embedded = is_embedded(of)
    cues = [{"start": moment.start, "stop": moment.stop, "text": moment.text} for moment in moments]
    return environment.from_string(template).render(
        title=of.video.name,
        facts=of.facts,
        source=_source(of.video, folder, embedded=embedded),
        embedded=embedded,
        thumb_width=THUMB_WIDTH,
        ends=short_clock(of.seconds),
        moments=[_drawn(moment, of.seconds) for moment in moments],
        # A "<" could end the script element; in JSON it may be written as an escape.
        cues=json.dumps(cues, ensure_ascii=False).replace("<", "\\u003c"),
    )


def is_embedded(of: PageOf) -> bool:
    """Whether the page holds the video itself."""
    return of.video.is_file() and of.video.stat().st_size <= of.embed_mib * MIB


def short_clock(second: float) -> str:
    """Seconds as 1:02:03, or 2:03; with tenths, 2:03.5, where there are any."""
    tenths = round(10 * second)
    hours, minutes, rest = tenths // 36000, tenths // 600 % 60, tenths // 10 % 60
    text = f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
    return f"{text}.{tenths % 10}" if tenths % 10 else text


def _source(video: Path, folder: Path, *, embedded: bool) -> str:
    """The video's address in the page; empty for a folder of files."""
    if not video.is_file():
        return ""
    if not embedded:
        return quote(Path(os.path.relpath(video.resolve(), folder.resolve())).as_posix())
    kind = mimetypes.guess_type(video.name)[0] or "video/mp4"
    kind = "video/mp4" if kind == "video/quicktime" else kind  # browsers play what they can of it under this name
    return f"data:{kind};base64,{base64.b64encode(video.read_bytes()).decode()}"


def _drawn(moment: Moment, seconds: float) -> dict[str, Any]:
    scale = 100 / max(seconds, moment.stop, 1e-9)
    picture = base64.b64encode(moment.key_frame).decode()
    return {
        "clock": f"{short_clock(moment.start)} to {short_clock(moment.stop)}",
        "text": moment.text,
        "others": moment.others,
        "left": round(moment.start * scale, 3),
        "width": round((moment.stop - moment.start) * scale, 3),
        "picture": f"data:image/jpeg;base64,{picture}" if picture else "",
    }
