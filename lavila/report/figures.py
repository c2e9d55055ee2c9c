"""From a report's numbers to what its page draws: sentences, bars, matrices, curves and film strips.

Everything here is a pure function from plain values to dicts of strings and coordinates; `page.html.j2` puts them in
place. Nothing returned is HTML, so the template's escaping covers every name and narration.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from lavila.metrics.units import Unit
from lavila.report.charts import (
    NOTHING,
    class_table,
    curves,
    duration,
    measured,
    number,
    percent,
    share_of_scale,
)

Json = dict[str, Any]

MISTAKES_LISTED = 60  # mistakes without a picture that the page lists; report.json has all of them
STILL_IS_ENOUGH = 0.6  # share of the gain over the baselines that one frame explains
MOTION_DECIDES = 0.15
LEAST_GAIN = 1.0  # hundredths of the metric's scale over the baselines: with less, nothing was learned
SINGLE_FRAME = "single_frame_"  # before the name of a metric: the control with frozen frames, which any task may have
MARKS = {True: "right", False: "wrong", None: ""}  # class of what is right, wrong, or neither
STILL = {"label": "one frozen frame", "sentence": "one frozen frame gets"}


@dataclass(frozen=True, kw_only=True)
class ViewStrip:
    """The pictures of one clip as the model got them."""

    clip_id: str
    title: str
    subtitle: str
    frames: npt.NDArray[np.uint8]  # [V, T, H, W, 3] RGB, normalisation undone; V is temporal-clip-major
    labels: Sequence[str] = ()  # V names of the views; empty = derived from report["views"]

    def __post_init__(self) -> None:
        shape, dtype = self.frames.shape, self.frames.dtype
        if self.frames.ndim != 5 or shape[-1] != 3 or 0 in shape or dtype != np.uint8:
            raise ValueError(
                f"pictures of clip {self.clip_id!r}: found {dtype}{list(shape)}, need uint8 [V, T, H, W, 3], none empty"
            )
        if self.labels and len(self.labels) != shape[0]:
            raise ValueError(f"pictures of clip {self.clip_id!r}: {len(self.labels)} labels for {shape[0]} views")


@dataclass(frozen=True, kw_only=True)
class ReportPictures:
    """Strips to show: every view of a few clips, and one view of each clip that a case or a gallery speaks of."""

    views: Sequence[ViewStrip] = field(default_factory=list)
    mistakes: Sequence[ViewStrip] = field(default_factory=list)  # matched to report["mistakes"] by clip_id
    galleries: Sequence[ViewStrip] = field(default_factory=list)  # matched to the clips of galleries by clip_id


def view_labels(*, clips: int, crops: int, tall: bool = False) -> tuple[str, ...]:
    """Names of the views, temporal clip by temporal clip; 3 crops are left/centre/right, if tall top/centre/bottom."""
    three = ("top", "centre", "bottom") if tall else ("left", "centre", "right")
    names = {1: ("centre",), 3: three}.get(crops, tuple(f"crop {s + 1}" for s in range(crops)))
    return tuple(f"time {k + 1}, {name}" for k in range(clips) for name in names)


def page_values(report: Json, *, pictures: ReportPictures, history: Sequence[Mapping[str, Any]]) -> Json:
    """Every value of the template; a section is None or empty where `report` has no numbers for it."""
    drawn = sections(report, pictures)
    return {
        "name": report.get("name") or "run",
        "checkpoint": report.get("checkpoint"),
        "dataset": report.get("dataset") or {},
        "number": number,
        "duration": duration,
        "percent": percent,
        "summary": summary(report),
        "cards": cards(report),
        "more_metrics": more_metrics(report),
        "facts": facts(report),
        "strips": [strip(s, report.get("views") or {}) for s in pictures.views],
        "sections": drawn,
        "curves": curves(history, units(report)),
        "stages": stages(report),
        "failed": failed(report),
        "notes": list(report.get("notes") or []),
        "environment": {k: number(v) for k, v in (report.get("environment") or {}).items()},
        "config": list(flatten(report.get("config") or {})),
        "trained_with": list(flatten(report.get("trained_with") or {})),
    }


def units(report: Json) -> dict[str, Unit]:
    """The unit of each metric and control."""
    return {name: Unit(unit) for name, unit in (report.get("units") or {}).items()}


def headlines(report: Json) -> list[Json]:
    """The headlines whose metric is there, each with its unit, its value and its baselines' values."""
    metrics, controls, known = report.get("metrics") or {}, report.get("controls") or {}, units(report)
    found = []
    for headline in report.get("headlines") or []:
        if (name := headline["metric"]) not in metrics:
            continue
        still = {"control": f"{SINGLE_FRAME}{name}", **STILL}
        marks = [
            {**mark, "value": controls[mark["control"]], "still": mark is still}
            for mark in (*headline["baselines"], still)
            if controls.get(mark["control"]) is not None
        ]
        found.append({**headline, "value": metrics[name], "unit": known.get(name), "marks": marks})
    return found


