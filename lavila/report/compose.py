"""What a report says of an evaluation: facts, pictures and mistakes, as `files.write_report` takes them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import interpolate

from lavila.config.load import to_dict
from lavila.config.schema import RunConfig
from lavila.data.loader import BadClip
from lavila.metrics.units import Unit
from lavila.report.environment import best_effort
from lavila.report.figures import ReportPictures, ViewStrip, view_labels
from lavila.report.files import read_stages
from lavila.shards.reader import ShardSet
from lavila.tasks import Scores, Section


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
    "seed", "resume", "checkpoint_every_steps", "keep_checkpoints", "log_every_steps", "evaluate_every_epochs", "model",
    "optim",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What an evaluation found, on the main rank."""

    clips: int  # evaluated
    scores: Scores  # controls of the evaluator included
    logged: dict[str, Unit]  # `Task.logged`
    cases: list[dict[str, Any]]  # `row` and `Task.case` of the worst mistakes, the worst first
    pictures: dict[int, npt.NDArray[np.uint8]]  # row -> [views, frames, H, W, 3] of the clips to show
    bad_clips: list[BadClip]
    seconds: float
    data_wait_percent: float
    decoder: str
    precision: str  # fp32, bf16 or fp16


def _spread(count: int, most: int) -> list[int]:
    return sorted({int(i) for i in np.linspace(0, count - 1, min(count, most))})


def strip_of(config: RunConfig, views_VCTHW: torch.Tensor) -> npt.NDArray[np.uint8]:
    """What the model saw of a clip, normalisation undone: some views and frames, [v, t, h, w, 3] uint8."""
    some = views_VCTHW[_strip_views(views_VCTHW.shape[0])][:, :, _spread(views_VCTHW.shape[2], STRIP_FRAMES)].float()
    mean = torch.tensor(config.data.mean, device=some.device).view(1, 3, 1, 1, 1)
    std = torch.tensor(config.data.std, device=some.device).view(1, 3, 1, 1, 1)
    pictures = (some * std + mean).transpose(1, 2).flatten(0, 1)
    if pictures.shape[-1] > STRIP_PIXELS:
        pictures = interpolate(pictures, size=STRIP_PIXELS, mode="bilinear", antialias=True)
    rounded = pictures.round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()
    return rounded.reshape(some.shape[0], some.shape[2], *rounded.shape[1:])


def _strip_views(views: int) -> list[int]:
    return list(range(min(views, STRIP_VIEWS)))


def compose(
    config: RunConfig,
    subject: Subject,
    shards: ShardSet,
    result: Evaluation,
    machine: Mapping[str, Any],
    *,
    wrong: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """The values of report.json. `machine`: see `environment`; `wrong`: from `mistakes_of`."""
    views, scores = config.views, result.scores
    units = result.logged | {name: metric.unit for name, metric in (scores.metrics | scores.controls).items()}
    computed = math.prod(_view_grid(config))
    total = views.clips * (1 if views.crops.value == "center" else 3)
    seconds: dict[str, float] = best_effort("stages.jsonl", lambda: _stages(subject), {})
    trained_with = {} if subject.trained_with is None else {"trained_with": subject.trained_with}
    return {
        "name": config.name,
        "dataset": {
            "name": shards.manifest["dataset"],
            "split": shards.manifest["split"],
            "clips": len(shards),
            "seconds": shards.manifest["seconds"],
            "path": config.data.val,
        },
        "checkpoint": subject.model,
        "metrics": {name: metric.value for name, metric in scores.metrics.items()},
        "controls": {name: metric.value for name, metric in scores.controls.items()},
        "units": {name: unit.value for name, unit in units.items()},
        "headlines": [asdict(headline) for headline in scores.headlines],
        "views": {
            "clips": views.clips,
            "crops": total // views.clips,
            "crops_rule": views.crops.value,
            "total": total,
            "computed": computed,
            "frames": config.data.frames,
            "fusion": views.fusion.value,
        },
        "seconds": seconds,
        "data_wait_percent": {"evaluate": result.data_wait_percent}
        | _training_figure(subject, "data_wait_percent", "train"),
        "throughput": {"evaluate_views_per_second": result.clips * computed / result.seconds}
        | _training_figure(subject, "clips_per_second", "train_clips_per_second"),
        "clips": {
            "total": len(shards),
            "evaluated": result.clips,
            "failed": [{"clip_id": clip.clip_id, "reason": clip.reason} for clip in result.bad_clips]
            + [{"clip_id": name, "reason": f"in quarantine: {why}"} for name, why in shards.quarantine.items()],
        },
        **{section.key: section.values for section in scores.sections},
        MISTAKES.key: [{key: value for key, value in entry.items() if key != "row"} for entry in wrong],
        "sections": [_drawn_as(section) for section in (*scores.sections, MISTAKES)],
        "environment": {**machine, "decoder": result.decoder, "precision": result.precision},
        "config": {name: value for name, value in to_dict(config).items() if name not in OF_TRAINING},
        **trained_with,
    }


def _view_grid(config: RunConfig) -> tuple[int, int]:
    """Temporal clips, and spatial crops that are computed."""
    return config.views.clips, 3 if config.views.crops.value == "three" else 1


def pictures_of(
    config: RunConfig, shards: ShardSet, result: Evaluation, wrong: Sequence[Mapping[str, Any]]
) -> ReportPictures:
    grid, rows = _view_grid(config), {entry["row"] for entry in wrong}
    strips = {row: _view_strip(shards, row, frames, grid) for row, frames in result.pictures.items()}
    return ReportPictures(
        views=[strip for row, strip in strips.items() if row not in rows][:SHOWN_CLIPS],
        mistakes=[strips[entry["row"]] for entry in wrong if entry["row"] in strips],
    )


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


def mistakes_of(shards: ShardSet, result: Evaluation) -> list[dict[str, Any]]:
    """The cases of an evaluation with the names and narrations of their clips."""
    entries = []
    for case in result.cases:
        clip = shards.clips.slice(case["row"], 1).to_pylist()[0]
        narration = clip["narrations"][0] if clip["narrations"] else ""
        entries.append({"row": case["row"], "clip_id": clip["clip_id"], "narration": narration, **case})
    return entries


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
