"""Saved predictions as a whole: the parts of all ranks, what the model said of texts, and what a report needs beside.

A folder `predictions` holds the parts (`predictions.py`), `texts.safetensors`, `config.yaml` (the resolved settings)
and `evaluation.json`. That one is written last.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from lavila.config.load import to_yaml
from lavila.config.schema import RunConfig
from lavila.data.loader import BadClip
from lavila.engine import build
from lavila.engine.checkpoint import CONFIG
from lavila.engine.predictions import KEPT, PredictionParts, PredictionsError
from lavila.report.compose import Circumstances, Made, Subject
from lavila.report.files import write_json_atomic
from lavila.shards.reader import ShardSet
from lavila.tasks import TaskFacts, TextFeatures

PREDICTED, FROZEN = "predicted", "frozen"  # kinds of parts; frozen: of views whose frames are all the middle one
FORMAT = 1  # raise when older folders cannot be read any more
FACTS, TEXTS = "evaluation.json", "texts.safetensors"


@dataclass(frozen=True, kw_only=True)
class Saved:
    """What is known of saved predictions beside themselves."""

    subject: Subject  # its output is the folder that holds `predictions`
    made: Made
    beside: Circumstances
    task_facts: TaskFacts
    texts: TextFeatures = field(default_factory=dict)


def write_texts(folder: Path, texts: TextFeatures) -> None:
    """What `Task.know_texts` gave, beside the parts."""
    if texts:
        save_file({name: np.ascontiguousarray(values) for name, values in texts.items()}, folder / TEXTS)


def save(config: RunConfig, saved: Saved) -> None:
    """Write what is known beside the parts, which lie in `saved.subject.output`/predictions already."""
    folder, made = saved.subject.output / KEPT, saved.made
    (folder / CONFIG).write_text(to_yaml(config), encoding="utf-8")
    about = {name: value for name, value in asdict(saved.subject).items() if name != "output"}
    of_made = {name: getattr(made, name) for name in ("seconds", "data_wait_percent", "decoder", "precision")}
    facts = {
        "format": FORMAT,
        "subject": about,
        "made": of_made | {"bad_clips": [asdict(clip) for clip in made.bad_clips]},
        "beside": asdict(saved.beside),
        "task_facts": saved.task_facts,
    }
    write_json_atomic(folder / FACTS, facts)


def open_saved(config: RunConfig) -> tuple[Saved, ShardSet]:
    """What is known of the predictions in `config.predictions`, and their shard set.

    PredictionsError where something is missing or damaged, and where the set has other clips. TaskError where it has
    other classes, or words that become other tokens.
    """
    folder = Path(config.predictions)
    facts, texts = _read_facts(folder), _read_texts(folder)
    made = facts["made"]
    saved = Saved(
        subject=Subject(output=folder.resolve().parent, **facts["subject"]),
        made=Made(**made | {"bad_clips": [BadClip(**clip) for clip in made["bad_clips"]]}),
        beside=Circumstances(**facts["beside"]),
        task_facts=facts["task_facts"],
        texts=texts,
    )
    shards = build.shard_set(config, "val")
    _check_clips(folder, shards)
    found = build.task_facts(config, shards)
    build.task_kind(config).check(found, saved.task_facts, of=shards.path, wanted_by=folder)
    return saved, shards


def _check_clips(folder: Path, shards: ShardSet) -> None:
    parts = PredictionParts(folder, PREDICTED)
    if not parts.clips:
        raise PredictionsError(f"{folder}: holds no predictions ({PREDICTED}-*.parquet); evaluate again")
    ids = shards.clips.column("clip_id").to_pylist()
    for row, clip_id in parts.clip_ids():
        if row >= len(ids) or ids[row] != clip_id:
            there = ids[row] if row < len(ids) else "none"
            raise PredictionsError(
                f"{folder}: predicts clip {clip_id} in row {row}, where {shards.path} has {there}; name the shard set "
                "that was evaluated (data.val=...), or evaluate again"
            )


def _read_facts(folder: Path) -> dict[str, Any]:
    file = folder / FACTS
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        why = " ".join(str(error).split())
        raise PredictionsError(
            f"{file}: cannot be read ({why}); the evaluation did not end well, do it again"
        ) from None
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        found = facts.get("format") if isinstance(facts, dict) else "none"
        raise PredictionsError(f"{file}: has format {found}, this version reads {FORMAT}; evaluate again")
    return facts


def _read_texts(folder: Path) -> TextFeatures:
    file = folder / TEXTS
    if not file.is_file():
        return {}
    try:
        return dict(load_file(file))
    except SafetensorError as error:
        raise PredictionsError(f"{file}: damaged ({error}); evaluate again") from None
