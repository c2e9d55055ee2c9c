"""Downloads one file. It is whole or absent, resumed after a break, checked, and fetched by one process at a time."""

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
from http import HTTPStatus
from pathlib import Path

from lavila.checkpoints.errors import CheckpointError
from lavila.files import sync

log = logging.getLogger(__name__)

Progress = Callable[[int, int | None], None]
"""Bytes that have come, bytes in all (None if the server does not say)."""

BLOCK = 1 << 20  # bytes
LOG_SECONDS = 15.0  # pause between two lines of the log
AGAIN = {408, 429, 500, 502, 503, 504}  # HTTP statuses after which a new try may succeed


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How often and how long to try."""

    attempts: int = 5  # number of attempts in a row that may bring no new bytes
    wait_seconds: float = 2.0  # pause before the second attempt; it doubles with each one
    timeout_seconds: float = 30.0  # how long a connection may be silent


def download(
    url: str, target: Path, *, md5: str = "", on_progress: Progress | None = None, patience: Patience | None = None
) -> Path:
    """Fetch `target` from `url`, unless it is there already. Returns `target`.

    A download continues what an earlier call or another process left in `<target>.part`. Processes take turns, by a
    lock on `<target>.lock`. `md5`: the first digits of the file's checksum; "" = not known. `on_progress`: None = log
    lines. CheckpointError if the server does not give the file, if the file has another checksum, and without network.
    Its message says where to put a file that was fetched by other means.
    """
    if target.is_file():
        return target
    with _lock(target):
        if target.is_file():  # another process has fetched it
            return target
        part = target.with_name(f"{target.name}.part")
        resumed = part.exists()
        _fetch(url, part, target, on_progress or _Lines(target.name), patience or Patience())
        if resumed and not _is(part, md5):
            log.warning(
                "%s: what an earlier download left does not belong to it; downloading it from the start", target.name
            )
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
    """Download into `part` until it has its full length."""
    failures = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            if _request_rest(url, part, on_progress, patience.timeout_seconds):
                return
            problem = "the connection broke off"
        except urllib.error.HTTPError as error:
            problem = f"HTTP {error.code} {error.reason}"
            if error.code not in AGAIN:
                raise CheckpointError(f"{url}: {problem}. {_by_hand(url, target)}") from None
        except (urllib.error.URLError, http.client.HTTPException, ssl.SSLError, TimeoutError, ConnectionError) as error:
            cause = getattr(error, "reason", error)
            problem = f"{type(cause).__name__} {cause}".strip()
            if isinstance(cause, socket.gaierror):
                raise CheckpointError(f"{url}: no network here ({problem}). {_by_hand(url, target)}") from None
        except OSError as error:
            raise CheckpointError(
                f"{part}: cannot be written ({error.strerror}); free space or set LAVILA_HOME"
            ) from None
        here = part.stat().st_size if part.exists() else 0
        failures = 0 if here > before else failures + 1
        if failures >= patience.attempts:
            kept = f"; {here} bytes are kept for the next try" if here else ""
            raise CheckpointError(f"{url}: {problem}, {failures} times in a row{kept}. {_by_hand(url, target)}")
        log.warning("%s: %s after %d bytes; trying again", url, problem, here)
        time.sleep(patience.wait_seconds * 2**failures / 2)


def _request_rest(url: str, part: Path, on_progress: Progress, timeout: float) -> bool:
    """Make one request for the bytes that `part` lacks. Returns whether it is whole now."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        if error.code != HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE or not have:
            raise
        if error.headers.get("Content-Range") == f"bytes */{have}":
            return True  # all bytes had come before the last process stopped
        part.unlink()
        return False
    with response:
        start = 0
        if response.status == HTTPStatus.PARTIAL_CONTENT:
            found = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
            start = int(found[1]) if found else -1
            if start != have:
                part.unlink()
                return False
        length = response.headers.get("Content-Length")
        total = start + int(length) if length is not None else None
        with part.open("ab" if start else "wb") as file:  # a server that ignores ranges sends the whole file again
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
    """Progress as log lines, one every LOG_SECONDS."""

    def __init__(self, name: str) -> None:
        self.name, self.logged = name, time.monotonic()

    def __call__(self, done: int, total: int | None) -> None:
        if time.monotonic() - self.logged > LOG_SECONDS or done == total:
            self.logged = time.monotonic()
            log.info("%s: %d of %s MB", self.name, done >> 20, "?" if total is None else total >> 20)
