"""The error of everything that reads models from files."""

from lavila.errors import UserError


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged, or does not fit."""
