"""One file from the web: whole or absent, resumed where it broke off, checked, and fetched by one process at a time."""

from __future__ import annotations

import fcntl
import hashlib
import http.client
import logging
import re
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lavila.checkpoints.errors import CheckpointError
from lavila.files import sync

log = logging.getLogger(__name__)

Progress = Callable[[int, int | None], None]
"""Bytes here, bytes in all (None where the server does not say)."""

BLOCK = 1 << 20  # bytes
LOG_SECONDS = 15.0
AGAIN = {408, 429, 500, 502, 503, 504}  # states of a server that may pass


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long to try."""

    attempts: int = 5  # in a row that bring nothing new
    wait_seconds: float = 2.0  # before the second attempt; doubles with each
    timeout_seconds: float = 30.0  # of a silent connection


def download(
    url: str, target: Path, *, md5: str = "", on_progress: Progress | None = None, patience: Patience | None = None
) -> Path:
    """`target`, fetched from `url` unless it is there already.

    What an earlier call left in `<target>.part` is gone on with, also after other processes: they take turns, by a lock
    on `<target>.lock`. md5: what the file's checksum begins with; "" = not known. on_progress: None = log lines.
    CheckpointError for a server that does not have or give the file, a file with another checksum, and without network;
    each says where to put a file fetched by other means.
    """
    if target.is_file():
        return target
    with _lock(target):
        if target.is_file():  # another process was first
            return target
        part = target.with_name(f"{target.name}.part")
        resumed = part.exists()
        _fetch(url, part, target, on_progress or _Lines(target.name), patience or Patience())
        if resumed and not _is(part, md5):
            log.warning("%s: what was there before does not belong to it; downloading it from the start", target.name)
            part.unlink()
            _fetch(url, part, target, on_progress or _Lines(target.name), patience or Patience())
        if not _is(part, md5):
            found = _md5(part)
            part.unlink()
            raise CheckpointError(f"{url}: has MD5 {found}, published is {md5}...; not kept. {_by_hand(url, target)}")
        sync(part)
        part.replace(target)
        sync(target.parent)
    return target


def _fetch(url: str, part: Path, target: Path, on_progress: Progress, patience: Patience) -> None:
    """Bring `part` to its full length."""
    failures = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            if _go_on(url, part, on_progress, patience.timeout_seconds):
                return
            told = "the connection broke off"
        except urllib.error.HTTPError as error:
            told = f"HTTP {error.code} {error.reason}"
            if error.code not in AGAIN:
                raise CheckpointError(f"{url}: {told}. {_by_hand(url, target)}") from None
        except (urllib.error.URLError, http.client.HTTPException, ssl.SSLError, TimeoutError, ConnectionError) as error:
            cause = getattr(error, "reason", error)
            told = f"{type(cause).__name__} {cause}".strip()
            if isinstance(cause, socket.gaierror):
                raise CheckpointError(f"{url}: no network here ({told}). {_by_hand(url, target)}") from None
        except OSError as error:
            raise CheckpointError(
                f"{part}: cannot be written ({error.strerror}); free space or set LAVILA_HOME"
            ) from None
        here = part.stat().st_size if part.exists() else 0
        failures = 0 if here > before else failures + 1
        if failures >= patience.attempts:
            kept = f"; {here} bytes are kept for the next try" if here else ""
            raise CheckpointError(f"{url}: {told}, {failures} times in a row{kept}. {_by_hand(url, target)}")
        log.warning("%s: %s after %d bytes; trying again", url, told, here)
        time.sleep(patience.wait_seconds * 2**failures / 2)


def _go_on(url: str, part: Path, on_progress: Progress, timeout: float) -> bool:
    """One request for what `part` lacks. Whether it is whole now."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not have:
            raise
        if error.headers.get("Content-Range") == f"bytes */{have}":
            return True  # everything had come, only the last step had not been taken
        part.unlink()
        return False
    with response:
        start = 0
        if response.status == 206:
            told = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
            start = int(told[1]) if told else -1
            if start != have:
                part.unlink()
                return False
        length = response.headers.get("Content-Length")
        total = start + int(length) if length is not None else None
        with part.open("ab" if start else "wb") as file:  # a server that ignores ranges sends all of it again
            on_progress(start, total)
            while block := response.read(BLOCK):
                file.write(block)
                on_progress(file.tell(), total)
            return total is None or file.tell() == total


@contextmanager
def _lock(target: Path) -> Iterator[None]:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        file = target.with_name(f"{target.name}.lock").open("w")
    except OSError as error:
        raise CheckpointError(f"{target.parent}: cannot be written ({error.strerror}); set LAVILA_HOME") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("%s: another process is downloading it; waiting", target.name)
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            raise CheckpointError(
                f"{target.parent}: its file system has no locks ({error.strerror}); set LAVILA_HOME to another folder"
            ) from None
        yield


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _is(path: Path, md5: str) -> bool:
    return not md5 or _md5(path).startswith(md5)


def _by_hand(url: str, target: Path) -> str:
    return f"It can also be fetched elsewhere from {url} and put at {target}"


class _Lines:
    """Progress as log lines, not too many."""

    def __init__(self, name: str) -> None:
        self.name, self.told = name, time.monotonic()

    def __call__(self, done: int, total: int | None) -> None:
        if time.monotonic() - self.told > LOG_SECONDS or done == total:
            self.told = time.monotonic()
            log.info("%s: %d of %s MB", self.name, done >> 20, "?" if total is None else total >> 20)
