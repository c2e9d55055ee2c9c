"""From tars to a shard set: keeps the folder for one run, and assembles the set.

Until a set is whole, its folder has .work, with

    lock                     a lock that only one run holds, so that no other one writes here
    settings.json            the settings of the tars; a run with other settings may not continue
    shard-000000.json        rows, failures and hash of a whole tar
    shard-000000.lost.json   items that ended a process, with the reasons; they are not tried again
    shard-000000.before.json the record of a tar that is made again, with what it holds
"""

from __future__ import annotations

import fcntl
import json
import shutil
from collections import ChainMap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lavila.annotations.base import AnnotationSet
from lavila.files import whole_file
from lavila.ingest.jobs import Failure, ShardResult, read_result, words
from lavila.ingest.needs import ChunkNeeds
from lavila.ingest.notes import ESTIMATED, KIND, Notes
from lavila.records import Clip, Ints, SpanRule
from lavila.shards.chunks import ChunkError, ChunkIndex, Place
from lavila.shards.format import (
    CHUNKS,
    CHUNKS_SCHEMA,
    FAILURES,
    FORMAT,
    MANIFEST,
    WITHOUT_CHECKSUMS,
    WORK,
    ShardFile,
    ShardSetError,
)
from lavila.shards.reader import open_shard_set
from lavila.shards.writer import SetContents, write_manifest, write_table

LONG = ("gop_offsets", "piece_crc32")  # columns of chunks.parquet with a number for each group of pictures