def summary(report: Json) -> str:
    """Sentences that a stranger understands: how good the model is at the first headline, and how much that means."""
    first = next(iter(headlines(report)), None)
    if first is None or first["value"] is None:
        return ""
    value, unit, marks = first["value"], first["unit"], first["marks"]
    clips = (report.get("clips") or {}).get("evaluated")
    of = f"Of {number(clips)} clips" if clips is not None else "Of the clips"
    if split := (report.get("dataset") or {}).get("split"):
        of += f" in the {split} split"
    text = f"{of}, {first['sentence']} {measured(value, unit)}"
    compared = [f"{mark['sentence']} {measured(mark['value'], unit)}" for mark in marks]
    if compared:
        both = ", ".join(compared[:-1]) + (" and " if compared[1:] else "") + compared[-1]
        text += f". {both[0].upper()}{both[1:]}"
    still = next((mark["value"] for mark in marks if mark["still"]), None)
    if still is None:
        return text + "."
    nothing_learned = max((mark["value"] for mark in marks if not mark["still"]), default=0.0)
    gain = value - nothing_learned
    if gain * (100 if unit is Unit.fraction else 1) <= LEAST_GAIN:
        return text + ". The model has not learned the task yet."
    share = (still - nothing_learned) / gain
    if share < MOTION_DECIDES:
        return text + ". The model reads its answers from the motion."
    return text + (". One frame explains part of it." if share < STILL_IS_ENOUGH else ". One frame is nearly enough.")


def cards(report: Json) -> list[Json]:
    """The big numbers, one card for each headline: its value, the controls beside it, and its other metrics."""
    metrics, known, published = report.get("metrics") or {}, units(report), report.get("published") or {}
    result = []
    for headline in headlines(report):
        unit = headline["unit"]
        big, _, sign = measured(headline["value"], unit).partition("\u00a0")
        marks = [
            {
                "kind": "still" if mark["still"] else f"baseline{place}",
                "label": mark["label"],
                "value": measured(mark["value"], unit),
                "at": share_of_scale(mark["value"], unit),
            }
            for place, mark in enumerate(headline["marks"])
        ]
        names = {headline["metric"]: "", **{k: f"{label}, " for k, label in headline["others"].items()}}
        others = [
            (label, measured(metrics[k], known.get(k))) for k, label in headline["others"].items() if k in metrics
        ]
        others += [(f"{names[k]}published", measured(v, known.get(k))) for k, v in published.items() if k in names]
        fill = share_of_scale(headline["value"], unit)
        card = {"label": headline["label"], "value": big, "sign": sign, "fill": fill, "marks": marks, "others": others}
        result.append(card)
    return result


