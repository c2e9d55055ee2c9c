"""Reads at offsets of many tars, from many threads, on storage that may fail for a while."""

from __future__ import annotations

import errno
import logging
import os
import resource
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from pathlib import Path

from lavila.shards.format import UnreadableClip, shard_name
from lavila.shards.watched import StorageHangsError, WatchedCalls

log = logging.getLogger(__name__)

MAX_OPEN_TARS = 4096  # but at most half of the descriptors that the process may have
LONGEST_AHEAD = 32 << 20  # bytes; a longer stretch is not one of neighbouring rows in a tar
READ_PAUSES = (0.25, 1.0, 4.0, 15.0)  # seconds between the five tries to read: enough for a server to restart
# Errors that do not go away by waiting.
LASTING = (errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG)


class OpenTar:
    """A file descriptor that closes when its last user drops it. So eviction never closes a tar that a reader uses."""

    def __init__(self, path: Path, *, size: int | None, other_size: bool) -> None:
        try:
            self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise UnreadableClip(f"{path}: missing; copy it again, or make the set again") from None
        found = os.fstat(self.descriptor).st_size
        if size is not None and found != size:
            problem = f"{path}: {found} bytes, should be {size}; copy the file again"
            if not other_size:
                raise UnreadableClip(problem)
            log.warning("%s; its clips are read as far as their checksums are right", problem)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


def _read_all(descriptor: int, offset: int, size: int) -> bytes:
    """Read `size` bytes, or fewer at the end of the file. A single call of pread may return less than there is."""
    pieces: list[bytes] = []
    got = 0
    while got < size and (piece := os.pread(descriptor, size - got, offset + got)):
        pieces.append(piece)
        got += len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


class Tars:
    """The tars of a folder. Each is opened when it is first read. Safe to use from many threads.

    sizes: file name -> bytes.
    seconds: how long a read may take.
    other_size: whether a tar of another size is read, too: checksums show which of its clips are sound.
    """

    def __init__(self, folder: Path, *, sizes: Mapping[str, int], seconds: float, other_size: bool) -> None:
        self._folder, self._sizes, self._other_size = folder, sizes, other_size
        self._watched = WatchedCalls(seconds)
        self._open: OrderedDict[int, OpenTar] = OrderedDict()
        self._opening: dict[int, Future[OpenTar]] = {}  # tars that one reader is opening; others wait for it
        self._failing: set[int] = set()  # tars whose last read failed, so that all their readers log one line
        allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]  # infinity is -1
        self._most_open = MAX_OPEN_TARS if allowed < 0 else max(1, min(MAX_OPEN_TARS, allowed // 2))
        self._lock = threading.Lock()

    def read(self, number: int, offset: int, size: int) -> bytes:
        """`size` bytes of a tar from `offset` on; fewer at its end.

        While storage fails, it opens the file anew and tries again. UnreadableClip names a tar that is missing, has
        another size than the manifest says, cannot be read after all tries, or hangs.
        """
        path = self._folder / shard_name(number)
        for pause in (*READ_PAUSES, None):
            try:
                data = self._watched(number, partial(self._read, number, offset, size))
            except StorageHangsError:
                raise UnreadableClip(
                    f"{path}: its storage hangs: no answer for {self._watched.seconds:g} s (data.read_seconds) when "
                    f"{size} bytes from {offset} were wanted; see whether it can be reached"
                ) from None
            except OSError as error:
                with self._lock:
                    known = number in self._failing
                    self._failing.add(number)
                lasting = error.errno in LASTING
                if pause is None or lasting:
                    tried = "" if lasting else f", tried {len(READ_PAUSES) + 1} times in {sum(READ_PAUSES):g} s"
                    raise UnreadableClip(
                        f"{path}: cannot be read ({error.strerror}{tried}); see whether its storage can be reached and "
                        "the file may be read, then start again"
                    ) from error
                if not known:
                    log.warning("%s: %s; trying again for %g s", path, error.strerror, sum(READ_PAUSES))
                time.sleep(pause)
            else:
                self._failing.discard(number)
                return data
        raise AssertionError("the last try returns or raises")

    def rest(self) -> None:
        """End the threads that wait for something to read."""
        self._watched.rest()

    def _read(self, number: int, offset: int, size: int) -> bytes:
        tar = None
        try:
            tar = self._opened(number)  # this reference keeps it open if it is evicted meanwhile
            return _read_all(tar.descriptor, offset, size)
        except OSError:
            with self._lock:
                if self._open.get(number) is tar:
                    self._open.pop(number, None)
            raise

    def read_ahead(self, number: int, begin: int, end: int | None) -> None:
        """Ask the system to read a stretch of a tar (None: to its end) into its cache. Does not wait or try again.

        UnreadableClip for a tar that is missing or too short; nothing where its storage hangs.
        """
        with suppress(StorageHangsError):
            self._watched(number, partial(self._advise, number, begin, end))

    def _advise(self, number: int, begin: int, end: int | None) -> None:
        tar = self._opened(number)
        end = os.fstat(tar.descriptor).st_size if end is None else end
        if 0 < end - begin <= LONGEST_AHEAD:
            os.posix_fadvise(tar.descriptor, begin, end - begin, os.POSIX_FADV_WILLNEED)

    def _opened(self, number: int) -> OpenTar:
        """The open tar. Opening may take long on network storage, so only readers of this tar wait for it."""
        with self._lock:
            if number in self._open:
                self._open.move_to_end(number)
                return self._open[number]
            opening, mine = self._opening.get(number), Future[OpenTar]()
            if opening is None:
                self._opening[number] = mine
        if opening is not None:
            return opening.result()
        name = shard_name(number)
        evicted = None  # this reference ends outside the lock, since closing may take long, too
        try:
            tar = OpenTar(self._folder / name, size=self._sizes.get(name), other_size=self._other_size)
        except BaseException as error:
            with self._lock:
                del self._opening[number]
            mine.set_exception(error)
            raise
        with self._lock:
            del self._opening[number]
            self._open[number] = tar
            if len(self._open) > self._most_open:
                evicted = self._open.popitem(last=False)
        mine.set_result(tar)
        del evicted
        return tar
