"""The error of the readers of pickles."""

from __future__ import annotations


class PickleError(ValueError):
    """A file that is no whole pickle, or that asks for what such a file does not need. One line."""
