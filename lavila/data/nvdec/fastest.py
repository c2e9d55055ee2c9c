"""nvdec or host, whichever is faster: measured once for each kind of clip, and kept with the machine's name.

At small pictures many CPU cores can decode as fast as NVDEC. Which is faster depends on the chip, the cores, the codec,
and on how many pictures a clip's frames need. So a loader tries both on its first clips. All processes of a machine
share the file of results, and only one of them measures at a time.
"""

from __future__ import annotations

import fcntl
import json
import logging
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lavila.checkpoints.zoo import home
from lavila.data.pictures import DecoderName
from lavila.errors import UserError, one_line
from lavila.files import whole_file

log = logging.getLogger(__name__)

NAME = "decoders.json"
KEPT = 200  # measurements of a machine; the oldest go first
CANDIDATES: tuple[DecoderName, ...] = ("nvdec", "host")


@dataclass(frozen=True, kw_only=True)
class Situation:
    """What a measurement is valid for."""

    gpu: str  # its name
    threads: int  # number of the loader's CPU threads
    shard_set: str  # the set's folder
    codec: str
    clips: int  # of a batch
    views: tuple[int, int]  # temporal clips, spatial crops
    frames: int  # of a view
    size: int  # side of a view, pixels
    half: bool  # float16 pictures


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A measurement that was kept."""

    situation: dict[str, Any]  # `Situation` as plain values
    clips_per_second: dict[str, float]  # decoder -> rate; a decoder that failed is not there
    problem: str  # why nvdec failed; "" if it did not
    when: str  # UTC

    @property
    def fastest(self) -> DecoderName:
        """The decoder that `auto` stands for."""
        rates = self.clips_per_second
        return max(CANDIDATES, key=lambda name: rates.get(name, 0.0))

    @property
    def text(self) -> str:
        """The rates in one line."""
        rates = [f"{name} {self.clips_per_second[name]:.0f}" for name in CANDIDATES if name in self.clips_per_second]
        failed = f"; nvdec failed ({self.problem})" if self.problem else ""
        return f"{', '.join(rates)} clips/s{failed}"


def results_file() -> Path:
    """The file of all measurements."""
    return home() / NAME


def kept(file: Path | None = None, *, machine: str | None = None) -> list[Measured]:
    """The measurements of a machine, the oldest first. None: this one."""
    entries = _read(file or results_file()).get(machine or socket.gethostname(), [])
    return [Measured(**entry) for entry in entries]


def fastest(
    situation: Situation, measure: Callable[[DecoderName], float], *, file: Path | None = None
) -> tuple[DecoderName, str]:
    """The faster decoder, and a line that says why. `measure`: clips/s of a decoder; called if nothing is kept.

    A nvdec that fails (DALI's errors, `DecoderFault`) is slower than host. Errors of host pass through.
    """
    file = file or results_file()
    with _locked(file):
        wanted = json.loads(json.dumps(asdict(situation)))
        found = next((one for one in reversed(kept(file)) if one.situation == wanted), None)
        if found is None:
            found = _measured(wanted, measure)
            _keep(found, file)
    return found.fastest, f"{found.text}, measured {found.when} on {socket.gethostname()} ({file})"


def _measured(situation: dict[str, Any], measure: Callable[[DecoderName], float]) -> Measured:
    rates, problem = {}, ""
    for name in CANDIDATES:
        try:
            rates[str(name)] = measure(name)
        except (RuntimeError, UserError) as error:
            if name == "host":
                raise
            problem = one_line(error)
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return Measured(situation=situation, clips_per_second=rates, problem=problem, when=when)


def _read(file: Path) -> dict[str, list[dict[str, Any]]]:
    """Machine -> its measurements. A file that cannot be used counts as empty, and is written anew."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        for entries in found.values():
            for entry in entries:
                Measured(**entry)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        log.warning("%s: not a file of measurements (%s); decoders are measured again", file, error)
        return {}
    return dict(found)


def _keep(measured: Measured, file: Path) -> None:
    every: Mapping[str, list[dict[str, Any]]] = _read(file)
    mine = [*every.get(socket.gethostname(), []), asdict(measured)][-KEPT:]
    try:
        with whole_file(file) as stream:
            stream.write(json.dumps({**every, socket.gethostname(): mine}, indent=1).encode())
    except OSError as error:
        log.warning("%s: cannot be written (%s), so the next run measures again", file, error.strerror)


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    """One process at a time. Storage without locks costs a second measurement, and no more."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        stream = file.with_name(f"{file.name}.lock").open("w")
    except OSError:
        yield
        return
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX)
        except OSError as error:
            log.warning("%s: its storage has no locks (%s)", file, error.strerror)
        yield
