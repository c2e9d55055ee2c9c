"""Labels clips with a narrator, by any number of processes that need not know of each other.

    source --passes of a part--> narrator --> part-000012.parquet ... when all are there --> the table, or the pickle

Each process takes every n-th part that is not there yet, so the same command continues after a kill at any moment, with
any number of processes. A part is written whole or not at all, and memory holds one part. The process that finds all
parts in place joins them.
"""

from __future__ import annotations

import json
import logging
import math
import pickle
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from lavila.demo.narrators import OpenNarrator
from lavila.engine.distributed import Process
from lavila.engine.label_sources import LabelError, LabelSource, Stretch
from lavila.errors import shown
from lavila.files import whole_file, whole_path
from lavila.models.captioner import Said
from lavila.report.charts import duration
from lavila.shards.captions import Words, write_captions
from lavila.shards.mapped import mapped_path

log = logging.getLogger(__name__)

LOG_SECONDS = 15.0
SETTINGS = "settings.json"
SOURCE = "machine"

LabelFormat = Literal["captions", "lavila-pkl"]

PART_SCHEMA = pa.schema(
    [
        pa.field("clip_id", pa.string(), nullable=False),
        pa.field("video_id", pa.string(), nullable=False),
        pa.field("start_second", pa.float64(), nullable=False),
        pa.field("stop_second", pa.float64(), nullable=False),
        pa.field("texts", pa.list_(pa.string())),
        pa.field("nll", pa.list_(pa.float64())),
        pa.field("entropy", pa.list_(pa.float64())),
        pa.field("reason", pa.string()),  # why the clip has no pictures; null where it has
    ]
)


@dataclass(frozen=True, kw_only=True)
class LabelOptions:
    """Where labels go, and who makes which."""

    out: Path
    format: LabelFormat = "captions"
    batch_size: int = 16  # clips of a forward pass
    max_bad_clips: int = 100  # clips without pictures that this process passes over; one more is an error
    share: tuple[int, int] = (0, 1)  # this process makes the parts i, i + n, i + 2n ...


@dataclass(kw_only=True)
class Labels:
    """What the joined labels hold."""

    clips: int = 0
    texts: int = 0
    wordless: int = 0  # clips that are left out, since all their texts are empty
    bad: int = 0  # clips that are left out, since they have no pictures; and videos that cannot be opened


def label(source: LabelSource, narrator: OpenNarrator, options: LabelOptions) -> Labels | None:
    """Make this process's parts, and join all parts if none is missing. None where parts of others are missing.

    Raises:
        LabelError: the output belongs to other clips or settings, or cannot be written; too many bad clips; not one
            clip could be labelled.
    """
    parts = _Parts(options)
    parts.begin({**source.facts, **narrator.facts, "batch_size": options.batch_size, "format": options.format})
    if parts.are_joined():
        log.info("%s is whole already, made with the same settings; nothing to do", options.out)
        parts.clear()
        return parts.joined()
    sizes = source.part_sizes
    index, of = options.share
    mine = [part for part in range(index, len(sizes), of) if not parts.path(part).exists()]
    _make(source, mine, narrator, parts, options)
    missing = [part for part in range(len(sizes)) if not parts.path(part).exists()]
    if missing and not parts.are_joined():
        log.info("%d of %d parts are missing; the process that finishes last joins them", len(missing), len(sizes))
        return None
    return parts.joined() if missing else parts.join(len(sizes), source.unreadable)


def share_of(process: Process, environ: Mapping[str, str]) -> tuple[int, int]:
    """The place of this process among all that label: ranks of torchrun, elements of a SLURM job array, or both.

    LabelError for an array with gaps in its numbers, whose elements cannot know their places.
    """
    if "SLURM_ARRAY_TASK_ID" not in environ:
        return process.rank, process.world
    number, least, most, count = (int(environ[f"SLURM_ARRAY_TASK_{name}"]) for name in ("ID", "MIN", "MAX", "COUNT"))
    if most - least + 1 != count:
        raise LabelError(
            f"this job array has {count} elements between {least} and {most}; submit one without gaps, such as "
            f"--array=0-{count - 1}: elements whose parts are there already end at once"
        )
    return (number - least) * process.world + process.rank, count * process.world


