"""A file of finished windows: what is in it survives a kill at any moment, and the same command continues after it."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lavila.errors import UserError, shown


class JournalError(UserError):
    """Finished work that belongs to other settings, or that cannot be kept."""


class Journal:
    """JSON lines: first the settings, then groups of `group` windows. A group is written as a whole.

    What a kill cut short is removed when the file is opened again: the line, and the group that it belongs to.

    Raises:
        JournalError: the file was written with other settings, or cannot be written.
    """

    def __init__(self, path: Path, *, settings: Mapping[str, Any], group: int) -> None:
        self.path, self._group = path, group
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.entries, size = self._read(json.loads(json.dumps(settings)))
            self._file = path.open("r+b" if size else "wb")
        except OSError as error:
            raise _unwritable(path, error) from None
        self._file.truncate(size)
        self._file.seek(size)
        if not size:
            self._write([dict(settings)])

    def add(self, entries: Sequence[Mapping[str, Any]]) -> None:
        """Keep a group of windows; they are on the disk when this returns."""
        self._write(entries)

    def close(self) -> None:
        self._file.close()

    def _read(self, settings: dict[str, Any]) -> tuple[list[dict[str, Any]], int]:
        """The entries of whole groups, and the bytes up to the end of the last one; 0 where there is no settings line.

        A last group may be shorter than the others, and is whole if nothing follows it: `of` in the settings says how
        many windows there are.
        """
        if not self.path.is_file():
            return [], 0
        lines = self.path.read_bytes().split(b"\n")[:-1]
        if not lines:
            return [], 0
        found = _parsed(lines[0])
        if found != settings:
            names = sorted(name for name in {*settings, *found} if settings.get(name) != found.get(name))
            changes = [f"{name} was {shown(found.get(name))}, is {shown(settings.get(name))}" for name in names]
            raise JournalError(
                f"{self.path}: was begun with other settings ({'; '.join(changes)}); give those, or another --out "
                "to begin anew, or remove that file"
            )
        entries = list(itertools.takewhile(bool, map(_parsed, lines[1:])))
        whole = len(entries) if len(entries) == settings["of"] else len(entries) // self._group * self._group
        return entries[:whole], sum(len(line) + 1 for line in lines[: 1 + whole])

    def _write(self, entries: Sequence[Mapping[str, Any]]) -> None:
        text = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)
        try:
            self._file.write(text.encode())
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise _unwritable(self.path, error) from None


def _parsed(line: bytes) -> dict[str, Any]:
    """One line; {} where it is no JSON object, as after a power cut."""
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _unwritable(path: Path, error: OSError) -> JournalError:
    return JournalError(
        f"{path}: cannot be written ({error.strerror}); make room or change the permissions, or give another --out; "
        "what is finished is kept"
    )
