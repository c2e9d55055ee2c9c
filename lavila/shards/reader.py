"""Reads a shard set: its tables and the bytes of a clip's frames. Also checks that its files are sound."""

from __future__ import annotations

import json
import logging
import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lavila.files import user_path
from lavila.plan.frames import chosen_frames
from lavila.records import Frames, Ints
from lavila.shards.chunks import ByteRange, ChunkTable
from lavila.shards.format import (
    ADDING,
    CHUNKS,
    CLIPS,
    FORMAT,
    QUARANTINE,
    DamagedClip,
    ShardFile,
    ShardSetError,
    UnreadableClip,
    file_sha256,
    read_manifest,
    schema_of,
    shard_name,
    verify_shard,
)
from lavila.shards.mapped import Column, check_unchanged, mapped_path, mapped_problem, open_mapped
from lavila.shards.packets import packet_problem
from lavila.shards.tars import Tars

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Patience:
    """What reading a shard set puts up with."""

    read_seconds: float = 120.0  # how long a read may take
    missing_clips: int = 0  # the largest number of clips whose tars may be missing when the set is opened


STRICT = Patience()


class ShardSet:
    """A whole shard set, opened for reading. Safe to use from many threads. Its pickle holds its paths only."""

    path: Path
    manifest: dict[str, Any]
    clips: pa.Table  # columns as in CLIPS_SCHEMA, one row per clip; without checksums in sets of format 2
    chunks: pa.Table | None  # columns as in CHUNKS_SCHEMA, one row per chunk; None in layout "clips"
    quarantine: dict[str, str]  # clip_id -> the reason why training and evaluation leave the clip out

    def __init__(
        self,
        path: Path,
        manifest: dict[str, Any],
        clips: pa.Table,
        chunks: pa.Table | None,
        *,
        quarantine: str = "",
        patience: Patience = STRICT,
    ) -> None:
        self.path, self.manifest, self.clips, self.chunks = path, manifest, clips, chunks
        self.quarantine = read_quarantine(path / QUARANTINE)
        self._further, self._patience = quarantine, patience
        if quarantine:
            file = user_path(quarantine)
            if not file.is_file():
                raise ShardSetError(f"quarantine {file}: no such file; give one of inspect_shards.py --quarantine")
            self.quarantine |= read_quarantine(file)
        self._shard, self._offset, self._size = (Column(clips, name) for name in ("shard", "offset", "size"))
        self._first, self._count = Column(clips, "first_frame"), Column(clips, "num_frames")
        self._after = Column(clips, "frames_after")
        self._height, self._width = Column(clips, "height"), Column(clips, "width")
        self._crc32 = Column(clips, "crc32") if self.has_checksums else None
        self._chunk_table = None if chunks is None else ChunkTable(chunks)
        self._chunk = None if chunks is None else Column(clips, "chunk", null=-1)
        sizes = {entry["name"]: entry["bytes"] for entry in manifest["shards"]}
        self._tars = Tars(path, sizes=sizes, seconds=patience.read_seconds, other_size=self.has_checksums)

    def __len__(self) -> int:
        return int(self.clips.num_rows)

    def __reduce__(self) -> tuple[Callable[[Path, str, Patience], ShardSet], tuple[Path, str, Patience]]:
        return _open_again, (self.path, self._further, self._patience)

    @property
    def codec(self) -> str:
        """vp9, h264, hevc or av1."""
        return str(self.manifest["encoder"]["codec"])

    @property
    def has_checksums(self) -> bool:
        """Whether the tables hold a checksum of everything that is read. In format 2 they do not."""
        return bool(self.manifest["format"] >= FORMAT)

    @property
    def classes(self) -> dict[str, list[str]]:
        """Kind of label ("verb", "noun", "action", "labels") -> name of each class, by class index."""
        return dict(self.manifest["classes"])

    @property
    def shards(self) -> list[ShardFile]:
        """The tars, as the manifest lists them."""
        return [ShardFile(**entry) for entry in self.manifest["shards"]]

    @property
    def stored_bytes(self) -> int:
        """The bytes of all tars."""
        return sum(entry.bytes for entry in self.shards)

    def quarantined_rows(self) -> Ints:
        """The rows of `clips` in quarantine, ascending. Reads all clip ids if there is a quarantine."""
        if not self.quarantine:
            return np.zeros(0, np.int64)
        bad = pc.is_in(self.clips.column("clip_id"), pa.array(self.quarantine, pa.string()))
        return np.flatnonzero(np.asarray(bad)).astype(np.int64)

    def usable_rows(self) -> Ints:
        """The rows of `clips` that are not in quarantine, ascending."""
        return np.delete(np.arange(len(self), dtype=np.int64), self.quarantined_rows())

    def table(self, name: str) -> pa.Table:
        """Another table of the annotations, such as "sentences" or "questions"."""
        if f"{name}.parquet" not in self.manifest["tables"]:
            known = ", ".join(Path(file).stem for file in self.manifest["tables"])
            raise ShardSetError(f"{self.path}: holds no table {name!r}; it has {known}")
        return pq.read_table(self.path / f"{name}.parquet")

    def read_video(self, row: int) -> bytes:
        """An mp4 file that holds the clip in `row` of `clips` (0-based), as stored.

        In layout "clips" it is the whole file, with margins. In layout "chunks" it is made of the groups of pictures
        that hold the clip. Raises as in `read_frames`.
        """
        self._check_row(row)
        if self._chunk_table is None:
            data = self._read(row, self._shard[row], self._offset[row], self._size[row])
            self._check_clip(row, data)
            return data
        return self.read_frames(row, np.arange(self._count[row], dtype=np.int32))[0]

    def read_frames(self, row: int, frames: Sequence[int] | Frames) -> tuple[bytes, Frames]:
        """An mp4 file that holds the given frames of a clip, and their numbers in it.

        Args:
            row: row of `clips`, 0-based.
            frames: ascending, distinct, 0-based from the start of the clip, and at most `frames_after` past its end.

        Returns:
            bytes, and an int32 number for each of `frames`.

        Raises:
            DamagedClip: the bytes are not those that were stored. The checksum shows it; in a set without checksums,
                the packets that a demuxer finds.
            UnreadableClip: the tar is missing, too short, cannot be read after READ_PAUSES, or hangs.
            ShardSetError: the frames are not stored.
        """
        self._check_row(row)
        wanted = np.asarray(frames, np.int32)
        last = self._count[row] + self._after[row] - 1
        if len(wanted) and not 0 <= wanted[0] <= wanted[-1] <= last:
            raise ShardSetError(f"{self.path}: frames {wanted[0]} to {wanted[-1]} of row {row}, which has 0 to {last}")
        if self.manifest.get("frames_for"):
            return self.read_video(row), self._places_of_chosen(row, wanted)
        wanted = (wanted + self._first[row]).astype(np.int32)  # numbers in the clip -> numbers in the stored video
        if self._chunk_table is None or self._chunk is None:
            return self.read_video(row), wanted
        pieces, numbers = self._chunk_table.ranges(self._chunk[row], wanted)
        data = b"".join(self._read_piece(row, piece) for piece in pieces)
        if not self.has_checksums:
            chunk, frames_read = self._chunk[row], sum(piece.frames for piece in pieces)
            shape = {"height": self._chunk_table.height[chunk], "width": self._chunk_table.width[chunk]}
            self._check_packets(row, data, frames=frames_read, **shape)
        return data, numbers.astype(np.int32)

    def read_ahead(self, first: int, last: int) -> None:
        """Ask the system to read the videos from row `first` to row `last` into its cache. Does not wait.

        It works for rows that are stored one after another, as in a training set. Other rows are left alone.
        """
        tars = range(self._shard[first], self._shard[last] + 1)
        stop = self._offset[last] + self._size[last]
        for number in tars if len(tars) <= 2 else ():
            begin = self._offset[first] if number == tars[0] else 0
            self._tars.read_ahead(number, begin, stop if number == tars[-1] else None)

    def rest(self) -> None:
        """End the threads that wait for something to read. The next read starts them again."""
        self._tars.rest()

    def _places_of_chosen(self, row: int, wanted: Frames) -> Frames:
        """The numbers of frames in a set made with --frames-for, which holds only the frames of one protocol."""
        stored = stored_of_protocol(self.clips.slice(row, 1).to_pylist()[0], self.manifest)
        places = np.searchsorted(stored, wanted)
        if not np.isin(wanted, stored).all():
            raise ShardSetError(
                f"{self.path}: holds only the frames of {self.manifest['frames_for']}, and others are needed; "
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
        number, offset = table.shard[piece.chunk], table.offset[piece.chunk]
        data = self._read(row, number, offset + piece.start, piece.stop - piece.start)
        damaged = table.damaged(piece, data)
        if damaged is not None:
            raise DamagedClip(wrong_checksum(number, offset + damaged[0], damaged[1] - damaged[0]))
        return data

    def _check_clip(self, row: int, data: bytes) -> None:
        """Raise DamagedClip if the mp4 of a row of layout "clips" is not the one that was stored."""
        if self._crc32 is None:
            stored = self._first[row] + self._count[row] + self._after[row]
            if self.manifest.get("frames_for"):
                stored = len(stored_of_protocol(self.clips.slice(row, 1).to_pylist()[0], self.manifest))
            self._check_packets(row, data, frames=stored, height=self._height[row], width=self._width[row])
        elif zlib.crc32(data) != self._crc32[row]:
            raise DamagedClip(wrong_checksum(self._shard[row], self._offset[row], len(data)))

    def _check_packets(self, row: int, data: bytes, *, frames: int, height: int, width: int) -> None:
        problem = packet_problem(data, frames=frames, height=height, width=width)
        if problem is not None:
            raise DamagedClip(f"damaged in {shard_name(self._shard[row])}: {problem}; copy the tar again")

    def _read(self, row: int, number: int, offset: int, size: int) -> bytes:
        data = self._tars.read(number, offset, size)
        if len(data) != size:
            raise UnreadableClip(
                f"{self.path / shard_name(number)}: ends before the clip in row {row} "
                f"({size} bytes from {offset}); copy the file again"
            )
        return data

    def verify(self, *, full: bool = False) -> list[str]:
        """The problems of the files, one line each; empty = none. `full` reads every byte and compares hashes.

        Opening a set looks only for the names of its files, and a tar's size is compared when it is first read. Network
        storage would need long to answer for ten thousand files. This method compares all sizes.
        """
        problems = []
        for shard in self.shards:
            try:
                verify_shard(self.path, shard, full=full)
            except ShardSetError as error:
                problems.append(str(error))
        return problems + (table_problems(self) if full else [])


def index_name(tar: str) -> str:
    """The file name of the index that goes with a tar."""
    return f"{tar.removesuffix('.tar')}.idx"


def wrong_checksum(tar: int, start: int, size: int) -> str:
    """The reason why a clip is bad whose `size` bytes from `start` of a tar have a wrong checksum."""
    return (
        f"damaged on the disk: {size} bytes from {start} of {shard_name(tar)} do not have the checksum on record; "
        "copy the tar again"
    )


def table_problems(shard_set: ShardSet) -> list[str]:
    """The tables that are not those of the manifest, one line each. Reads all tables."""
    folder, manifest = shard_set.path, shard_set.manifest
    mapped = manifest.get("mapped", {})
    problems = [
        f"{folder / name}: SHA-256 is not the manifest's; copy the file again"
        for name, recorded in {**manifest["tables"], **mapped}.items()
        if file_sha256(folder / name) != recorded
    ]
    pairs = [folder / name for name in manifest["tables"] if mapped_path(folder / name).name in mapped]
    return problems + [problem for problem in map(mapped_problem, pairs) if problem is not None]


def stored_of_protocol(row: Mapping[str, Any], manifest: Mapping[str, Any]) -> Frames:
    """The frames of a clip in a set made with --frames-for, ascending, 0-based.

    `row`: the clip's row of clips.parquet.
    """
    return chosen_frames(
        manifest["frames_for"],
        manifest.get("span_rule", "edges"),
        stored=row["num_frames"],
        after=row["frames_after"],
        fps=row["fps"],
        seconds=row["stop_second"] - row["start_second"],
    )


def read_quarantine(path: Path) -> dict[str, str]:
    """clip_id -> reason, from a quarantine.jsonl; empty if there is no such file. ShardSetError names a wrong line."""
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


def _open_again(folder: Path, quarantine: str, patience: Patience) -> ShardSet:
    return open_shard_set(folder, quarantine=quarantine, patience=patience)


def open_shard_set(folder: Path | str, *, quarantine: str = "", patience: Patience = STRICT) -> ShardSet:
    """Open a folder that tools/shard_videos.py made. `quarantine`: a further file of clips to leave out.

    It reads the manifest, maps the table of clips without reading it, and checks that every file exists.
    `ShardSet.verify` compares sizes, or all bytes. Raises ShardSetError for anything else than a whole set of a known
    format.
    """
    path = user_path(folder)
    manifest = read_manifest(path)
    there = {entry.name for entry in os.scandir(path)}
    if ADDING in there:
        raise ShardSetError(
            f"{path}: checksums are being added to its tables, or that was interrupted; unless it is at work now, run "
            f"tools/inspect_shards.py {path} --add-checksums again"
        )
    missing = [entry for entry in manifest["shards"] if not {entry["name"], index_name(entry["name"])} <= there]
    lost = sum(entry["clips"] for entry in missing)
    tars = [name for entry in missing for name in (entry["name"], index_name(entry["name"]))]
    needed = (*manifest["tables"], *manifest.get("mapped", ()), *(tars if lost > patience.missing_clips else ()))
    for name in needed:
        if name not in there:
            raise ShardSetError(f"{path / name}: missing; copy it again, or make the set again")
    if missing:
        names = ", ".join(entry["name"] for entry in missing)
        log.warning("%s: %d of its %d clips are missing with %s", path, lost, manifest["clips"], names)
    clips = _open_table(path, CLIPS, manifest)
    chunks = _open_table(path, CHUNKS, manifest) if manifest.get("layout") == "chunks" else None
    if clips.num_rows != manifest["clips"]:
        raise ShardSetError(
            f"{path}: table of {clips.num_rows} clips, its manifest says {manifest['clips']}; "
            "not the table the manifest was written for; copy both again"
        )
    if manifest["format"] < FORMAT:
        log.info(
            "%s: has no checksums, so the packets of each clip are counted when it is read, which takes milliseconds; "
            "tools/inspect_shards.py %s --add-checksums adds them",
            path,
            path,
        )
    return ShardSet(path, manifest, clips, chunks, quarantine=quarantine, patience=patience)


def _open_table(folder: Path, name: str, manifest: Mapping[str, Any]) -> pa.Table:
    schema = schema_of(name, manifest["format"])
    mapped = mapped_path(folder / name)
    if mapped.name in manifest.get("mapped", ()):
        found = open_mapped(mapped, schema)
        check_unchanged(found, folder / name)
        return found
    log.info(
        "%s: has no %s, so each process reads all of %s into memory; tools/inspect_shards.py %s --add-mapped adds it",
        folder,
        mapped.name,
        name,
        folder,
    )
    return _read_table(folder / name, schema)


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
