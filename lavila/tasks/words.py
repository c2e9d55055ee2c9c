"""What tasks with words share: the check that a shard set's words become the tokens that a model knows."""

from __future__ import annotations

from collections.abc import Mapping

from lavila.tasks import TaskError, TaskFacts

RANDOM = "random"  # as the name of weights: none are read
TOKENIZER, CONTEXT = "tokenizer", "context_length"  # facts: which tokenizer, and the tokens that a text is cut to


def check_same_tokens(
    found: TaskFacts, wanted: TaskFacts, *, of: object, wanted_by: object, remedies: Mapping[str, str]
) -> None:
    """Raise TaskError unless words become the same tokens. remedies: fact -> what to do if it differs."""
    for name, remedy in remedies.items():
        theirs = wanted.get(name, found[name])
        if found[name] != theirs:
            raise TaskError(
                f"{of}: its words would be read with {name} {found[name]}, but {wanted_by} has {name} {theirs}; "
                f"{remedy}"
            )


def described(facts: TaskFacts) -> str:
    """The tokenizer, and the longest text."""
    return f"tokenizer {facts[TOKENIZER]}, texts of up to {facts[CONTEXT]} tokens"
