"""Shares the decoding engines of a GPU among all loaders and processes of this user on this machine.

DALI opens one decoder session for each of a pipeline's threads. An H100 has 7 engines: 7 sessions keep them busy, twice
as many do no harm, and five times as many have failed at the start. So a GPU has SHARE times as many places as engines.
A place is a file that is locked while it is held, so the system frees it when its process ends in any way.
"""

from __future__ import annotations

import fcntl
import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

log = logging.getLogger(__name__)

SHARE = 2


def places_folder() -> Path:
    """Where this user's places lie."""
    return Path(tempfile.gettempdir()) / f"lavila-nvdec-{os.getuid()}"


@contextmanager
def sessions(uuid: str, engines: int, *, folder: Path | None = None) -> Iterator[int]:
    """Hold as many decoder sessions of a GPU as it has engines, or as many as are free; at least one. Gives the number.

    Args:
        uuid: of the GPU.
        engines: number of its engines for the codec.
        folder: another folder for the places.
    """
    folder = folder or places_folder()
    with ExitStack() as held:
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            files = (folder / f"{uuid}-{number}" for number in range(SHARE * engines))
            taken = 0
            for file in files:
                taken += _taken(file, held)
                if taken == engines:
                    break
        except OSError as error:
            log.warning("%s: cannot hold locks (%s), so loaders do not share the engines", folder, error.strerror)
            taken = engines
        if not taken:
            log.warning(
                "all %d decoder sessions of the GPU are taken by other loaders or processes; this one uses one more",
                SHARE * engines,
            )
        yield max(taken, 1)


def _taken(file: Path, held: ExitStack) -> bool:
    """Lock a place until `held` ends, unless somebody else has it."""
    descriptor = os.open(file, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return False
    except OSError:
        os.close(descriptor)
        raise
    held.callback(os.close, descriptor)
    return True
