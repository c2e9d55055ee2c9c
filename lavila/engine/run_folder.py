"""What belongs to a run folder: where training starts, and where an evaluation's report goes.

A run folder holds one run. Training never mixes two runs in it, and a report in it speaks of the run's newest
checkpoint; evaluations of anything else lie in folders beside it, <run>/evaluations/<name>/.
"""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import re
import time
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from lavila.checkpoints.errors import CheckpointError
from lavila.checkpoints.store import WEIGHTS, find_model
from lavila.checkpoints.zoo import ZOO
from lavila.config.load import flatten, to_dict
from lavila.config.schema import RunConfig
from lavila.engine import checkpoint
from lavila.engine.checkpoint import CONFIG, FOLDER, STEP, best_of, read_facts, step_folders, torn
from lavila.engine.distributed import on_main
from lavila.errors import UserError
from lavila.files import unwritable
from lavila.report.compose import Subject
from lavila.report.environment import best_effort
from lavila.report.files import METRICS_FILE, read_metrics

EVALUATIONS = "evaluations"
WAIT_SECONDS = 10.0  # for a process that was killed, and has not ended yet
AFRESH = ("none", "aside")  # values of `resume` that start a run from nothing


class RunFolderError(UserError):
    """A run folder that cannot be written to."""


def check_writable(folder: Path) -> None:
    """RunFolderError where neither a folder nor the nearest one above that is there can be written to."""
    if there := unwritable(folder):
        raise RunFolderError(f"run_dir={folder}: {there} is no folder that can be written to; give another run_dir=...")


@contextmanager
def alone_in(run_dir: Path) -> Iterator[None]:
    """Within the block no other process trains into the run folder. All ranks call this, and the main one holds it.

    RunFolderError where another one does, and does not end within WAIT_SECONDS. The hold ends with the process, however
    it ends. File systems without such locks (flock on a folder), as NFS is, are left without it.
    """
    with ExitStack() as held:
        on_main(lambda: _hold(run_dir, held))
        yield