def _make(source: LabelSource, mine: list[int], narrator: OpenNarrator, parts: _Parts, options: LabelOptions) -> None:
    """Label parts and write each when it is complete."""
    sizes = source.part_sizes
    pace = _Pace(sum(sizes[part] for part in mine))
    rows: list[dict[str, Any]] = []
    bad = 0
    for name, reason in source.unreadable:
        bad += 1
        log.warning("%s is left out: %s", name, reason)
        _check_bad(bad, f"{name} ({reason})", options)
    for one in source.passes(mine):
        said = narrator.captioner.say(one.video, [clip.clip_id for clip in one.clips]) if one.clips else []
        rows += [_row(clip, words) for clip, words in zip(one.clips, said, strict=True)]
        rows += [_row(clip, None, reason=reason) for clip, reason in one.bad]
        for clip, reason in one.bad:
            bad += 1
            _check_bad(bad, f"{clip.clip_id} ({reason})", options)
        if one.is_last:
            parts.write(one.part, rows)
            rows = []
        pace.add(len(one.clips) + len(one.bad))


def _check_bad(bad: int, last: str, options: LabelOptions) -> None:
    if bad > options.max_bad_clips:
        raise LabelError(
            f"{bad} clips or videos have no pictures, the last being {last}; mend the videos or shards, or allow more "
            f"with --max-bad-clips (now {options.max_bad_clips}); finished parts are kept"
        )


class _Pace:
    """Says how fast clips are labelled, and how long the rest will take."""

    def __init__(self, clips: int) -> None:
        self._clips, self._done = clips, 0
        self._began = self._logged = time.perf_counter()

    def add(self, clips: int) -> None:
        self._done += clips
        now = time.perf_counter()
        if now - self._logged < LOG_SECONDS and self._done < self._clips:
            return
        self._logged = now
        rate = self._done / max(now - self._began, 1e-9)
        left = duration((self._clips - self._done) / rate)
        log.info("%s of %s clips, %.2f clips/s, %s left", f"{self._done:,}", f"{self._clips:,}", rate, left)


def _row(clip: Stretch, said: Said | None, *, reason: str | None = None) -> dict[str, Any]:
    return {
        "clip_id": clip.clip_id,
        "video_id": clip.video_id,
        "start_second": clip.start,
        "stop_second": clip.stop,
        "texts": None if said is None else said.texts,
        "nll": None if said is None else said.nll,
        "entropy": None if said is None else said.entropy,
        "reason": reason,
    }


