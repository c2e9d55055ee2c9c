"""The drawings of a report: confusion matrices, per-class bars and training curves as coordinates and labels.

SVG user units are CSS pixels at the natural size. Nothing returned is HTML; the template escapes what it places.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from lavila.metrics.classification import confused_pairs
from lavila.metrics.units import Metric, Unit

Json = dict[str, Any]

MATRIX_CLASSES = 30  # a larger matrix is not readable; the page lists the most confused pairs instead
BROAD_CLASSES = 14  # a larger matrix takes the page's whole width
BAR_CLASSES = 30  # with more classes, only the best and the worst are drawn
BARS_SHOWN = 12  # bars at either end
PAIRS_SHOWN = 20
CURVE_POINTS = 300
CHARACTER = 7.2  # mean width of a label's character, px, at 11 px
NOTHING = "\N{EN DASH}"  # stands for a missing number


def percent(value: float | None) -> str:
    """93.24 -> `93.2 %`, with a space that does not break; a missing number is a dash."""
    return measured(value, Unit.percent)


def measured(value: float | None, unit: Unit | None) -> str:
    """A number as its unit wants it, with spaces that do not break; without a unit as `number` writes it."""
    if value is None:
        return NOTHING
    return number(value) if unit in (None, Unit.count, Unit.number) else str(Metric(value, unit)).replace(" ", "\u00a0")


def share_of_scale(value: float | None, unit: Unit | None) -> float | None:
    """Where a number lies between the least (0) and the most (100) that its unit knows; None for one without an end."""
    if unit not in (Unit.percent, Unit.fraction):
        return None
    return round(min(max((value or 0.0) * (1 if unit is Unit.percent else 100), 0.0), 100.0), 2)


def number(value: object) -> str:
    """A count with thin spaces between thousands, or four significant digits, or the text itself."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return NOTHING if value is None else str(value)
    if isinstance(value, int) or (float(value).is_integer() and abs(value) < 1e15):
        return f"{int(value):,}".replace(",", "\u202f")
    if abs(value) >= 1000:
        return f"{value:,.0f}".replace(",", "\u202f")
    return f"{value:.4g}"


def duration(seconds: float) -> str:
    """12.3 -> `12.3 s`, 192 -> `3 min 12 s`, 7500 -> `2 h 05 min`."""
    if seconds < 59.95:
        return f"{seconds:.1f}\u00a0s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}\u00a0min {rest:02d}\u00a0s"
    return f"{minutes // 60}\u00a0h {minutes % 60:02d}\u00a0min"


def ticks(low: float, high: float, count: int = 6) -> list[float]:
    """About `count` round numbers (1, 2 or 5 times a power of ten apart) within [low, high]."""
    span = high - low
    if span <= 0:
        return [low]
    raw = span / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(n * step, 12) for n in range(first, math.floor(high / step + 1e-9) + 1)]


def class_table(key: str, name: str, table: Mapping[str, Any]) -> Json:
    """Matrix or pair table, and bars, of one table of a `class_tables` section (`report[key][name]`).

    Raises ValueError where the shapes disagree or accuracies are fractions of 1 instead of percentages.
    """
    classes = [str(c) for c in table["classes"]]
    confusion, support = check_class_table(f"{key}.{name}", table)
    if confusion is not None:
        pairs = confused_pairs(confusion, most=PAIRS_SHOWN)
    else:
        given = [(int(t), int(p), int(c)) for t, p, c in table.get("confused_pairs") or ()]
        pairs = sorted((p for p in given if p[0] != p[1]), key=lambda p: (-p[2], p[:2]))[:PAIRS_SHOWN]
    drawn, unseen = None, 0
    if confusion is not None:
        seen = np.flatnonzero(confusion.sum(0) + confusion.sum(1))
        if 0 < len(seen) <= MATRIX_CLASSES:
            drawn, unseen = matrix(confusion[np.ix_(seen, seen)], [classes[k] for k in seen]), len(classes) - len(seen)
    shares = [
        (classes[t], classes[p], count, percent(100 * count / support[t]) if support[t] else NOTHING)
        for t, p, count in pairs
    ]
    accuracy = table.get("per_class_accuracy")
    return {
        "name": name,
        "count": number(len(classes)),
        "unseen": unseen,
        "matrix": drawn,
        "pairs": shares,
        "bars": None if accuracy is None else bars(classes, accuracy, support=support, chance=table.get("chance")),
    }


