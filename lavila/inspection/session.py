"""One inspection of a shard set: each step says what it found as text, and keeps it as plain values."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lavila.inspection.facts import describe, shard_set_facts
from lavila.inspection.verdict import verdict_text, verify
from lavila.shards.checksums import add_checksums
from lavila.shards.format import read_manifest
from lavila.shards.reader import open_shard_set


class Inspection:
    """A shard set that is looked at, step by step.

    facts: what is known, as plain JSON types. sound: whether no step found a problem.
    """

    def __init__(self, folder: Path, *, workers: int, say: Callable[[str], None], plain: bool = False) -> None:
        """Open the set and describe it.

        workers: number of processes that check; 0 = one for each core. say: gets the text of each step. plain: the
        text is ASCII. Raises ShardSetError for a folder that is no shard set.
        """
        self._shard_set, self._workers, self._say = open_shard_set(folder), workers, say
        self.facts: dict[str, Any] = shard_set_facts(self._shard_set)
        self.sound = True
        say(describe(self.facts, plain=plain))

    def verify(self, quarantine: Path | None) -> None:
        """Check every byte, decode every clip, and write the bad clips to `quarantine` or into the set."""
        if quarantine is None and not os.access(self._shard_set.path, os.W_OK):
            what = "cannot be written; what is bad is printed, and --quarantine FILE keeps it"
            sys.stderr.write(f"{self._shard_set.path}: {what}\n")
        found = verify(self._shard_set, workers=self._workers, quarantine=quarantine)
        self.sound = not found["problems"] and not found["quarantine"]
        self.facts |= {"verified": found, "quarantine": len(found["quarantine"])}
        self._say("\n" + verdict_text(self._shard_set, found))
        self._shard_set = open_shard_set(self._shard_set.path)  # with the new quarantine

    def compare(self, clips: int) -> None:
        """Compare the pictures of some clips with those of the GPU's decoder. NoNvdecError where there is none."""
        from lavila.inspection.comparison import check_nvdec, compare  # they need DALI

        check_nvdec(self._shard_set)
        with tqdm(total=clips, unit="clip", desc="nvdec against the CPU", dynamic_ncols=True) as bar:
            compared = compare(self._shard_set, "nvdec", clips=clips, on_clip=bar.update)
        self.sound = self.sound and not compared.differing
        self.facts["nvdec"] = compared.as_json()
        self._say("\n" + compared.text)

    def preview(self, clips: int, out: Path) -> None:
        """Draw a contact sheet of some clips into the file `out`."""
        from lavila.inspection.preview import write_preview

        width, height = write_preview(self._shard_set, clips, out)
        self.facts["preview"] = {"path": str(out), "width": width, "height": height}
        self._say(f"\ncontact sheet: {out} ({width}x{height} pixels)")


def add_missing_checksums(folder: Path, *, threads: int) -> list[str]:
    """Add checksums to a set, with a bar of the bytes that are read. Returns the names of the files it wrote.

    threads: 0 = one for each core. Raises ShardSetError where a tar is not as the manifest says.
    """
    total = sum(entry["bytes"] for entry in read_manifest(folder)["shards"])
    with tqdm(total=total, unit="B", unit_scale=True, desc="tars", dynamic_ncols=True) as bar:
        return add_checksums(folder, threads=threads or len(os.sched_getaffinity(0)), on_progress=bar.update)
