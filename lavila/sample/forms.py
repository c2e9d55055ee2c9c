"""The published forms of the sample dataset, and the commands that make each a shard set."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lavila.sample import annotations as ek100
from lavila.sample import charades as charades_ego
from lavila.sample import ego4d, egtea
from lavila.sample.camera import Video
from lavila.sample.files import Sample, VideoFile


def _no_files(sample: Sample) -> Iterator[tuple[Video, VideoFile]]:
    return iter(())


@dataclass(frozen=True, kw_only=True)
class Form:
    """One form.

    tools/shard_videos.py reads `annotations` and `videos`, which are paths in the folder of the data set.
    """

    dataset: str  # its name for tools/shard_videos.py
    about: str
    write: Callable[[Sample, Path], None]  # writes the annotation files into the folder of the data set
    annotations: str
    videos: str
    files: Callable[[Sample], Iterator[tuple[Video, VideoFile]]] = _no_files  # the files to render, each with its video
    needs: str = ""  # the form whose videos this one shares
    splits: tuple[str, ...] = ("train", "val")
    shards: str = "{dataset}/{split}"  # the folder of its shard sets


FORMS = {
    "ek100": Form(
        dataset="ek100_cls",
        about="EPIC-KITCHENS-100's csv files, for action recognition and retrieval",
        write=ek100.write,
        files=ek100.files,
        annotations="annotations",
        videos="videos",
        shards="{split}",
    ),
    "ek100_mir": Form(
        dataset="ek100_mir",
        about="the same with the relevancy pickles of multi-instance retrieval",
        write=ek100.write_relevancy,
        needs="ek100",
        annotations="annotations",
        videos="videos",
    ),
    "ego4d": Form(
        dataset="ego4d",
        about="Ego4D in LaViLa's pickles; whole videos, and chunk folders (video_chunks); 30 frames per second",
        write=ego4d.write,
        files=ego4d.files,
        annotations=ego4d.FOLDER,
        videos=ego4d.WHOLE,
    ),
    "egomcq": Form(
        dataset="egomcq",
        about="EgoMCQ's questions about ego4d's validation videos",
        write=ego4d.write_questions,
        needs="ego4d",
        splits=("val",),
        annotations=f"{ego4d.FOLDER}/{ego4d.QUESTIONS}",
        videos=ego4d.WHOLE,
    ),
    "egtea": Form(
        dataset="egtea",
        about="EGTEA Gaze+, trimmed clips; 24 frames per second",
        write=egtea.write,
        files=egtea.files,
        annotations=egtea.FOLDER,
        videos=egtea.CLIPS,
    ),
    "charades_ego": Form(
        dataset="charades_ego",
        about="Charades-Ego, several actions a video; 30 frames per second",
        write=charades_ego.write,
        files=charades_ego.files,
        annotations=charades_ego.ANNOTATIONS,
        videos=charades_ego.VIDEOS,
    ),
}


def with_needed(names: Sequence[str]) -> list[str]:
    """The named forms and those that they need, each once, in the order of `FORMS`."""
    wanted = {*names, *(FORMS[name].needs for name in names)}
    return [name for name in FORMS if name in wanted]


def commands(name: str, out: str) -> list[str]:
    """The commands that make shard sets from a form of the data set in `out`."""
    form = FORMS[name]
    return [
        f"python tools/shard_videos.py --dataset {form.dataset} --split {split} --annotations {out}/{form.annotations} "
        f"--videos {out}/{form.videos} --out {out}-shards/{form.shards.format(dataset=form.dataset, split=split)}"
        for split in form.splits
    ]
