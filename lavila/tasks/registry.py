"""Which tasks there are, by `task.name`."""

from __future__ import annotations

from lavila.tasks import TaskError, TaskKind
from lavila.tasks.classification import Classification
from lavila.tasks.contrastive import Contrastive
from lavila.tasks.multiple_choice import MultipleChoice
from lavila.tasks.narration import Narration
from lavila.tasks.retrieval import Retrieval
from lavila.tasks.zero_shot import ZeroShot

KINDS: dict[str, TaskKind] = {
    "classification": Classification(),
    "contrastive": Contrastive(),
    "retrieval": Retrieval(),
    "multiple_choice": MultipleChoice(),
    "zero_shot": ZeroShot(),
    "narration": Narration(),
}


def task_kind(name: str) -> TaskKind:
    """The kind of task with a name. TaskError for an unknown one."""
    if name not in KINDS:
        raise TaskError(f"task.name={name}: no such task; known: {', '.join(KINDS)}")
    return KINDS[name]