class _Parts:
    """The folder beside the output in which parts wait to be joined."""

    def __init__(self, options: LabelOptions) -> None:
        self._options, self._out = options, options.out
        self._folder = options.out.with_name(f"{options.out.name}.parts")
        self._summary = self._folder / "summary.json"

    def path(self, part: int) -> Path:
        return self._folder / f"part-{part:06d}.parquet"

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Make the folder, or check that it belongs to the same labels."""
        file = self._folder / SETTINGS
        wanted = json.loads(json.dumps(settings))
        with self._writing(self._out):
            if not file.is_file():
                if self._out.exists():
                    raise LabelError(
                        f"--out {self._out}: is there already, and not from this command; remove it or give another"
                    )
                self._folder.mkdir(parents=True, exist_ok=True)
                with whole_file(file) as opened:
                    opened.write(json.dumps(wanted, indent=1).encode())
            found = json.loads(file.read_text())
        if found != wanted:
            names = sorted(name for name in {*found, *wanted} if found.get(name) != wanted.get(name))
            changes = [f"{name} was {shown(found.get(name))}, is {shown(wanted.get(name))}" for name in names]
            raise LabelError(
                f"--out {self._out}: was begun for other clips or with other settings ({'; '.join(changes)}); give "
                f"those again, or another --out; or remove {self._folder} and what was made"
            )

    def are_joined(self) -> bool:
        """Whether the output is whole."""
        return self._out.exists() and self._summary.is_file()

    def joined(self) -> Labels:
        """What the output holds, once it is whole."""
        return Labels(**json.loads(self._summary.read_text()))

    def write(self, part: int, rows: list[dict[str, Any]]) -> None:
        with self._writing(self.path(part)), whole_path(self.path(part)) as temporary:
            pq.write_table(pa.Table.from_pylist(rows, PART_SCHEMA), temporary, compression="zstd")

    def join(self, count: int, unreadable: Sequence[tuple[str, str]]) -> Labels:
        """Write the output from all parts, and remove them. Another process may do the same at the same time."""
        found = Labels(bad=len(unreadable))
        failures = self._out.with_suffix(".failures.jsonl")
        try:
            with self._writing(self._out), whole_file(failures) as lost:
                for name, reason in unreadable:
                    _write_line(lost, {"clip_id": None, "video_id": name, "reason": reason})
                rows = self._rows(count, found, lost)
                if self._options.format == "captions":
                    write_captions(self._out, (_words(row) for row in rows), source=SOURCE)
                else:
                    _write_pickle(self._out, (_entry(row) for row in rows))
        except FileNotFoundError:  # another process has joined and removed them
            if not self.are_joined():
                raise
            return self.joined()
        if not found.clips:
            self._out.unlink()
            mapped_path(self._out).unlink(missing_ok=True)
            raise LabelError(f"{self._out}: not one clip has words; {failures} says why")
        if not found.bad:
            failures.unlink()
        with whole_file(self._summary) as opened:
            opened.write(json.dumps(vars(found)).encode())
        self.clear()
        return found

    def clear(self) -> None:
        """Remove the parts, and what a kill left of them."""
        for file in self._folder.glob("part-*"):
            file.unlink(missing_ok=True)

    def _rows(self, count: int, found: Labels, lost: BinaryIO) -> Iterator[dict[str, Any]]:
        """The clips with words, part after part. Counts all, and writes the bad ones to `lost`."""
        for part in range(count):
            for row in pq.ParquetFile(self.path(part)).read().to_pylist():
                if row["reason"] is not None:
                    found.bad += 1
                    _write_line(lost, {name: row[name] for name in ("clip_id", "video_id", "reason")})
                    continue
                kept = [place for place, text in enumerate(row["texts"]) if text]
                if not kept:
                    found.wordless += 1
                    continue
                for name in ("texts", "nll", "entropy"):
                    row[name] = [row[name][place] for place in kept] if row[name] is not None else None
                found.clips += 1
                found.texts += len(kept)
                yield row

    @contextmanager
    def _writing(self, path: Path) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise
        except OSError as error:
            raise LabelError(
                f"{path}: cannot be written ({error.strerror}); make room, change the permissions or give another "
                "--out; finished parts are kept, and the same command continues"
            ) from None


def _write_line(file: BinaryIO, entry: Mapping[str, Any]) -> None:
    file.write((json.dumps(entry, ensure_ascii=False) + "\n").encode())


def _words(row: Mapping[str, Any]) -> Words:
    """A row of the captions table, whose scores are perplexities: lower is likelier."""
    return row["clip_id"], row["texts"], [math.exp(nll) for nll in row["nll"]]


def _entry(row: Mapping[str, Any]) -> tuple[str, float, float, list[str], list[float]]:
    """A tuple of LaViLa's pickle. Its score is the reference's: exp of the mean entropy; of beams, the perplexity."""
    scores = [math.exp(value) for value in row["entropy"] or row["nll"]]
    return row["video_id"], row["start_second"], row["stop_second"], row["texts"], scores


def _write_pickle(path: Path, entries: Iterator[tuple[Any, ...]]) -> None:
    """A pickle of a list, written entry by entry, so that memory holds one.

    An entry is pickled alone, without memo (so that it refers to nothing outside), and goes between the opcodes of a
    list. Protocol 2 has no frames.
    """
    with whole_file(path) as file:
        file.write(pickle.PROTO + b"\x02" + pickle.EMPTY_LIST)
        for entry in entries:
            buffer = BytesIO()
            pickler = pickle.Pickler(buffer, protocol=2)
            pickler.fast = True
            pickler.dump(entry)
            file.write(buffer.getvalue()[2:-1] + pickle.APPEND)  # without its own header and stop
        file.write(pickle.STOP)
