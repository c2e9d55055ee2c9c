"""The error of the readers of pickles."""

from __future__ import annotations

from lavila.errors import UserError


class PickleError(UserError):
    """A file that is no whole pickle, or that asks for what such a file does not need. One line."""
