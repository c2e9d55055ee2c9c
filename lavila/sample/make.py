"""Plans a sample dataset and writes it, whole or not at all."""

from __future__ import annotations

import argparse
import json
import os
import shutil
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from lavila.sample.camera import STRETCH, VERBS, Between, SampleError, Source, Video, draw_moves
from lavila.sample.files import Sample, gather
from lavila.sample.forms import FORMS, with_needed
from lavila.sample.render import render_all

FORMAT = 1  # raise this number when the same arguments give other bytes
RATES = (Fraction(50), Fraction(60000, 1001))  # frame rates, which alternate from video to video
TRAIN_PART, VAL_PART = (0.0, 0.70), (0.75, 1.0)  # shares of the footage; the gap keeps the moments apart
CHUNK_SECONDS = 300
MANIFEST = "sample_dataset.json"


def plan_videos(
    sources: list[Source],
    *,
    clips: dict[str, int],
    videos: int,
    height: int,
    seed: int,
    fps: int = 0,
    between: Between = "glide",
) -> list[Video]:
    """Every video with all its moves. Only the seed decides them.

    clips: split -> number of moves. fps: frame rate of every video; 0 = those of EPIC-KITCHENS in turn.
    """
    rates = (Fraction(fps),) if fps else RATES
    if videos < 2 * len(sources) or min(clips.values()) < videos:
        raise SampleError(
            f"--videos {videos} with {clips['train']} training and {clips['val']} validation clips of {len(sources)} "
            f"pieces of footage: needs at least {2 * len(sources)} videos and a clip of each split for each"
        )
    val_videos = max(len(sources), round(videos * clips["val"] / sum(clips.values())))
    counts = {"train": videos - val_videos, "val": val_videos}
    planned: list[Video] = []
    for split, part in (("train", TRAIN_PART), ("val", VAL_PART)):
        for index, source in enumerate(sources):
            rng = np.random.default_rng([seed, index, split == "val"])
            own_videos = _share(counts[split], len(sources), index)
            # Clips spread evenly over verbs, and almost evenly over pairs of verb and scene.
            own_clips = _share(clips[split], len(sources), index)
            scenes, verbs = len(source.scenes), len(VERBS)
            pairs = [(k % verbs, (k % verbs + k // verbs) % scenes) for k in range(own_clips)]
            shuffled = [pairs[k] for k in rng.permutation(own_clips)]
            for number in range(own_videos):
                start, stop = int(source.frames * part[0]), int(source.frames * part[1])
                first = int(rng.integers(start, max(start, stop - STRETCH) + 1))
                length = min(stop - first, STRETCH)
                made = sum(video.source is source for video in planned)
                planned.append(
                    Video(
                        split=split,
                        participant=f"P{index + 1:02}",
                        video_id=f"P{index + 1:02}_{made + 1:02}",
                        source=source,
                        fps=rates[number % len(rates)],
                        height=height,
                        first=first,
                        stop=first + length,
                        phase=int(rng.integers(2 * length)),
                        moves=draw_moves(rng, shuffled[number::own_videos], source),
                        between=between,
                    )
                )
    return planned


def _share(total: int, parts: int, index: int) -> int:
    """The size of part `index` if `total` things are dealt to `parts` parts in turn."""
    return total // parts + (index < total % parts)


def describe(sources: list[Source], asked: argparse.Namespace) -> dict[str, Any]:
    """Everything that decides the data set. Two runs with equal descriptions give the same bytes."""
    footage = [
        {"file": s.path.name, "sha256": s.sha256, "scenes": {k: [*v] for k, v in s.scenes.items()}} for s in sources
    ]
    described = {name: getattr(asked, name) for name in ("train_clips", "val_clips", "videos", "height", "seed")}
    forms = with_needed(asked.form)
    if forms != ["ek100"]:  # older manifests do not name this default
        described["form"] = forms
    if asked.fps:
        described["fps"] = asked.fps
    if asked.between != "glide":
        described["between"] = asked.between
    if "ego4d" in forms:
        described["chunk_seconds"] = asked.chunk_seconds
    return {"format": FORMAT, **described, "footage": footage}


def already_there(out: Path, arguments: dict[str, Any]) -> bool:
    """Whether `out` holds this data set, whole. Raises SampleError if it holds anything else."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    remedy = "remove it, or give another --out"
    try:
        manifest = json.loads((out / MANIFEST).read_text(encoding="utf-8"))
        found, files = dict(manifest["arguments"]), dict(manifest["files"])
    except (OSError, ValueError, KeyError, TypeError):
        raise SampleError(f"{out}: exists and is no sample dataset (no readable {MANIFEST}); {remedy}") from None
    differ = [name for name in {**arguments, **found} if found.get(name) != arguments.get(name)]
    if differ:
        raise SampleError(f"{out}: holds a sample dataset made with another {', '.join(differ)}; {remedy}")
    for name, size in files.items():
        if not (out / name).is_file() or (out / name).stat().st_size != size:
            raise SampleError(f"{out}: {name} is missing or changed; {remedy}")
    return True


def make(sample: Sample, out: Path, arguments: dict[str, Any], *, forms: list[str], workers: int) -> None:
    """Write everything into a folder beside `out`, and rename that folder when it is whole."""
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.partial-{os.getpid()}")
    try:
        partial.mkdir()
        for form in forms:
            FORMS[form].write(sample, partial)
        renderings = gather(shown for form in forms for shown in FORMS[form].files(sample))
        render_all(renderings, partial, workers=min(workers, len(renderings)))
        sizes = {str(p.relative_to(partial)): p.stat().st_size for p in sorted(partial.rglob("*")) if p.is_file()}
        manifest = json.dumps({"arguments": arguments, "files": sizes}, indent=1)
        (partial / MANIFEST).write_text(manifest + "\n", encoding="utf-8")
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
