"""Verifies a shard set: checksums, members, tables, and that every frame of every clip decodes on the CPU.

The work is cut into stretches of a tar. Supervised worker processes take one stretch after another
(`lavila.cluster.workers`), so a clip that crashes or stalls the decoder is found like any other. Workers read the rows
of their tar from the tables, and write their findings to a scratch folder. The shard set does not change before all of
it is checked.

A worker needs memory for its libraries, the rows of its tar, one encoded clip or chunk, and two decoded pictures, for
clips of any length.
"""

from __future__ import annotations

import contextlib
import functools
import json
import tempfile
import zlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lavila.cluster.workers import ItemEvent, Progress, run_jobs
from lavila.files import sync, whole_file
from lavila.inspection.files import (
    BadFrames,
    Found,
    Row,
    check_tables,
    check_tar,
    frame_axis,
    integers,
    overlapping,
    used_frames,
    video_rows,
)
from lavila.inspection.videos import RecordedShape, VideoTest, bad_groups, stored_frames
from lavila.shards.chunks import SECONDS_AFTER
from lavila.shards.format import CHUNKS, CLIPS, QUARANTINE, ShardFile, shard_name
from lavila.shards.reader import ShardSet, table_problems, wrong_checksum

STRETCH = (32, 512)  # smallest and largest number of videos of a job, which is one process; a tar may have fewer
JOBS_A_WORKER = 4  # smallest number of jobs for each worker, so that none waits long for another at the end
ITEM_SECONDS = 600.0  # time limit of one video
SLOWEST_READ = 10e6  # bytes per second; a tar that is read more slowly counts as unreadable


@dataclass(frozen=True, kw_only=True)
class StretchJob:
    """A `Job` of `lavila.cluster.workers`: some videos of one tar. The job with the first video also checks the tar."""

    number: int  # number of the job
    folder: Path  # folder of the shard set
    scratch: Path
    manifest: Mapping[str, Any]  # the manifest without tars and classes
    tar: int  # number of the tar
    file: ShardFile
    first: int  # the first video, counted in the order of their bytes in the tar
    stop: int  # the video after the last
    test: VideoTest

    @property
    def num_items(self) -> int:
        return self.stop - self.first + self._with_tar

    @property
    def _with_tar(self) -> bool:
        return self.first == 0

    @property
    def _chunked(self) -> bool:
        return bool(self.manifest.get("layout") == "chunks")

    @property
    def _key(self) -> str:
        return "chunk_id" if self._chunked else "clip_id"

    def run(self, report: Callable[[int, ItemEvent], None], lost: Mapping[int, str]) -> None:
        """Check every item, and write the findings to the scratch folder, one line for each item.

        Items that an earlier try of the same job has written are not checked again.
        """
        known = self._lines()
        table = self._rows()
        checks: list[Callable[[str | None], Found]] = []
        if self._with_tar:
            checks.append(functools.partial(self._check_tar, table))
        checks += [functools.partial(self._check_video, row) for row in self._mine(table)]
        with self._path.open("a", encoding="utf-8") as out:
            for place, check in enumerate(checks):
                report(place, ItemEvent.BEGUN)
                found = known.get(place)
                if found is None:
                    found = check(lost.get(place))
                    # The line break at the start keeps lines apart if a process was killed while it wrote the last.
                    out.write("\n" + json.dumps({"place": place, **asdict(found)}) + "\n")
                    out.flush()
                report(place, ItemEvent.FAILED if found.problems or found.bad else ItemEvent.STORED)

    def remember_loss(self, item: int, reason: str) -> None:
        """Do nothing: a verification is not resumed, and within one the lost items reach `run`."""

    def found(self) -> Found:
        """The findings of a job that is done."""
        found = Found()
        for one in self._lines().values():
            found = found.and_(one)
        return found

    @property
    def _path(self) -> Path:
        return self.scratch / f"{self.number:07d}.jsonl"

    def _lines(self) -> dict[int, Found]:
        """Place of the item -> its findings so far."""
        found: dict[int, Found] = {}
        for line in self._path.read_text(encoding="utf-8").splitlines() if self._path.exists() else ():
            with contextlib.suppress(json.JSONDecodeError):  # see `run`
                if line:
                    item = json.loads(line)
                    bad = tuple(BadFrames(**one) for one in item["bad"])
                    found[item["place"]] = Found(problems=tuple(item["problems"]), bad=bad)
        return found

    def _rows(self) -> pa.Table:
        """The rows of this tar, in the order of their bytes."""
        path = self.folder / (CHUNKS if self._chunked else CLIPS)
        return pq.read_table(path, filters=[("shard", "=", self.tar)]).sort_by("offset")

    def _mine(self, table: pa.Table) -> list[Row]:
        return video_rows(table.slice(self.first, self.stop - self.first))

    def _check_tar(self, table: pa.Table, lost: str | None) -> Found:
        if lost is not None:
            return Found(problems=(f"{self.folder / self.file.name}: {lost}",))
        return check_tar(self.folder, self.file, video_rows(table), key=self._key)

    def _check_video(self, row: Row, lost: str | None) -> Found:
        def bad(reason: str, first: int = 0, stop: int = row["num_frames"]) -> BadFrames:
            return BadFrames(key=row[self._key], first=first, stop=stop, reason=reason)

        if lost is not None:
            return Found(bad=(bad(lost),))
        with (self.folder / self.file.name).open("rb") as tar:
            tar.seek(row["offset"])
            data = tar.read(row["size"])
        if len(data) != row["size"]:
            return Found(bad=(bad(f"the tar ends before its {row['size']} bytes"),))
        if self._chunked:
            return Found(bad=tuple(bad(*one) for one in bad_groups(data, row, self.test)))
        if "crc32" in row and zlib.crc32(data) != row["crc32"]:
            return Found(bad=(bad(wrong_checksum(row["shard"], row["offset"], row["size"])),))
        recorded = RecordedShape(frames=stored_frames(row, self.manifest), height=row["height"], width=row["width"])
        reason = self.test(data, recorded)
        return Found(bad=() if reason is None else (bad(reason),))


