"""What a run leaves behind to be read: metrics.jsonl, stages.jsonl, report.json and report.html.

Only the first rank writes; nothing here knows of ranks. Every file is plain JSON (NaN and infinities become null), and
no reader ever meets half a file: whole files are replaced by a rename, and a line that a crash cut short is dropped.
The drawing is in `figures.py` (numbers to shapes) and `page.html.j2` (shapes to a page).
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import time
from collections.abc import Mapping, Sequence
from enum import Enum
from functools import cache
from importlib import resources
from pathlib import Path
from typing import IO, Any

import jinja2
import numpy as np

from lavila.errors import UserError
from lavila.files import whole_file
from lavila.report.figures import ReportPictures, page_values

__all__ = [
    "MetricsLog",
    "ReportError",
    "append_stage",
    "read_metrics",
    "read_stages",
    "write_json_atomic",
    "write_report",
]

log = logging.getLogger(__name__)


class ReportError(UserError):
    """A report whose page cannot be drawn, in one line."""


METRICS_FILE = "metrics.jsonl"
STAGES_FILE = "stages.jsonl"


def plain(value: object) -> Any:
    """`value` as JSON knows it: numpy to lists and numbers, paths and enums to strings, NaN and infinities to None.

    Raises TypeError for anything else, so that a tensor or a config object is noticed and not written as its repr.
    """
    if value is None or (isinstance(value, str | bool | int) and not isinstance(value, Enum)):
        return value
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return value.tolist() if value.dtype.kind in "iub" else plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.integer | np.bool_):
        return value.item()
    if isinstance(value, Enum):
        return plain(value.value)
    if isinstance(value, Path):
        return str(value)
    raise TypeError(
        f"{type(value).__name__} has no JSON form here; pass numbers, strings, lists, dicts or numpy arrays"
    )


def _write_atomic(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as file:
        file.write(data)


def write_json_atomic(path: str | Path, obj: object) -> None:
    """Write `obj` as JSON to `path`: the old file or the new one, never a part of either. NaN becomes null."""
    # Encoded before the file is touched: an object without a JSON form leaves what was there.
    _write_atomic(Path(path), (_laid_out(plain(obj)) + "\n").encode())


class ReportFileError(UserError):
    """A file of lines that somebody, or a disk, has damaged."""


def _laid_out(value: object, margin: str = "") -> str:
    """JSON with a line per key and lists on one line: json's own indent gives each cell of a confusion a line."""
    if not isinstance(value, dict) or not value:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    inner = margin + "  "
    lines = [f"{inner}{json.dumps(key, ensure_ascii=False)}: {_laid_out(item, inner)}" for key, item in value.items()]
    return "{\n" + ",\n".join(lines) + f"\n{margin}}}"


def _read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file, [] where there is none; a last line without its end is left out."""
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")
    entries = []
    for number, line in enumerate(lines[:-1], start=1):  # what follows the last newline is nothing, or a cut line
        try:
            entry = json.loads(line)
        except ValueError:
            entry = None
        if not isinstance(entry, dict):
            raise ReportFileError(
                f"{path}:{number}: found {line[:60].decode(errors='replace')!r} where a JSON object belongs; "
                "remove that line or the file"
            )
        entries.append(entry)
    return entries


def _open_lines(path: Path) -> IO[bytes]:
    """Open a JSON-lines file for appending, without the cut line that a crash may have left at its end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("ab+")
    file.seek(0)
    data = file.read()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        log.warning("%s: dropped an unfinished last line (%d bytes)", path, len(data) - whole)
        file.truncate(whole)
    return file


def _line(entry: Mapping[str, object]) -> bytes:
    return json.dumps(plain(entry), ensure_ascii=False, allow_nan=False).encode() + b"\n"


