"""Shard sets of many clips in small tars, and what may happen to them after they were written."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from lavila.shards.reader import ShardSet, open_shard_set
from lavila.shards.writer import SetContents, ShardWriter, write_manifest
from tests.shard_sets import CLASSES

CLIPS, IN_A_TAR = 100, 2


def many_clips(shards: ShardSet, folder: Path) -> Path:
    """A set of CLIPS clips, IN_A_TAR in each tar. The videos of `shards` come again and again."""
    folder.mkdir()
    rows, files = [], []
    for number in range(CLIPS // IN_A_TAR):
        with ShardWriter(folder, number) as writer:
            for clip in range(number * IN_A_TAR, (number + 1) * IN_A_TAR):
                row = shards.clips.slice(clip % len(shards), 1).to_pylist()[0]
                row |= {"clip_id": f"clip_{clip}", "extra": dict(row["extra"])}
                rows.append(writer.add(f"clip_{clip}", shards.read_video(clip % len(shards)), row))
        files.append(writer.file)
    facts = {"dataset": "synthetic", "split": "train", "encoder": {"codec": shards.codec}}
    write_manifest(folder, rows=rows, shards=files, contents=SetContents(classes=CLASSES, facts=facts))
    return folder


@dataclass(frozen=True)
class Damage:
    """What was done to five clips in a hundred, by the row of the clip."""

    flipped: int = 4
    zeroed: int = 21
    cut: int = 53  # the last of its tar, which ends in the middle of it
    deleted: tuple[int, int] = (70, 71)  # all clips of a tar

    @property
    def rows(self) -> set[int]:
        return {self.flipped, self.zeroed, self.cut, *self.deleted}

    def do(self, whole: Path, folder: Path) -> Path:
        """A copy of a set of `many_clips` with this damage."""
        shutil.copytree(whole, folder)
        clips = open_shard_set(whole).clips.select(["shard", "offset", "size"]).to_pylist()

        def tar(row: int) -> Path:
            return folder / f"shard-{clips[row]['shard']:06d}.tar"

        with tar(self.flipped).open("r+b") as file:
            file.seek(clips[self.flipped]["offset"] + clips[self.flipped]["size"] // 2)
            byte = file.read(1)[0]
            file.seek(-1, 1)
            file.write(bytes([byte ^ 0x10]))
        with tar(self.zeroed).open("r+b") as file:
            file.seek(clips[self.zeroed]["offset"] + 100)
            file.write(bytes(clips[self.zeroed]["size"] - 200))
        with tar(self.cut).open("r+b") as file:
            file.truncate(clips[self.cut]["offset"] + clips[self.cut]["size"] // 2)
        tar(self.deleted[0]).unlink()
        return folder
