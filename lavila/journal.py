"""A file of finished work: what is in it survives a kill at any moment, and the same command continues after it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from lavila.errors import UserError, shown

Entry = dict[str, Any]


class JournalError(UserError):
    """Finished work that belongs to other settings, or that cannot be kept."""


class Journal:
    """JSON lines: first the settings, then groups of `group` entries. A group is written as a whole.

    What a kill cut short is removed when the file is opened again: the line, and the group that it belongs to. A last
    group may be shorter than the others, and is whole if all `total` entries are there.

    Raises:
        JournalError: the file was written with other settings, or cannot be written.
    """

    def __init__(self, path: Path, *, settings: Mapping[str, Any], group: int = 1, total: int | None = None) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.done, size = self._whole(json.loads(json.dumps(settings)), group, total)
            self._file = path.open("r+b" if size else "wb")
        except OSError as error:
            raise _unwritable(path, error) from None
        self._file.truncate(size)
        self._file.seek(size)
        if not size:
            self._write([settings])

    def add(self, entries: Sequence[Mapping[str, Any]]) -> None:
        """Keep a group of entries; they are on the disk when this returns."""
        self._write(entries)
        self.done += len(entries)

    def entries(self) -> Iterator[Entry]:
        """Those that are kept, in order, read from the disk one by one."""
        with self.path.open("rb") as file:
            yield from map(_parsed, islice(file, 1, 1 + self.done))

    def close(self) -> None:
        self._file.close()

    def _whole(self, settings: Entry, group: int, total: int | None) -> tuple[int, int]:
        """The number of entries in whole groups, and the bytes up to the end of the last one; 0 without settings."""
        if not self.path.is_file():
            return 0, 0
        with self.path.open("rb") as file:
            first = file.readline()
            if not first.endswith(b"\n"):
                return 0, 0
            self._check(_parsed(first), settings)
            count, whole, end = 0, 0, len(first)
            place = end
            for line in file:
                if not line.endswith(b"\n") or not _parsed(line):
                    break
                count, place = count + 1, place + len(line)
                if count % group == 0 or count == total:
                    whole, end = count, place
        return whole, end

    def _check(self, found: Entry, settings: Entry) -> None:
        if found == settings:
            return
        names = sorted(name for name in {*settings, *found} if settings.get(name) != found.get(name))
        changes = [f"{name} was {shown(found.get(name))}, is {shown(settings.get(name))}" for name in names]
        raise JournalError(
            f"{self.path}: was begun with other settings ({'; '.join(changes)}); give those, or another --out "
            "to begin anew, or remove that file"
        )

    def _write(self, entries: Sequence[Mapping[str, Any]]) -> None:
        text = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)
        try:
            self._file.write(text.encode())
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise _unwritable(self.path, error) from None


def _parsed(line: bytes) -> Entry:
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
