"""Files that are whole or absent, also after a crash or a power cut; and paths as a user writes them."""

from __future__ import annotations

import errno
import os
import socket
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

LONGEST_NAME = 255  # bytes


def user_path(text: str | Path) -> Path:
    """A path that a user wrote. `~` and `~name` at its start are home folders, since a shell does not always say so.

    A shell leaves `--out=~/x` and `run_dir=~/x` as they are. `~name` of nobody stays: it may be a file.
    """
    path = Path(text)
    try:
        return path.expanduser()
    except RuntimeError:
        return path


def unwritable(folder: Path) -> Path | None:
    """What keeps a folder from being made or written to: itself, or the nearest path above it that is there.

    None if nothing does, as far as permissions and a read-only disk can be seen without writing.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return None if there.is_dir() and os.access(there, os.W_OK | os.X_OK) else there


def explained(error: OSError) -> str:
    """An error of the operating system as one line that says what to do."""
    if error.filename is not None and error.errno in (errno.EEXIST, errno.ENOTDIR):
        return f"{error.filename}: is a file, or lies below one, where a folder is wanted; give another name"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{error}: the disk is full; make room and run again"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{error}: this user may not do that; change the permissions or give another folder"
    return str(error)


def is_below(path: Path, folder: Path) -> bool:
    """Whether a path is a folder, or lies below it; links are followed."""
    return path.resolve().is_relative_to(folder.resolve())


def fitting_name(name: str, *, room: int) -> str:
    """A name that leaves `room` bytes to the 255 that file systems allow: the same, or cut, with a checksum."""
    most = LONGEST_NAME - room
    data = name.encode(errors="surrogateescape")
    if len(data) <= most:
        return name
    mark = f"-{zlib.crc32(data):08x}"
    return data[: most - len(mark)].decode(errors="ignore") + mark


def sync(path: Path) -> None:
    """Wait until the disk holds a file's content, or a folder's list of names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def whole_path(path: Path) -> Iterator[Path]:
    """A temporary name to write to. It becomes `path` when the block ends without an error, and is removed otherwise.

    The name holds machine and process id, so that a process left over from a killed run cannot write to the same file.
    """
    mark = f".{socket.gethostname()}.{os.getpid()}.tmp"
    temporary = path.with_name(fitting_name(path.name, room=len(mark)) + mark)
    try:
        yield temporary
        sync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)  # the rename itself is on the disk only once the folder is


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """`whole_path`, opened for writing."""
    with whole_path(path) as temporary, temporary.open("wb") as file:
        yield file
        file.flush()
