"""What messages to users are made of."""

from __future__ import annotations

import numpy as np

_LONGEST_SHOWN = 80


def shown(value: object) -> str:
    """A value for a message: one short line, whatever it is. Containers, which may hold themselves, by type only."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**20:
        return "a very large whole number"  # Python refuses to write out some of them
    if value is None or isinstance(value, str | bytes | bool | int | float | np.generic):
        text = repr(value)
        return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."
    return f"a {type(value).__name__}"