@contextmanager
def work_folder(out: Path, settings: Mapping[str, Any], *, resume: bool, allowed: int | None = None) -> Iterator[bool]:
    """Lock `out` for one run. Yields whether it already is a whole set made with these settings.

    A whole set with more than `allowed` failures (None = any number) is one to add clips to: with `resume` it yields
    False, and the manifest is still there. Raises ShardSetError if another run writes there, if the folder holds
    something else, or if the set in it has other settings.
    """
    manifest = _whole_manifest(out, settings)
    if manifest is not None and _is_enough(manifest, allowed):
        _clear(out)
        yield True
        return
    if manifest is not None and not resume:
        raise ShardSetError(
            f"{out}: a whole set without {manifest['failures']} clips that failed, --max-failures is {allowed}; add "
            "--resume to try them again"
        )
    if manifest is not None:
        _check_same(out, manifest, settings)  # clips of another version of an encoder would make it a mixture
    work = out / WORK
    if manifest is None and not work.exists() and out.exists() and any(out.iterdir()):
        raise ShardSetError(f"{out}: holds other files; give an empty or new folder as --out")
    work.mkdir(parents=True, exist_ok=True)
    with (work / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ShardSetError(f"{out}: another run is writing here; wait for it, or give another --out") from None
        manifest = _whole_manifest(out, settings)
        if manifest is not None and _is_enough(manifest, allowed):  # the run that held the lock has just ended
            _clear(out)
            yield True
            return
        recorded = work / "settings.json"
        if manifest is not None:
            for leftover in work.glob("*.json"):  # of a run that was killed after it wrote the manifest
                leftover.unlink()
        elif recorded.exists():
            if not resume:
                raise ShardSetError(f"{out}: holds an unfinished set; add --resume to continue, or give another --out")
            begun = json.loads(recorded.read_text(encoding="utf-8"))
            if begun.pop("format", WITHOUT_CHECKSUMS) != FORMAT:
                raise ShardSetError(
                    f"{out}: was begun by another version of lavila, which does not make shard-set format {FORMAT}; "
                    "finish it with that version, or give another --out"
                )
            _check_same(out, begun, settings)
        for leftover in (*out.glob("*.tmp"), *work.glob("*.tmp")):
            leftover.unlink()
        with whole_file(recorded) as file:
            file.write(json.dumps({"format": FORMAT, **settings}, indent=1).encode())
        try:
            yield False
        finally:
            if (out / MANIFEST).exists():  # the set is whole; a run that could not add clips left it so
                _clear(out)


def _whole_manifest(out: Path, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """The manifest of a whole set made with these settings; None if there is none."""
    if not (out / MANIFEST).exists():
        return None
    shard_set = open_shard_set(out)
    manifest = shard_set.manifest
    # After an update of an encoder a whole set is still good. Only an unfinished one would become a mixture.
    _check_same(out, manifest, {name: value for name, value in settings.items() if name != "versions"})
    problems = shard_set.verify()  # opening a set does not check the size of every tar
    if problems:
        raise ShardSetError(problems[0])
    return manifest


def _is_enough(manifest: Mapping[str, Any], allowed: int | None) -> bool:
    return allowed is None or int(manifest.get("failures", 0)) <= allowed


def _clear(out: Path) -> None:
    if (out / WORK).exists():  # a run was killed after it wrote the manifest
        shutil.rmtree(out / WORK)


def _check_same(out: Path, found: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    for name, value in settings.items():
        there = found.get(name)
        if isinstance(value, dict) and isinstance(there, dict):
            name, there, value = next(
                ((f"{name}.{key}", there.get(key), value[key]) for key in value if there.get(key) != value[key]),
                (name, value, value),
            )
        if there != value:
            remedy = "install that version" if name.startswith("versions.") else "use the same settings"
            raise ShardSetError(
                f"{out}: made with {name} = {json.dumps(there)}, but now it is {json.dumps(value)}; {remedy}, or give "
                "another --out"
            )


def write_failures(out: Path, failures: Sequence[Failure]) -> None:
    """Write failures.jsonl, with one line for each clip that could not be stored."""
    with whole_file(out / FAILURES) as file:
        file.write("".join(json.dumps(failure, ensure_ascii=False) + "\n" for failure in failures).encode())


@dataclass(frozen=True, kw_only=True)
class Stored:
    """The records of whole tars, read one at a time: the rows of 4 million clips do not fit into memory."""

    out: Path
    shards: int

    def results(self) -> Iterator[ShardResult]:
        """The result of every tar, in order."""
        for number in range(self.shards):
            result = read_result(self.out, number, full=False)
            assert result is not None, f"tar {number} is not there"
            yield result

    def files(self) -> list[ShardFile]:
        """The tars that are not empty."""
        return [result.file for result in self.results() if result.file is not None]

    def rows(self) -> Iterator[dict[str, Any]]:
        """The rows of all tars, in storage order."""
        return (row for result in self.results() for row in result.rows)

    def failures(self) -> dict[str, str]:
        """Id of a clip or chunk -> why it could not be stored."""
        return {key: reason for result in self.results() for key, reason in result.failures.items()}


def clip_failures(clips: Sequence[Clip], reasons: Mapping[str, str]) -> list[Failure]:
    """The lines of failures.jsonl, in the order of the clips."""
    return [
        {"clip_id": clip.clip_id, "video": clip.video_path, "reason": reasons[clip.clip_id]}
        for clip in clips
        if clip.clip_id in reasons
    ]


class ChunkAssembly:
    """Makes the rows of clips from stored chunks, and writes chunks.parquet. For layout "chunks"."""

    def __init__(self, stored: Stored, *, clips: Sequence[Clip], needs: ChunkNeeds, rule: SpanRule) -> None:
        self._clips = clips
        place_of = {chunk.chunk_id: place for place, chunk in enumerate(needs.chunks)}
        light: dict[int, dict[str, Any]] = {}
        for row in stored.rows():
            light[place_of[row["chunk_id"]]] = {name: value for name, value in row.items() if name not in LONG}
        self._order = sorted(light)  # chunks of a video together and in order, from whatever tars
        self._rows = [light[place] for place in self._order]
        index = ChunkIndex(self._rows, stored.failures())
        self._places = np.full((len(clips), 4), -1, np.int64)
        reasons = {failure["clip_id"]: failure["reason"] for failure in needs.failures}
        for number, clip in enumerate(clips):
            if clip.clip_id in reasons:
                continue
            try:
                place = index.locate(clip, chunk_ids=needs.ids(number), rule=rule)
            except ChunkError as error:
                reasons[clip.clip_id] = str(error)
                continue
            self._places[number] = (place.chunk, place.first_frame, place.num_frames, place.frames_after)
        self.failures = clip_failures(clips, reasons)
        self._stored = stored

    def write_chunks(self, out: Path) -> None:
        """Write chunks.parquet: the chunks of a video together and in order."""
        position = {row["chunk_id"]: at for at, row in enumerate(self._rows)}
        long: list[dict[str, list[int]]] = [{}] * len(self._rows)
        for row in self._stored.rows():
            long[position[row["chunk_id"]]] = {name: row[name] for name in LONG}
        names = CHUNKS_SCHEMA.names
        whole = ({**row, **long[at]} for at, row in enumerate(self._rows))
        write_table(out / CHUNKS, ({name: row[name] for name in names} for row in whole), CHUNKS_SCHEMA)

    def rows(self, *, in_storage_order: bool) -> Iterator[dict[str, Any]]:
        """The rows of clips.parquet."""
        found = np.flatnonzero(self._places[:, 0] >= 0)
        if in_storage_order:
            found = found[self._storage_order(self._places[found])]
        same = ("shard", "offset", "size", "fps", "height", "width", "source_fps")
        sizes = ("source_height", "source_width", "scaled_height", "scaled_width")
        for number in found.tolist():
            chunk, first_frame, num_frames, frames_after = self._places[number].tolist()
            clip, row = self._clips[number], self._rows[chunk]
            place = Place(chunk=chunk, first_frame=first_frame, num_frames=num_frames, frames_after=frames_after)
            yield {
                **words(clip, num_frames=num_frames, fps=row["fps"]),
                **asdict(place),
                **{name: row[name] for name in (*same, *sizes)},
                ESTIMATED: row.get(ESTIMATED, False),
                KIND: row.get(KIND),
            }

    def _storage_order(self, places: Ints) -> Ints:
        shard = np.array([row["shard"] for row in self._rows], np.int64)[places[:, 0]]
        offset = np.array([row["offset"] for row in self._rows], np.int64)[places[:, 0]]
        return np.lexsort((places[:, 1], offset, shard)).astype(np.int64)


def assemble(
    stored: Stored,
    *,
    rows: Iterator[Mapping[str, Any]],
    annotations: AnnotationSet,
    facts: Mapping[str, Any],
    failures: Sequence[Failure],
) -> dict[str, Any]:
    """Write tables and manifest of a folder whose tars are all whole. Returns the manifest."""
    write_failures(stored.out, failures)
    notes = Notes(stored.out)
    contents = SetContents(
        classes=annotations.classes,
        class_texts=annotations.class_texts,
        tables=annotations.tables,
        facts=ChainMap({**facts, "failures": len(failures)}, notes.counts),  # the counts are not known yet
    )
    manifest = write_manifest(stored.out, rows=notes.each(rows), shards=stored.files(), contents=contents)
    shutil.rmtree(stored.out / WORK)
    return manifest
