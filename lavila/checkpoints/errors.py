"""The error of everything that reads models from files."""


class CheckpointError(ValueError):
    """A checkpoint that is not there, is damaged, or does not fit, told in one line."""
