"""Moments as subtitles: SubRip (.srt), WebVTT (.vtt) and JSON lines."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence

from lavila.demo.moments import Moment


def clock(second: float, *, comma: str = ".") -> str:
    """Seconds as 01:02:03.450."""
    total = round(1000 * second)
    hours, rest = divmod(total, 3_600_000)
    minutes, rest = divmod(rest, 60_000)
    return f"{hours:02d}:{minutes:02d}:{rest // 1000:02d}{comma}{rest % 1000:03d}"


def to_srt(moments: Sequence[Moment]) -> str:
    """SubRip: numbered cues with a comma before the milliseconds."""
    cues = (
        f"{number}\n{clock(moment.start, comma=',')} --> {clock(moment.stop, comma=',')}\n{moment.text}\n"
        for number, moment in enumerate(moments, start=1)
    )
    return "\n".join(cues)


def to_vtt(moments: Sequence[Moment]) -> str:
    """WebVTT, in whose text <, > and & are written as in HTML."""
    cues = (
        f"{clock(moment.start)} --> {clock(moment.stop)}\n{html.escape(moment.text, quote=False)}\n"
        for moment in moments
    )
    return "\n".join(["WEBVTT\n", *cues])


def to_jsonl(moments: Sequence[Moment]) -> str:
    """A JSON object on each line: start, stop (seconds), text, nll (nats per token), windows, others."""
    return "".join(json.dumps(as_json(moment), ensure_ascii=False) + "\n" for moment in moments)


def as_json(moment: Moment) -> dict[str, object]:
    """A moment without its picture."""
    return {
        "start": round(moment.start, 3),
        "stop": round(moment.stop, 3),
        "text": moment.text,
        "nll": round(moment.nll, 4),
        "windows": moment.windows,
        "others": list(moment.others),
    }
