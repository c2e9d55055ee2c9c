"""Makes a small video dataset, in the published form of EPIC-KITCHENS-100 or of others, out of any footage.

A camera moves over the footage: it pans, tilts, zooms, rolls or holds still, one annotated
move after another, with short unannotated glides between them. The verb of a clip is the
move, the noun is the scene it looks at. No single frame tells the verb, and training and
validation videos play different moments of the footage. The same arguments give the same bytes.

    python tools/make_sample_dataset.py --footage assets/bigbuckbunny.mp4 --out data/sample

Each --form tells of the same moves of the same videos, at the frame rate of the form.
<footage>.scenes.json beside the footage may name its scenes, as fractions of the picture:
{"name": [left, top, right, bottom], ...}. Without it the scenes are the four quadrants.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from _sample_camera import STRETCH, VERBS, SampleError, Source, Video, draw_moves, read_source
from _sample_forms import FORMS, commands, with_needed
from _sample_render import Sample, gather, render_all

FORMAT = 1  # raise when the same arguments begin to give other bytes
RATES = (Fraction(50), Fraction(60000, 1001))  # videos take turns
TRAIN_PART, VAL_PART = (0.0, 0.70), (0.75, 1.0)  # of the footage's frames; the gap keeps the moments apart
CHUNK_SECONDS = 300
MANIFEST = "sample_dataset.json"


def plan_videos(sources: list[Source], *, clips: dict[str, int], videos: int, height: int, seed: int) -> list[Video]:
    """Every video with all its moves, decided by the seed alone. `clips` is the number of moves per split."""
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
            # Any number of clips spreads evenly over verbs, and nearly so over verb-scene pairs.
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
                        fps=RATES[number % 2],
                        height=height,
                        first=first,
                        stop=first + length,
                        phase=int(rng.integers(2 * length)),
                        moves=draw_moves(rng, shuffled[number::own_videos], source),
                    )
                )
    return planned


def _share(total: int, parts: int, index: int) -> int:
    """Size of part `index` when `total` things are dealt out in turn."""
    return total // parts + (index < total % parts)


def describe(sources: list[Source], asked: argparse.Namespace) -> dict[str, Any]:
    """What decides the data set: two runs with equal descriptions give the same bytes."""
    footage = [
        {"file": s.path.name, "sha256": s.sha256, "scenes": {k: [*v] for k, v in s.scenes.items()}} for s in sources
    ]
    described = {name: getattr(asked, name) for name in ("train_clips", "val_clips", "videos", "height", "seed")}
    forms = with_needed(asked.form)
    if forms != ["ek100"]:  # a default that older manifests do not name
        described["form"] = forms
    if "ego4d" in forms:
        described["chunk_seconds"] = asked.chunk_seconds
    return {"format": FORMAT, **described, "footage": footage}


def already_there(out: Path, arguments: dict[str, Any]) -> bool:
    """Whether `out` holds just this data set, whole. Raises SampleError if it holds anything else."""
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
    """Write everything beside `out` and rename it when whole."""
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


def report(videos: list[Video], out: Path, message: str, *, forms: list[str]) -> None:
    """Tell what is there and what to do with it."""
    seconds = sum(video.frames / video.fps for video in videos)
    clips = {split: sum(len(v.moves) for v in videos if v.split == split) for split in ("train", "val")}
    counted = f"{clips['train']} training and {clips['val']} validation clips"
    print(f"{message}: {len(videos)} videos, {float(seconds):.0f} s, {counted}")
    print(f"in {out}. Next, store the clips:")
    for form in forms:
        print("\n".join(f"  {command}" for command in commands(form, str(out))))


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    whole, usage = (__doc__ or "").split("\n", 1)
    usage += "\nforms:\n" + "".join(f"  {name:13} {form.about}\n" for name, form in FORMS.items())
    usage += "\nto store their clips:\n" + "".join(f"  {line}\n" for name in FORMS for line in commands(name, "DIR"))
    parser = argparse.ArgumentParser(
        description=whole, epilog=usage, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--footage", type=Path, nargs="+", required=True, metavar="FILE", help="videos to move the camera over")
    add("--out", type=Path, required=True, metavar="DIR", help="folder to make; it appears only when whole")
    add("--train-clips", type=_positive, default=450, metavar="N", help="training clips (default %(default)s)")
    add("--val-clips", type=_positive, default=108, metavar="N", help="validation clips (default %(default)s)")
    add("--videos", type=_positive, default=8, metavar="N", help="videos of both splits (default %(default)s)")
    add("--seed", type=int, default=0, help="another seed gives other moves (default %(default)s)")
    add("--height", type=_height, default=256, help="of the videos, pixels; smaller is quicker (default %(default)s)")
    forms = f"any of {', '.join(FORMS)} (default ek100)"
    add("--form", nargs="+", choices=list(FORMS), default=["ek100"], metavar="FORM", help=forms)
    chunks = "length of the files in ego4d's chunk folders, s (default %(default)s, as published)"
    add("--chunk-seconds", type=_positive, default=CHUNK_SECONDS, metavar="N", help=chunks)
    cores = len(os.sched_getaffinity(0))
    add("--workers", type=_positive, default=cores, metavar="N", help="processes (default: the cores, %(default)s)")
    return parser.parse_args(arguments)


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def _height(text: str) -> int:
    if not text.isdigit() or int(text) % 2 or not 64 <= int(text) <= 1080:
        raise argparse.ArgumentTypeError(f"{text!r} is not an even number from 64 to 1080")
    return int(text)


def main(arguments: Sequence[str] | None = None) -> int:
    asked = parse_arguments(arguments)
    out = asked.out.resolve() if asked.out.name in ("", "..") else asked.out
    try:
        if asked.seed < 0:
            raise SampleError(f"--seed {asked.seed}: must not be negative; give 0 or more")
        sources = [read_source(path) for path in asked.footage]
        names = [name for source in sources for name in source.scenes]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise SampleError(f"--footage: scene {twice[0]!r} is named twice; rename it in a .scenes.json")
        clips = {"train": asked.train_clips, "val": asked.val_clips}
        videos = plan_videos(sources, clips=clips, videos=asked.videos, height=asked.height, seed=asked.seed)
        described, forms = describe(sources, asked), with_needed(asked.form)
        there = already_there(out, described)
        if not there:
            sample = Sample(videos=videos, seed=asked.seed, chunk_seconds=asked.chunk_seconds)
            make(sample, out, described, forms=forms, workers=asked.workers)
        report(videos, out, "already there" if there else "made", forms=forms)
    except SampleError as error:
        print(f"make_sample_dataset: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
