"""Takes a whole shard set apart into the records of an unfinished one, so that clips that failed can be added.

The next steps are those of a resumed run. A tar that lacks clips is made again: its clips are copied, and the missing
ones are encoded and put in their places. So the bytes are those of a run that had all videos from the start.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lavila.files import sync
from lavila.ingest.jobs import ShardJob, ShardResult, item_key, row_key
from lavila.shards.format import (
    CHECKSUMS,
    FAILURES,
    FORMAT,
    MANIFEST,
    ShardFile,
    ShardSetError,
    file_sha256,
    read_manifest,
    shard_name,
)

FAILED_CHUNKS = "failed_chunks"  # entry of the manifest, layout "chunks": id of a chunk that failed -> reason


def read_failures(out: Path) -> dict[str, str]:
    """clip_id -> reason, from failures.jsonl."""
    path = out / FAILURES
    if not path.is_file():
        return {}
    try:
        entries = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return {str(entry["clip_id"]): str(entry["reason"]) for entry in entries}
    except (ValueError, KeyError, TypeError):
        raise ShardSetError(f"{path}: not lines of {{clip_id, video, reason}}; make the set again") from None


def reopen(out: Path, jobs: Sequence[ShardJob], *, missing: Mapping[str, str]) -> None:
    """Write the record of each job's tar, and then remove the manifest.

    jobs: those of the set's annotations and settings. missing: video -> the reason why it is not there. Raises
    ShardSetError, and changes nothing, if the set is not what these jobs would make, or if a table was edited.
    """
    manifest = read_manifest(out)
    if manifest["format"] < FORMAT:
        raise ShardSetError(f"{out}: was made in format {manifest['format']}, without checksums; {_ANEW}")
    for name, recorded in manifest["tables"].items():
        if file_sha256(out / name) != recorded:
            raise ShardSetError(
                f"{out / name}: was changed after the set was made, and adding clips writes it anew from the "
                "annotations; put the change into the annotations, and make a set of them"
            )
    files = {entry["name"]: ShardFile(**entry) for entry in manifest["shards"]}
    reasons = manifest.get(FAILED_CHUNKS) if manifest.get("layout") == "chunks" else read_failures(out)
    for job in jobs:
        file = files.pop(shard_name(job.number), None)
        rows = [] if file is None else list(_rows(out, file))
        _check_fits(out, job, rows)
        stored = {row_key(row) for row in rows}
        absent = {item_key(item): item.video_path for item in job.items if item_key(item) not in stored}
        # Sets of older versions do not say which chunks failed. All that are absent are tried again.
        failed = {
            key: missing.get(video) or (reasons or {}).get(key, "could not be stored by an earlier run")
            for key, video in absent.items()
            if reasons is None or key in reasons
        }
        after_end = [key for key in absent if key not in failed]
        job.record(ShardResult(file=file, rows=rows, failures=failed, after_end=after_end))
    if files:
        raise ShardSetError(f"{out}: {next(iter(files))} holds other clips than these annotations; {_ANEW}")
    (out / MANIFEST).unlink()
    sync(out)


_ANEW = "this set cannot take further clips: make it again, with another --out"


def _check_fits(out: Path, job: ShardJob, rows: Sequence[Mapping[str, Any]]) -> None:
    """Raise ShardSetError if a tar holds something that the job would not store there."""
    own = {item_key(item) for item in job.items}
    stranger = next((row_key(row) for row in rows if row_key(row) not in own), None)
    if stranger is not None:
        # The number of chunks follows from the videos where clips last to the end of theirs.
        raise ShardSetError(f"{out / shard_name(job.number)}: with the new videos, {stranger} lies elsewhere; {_ANEW}")
    if any(not row.keys() & set(CHECKSUMS) for row in rows):
        raise ShardSetError(f"{out / shard_name(job.number)}: was made in format 2, without checksums; {_ANEW}")


def _rows(out: Path, file: ShardFile) -> Iterator[dict[str, Any]]:
    """The rows of a tar in its order, from its .json members, which the index locates."""
    path = out / file.name
    with path.open("rb") as tar:
        for line in path.with_suffix(".idx").read_text(encoding="utf-8").splitlines()[1:]:
            _, _, _, _, _, offset, size, _ = line.split(" ")
            tar.seek(int(offset))
            try:
                row = json.loads(tar.read(int(size)))
                row_key(row)
            except (ValueError, KeyError, TypeError):
                raise ShardSetError(f"{path}: its member at byte {offset} is damaged; copy the tar again") from None
            yield row