class MetricsLog:
    """Append-only metrics.jsonl: one JSON object per call of `log`, readable by others as soon as `log` returns.

    Where the disk refuses, as a full one does, lines wait in memory for the next call, and the log says so once.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._file = _open_lines(self.path)
        self._waiting = b""
        self._is_refused = False

    def log(self, **values: object) -> None:
        """Append one line: numbers, strings, lists; NaN becomes null. `step` is what `truncate_after` goes by."""
        self._waiting += _line(values)
        try:
            self.write_all()
        except OSError as error:
            if not self._is_refused:
                log.warning("%s: lines wait in memory until they can be written (%s)", self.path, error.strerror)
            self._is_refused = True

    def write_all(self) -> None:
        """Write the lines that wait. OSError where that fails still."""
        while self._waiting:
            # Unbuffered, since a buffer that cannot be written holds bytes that nobody can count.
            written = os.write(self._file.fileno(), self._waiting)
            self._waiting = self._waiting[written:]
        self._is_refused = False

    def truncate_after(self, step: int) -> int:
        """Forget what was logged after update `step`, before a run continues from there.

        Cuts at the first line whose `step` is larger, so lines without a step share the fate of those around them.
        Returns the number of lines dropped.
        """
        self.write_all()
        self._file.close()
        entries = _read_lines(self.path)
        later = (place for place, entry in enumerate(entries) if (entry.get("step") or 0) > step)
        keep = next(later, len(entries))
        if keep < len(entries):
            kept = self.path.read_bytes().split(b"\n")[:keep]
            _write_atomic(self.path, b"".join(line + b"\n" for line in kept))
        self._file = _open_lines(self.path)
        return len(entries) - keep

    def close(self) -> None:
        """Close the file; safe to call twice. Lines that cannot be written even now are lost."""
        if not self._file.closed:
            with contextlib.suppress(OSError):
                self.write_all()
        self._file.close()

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl, oldest first; [] where none was written yet.

    A last line that a crash cut short is left out; any other line that is not a JSON object is a ReportFileError.
    """
    return _read_lines(Path(path))


def append_stage(run_dir: str | Path, stage: str, seconds: float) -> None:
    """Note in `run_dir`/stages.jsonl that `stage` ("train", "evaluate", ...) took `seconds` of wall-clock time."""
    if not (math.isfinite(seconds) and seconds >= 0):
        raise ValueError(f"stage {stage!r}: took {seconds} seconds; a duration is a finite number >= 0")
    with _open_lines(Path(run_dir) / STAGES_FILE) as file:
        file.write(_line({"stage": stage, "seconds": seconds, "finished": round(time.time(), 3)}))
        file.flush()
        os.fsync(file.fileno())


def read_stages(run_dir: str | Path) -> dict[str, float]:
    """Seconds of each stage of a run, in the order in which they first ran; of a stage run twice, the last time."""
    return {str(e["stage"]): float(e["seconds"]) for e in _read_lines(Path(run_dir) / STAGES_FILE)}


def write_report(
    run_dir: str | Path,
    report: Mapping[str, Any],
    *,
    pictures: ReportPictures,
    history: Sequence[Mapping[str, Any]],
) -> None:
    """Write `run_dir`/report.json (exactly `report`), then draw `run_dir`/report.html (one file, needs no network).

    report: any of `name`, `dataset`, `checkpoint`, `metrics` and `controls` (name -> number), `units` (name of a metric
        or control -> a value of `Unit`), `headlines` (see `lavila.tasks.Headline`), `views`, `seconds` (per stage),
        `data_wait_percent` (per stage), `throughput`, `clips`, `notes` (sentences on what was done otherwise than in
        training), `environment`, `config` (of the evaluation), `trained_with` (the checkpoint's), and `sections`: for
        each the `key` at which its values lie in the report, its `type`, `title` and `note` (see
        `lavila.tasks.Section`). A key that is absent leaves its section out.
    pictures: what the model saw, for the strips; see `ReportPictures`.
    history: lines of metrics.jsonl: `step`, `loss`, and what else was logged.

    Raises ReportError where the page cannot be drawn. report.json is whole then, and an older page is removed.
    Numbers that contradict each other (shapes, fractions in place of percentages) are such a case.
    """
    run_dir = Path(run_dir)
    values: dict[str, Any] = plain(report)
    write_json_atomic(run_dir / "report.json", values)
    page_file = run_dir / "report.html"
    try:
        page = _draw(values, pictures=pictures, history=history)
    except Exception as error:  # whatever it was: the result does not depend on its picture
        page_file.unlink(missing_ok=True)
        log.exception("drawing %s", page_file)
        reason = " ".join(str(error).split())
        raise ReportError(
            f"{page_file} cannot be drawn ({type(error).__name__}: {reason}); every number is in report.json beside it"
        ) from error
    _write_atomic(page_file, page.encode())
    log.info("report: %s (%.1f MB)", page_file, len(page.encode()) / 1e6)


def _draw(values: dict[str, Any], *, pictures: ReportPictures, history: Sequence[Mapping[str, Any]]) -> str:
    return _template().render(page_values(values, pictures=pictures, history=history))


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True,  # narrations and class names are other people's text
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = resources.files("lavila.report").joinpath("page.html.j2").read_text(encoding="utf-8")
    return environment.from_string(text)