@dataclass(frozen=True, kw_only=True, slots=True)
class Quarantined:
    """A line of quarantine.jsonl."""

    clip_id: str
    shard: str  # file name of the tar
    reason: str


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The result of a verification."""

    problems: list[str]  # problems of files and tables, one line each
    bad: list[Quarantined]  # clips that cannot be used, in the order of clips.parquet


def verify_shard_set(
    shard_set: ShardSet, test: VideoTest, *, workers: int, on_progress: Callable[[Progress], None]
) -> Verdict:
    """Read and decode all of a shard set with `workers` processes. Changes nothing; see `write_quarantine`."""
    problems = table_problems(shard_set)
    contradictions, bad = check_tables(shard_set)
    with tempfile.TemporaryDirectory(prefix="lavila-verify-") as scratch:
        jobs = verify_jobs(shard_set, test, scratch=Path(scratch), workers=workers)
        slowest = max(shard.bytes for shard in shard_set.shards) / SLOWEST_READ
        run_jobs(jobs, workers=workers, item_seconds=max(ITEM_SECONDS, slowest), on_progress=on_progress)
        found = [job.found() for job in jobs]
    frames = [one for each in found for one in each.bad]
    bad = {**_rows_with(shard_set, frames, impossible=bad), **bad}
    names = {shard: shard_name(shard) for shard in np.unique(integers(shard_set.clips, "shard")).tolist()}
    places = shard_set.clips.select(["clip_id", "shard"]).take(pa.array(sorted(bad), pa.int64())).to_pylist()
    return Verdict(
        problems=[*problems, *contradictions, *(text for each in found for text in each.problems)],
        bad=[
            Quarantined(clip_id=place["clip_id"], shard=names[place["shard"]], reason=bad[row])
            for row, place in zip(sorted(bad), places, strict=True)
        ],
    )


def verify_jobs(shard_set: ShardSet, test: VideoTest, *, scratch: Path, workers: int) -> list[StretchJob]:
    """The jobs, in the order of the tars."""
    stored = shard_set.clips if shard_set.chunks is None else shard_set.chunks
    counts = np.bincount(integers(stored, "shard"))
    files = {shard.name: shard for shard in shard_set.shards}
    big = ("shards", "classes", "class_texts", "tables")
    manifest = {name: value for name, value in shard_set.manifest.items() if name not in big}
    stretch = int(np.clip(-(-stored.num_rows // (JOBS_A_WORKER * workers)), *STRETCH))
    jobs: list[StretchJob] = []
    for tar, count in enumerate(counts.tolist()):
        if shard_name(tar) not in files:
            continue  # `check_tables` reports a tar that the manifest does not list
        for first in range(0, count, stretch):
            jobs.append(
                StretchJob(
                    number=len(jobs),
                    folder=shard_set.path,
                    scratch=scratch,
                    manifest=manifest,
                    tar=tar,
                    file=files[shard_name(tar)],
                    first=first,
                    stop=min(first + stretch, count),
                    test=test,
                )
            )
    return jobs


def _rows_with(shard_set: ShardSet, bad: Sequence[BadFrames], *, impossible: Mapping[int, str]) -> Mapping[int, str]:
    """The rows of clips.parquet that use bad frames -> the reason. `impossible` rows are left out."""
    if not bad:
        return {}
    stored = shard_set.clips if shard_set.chunks is None else shard_set.chunks
    place = _places(stored, {one.key for one in bad}, "clip_id" if shard_set.chunks is None else "chunk_id")
    if shard_set.chunks is None:
        return {place[one.key]: one.reason for one in reversed(bad)}
    axis = frame_axis(shard_set.chunks)
    spans: dict[str, list[BadFrames]] = defaultdict(list)
    for one in bad:
        spans[one.key].append(one)
    disjoint = []
    for key, found in spans.items():
        whole = [one for one in found if one.stop - one.first == shard_set.chunks["num_frames"][place[key]].as_py()]
        start = int(axis.start[place[key]])
        disjoint += [(start + one.first, start + one.stop, f"chunk {key}: {one.reason}") for one in whole[:1] or found]
    rows = np.setdiff1d(np.arange(len(shard_set)), np.array(list(impossible), np.int64))
    begin, end = used_frames(shard_set, axis, rows, after=SECONDS_AFTER)
    return {int(rows[at]): reason for at, reason in overlapping(begin, end, disjoint).items()}


def _places(table: pa.Table, keys: set[str], name: str) -> dict[str, int]:
    """Key -> its row."""
    column = table.column(name)
    rows = np.flatnonzero(np.asarray(pc.is_in(column, pa.array(sorted(keys)))))
    return dict(zip(column.take(rows).to_pylist(), rows.tolist(), strict=True))


def write_quarantine(folder: Path, bad: Sequence[Quarantined], *, file: Path | None = None) -> None:
    """Write these clips to quarantine.jsonl, or to another file. Remove the file if there are none."""
    path = file or folder / QUARANTINE
    if bad:
        with whole_file(path) as stream:
            stream.write("".join(json.dumps(asdict(one), ensure_ascii=False) + "\n" for one in bad).encode())
    elif path.exists():  # removing what is not there is an error, too, where nothing can be written
        path.unlink()
        sync(path.parent)
