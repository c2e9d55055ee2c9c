"""What a report says of an evaluation: facts, pictures and mistakes, as `files.write_report` takes them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import interpolate

from lavila.data.loader import BadClip
from lavila.metrics.units import Unit
from lavila.plan.crops import ViewChoice
from lavila.report.environment import best_effort
from lavila.report.figures import ReportPictures, ViewStrip, view_labels
from lavila.report.files import read_stages
from lavila.shards.reader import ShardSet
from lavila.tasks import Scores, Section

Strips = Mapping[int, npt.NDArray[np.uint8]]
"""Row of clips.parquet -> [views, frames, H, W, 3], what the model saw of it; see `strip_of`."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How an evaluation was asked for."""

    name: str  # name of the run
    data: str  # path of the shard set
    frames: int  # frames of a view
    mean: tuple[float, ...]  # R, G, B on 0..255, as the pictures were normalised
    std: tuple[float, ...]  # R, G, B on 0..255
    views: ViewChoice
    fusion: str
    config: Mapping[str, Any]  # all settings, nested; those of training are left out of the report


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What an evaluation is of, where its report goes, and what is known of that checkpoint's own training."""

    model: str  # for `load_model`: a path, or a name of the zoo
    output: Path  # folder of report.json and report.html
    train_seconds: float | None = None  # time of its training; None = not known, for example for a published model
    history: list[dict[str, Any]] = field(default_factory=list)  # metrics.jsonl of its run, up to it
    trained_with: dict[str, Any] | None = None  # its config.yaml


SHOWN_CLIPS, SHOWN_MISTAKES, LISTED_MISTAKES = 4, 6, 60
STRIP_VIEWS, STRIP_FRAMES, STRIP_PIXELS = 6, 8, 112

MISTAKES = Section(
    key="mistakes",
    type="cases",
    title="Clips that the model got wrong",
    note="One view of each clip, the truth, and the model's answer.",
)

