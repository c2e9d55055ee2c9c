"""The figures of a shard set from its tables, as plain JSON values and as text. Tars are not opened."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lavila.errors import listed
from lavila.ingest.notes import note_lines
from lavila.records import Floats
from lavila.shards.format import CHUNKS, CLIPS, FAILURES, ShardSetError
from lavila.shards.reader import ShardSet

Facts = dict[str, Any]

# Edges of the bins of clip lengths, seconds.
LENGTHS = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0)
BAR = 40  # number of characters of the longest bar
SHOWN = 8  # number of items of a list before "and N more"


def shard_set_facts(shard_set: ShardSet) -> Facts:
    """All figures. They count clips, seconds, frames per second, pixels or bytes, as their names say."""
    clips, chunks, manifest = shard_set.clips, shard_set.chunks, shard_set.manifest
    lengths = _column(clips, "num_frames") / _column(clips, "fps")
    stored = _stored_seconds(shard_set)
    tars = np.array([shard.bytes for shard in shard_set.shards], np.int64)
    pictures = clips if chunks is None else chunks
    return {
        "path": str(shard_set.path),
        **{name: manifest.get(name) for name in ("format", "dataset", "split")},
        "layout": manifest.get("layout", "clips"),
        "clips": len(shard_set),
        "videos": pc.count_distinct(clips.column("video_id")).as_py(),
        "shards": len(tars),
        "chunks": None if chunks is None else chunks.num_rows,
        "seconds": {"total": float(lengths.sum()), **_spread(lengths), "stored": stored},
        "bytes": {
            "total": int(tars.sum()),
            "per_clip": float(tars.sum() / len(shard_set)),
            "per_stored_second": float(tars.sum() / stored),
            "per_tar": _spread(tars.astype(np.float64)),
        },
        "encoder": manifest["encoder"],
        "checksums": shard_set.has_checksums,
        "frames_for": manifest.get("frames_for"),
        "versions": manifest.get("versions", {}),
        "pictures": _counted(pictures, ["height", "width"]),
        "frame_rates": _counted(pictures, ["fps"]),
        "lengths": _histogram(lengths),
        "labelled": {
            "narrations": _listed(clips, "narrations"),
            "labels": _listed(clips, "labels"),
            **{kind: len(clips) - clips.column(kind).null_count for kind in ("verb", "noun", "action")},
        },
        "classes": {kind: len(names) for kind, names in shard_set.classes.items()},
        "tables": {name: pq.read_metadata(shard_set.path / name).num_rows for name in manifest["tables"]},
        "shortened": manifest.get("shortened", 0),
        "estimated_rates": manifest.get("estimated_rates", 0),
        "hdr_videos": manifest.get("hdr_videos", 0),
        "spherical_videos": manifest.get("spherical_videos", 0),
        "failures": failure_groups(shard_set.path / FAILURES),
        "quarantine": len(shard_set.quarantine),
    }


def _column(table: pa.Table, name: str) -> Floats:
    return np.asarray(table.column(name).to_numpy(), np.float64)


def _stored_seconds(shard_set: ShardSet) -> float:
    """The seconds of video in the tars. Margins count. In layout "chunks", parts that clips share count once."""
    if shard_set.chunks is not None:
        frames, fps = (_column(shard_set.chunks, name) for name in ("num_frames", "fps"))
    else:
        fps = _column(shard_set.clips, "fps")
        names = (
            ["num_frames"] if shard_set.manifest.get("frames_for") else ["first_frame", "num_frames", "frames_after"]
        )
        frames = np.sum([_column(shard_set.clips, name) for name in names], axis=0)
    return float((frames / fps).sum())


def _spread(values: Floats) -> dict[str, float]:
    quantiles = np.quantile(values, [0, 0.5, 0.9, 1])
    return dict(zip(("min", "median", "p90", "max"), quantiles.tolist(), strict=True))


def _counted(table: pa.Table, names: list[str]) -> list[dict[str, Any]]:
    """Each distinct combination of values and its number of rows, the most frequent first."""
    groups = table.select(names).group_by(names).aggregate([([], "count_all")])
    rows = groups.rename_columns([*names, "count"]) if groups.column_names[-1] == "count_all" else groups
    return sorted(rows.to_pylist(), key=lambda row: (-row["count"], *(row[name] for name in names)))


def _histogram(lengths: Floats) -> list[dict[str, Any]]:
    """The number of clips by length, from the first filled bin to the last. The last bin of LENGTHS has no end."""
    counts, _ = np.histogram(lengths, [*LENGTHS, np.inf])
    filled = np.flatnonzero(counts)
    edges = [*LENGTHS, None]
    return [{"from": edges[i], "to": edges[i + 1], "clips": int(counts[i])} for i in range(filled[0], filled[-1] + 1)]


def _listed(table: pa.Table, name: str) -> int:
    """The number of rows whose list is not empty."""
    return int(pc.sum(pc.greater(pc.list_value_length(table.column(name)), 0)).as_py() or 0)


def failure_groups(path: Path) -> list[dict[str, Any]]:
    """failures.jsonl grouped by reason without its numbers, the most frequent first."""
    if not path.is_file():
        return []
    groups: dict[str, dict[str, Any]] = {}
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                entry = json.loads(line)
                reason, example = str(entry["reason"]), {"clip_id": entry["clip_id"], "video": entry["video"]}
            except (ValueError, KeyError, TypeError):
                raise ShardSetError(
                    f"{path}, line {number}: not {{clip_id, video, reason}}; make the set again"
                ) from None
            kind = re.sub(r"\d+(\.\d+)?", "N", reason)
            group = groups.setdefault(kind, {"reason": reason, "count": 0, "example": example})
            group["count"] += 1
    return sorted(groups.values(), key=lambda group: -int(group["count"]))


def describe(facts: Facts, *, plain: bool = False) -> str:
    """The figures as text of fixed width. `plain` draws bars in ASCII."""
    return "\n".join(
        [
            f"{facts['path']}: {_what(facts)}",
            *(f"  {name:<14}{value}" for name, value in _lines(facts)),
            "",
            *_bars(facts["lengths"], "#" if plain else "█"),
            *_failure_lines(facts["failures"]),
        ]
    )


def _what(facts: Facts) -> str:
    return f"{facts['dataset']}, split {facts['split']}, format {facts['format']}, layout {facts['layout']}"


def _lines(facts: Facts) -> Iterator[tuple[str, str]]:
    seconds, size, encoder = facts["seconds"], facts["bytes"], facts["encoder"]
    chunks = "" if facts["chunks"] is None else f", {facts['chunks']:,} chunks"
    yield "holds", f"{facts['clips']:,} clips of {facts['videos']:,} videos in {facts['shards']:,} shards{chunks}"
    yield "duration", f"{duration(seconds['total'])} of clips, {duration(seconds['stored'])} of video stored"
    yield "clip length", _spread_text(seconds, "{:.2f} s")
    shares = f"{amount(size['per_clip'])} a clip, {amount(size['per_stored_second'])} a stored second"
    yield "size", f"{amount(size['total'])}, {shares}"
    yield "tars", _spread_text({name: amount(value) for name, value in size["per_tar"].items()}, "{}")
    yield "coding", ", ".join(f"{name} {_value(value)}" for name, value in encoder.items())
    yield "checksums", "compared on each reading" if facts["checksums"] else "none: --add-checksums adds them"
    if facts["frames_for"]:
        yield "frames for", ", ".join(f"{name} {value}" for name, value in facts["frames_for"].items())
    unit = "clips" if facts["chunks"] is None else "chunks"
    yield (
        "pictures",
        listed([f"{row['width']}x{row['height']} ({row['count']:,} {unit})" for row in facts["pictures"]], most=SHOWN),
    )
    yield (
        "frame rates",
        listed([f"{row['fps']:.6g} fps ({row['count']:,} {unit})" for row in facts["frame_rates"]], most=SHOWN),
    )
    clips = facts["clips"]
    yield "with words", _share("narrations", facts["labelled"]["narrations"], clips)
    kinds = [kind for kind, count in facts["labelled"].items() if count and kind != "narrations"]
    classes = {kind: f" of {facts['classes'][kind]} classes" if kind in facts["classes"] else "" for kind in kinds}
    labels = [_share(kind, facts["labelled"][kind], clips) + classes[kind] for kind in kinds]
    yield "with labels", ", ".join(labels) or "none"
    further = {name: rows for name, rows in facts["tables"].items() if name not in (CLIPS, CHUNKS)}
    yield "more tables", ", ".join(f"{name} ({rows:,} rows)" for name, rows in further.items()) or "none"
    failed = sum(group["count"] for group in facts["failures"])
    yield "failures", f"{failed:,} clips could not be stored" if failed else "none"
    yield from (("note", line) for line in note_lines(facts))
    quarantine = f"{facts['quarantine']:,} clips are left out of training and evaluation"
    yield "quarantine", quarantine if facts["quarantine"] else "none"


def _value(value: Any) -> str:
    return str(value) if value not in ("", None) else "-"


def _share(name: str, count: int, clips: int) -> str:
    return f"{name} {count:,} ({100 * count / clips:.0f} %)"


def _spread_text(spread: Mapping[str, Any], form: str) -> str:
    return ", ".join(f"{name} {form.format(spread[name])}" for name in ("min", "median", "p90", "max"))


def _bars(bins: list[dict[str, Any]], block: str) -> Iterator[str]:
    """One line for each bin. A bin with any clip shows at least one block."""
    most = max(row["clips"] for row in bins)
    yield f"  {'clip length':>14} {'clips':>12}"
    for row in bins:
        span = f"{row['from']:g} - {row['to']:g} s" if row["to"] is not None else f"{row['from']:g} s and more"
        length = max(round(BAR * row["clips"] / most), 1) if row["clips"] else 0
        yield f"  {span:>14} {row['clips']:>12,}  {block * length}".rstrip()


def _failure_lines(groups: list[dict[str, Any]]) -> Iterator[str]:
    if not groups:
        return
    yield ""
    yield f"  failures, by reason ({FAILURES})"
    for group in groups[:SHOWN]:
        example = group["example"]
        yield f"  {group['count']:>14,}  {group['reason']}; for example {example['clip_id']} of {example['video']}"
    if len(groups) > SHOWN:
        rest = sum(group["count"] for group in groups[SHOWN:])
        yield f"  {rest:>14,}  for {len(groups) - SHOWN} further reasons"


def duration(seconds: float) -> str:
    """'3 h 02 min', '4 min 10 s' or '12.3 s'."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60:,} h {minutes % 60:02d} min"


def amount(size: float) -> str:
    """A number of bytes with three digits: '1.23 GB'."""
    for unit in ("B", "KB", "MB", "GB", "TB"):
        if size < 999.5 or unit == "TB":
            break
        size /= 1000
    return f"{size:.3g} {unit}"
