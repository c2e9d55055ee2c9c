"""Reading a shard set: its tables, the bytes of a clip's frames, and whether the files are sound."""

from __future__ import annotations

import json
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lavila.data.chunks import ByteRange, ChunkTable
from lavila.data.plan import chosen_frames, interval_frames
from lavila.data.shard_format import (
    CHUNKS,
    CHUNKS_SCHEMA,
    CLIPS,
    CLIPS_SCHEMA,
    FORMAT,
    MANIFEST,
    QUARANTINE,
    WORK,
    ShardFile,
    ShardSetError,
    file_sha256,
    shard_name,
    verify_shard,
)

Ints = npt.NDArray[np.int64]
Frames = npt.NDArray[np.int32]
MAX_OPEN_TARS = 64


class _OpenTar:
    """A file descriptor that closes with its last user, so that eviction cannot pull it from under a reader."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


class ShardSet:
    """A whole shard set, opened for reading. Safe to use from many threads; pickles as its path."""

    path: Path
    manifest: dict[str, Any]
    clips: pa.Table  # columns as in CLIPS_SCHEMA, one row per clip
    chunks: pa.Table | None  # columns as in CHUNKS_SCHEMA; None in layout "clips"
    quarantine: dict[str, str]  # clip_id -> why the clip is left out of training and evaluation

    def __init__(self, path: Path, manifest: dict[str, Any], clips: pa.Table, chunks: pa.Table | None) -> None:
        self.path, self.manifest, self.clips, self.chunks = path, manifest, clips, chunks
        self.quarantine = read_quarantine(path)
        self._shard, self._offset, self._size = (_integers(clips, name) for name in ("shard", "offset", "size"))
        self._first, self._count = _integers(clips, "first_frame"), _integers(clips, "num_frames")
        self._after = _integers(clips, "frames_after")
        self._chunk_table = None if chunks is None else ChunkTable(chunks)
        self._chunk = None if chunks is None else _integers(clips, "chunk")
        self._open: OrderedDict[int, _OpenTar] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return int(self.clips.num_rows)

    def __reduce__(self) -> tuple[Callable[[Path], ShardSet], tuple[Path]]:
        return open_shard_set, (self.path,)

    @property
    def codec(self) -> str:
        """vp9, h264, hevc or av1."""
        return str(self.manifest["encoder"]["codec"])

    @property
    def classes(self) -> dict[str, list[str]]:
        """Kind of label ("verb", "noun", "action", "labels") -> name of each class, by class index."""
        return dict(self.manifest["classes"])

    @property
    def shards(self) -> list[ShardFile]:
        """The tars, as the manifest lists them."""
        return [ShardFile(**entry) for entry in self.manifest["shards"]]

    def usable_rows(self) -> Ints:
        """Rows of `clips` that are not in quarantine, ascending."""
        if not self.quarantine:
            return np.arange(len(self), dtype=np.int64)
        bad = pc.is_in(self.clips.column("clip_id"), pa.array(self.quarantine, pa.string()))
        return np.flatnonzero(~np.asarray(bad)).astype(np.int64)

    def table(self, name: str) -> pa.Table:
        """A further table of the annotations, such as "sentences" or "questions"."""
        if f"{name}.parquet" not in self.manifest["tables"]:
            known = ", ".join(Path(file).stem for file in self.manifest["tables"])
            raise ShardSetError(f"{self.path}: holds no table {name!r}; it has {known}")
        return pq.read_table(self.path / f"{name}.parquet")

    def read_video(self, row: int) -> bytes:
        """An mp4 file that holds the clip in `row` of `clips` (0-based), as stored.

        In layout "clips" the whole file, with margins; in layout "chunks" the groups of pictures that the clip lies in.
        """
        self._check_row(row)
        if self._chunk_table is None:
            return self._read(row, int(self._shard[row]), int(self._offset[row]), int(self._size[row]))
        return self.read_frames(row, np.arange(self._count[row], dtype=np.int32))[0]

    def read_frames(self, row: int, frames: Sequence[int] | Frames) -> tuple[bytes, Frames]:
        """An mp4 file that holds some frames of a clip, and their numbers in it.

        Args:
            row: of `clips`, 0-based.
            frames: ascending, distinct, 0-based from the start of the clip; up to `frames_after` past its end.

        Returns:
            bytes and int32 frame numbers, as many as `frames`.

        Raises:
            ShardSetError: frames that are not stored; a tar that is too short.
        """
        self._check_row(row)
        wanted = np.asarray(frames, np.int32)
        last = int(self._count[row] + self._after[row]) - 1
        if len(wanted) and not 0 <= wanted[0] <= wanted[-1] <= last:
            raise ShardSetError(f"{self.path}: frames {wanted[0]} to {wanted[-1]} of row {row}, which has 0 to {last}")
        if self.manifest.get("frames_for"):
            return self.read_video(row), self._places_of_chosen(row, wanted)
        wanted = (wanted + self._first[row]).astype(np.int32)
        if self._chunk_table is None or self._chunk is None:
            return self.read_video(row), wanted
        pieces, numbers = self._chunk_table.ranges(int(self._chunk[row]), wanted)
        return b"".join(self._read_piece(row, piece) for piece in pieces), numbers.astype(np.int32)

    def _places_of_chosen(self, row: int, wanted: Frames) -> Frames:
        """Where frames lie in a set made with --frames-for, which holds only those of one protocol."""
        stored = stored_of_protocol(self.clips.slice(row, 1).to_pylist()[0], self.manifest)
        places = np.searchsorted(stored, wanted)
        if not np.isin(wanted, stored).all():
            raise ShardSetError(
                f"{self.path}: holds only the frames of {self.manifest['frames_for']}, and others are asked for; "
                "evaluate with those settings, or use a shard set made without --frames-for"
            )
        return places.astype(np.int32)

    def _check_row(self, row: int) -> None:
        if not 0 <= row < len(self):
            raise ShardSetError(
                f"{self.path}: row {row} of a set of {len(self)} clips; allowed are 0 to {len(self) - 1}"
            )

    def _read_piece(self, row: int, piece: ByteRange) -> bytes:
        table = self._chunk_table
        assert table is not None
        start = int(table.offset[piece.chunk]) + piece.start
        return self._read(row, int(table.shard[piece.chunk]), start, piece.stop - piece.start)

    def _read(self, row: int, number: int, offset: int, size: int) -> bytes:
        tar = self._tar(number)  # held until it has been read from, so that eviction cannot close it
        data = os.pread(tar.descriptor, size, offset)
        if len(data) != size:
            raise ShardSetError(
                f"{self.path / shard_name(number)}: ends before the clip in row {row} "
                f"({size} bytes from {offset}); copy the file again"
            )
        return data

    def _tar(self, number: int) -> _OpenTar:
        with self._lock:
            tar = self._open.pop(number, None)
            if tar is None:
                tar = _OpenTar(self.path / shard_name(number))
            self._open[number] = tar
            if len(self._open) > MAX_OPEN_TARS:
                self._open.popitem(last=False)
            return tar

    def verify(self, *, full: bool = False) -> list[str]:
        """What is wrong with the files, one line each; empty = nothing. `full` reads every byte and compares hashes."""
        problems = []
        for shard in self.shards:
            try:
                verify_shard(self.path, shard, full=full)
            except ShardSetError as error:
                problems.append(str(error))
        for name, recorded in self.manifest["tables"].items():
            if full and file_sha256(self.path / name) != recorded:
                problems.append(f"{self.path / name}: SHA-256 is not the manifest's; copy the file again")
        return problems


def _integers(table: pa.Table, name: str) -> Ints:
    return np.asarray(table.column(name).to_numpy(), dtype=np.int64)


def clip_spans(shard_set: ShardSet, rows: Ints) -> tuple[npt.NDArray[np.float64], Ints]:
    """`lavila.data.plan.interval_frames` of some rows."""
    clips = shard_set.clips.select(["num_frames", "frames_after", "fps", "start_second", "stop_second"]).take(rows)
    stored, after, fps, start, stop = (np.asarray(clips.column(name).to_numpy()) for name in clips.schema.names)
    rule = shard_set.manifest.get("span_rule", "edges")
    return interval_frames(rule, stored=stored, after=after.astype(np.int64), fps=fps, seconds=stop - start)


def stored_of_protocol(row: Mapping[str, Any], manifest: Mapping[str, Any]) -> Frames:
    """The frames of a clip, a row of clips.parquet, that a set made with --frames-for holds: ascending, 0-based."""
    return chosen_frames(
        manifest["frames_for"],
        manifest.get("span_rule", "edges"),
        stored=row["num_frames"],
        after=row["frames_after"],
        fps=row["fps"],
        seconds=row["stop_second"] - row["start_second"],
    )


def read_quarantine(folder: Path) -> dict[str, str]:
    """clip_id -> reason, from quarantine.jsonl; empty where there is none. ShardSetError names a line that is wrong."""
    path = folder / QUARANTINE
    if not path.is_file():
        return {}
    found: dict[str, str] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            entry = json.loads(line)
            found[str(entry["clip_id"])] = str(entry["reason"])
        except (ValueError, KeyError, TypeError):
            raise ShardSetError(
                f"{path}, line {number}: not {{clip_id, shard, reason}}; run tools/inspect_shards.py --verify again"
            ) from None
    return found


def open_shard_set(folder: Path | str) -> ShardSet:
    """Open a folder that tools/shard_videos.py made.

    Reads the manifest and clips.parquet and compares the size of every tar; `ShardSet.verify(full=True)` reads them.
    Raises ShardSetError for anything but a whole set of this format version.
    """
    path = Path(folder)
    if not path.is_dir():
        raise ShardSetError(f"{path}: no such folder; make a shard set with tools/shard_videos.py --out {path}")
    if not (path / MANIFEST).is_file():
        if (path / WORK).exists() or any(path.glob("shard-*.tar*")):
            raise ShardSetError(
                f"{path}: incomplete: it has no {MANIFEST}; run tools/shard_videos.py again with --resume"
            )
        raise ShardSetError(
            f"{path}: not a shard set: it has no {MANIFEST}; name a folder made by tools/shard_videos.py"
        )
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        found = manifest["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise ShardSetError(f"{path / MANIFEST}: not a shard set's manifest ({error}); make the set again") from error
    if found != FORMAT:
        raise ShardSetError(
            f"{path}: shard-set format {found}, supported is {FORMAT}; make the set again with this version's "
            "tools/shard_videos.py"
        )
    clips = _read_table(path / CLIPS, CLIPS_SCHEMA)
    chunks = _read_table(path / CHUNKS, CHUNKS_SCHEMA) if manifest.get("layout") == "chunks" else None
    if clips.num_rows != manifest["clips"]:
        raise ShardSetError(f"{path / CLIPS}: not the table the manifest was written for; copy both again")
    shard_set = ShardSet(path, manifest, clips, chunks)
    for shard in shard_set.shards:
        verify_shard(path, shard, full=False)
    return shard_set


def _read_table(path: Path, schema: pa.Schema) -> pa.Table:
    if not path.is_file():
        raise ShardSetError(f"{path}: missing; copy it again, or make the set again")
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise ShardSetError(f"{path}: not readable ({error}); copy it again") from error
    if table.schema.names != schema.names:
        raise ShardSetError(f"{path}: not the table the manifest was written for; copy both again")
    return table