def check_class_table(where: str, table: Mapping[str, Any]) -> tuple[npt.NDArray[np.int64] | None, list[int]]:
    """The confusion [K, K] or None, and clips per class (K), after the checks that catch mixed-up numbers."""
    count = len(table["classes"])
    confusion = None if table.get("confusion") is None else np.asarray(table["confusion"], np.int64)
    if confusion is not None and confusion.shape != (count, count):
        raise ValueError(f"{where}.confusion: found shape {confusion.shape}, need ({count}, {count}), rows the truth")
    if table.get("support") is not None:
        support = [int(s) for s in table["support"]]
    else:
        support = [0] * count if confusion is None else confusion.sum(1).tolist()
    accuracy = table.get("per_class_accuracy")
    for key, values in (("support", support), ("per_class_accuracy", accuracy)):
        if values is not None and len(values) != count:
            raise ValueError(f"{where}.{key}: found {len(values)} values for {count} classes")
    known = [a for a in accuracy or () if a is not None]
    if any(not 0.0 <= a <= 100.0 for a in known):
        raise ValueError(f"{where}.per_class_accuracy: {min(known)} to {max(known)}; percentages lie in 0 to 100")
    if confusion is not None and accuracy is not None:
        right = confusion.diagonal() * 100.0 / np.maximum(confusion.sum(1), 1)
        for k, value in enumerate(accuracy):
            if value is not None and confusion[k].sum() and abs(value - right[k]) > 0.5:
                raise ValueError(
                    f"{where}.per_class_accuracy of {table['classes'][k]!r} is {value}, but its confusion row says "
                    f"{right[k]:.1f} percent; give percentages, not fractions"
                )
    return confusion, support


def short(label: str, limit: int = 24) -> str:
    return label if len(label) <= limit else label[: limit - 1] + "…"