def more_metrics(report: Json) -> list[tuple[str, str]]:
    """Metrics and controls that no card shows, such as mAP and nDCG."""
    known, shown = units(report), set()
    for headline in headlines(report):
        shown |= {headline["metric"], *headline["others"], *(mark["control"] for mark in headline["marks"])}
    both = [*(report.get("metrics") or {}).items(), *(report.get("controls") or {}).items()]
    rows = [(k.replace("_", " "), measured(v, known.get(k))) for k, v in both if k not in shown]
    published = [(k, v) for k, v in (report.get("published") or {}).items() if k not in shown]
    return rows + [(f"{k.replace('_', ' ')}, published", measured(v, known.get(k))) for k, v in published]


def sections(report: Json, pictures: ReportPictures) -> list[Json]:
    """The sections that `report["sections"]` names, each with what the template needs to draw its type."""
    result, cases = [], []
    for section in report.get("sections") or []:
        key, values = section["key"], report.get(section["key"])
        if not values:
            continue
        common = {"key": key, "type": section["type"], "title": section["title"], "note": section.get("note", "")}
        if section["type"] == "class_tables":
            drawn: Json = {"tables": [class_table(key, name, table) for name, table in values.items()]}
        elif section["type"] == "key_values":
            known = {name: Unit(unit) for name, unit in (section.get("units") or {}).items()}
            drawn = {"rows": [(name.replace("_", " "), measured(v, known.get(name))) for name, v in values.items()]}
        elif section["type"] == "cases":
            cases += values
            drawn = {"cases": cases_of(values, pictures, report.get("views") or {})}
        elif section["type"] == "galleries":
            strips = {s.clip_id: strip(s, report.get("views") or {}) for s in pictures.galleries}
            drawn = {"galleries": [gallery(entry, strips) for entry in values]}
        else:
            raise ValueError(
                f"section {key}: type {section['type']!r} has no drawing; known: class_tables, cases, key_values, "
                "galleries"
            )
        result.append(common | drawn)
    unknown = {strip.clip_id for strip in pictures.mistakes} - {case["clip_id"] for case in cases}
    if unknown:
        raise ValueError(
            f"pictures of mistakes: {sorted(unknown)} are not in report['mistakes']; add them or drop them"
        )
    return result


def facts(report: Json) -> list[tuple[str, str]]:
    """The small facts under the headline: what was measured, and how."""
    result = []
    if clips := report.get("clips"):
        result.append(("clips evaluated", f"{number(clips.get('evaluated'))} of {number(clips.get('total'))}"))
    if views := report.get("views"):
        clips, crops, total = (number(views.get(key)) for key in ("clips", "crops", "total"))
        result.append(("views of a clip", f"{clips} temporal clips \N{MULTIPLICATION SIGN} {crops} crops = {total}"))
        if views.get("computed") not in (None, views.get("total")):
            result.append(("distinct views", f"{number(views['computed'])}, each computed once"))
        for key, label in (("crops_rule", "crop rule"), ("frames", "frames of a view"), ("fusion", "views fused by")):
            if key in views:
                result.append((label, number(views[key]).replace("_", " ")))
    if seconds := (report.get("dataset") or {}).get("seconds"):
        result.append(("length of the clips", duration(seconds)))
    if report.get("seconds"):
        result.append(("time of all stages", duration(sum(report["seconds"].values()))))
    return result