OF_TRAINING = (  # sections and settings of a config that an evaluation does not use
    "seed", "resume", "dry_run", "checkpoint_every_steps", "keep_checkpoints", "keep_best", "log_every_steps", "log",
    "evals", "model", "optim", "predictions",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Scored:
    """What predictions are worth."""

    clips: int  # evaluated
    scores: Scores  # controls of the evaluator included
    logged: dict[str, Unit]  # `Task.logged`
    cases: list[dict[str, Any]]  # `row` and `Task.case` of the worst mistakes, the worst first


@dataclass(frozen=True, kw_only=True)
class Made:
    """How predictions were made."""

    bad_clips: list[BadClip]
    seconds: float
    data_wait_percent: float
    decoder: str
    precision: str  # fp32, bf16 or fp16


@dataclass(frozen=True, kw_only=True)
class Evaluation(Scored, Made):
    """What an evaluation found, on the main rank."""


@dataclass(frozen=True, kw_only=True)
class Circumstances:
    """What stands beside an evaluation's numbers."""

    machine: Mapping[str, Any]  # see `environment`
    notes: Sequence[str] = ()  # what was done otherwise than in training
    published: Mapping[str, float] = field(default_factory=dict)  # metric -> published value, of this very protocol


def _spread(count: int, most: int) -> list[int]:
    return sorted({int(i) for i in np.linspace(0, count - 1, min(count, most))})


def strip_of(setting: Setting, views_VCTHW: torch.Tensor) -> npt.NDArray[np.uint8]:
    """What the model saw of a clip, normalisation undone: some views and frames, [v, t, h, w, 3] uint8."""
    some = views_VCTHW[_strip_views(views_VCTHW.shape[0])][:, :, _spread(views_VCTHW.shape[2], STRIP_FRAMES)].float()
    mean = torch.tensor(setting.mean, device=some.device).view(1, 3, 1, 1, 1)
    std = torch.tensor(setting.std, device=some.device).view(1, 3, 1, 1, 1)
    pictures = (some * std + mean).transpose(1, 2).flatten(0, 1)
    if pictures.shape[-1] > STRIP_PIXELS:
        pictures = interpolate(pictures, size=STRIP_PIXELS, mode="bilinear", antialias=True)
    rounded = pictures.round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()
    return rounded.reshape(some.shape[0], some.shape[2], *rounded.shape[1:])


def _strip_views(views: int) -> list[int]:
    return list(range(min(views, STRIP_VIEWS)))


def compose(
    setting: Setting, subject: Subject, shards: ShardSet, result: Evaluation, beside: Circumstances
) -> dict[str, Any]:
    """The values of report.json."""
    views, scores = setting.views, result.scores
    units = result.logged | {name: metric.unit for name, metric in (scores.metrics | scores.controls).items()}
    total = views.clips * (1 if views.crops == "center" else 3)
    seconds: dict[str, float] = best_effort("stages.jsonl", lambda: _stages(subject), {})
    wrong: list[dict[str, Any]] = best_effort("mistakes", lambda: [_with_names(c, shards) for c in result.cases], [])
    trained_with = {} if subject.trained_with is None else {"trained_with": subject.trained_with}
    published = {name: value for name, value in beside.published.items() if name in scores.metrics}
    return {
        "name": setting.name,
        "dataset": {
            "name": shards.manifest["dataset"],
            "split": shards.manifest["split"],
            "clips": len(shards),
            "seconds": shards.manifest["seconds"],
            "path": setting.data,
        },
        "checkpoint": subject.model,
        "metrics": {name: metric.value for name, metric in scores.metrics.items()},
        "published": published,
        "controls": {name: metric.value for name, metric in scores.controls.items()},
        "units": {name: unit.value for name, unit in units.items()},
        "headlines": [asdict(headline) for headline in scores.headlines],
        "views": {
            "clips": views.clips,
            "crops": total // views.clips,
            "crops_rule": views.crops,
            "total": total,
            "computed": views.computed,
            "frames": setting.frames,
            "fusion": setting.fusion,
        },
        "seconds": seconds,
        "data_wait_percent": {"evaluate": result.data_wait_percent}
        | _training_figure(subject, "data_wait_percent", "train"),
        "throughput": {"evaluate_views_per_second": result.clips * views.computed / result.seconds}
        | _training_figure(subject, "clips_per_second", "train_clips_per_second"),
        "clips": {
            "total": len(shards),
            "evaluated": result.clips,
            "failed": [
                {"clip_id": clip.clip_id, "shard": clip.shard, "reason": clip.reason} for clip in result.bad_clips
            ]
            + [{"clip_id": name, "reason": f"in quarantine: {why}"} for name, why in shards.quarantine.items()],
        },
        **{section.key: _values_of(section, shards) for section in scores.sections},
        MISTAKES.key: wrong,
        "sections": [_drawn_as(section) for section in (*scores.sections, MISTAKES)],
        "environment": {**beside.machine, "decoder": result.decoder, "precision": result.precision},
        "config": {name: value for name, value in setting.config.items() if name not in OF_TRAINING},
        "notes": list(beside.notes),
        **trained_with,
    }


def shown_rows(shards: ShardSet, result: Evaluation) -> list[int]:
    """Rows of clips.parquet whose pictures a report shows, each once."""
    bad = {clip.clip_id for clip in result.bad_clips} | set(shards.quarantine)
    examples = [row for row in _spread(len(shards), SHOWN_CLIPS) if _clip_id(shards, row) not in bad]
    return sorted({*examples, *_rows_of_mistakes(result), *_rows_of_galleries(result)})


def pictures_of(setting: Setting, shards: ShardSet, result: Evaluation, strips: Strips) -> ReportPictures:
    """The pictures of a report. strips: of `shown_rows`, or of as many of them as there are."""
    drawn = {row: _view_strip(shards, row, frames, setting.views.grid) for row, frames in strips.items()}
    mistakes, galleries = _rows_of_mistakes(result), set(_rows_of_galleries(result))
    examples = [row for row in _spread(len(shards), SHOWN_CLIPS) if row not in mistakes]
    return ReportPictures(
        views=[drawn[row] for row in examples if row in drawn],
        mistakes=[drawn[row] for row in mistakes if row in drawn],
        galleries=[drawn[row] for row in sorted(galleries) if row in drawn],
    )


def _rows_of_mistakes(result: Evaluation) -> list[int]:
    return [case["row"] for case in result.cases[:SHOWN_MISTAKES]]


def _rows_of_galleries(result: Evaluation) -> Iterable[int]:
    for section in result.scores.sections:
        for entry in section.values if section.type == "galleries" else ():
            yield from (clip["row"] for clip in entry["clips"])


def _view_strip(shards: ShardSet, row: int, frames: npt.NDArray[np.uint8], grid: tuple[int, int]) -> ViewStrip:
    clip = shards.clips.slice(row, 1).to_pylist()[0]
    labels = view_labels(clips=grid[0], crops=grid[1], tall=clip["height"] > clip["width"])
    title = clip["narrations"][0] if clip["narrations"] else clip["clip_id"]
    size = f"{clip['width']}x{clip['height']}"
    return ViewStrip(
        clip_id=clip["clip_id"],
        title=title,
        subtitle=f"{clip['num_frames'] / clip['fps']:.1f} s at {clip['fps']:.4g} frames/s, {size}",
        frames=frames,
        labels=[labels[i] for i in _strip_views(len(labels))],
    )


def _clip_id(shards: ShardSet, row: int) -> str:
    return str(shards.clips.column("clip_id")[row].as_py())


def _with_names(values: Mapping[str, Any], shards: ShardSet) -> dict[str, Any]:
    """What is said of the clip in `row`, with the clip's id and its first narration in the row's place."""
    narrations = shards.clips.column("narrations")[values["row"]].as_py()
    rest = {name: value for name, value in values.items() if name != "row"}
    return {"clip_id": _clip_id(shards, values["row"]), "narration": narrations[0] if narrations else "", **rest}


def _values_of(section: Section, shards: ShardSet) -> Any:
    if section.type != "galleries":
        return section.values
    return [{**entry, "clips": [_with_names(clip, shards) for clip in entry["clips"]]} for entry in section.values]


def _drawn_as(section: Section) -> dict[str, Any]:
    """What report.json says of how a section is drawn."""
    units = {name: unit.value for name, unit in section.units.items()}
    return {"key": section.key, "type": section.type, "title": section.title, "note": section.note, "units": units}


def _stages(subject: Subject) -> dict[str, float]:
    """Seconds of each stage; those of training are the checkpoint's own, whatever the run went on to do."""
    stages = read_stages(subject.output)
    last = {"evaluate": stages.pop("evaluate")}
    stages.pop("train", None)
    return stages | ({} if subject.train_seconds is None else {"train": subject.train_seconds}) | last


def _training_figure(subject: Subject, name: str, key: str) -> dict[str, float]:
    """The median of a logged number over the checkpoint's training, where that is known."""
    values = [line[name] for line in subject.history if line.get(name) is not None]
    return {key: float(np.median(values))} if values and math.isfinite(np.median(values)) else {}