def matrix(confusion: npt.NDArray[np.int64], names: Sequence[str]) -> Json:
    """Heat map of a [K, K] confusion: only cells that hold clips, shaded by their share of the row's clips."""
    count = len(names)
    labels = [short(n, 22) for n in names]
    cell = min(44, max(24, 460 // count))
    margin = round(max(len(label) for label in labels) * CHARACTER) + 14
    slant = round(margin * 0.72) + 8  # column labels lean at 45 degrees
    rows = np.maximum(confusion.sum(1), 1)
    cells = []
    for t, p in np.argwhere(confusion):
        share = float(confusion[t, p] / rows[t])
        cells.append(
            {
                "x": margin + int(p) * cell,
                "y": slant + int(t) * cell,
                "kind": "hit" if t == p else "miss",
                "shade": round(0.12 + 0.88 * share, 3),
                "dark": share > 0.5,
                "text": number(int(confusion[t, p])),
                "tip": f"{names[t]} → {names[p]}: {confusion[t, p]} of {rows[t]} clips ({100 * share:.0f} %)",
            }
        )
    return {
        "cell": cell,
        "broad": count > BROAD_CLASSES,
        "left": margin,
        "top": slant,
        "side": cell * count,
        "width": margin + cell * count + max(0, slant - cell // 2),
        "height": slant + cell * count + 2,
        "labels": [{"text": text, "at": k * cell + cell / 2} for k, text in enumerate(labels)],
        "font": min(11, cell - 4),
        "cells": cells,
    }


def bars(
    classes: Sequence[str], accuracy: Sequence[float | None], *, support: Sequence[int], chance: float | None
) -> Json:
    """Accuracy bars, best first; with more than BAR_CLASSES classes the two ends, and a line about those between."""
    order = sorted(
        ((a, k) for k, a in enumerate(accuracy) if a is not None),
        key=lambda item: (-item[0], -support[item[1]], item[1]),
    )
    rows = [
        {
            "label": short(classes[k], 40),
            "name": classes[k],
            "fill": round(a, 2),
            "value": percent(a),
            "clips": number(support[k]),
        }
        for a, k in order
    ]
    few = len(rows) <= BAR_CLASSES
    values = [a for a, _ in order]
    return {
        "head": rows if few else rows[:BARS_SHOWN],
        "tail": [] if few else rows[-BARS_SHOWN:],
        "between": 0 if few else len(rows) - 2 * BARS_SHOWN,
        "median": percent(float(np.median(values))) if values else None,
        "never": sum(a == 0 for a in values),
        "absent": len(classes) - len(rows),
        "chance": None if chance is None else {"at": round(min(max(chance, 0.0), 100.0), 2), "value": percent(chance)},
    }


LARGE, SMALL = (520, 230), (340, 180)  # width, height of a chart's box
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 10, 24
LINES = {
    "loss": "loss",
    "lr": "learning rate",
    "clips_per_second": "clips per second",
    "data_wait_percent": "data wait, %",
}


UNIT_TITLES = {
    Unit.percent: "metrics in %",
    Unit.fraction: "metrics from 0 to 1",
    Unit.count: "counts",
    Unit.number: "other metrics",
}


def curves(history: Sequence[Mapping[str, Any]], units: Mapping[str, Unit]) -> list[Json]:
    """One small chart of the loss, one for each unit of the metrics that were logged, and those of `LINES`.

    The name of an evaluation during training stands before its metrics, with a slash.
    """
    found: dict[str, list[tuple[float, float]]] = {}
    for entry in history:
        step = entry.get("step")
        for key, value in entry.items():
            if isinstance(step, int | float) and isinstance(value, int | float) and math.isfinite(value):
                found.setdefault(key, []).append((float(step), float(value)))
    panels: list[tuple[str, list[str]]] = [("loss", [key for key in ("loss",) if key in found])]
    for unit, title in UNIT_TITLES.items():
        panels.append((title, [key for key in found if units.get(key.rpartition("/")[2]) is unit]))
    large = {title for title, _ in panels}
    panels += [(title, [key]) for key, title in LINES.items() if key != "loss" and key in found]
    last = max((points[-1][0] for points in found.values()), default=0.0)
    return [
        chart(title, {key: found[key] for key in keys}, last=last, box=LARGE if title in large else SMALL)
        for title, keys in panels
        if keys and any(len(found[key]) > 1 for key in keys)
    ]


def thin(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most CURVE_POINTS points: means of equal runs of neighbours, and the last point as it is."""
    if len(points) <= CURVE_POINTS:
        return list(points)
    runs = np.array_split(np.asarray(points, np.float64), CURVE_POINTS - 1)
    return [(float(run[:, 0].mean()), float(run[:, 1].mean())) for run in runs] + [points[-1]]


def smooth(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Mean of each point and its neighbours, about a twentieth of the curve in all, fewer towards the ends: no lag."""
    values = np.asarray([y for _, y in points], np.float64)
    places, reach = np.arange(len(values)), max(1, len(values) // 40)
    reaches = np.minimum(reach, np.minimum(places, places[::-1]))
    sums = np.concatenate([[0.0], np.cumsum(values)])
    means = (sums[places + reaches + 1] - sums[places - reaches]) / (2 * reaches + 1)
    return [(x, float(y)) for (x, _), y in zip(points, means, strict=True)]


def chart(
    title: str, series: Mapping[str, Sequence[tuple[float, float]]], *, last: float, box: tuple[int, int]
) -> Json:
    """Lines over steps 0 to `last`: SVG path strings in a box of (width, height), ticks, and each line's last value."""
    width, height = box
    values = [y for points in series.values() for _, y in points]
    low, high = min(0.0, *values), max(values)
    high = 100.0 if "%" in title and high > 30 else high
    if high <= low:
        high = low + 1.0

    def place(x: float, y: float) -> str:
        across = LEFT + (x / last if last else 0.0) * (width - LEFT - RIGHT)
        down = height - BOTTOM - (y - low) / (high - low) * (height - TOP - BOTTOM)
        return f"{across:.1f} {down:.1f}"

    lines: list[Json] = []
    for colour, (key, points) in enumerate(series.items()):
        noisy = key != "lr" and len(points) > 40
        drawn = [("faint", thin(points)), ("firm", thin(smooth(points)))] if noisy else [("firm", thin(points))]
        lines.append(
            {
                "label": key.replace("_", " ") if len(series) > 1 else "",
                "colour": colour % 6,
                "last": number(points[-1][1]),
                "paths": [(kind, "M" + "L".join(place(x, y) for x, y in line)) for kind, line in drawn],
                "dots": [place(*p).split() for p in points] if len(points) <= 12 else [],
            }
        )
    return {
        "title": title,
        "lines": lines,
        "x_ticks": [{"at": place(v, low).split()[0], "text": number(v)} for v in ticks(0.0, last)],
        "y_ticks": [{"at": place(0.0, v).split()[1], "text": number(v)} for v in ticks(low, high)],
        "smoothed": any(len(line["paths"]) > 1 for line in lines),
        "large": box == LARGE,
        "box": {"width": width, "height": height, "left": LEFT, "right": width - RIGHT, "bottom": height - BOTTOM},
    }