def strip(pictures: ViewStrip, views: Mapping[str, Any]) -> Json:
    """A film strip per view, labelled, and the view that is shown moving: the centre crop of the first clip."""
    count, frames = pictures.frames.shape[:2]
    clips = int(views.get("clips") or 0)
    if pictures.labels:
        labels = tuple(pictures.labels)
    elif clips and count % clips == 0:
        labels = view_labels(clips=clips, crops=count // clips)
    else:
        labels = tuple(f"view {v + 1}" for v in range(count))
    middle = next((v for v, label in enumerate(labels) if "centre" in label), 0)
    rows = [{"label": label, "src": film(view)} for label, view in zip(labels, pictures.frames, strict=True)]
    return {
        "clip_id": pictures.clip_id,
        "title": pictures.title,
        "subtitle": pictures.subtitle,
        "frames": frames,
        "width": pictures.frames.shape[3],
        "height": pictures.frames.shape[2],
        "rows": rows,
        "middle": rows[middle],
    }


def film(view: npt.NDArray[np.uint8]) -> str:
    """[T, H, W, 3] frames side by side as one JPEG data URI, shrunk to about what a page can show."""
    frames, height, width, _ = view.shape
    side = min(128, max(48, 1400 // frames))
    scale = min(1.0, side / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    picture = Image.new("RGB", (size[0] * frames, size[1]))
    for place, pixels in enumerate(view):
        picture.paste(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS), (place * size[0], 0))
    data = io.BytesIO()
    picture.save(data, "JPEG", quality=80, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode()


def cases_of(entries: Sequence[Json], pictures: ReportPictures, views: Mapping[str, Any]) -> Json:
    """The clips got wrong: cards for those with pictures, a list of `MISTAKES_LISTED` others, and how many are left."""
    strips = {s.clip_id: s for s in pictures.mistakes}
    drawn, listed = [], []
    for entry in entries:
        truth, predicted = entry.get("truth") or {}, entry.get("predicted") or {}
        confidence = entry.get("confidence")
        card = {
            "clip_id": entry["clip_id"],
            "narration": entry.get("narration") or "",
            "answers": [
                {
                    "question": question,
                    "truth": str(answer),
                    "predicted": str(predicted.get(question, NOTHING)),
                    "right": predicted.get(question) == answer,
                }
                for question, answer in truth.items()
            ],
            "confidence": None if confidence is None else f"{100 * confidence:.0f}\u00a0% sure",
        }
        if entry["clip_id"] in strips:
            drawn.append({**card, "strip": strip(strips[entry["clip_id"]], views)})
        else:
            listed.append(card)
    return {"drawn": drawn, "listed": listed[:MISTAKES_LISTED], "left": max(0, len(listed) - MISTAKES_LISTED)}


def gallery(entry: Json, strips: Mapping[str, Json]) -> Json:
    """A question with the clips and texts that answer it; a clip without pictures is named."""
    clips = [{**clip, "mark": MARKS[clip["right"]], "strip": strips.get(clip["clip_id"])} for clip in entry["clips"]]
    texts = [{**text, "mark": MARKS[text["right"]]} for text in entry["texts"]]
    return {"title": entry["title"], "note": entry["note"], "clips": clips, "texts": texts}


def failed(report: Json) -> list[tuple[str, str]]:
    """(clip id, reason) of clips that could not be evaluated; entries are ids or objects with a reason."""
    entries = (report.get("clips") or {}).get("failed") or []
    return [(str(e.get("clip_id")), str(e.get("reason", ""))) if isinstance(e, dict) else (str(e), "") for e in entries]


def stages(report: Json) -> list[Json]:
    """Segments of the time bar: share of the total, and the part of it in which the model waited for data."""
    seconds = report.get("seconds") or {}
    waits, rates = report.get("data_wait_percent") or {}, report.get("throughput") or {}
    total = sum(seconds.values())
    result = []
    for place, stage in enumerate([*seconds, *(s for s in waits if s not in seconds)]):
        took, wait = seconds.get(stage), waits.get(stage)
        speed = [(k.removeprefix(stage + "_"), v) for k, v in rates.items() if k.startswith(stage + "_")]
        result.append(
            {
                "name": stage.replace("_", " "),
                "colour": place % 6,
                "seconds": NOTHING if took is None else duration(took),
                "share": round(100 * took / total, 2) if took and total else 0.0,
                "wait": wait,
                "rates": [f"{number(v)} {k.replace('_per_second', '/s').replace('_', ' ')}" for k, v in speed],
            }
        )
    return result


def flatten(config: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    """(dotted key, value) of every leaf of a nested config, the way it is typed on the command line."""
    for key, value in config.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", "null" if value is None else str(value)