def _hold(run_dir: Path, held: ExitStack) -> None:
    fresh = not run_dir.exists()
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        folder = os.open(run_dir, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:  # `check_writable` says why
        return
    if fresh:
        held.callback(_remove_empty, run_dir)  # a start that was refused leaves nothing
    held.callback(os.close, folder)
    until = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= until:
                raise RunFolderError(
                    f"run_dir={run_dir}: another process trains into it; wait until that has ended, or give another "
                    "run_dir=..."
                ) from None
            time.sleep(0.1)
        except OSError:
            return


def _remove_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


def start_from(run_dir: Path, resume: str) -> Path | None:
    """The whole checkpoint that `resume` means (auto, none, aside, or a path); None = start afresh.

    CheckpointError where there is none at a path, and where the run would mix with another one in its folder.
    """
    own = run_dir / FOLDER
    if resume == "aside":
        return None
    if resume == "none":
        if holds_a_run(run_dir):
            raise CheckpointError(
                f"resume=none: {run_dir} holds a run already; continue it (resume=auto), keep it under another name "
                "(resume=aside), or give another run_dir=..."
            )
        return None
    if resume == "auto":
        return checkpoint.newest(own)
    path = Path(resume)
    found = _newest_in(path)
    if found is None and (reason := torn(path)):
        raise CheckpointError(
            f"resume={resume}: {reason}; give a step-* folder, a folder of them, or one of auto, none, aside"
        )
    found = found or path
    mine = found.resolve().parent == own.resolve()
    others = [other for other in step_folders(own) if not mine or other.name > found.name]
    if last := next((other for other in reversed(others) if torn(other) is None), None):
        raise CheckpointError(
            f"resume={resume}: {last} is there already, and two runs would mix in one folder; continue from that one "
            "(resume=auto), or give another run_dir=..."
        )
    return found


def holds_a_run(run_dir: Path) -> bool:
    """Whether training has left something in a folder that another run would lose or mix with."""
    metrics = run_dir / METRICS_FILE
    return bool(step_folders(run_dir / FOLDER)) or (metrics.is_file() and metrics.stat().st_size > 0)


def set_aside(run_dir: Path) -> Path | None:
    """Rename a folder that holds a run to the first free one of <run_dir>.1, .2, ...; its new name, if it had to be."""
    if not holds_a_run(run_dir):
        return None
    there = run_dir.resolve()  # where run_dir is a link, the link stays and what it names is renamed
    free = next(there.with_name(f"{there.name}.{number}") for number in itertools.count(1)
                if not there.with_name(f"{there.name}.{number}").exists())  # fmt: skip
    try:
        there.rename(free)
    except OSError as error:
        raise CheckpointError(
            f"resume=aside: {there} cannot be renamed to {free.name} ({error.strerror}); give another run_dir=..."
        ) from None
    there.mkdir()
    return free


def subject_of(run_dir: Path, wanted: str) -> Subject:
    """What `checkpoint=wanted` means for a run folder; empty = the run's newest checkpoint, best = its best one.

    The name of a step folder, such as step-00000480, is one of the run where there is none here.

    CheckpointError where no model is found.
    """
    own = run_dir / FOLDER
    newest = _newest_model(own)
    if wanted == "best" and not Path(wanted).exists():
        if (best := best_of(own)) is None:
            raise CheckpointError(f"checkpoint=best: {own} has no best checkpoint; train with keep_best=NAME/METRIC")
        wanted = str(own / best.checkpoint)
    if STEP.fullmatch(wanted) and not Path(wanted).exists():
        wanted = str(own / wanted)
    if wanted in ZOO and not Path(wanted).exists():
        return Subject(model=wanted, output=run_dir / EVALUATIONS / wanted)
    model = _newest_model(Path(wanted)) if wanted else newest
    if model is None and not wanted and not own.exists():
        raise CheckpointError(
            f"run_dir={run_dir}: no run was trained there, so it has no checkpoint to evaluate; train it with train.py "
            "first, name its run_dir=..., or give checkpoint=PATH or a name of the zoo"
        )
    if model is None:
        file = find_model(wanted or own)
        model = file.parent if file.name == WEIGHTS else file
    there = model.resolve()
    of_the_run = not wanted or (newest is not None and there == newest.resolve())
    output = run_dir if of_the_run else run_dir / EVALUATIONS / _name(there, own.resolve())
    try:
        progress = read_facts(model).progress
    except CheckpointError:  # made by hand, or a file: nothing is known of its training
        return Subject(model=str(model), output=output)
    metrics = there.parent.parent / METRICS_FILE if there.parent.name == FOLDER else None
    lines: list[dict[str, Any]] = best_effort("history", lambda: read_metrics(metrics), []) if metrics else []
    return Subject(
        model=str(model),
        output=output,
        train_seconds=progress.seconds,
        history=[line for line in lines if (line.get("step") or 0) <= progress.updates],
        trained_with=read_config(model),
    )


def read_config(path: Path) -> dict[str, Any] | None:
    """The config beside a checkpoint as it was written, whatever keys it has; None where none can be read."""
    try:
        values = yaml.safe_load((path / CONFIG).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return None
    if not isinstance(values, dict):
        return None
    described: dict[str, Any] = json.loads(
        json.dumps(values, default=str, skipkeys=True)
    )  # YAML knows dates, reports do not
    return described


def changed_settings(path: Path, config: RunConfig) -> str:
    """Settings that differ from those of a checkpoint: allowed, but never unnoticed. "" where none do."""
    if (found := read_config(path)) is None:
        return f"not known, for {path / CONFIG} cannot be read"
    before, now = flatten(found), flatten(to_dict(config))
    now.pop("resume"), before.pop("resume", None)  # how a run was started is no setting of it
    changes = [f"{key}={value} (was {before[key]})" for key, value in now.items() if before.get(key, value) != value]
    changes += [f"{key}={value} (a setting that is new)" for key, value in now.items() if key not in before]
    changes += [f"{key} (was {value}; no such setting now)" for key, value in before.items() if key not in now]
    return ", ".join(changes)


def of_run(config: RunConfig, path: Path | None) -> Path | None:
    """The same checkpoint. CheckpointError where it is of another task, or was trained on another dataset."""
    before = flatten(read_config(path) or {}) if path else {}
    for key, now in (("task.name", config.task.name), ("data.dataset", config.data.dataset)):
        was = before.get(key)
        if was and now and was != now:
            raise CheckpointError(
                f"{path}: is of a run with {key}={was}, and this config has {key}={now}, so two runs would mix; give "
                f"another run_dir=... and, to start from its weights, model.init={path}"
            )
    return path


def _newest_in(path: Path) -> Path | None:
    """The newest whole checkpoint of a folder of checkpoints or of a run folder; None where it is neither."""
    return next((checkpoint.newest(folder) for folder in (path, path / FOLDER) if step_folders(folder)), None)


def _newest_model(path: Path) -> Path | None:
    """The same for a model alone, which `load_model` may find where no checkpoint is whole enough to resume."""
    try:
        return _newest_in(path)
    except CheckpointError:
        return None


def _name(model: Path, own: Path) -> str:
    """A folder name for an evaluation: the same for the same model, another one for any other."""
    if model.parent == own:
        return model.name
    parts = [part for part in (model.parent.parent.name, model.stem) if part] if model.is_dir() else [model.stem]
    readable = re.sub(r"[^\w.-]+", "_", "-".join(parts))[-100:]
    return f"{readable}-{zlib.crc32(str(model).encode()):08x}"
