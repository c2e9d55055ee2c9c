"""Which tasks there are, by `task.name`."""

from __future__ import annotations

from lavila.tasks import TaskError, TaskKind
from lavila.tasks.classification import Classification
from lavila.tasks.contrastive import Contrastive

KINDS: dict[str, TaskKind] = {"classification": Classification(), "contrastive": Contrastive()}


def task_kind(name: str) -> TaskKind:
    """The kind of task with a name. TaskError for an unknown one."""
    if name not in KINDS:
        raise TaskError(f"task.name={name}: no such task; known: {', '.join(KINDS)}")
    return KINDS[name]
