"""Errors that a user can cause, and the three ways in which their messages show values, texts and lists."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_LONGEST_SHOWN = 80


class UserError(ValueError):
    """An error that a user can cause and mend. Every command prints its message, one line, and nothing else.

    The message names what was given, what is allowed and how to fix it.
    """


def shown(value: object) -> str:
    """A value for a message: one short line, whatever it is. Containers, which may hold themselves, by type only."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**20:
        return "a very large whole number"  # Python refuses to write out some of them
    if value is None or isinstance(value, str | bytes | bool | int | float | np.generic):
        text = repr(value)
        return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."
    return f"a {type(value).__name__}"


def one_line(text: object, *, most: int = 200) -> str:
    """The words of a text, such as another library's error, on one line of at most `most` characters and "..."."""
    words = " ".join(str(text).split())
    return words if len(words) <= most else f"{words[:most]}..."


def listed(names: Sequence[str], *, most: int = 10) -> str:
    """The first names of a list, and how many more there are."""
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest:,} more" if rest > 0 else "")
