"""The error of the readers of pickles."""

from __future__ import annotations

from lavila.errors import UserError


class PickleError(UserError):
    """A file that is not a whole pickle, or that asks for something its kind does not need. One line."""
