"""Whether decoding for training became slower: the host path of this tree beside that of an earlier commit.

    python -m benchmarks.loader_against REVISION [--codec vp9] [--seconds 3] [--rounds 7] [--same-set]

Each tree stores the clips of the loader benchmark with its own tool and default settings, and decodes the frames of
their training plans, 16 a clip: what lavila.data.host.decode does of a step, without drawing. --same-set lets both
decode the set of the earlier commit. Each tree runs in its own process, with this environment's packages. The two take
turns clip by clip, so other work on the machine meets both alike. Times are CPU time of one thread. The ratio is the
median over all pairs.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

CLIPS = 32
VIDEO_SECONDS = 60  # of each video that the clips are cut from, at least


def serve(folder: Path) -> None:
    """Decode the clip of each number that stands in a line of standard input; answer with its milliseconds."""
    from lavila.data.host.decode import decode_planes
    from lavila.data.loader import clip_sizes
    from lavila.plan.crops import CropChoice
    from lavila.plan.frames import FrameChoice
    from lavila.plan.plans import Ranks, TrainingPlan
    from lavila.shards.reader import open_shard_set

    shards = open_shard_set(folder)
    choice = {"frames": FrameChoice(frames=16), "crop": CropChoice(size=224, flip=0.0)}
    plan = TrainingPlan(clip_sizes(shards), **choice, batch_size=4, seed=0, ranks=Ranks())  # type: ignore[arg-type]
    clips = [
        shards.read_frames(one.row, one.distinct_frames()) for step in range(plan.steps) for one in plan.batch(0, step)
    ]

    def decode(number: int) -> float:
        began = time.process_time()
        for _ in decode_planes(*clips[number]):
            pass
        return 1000 * (time.process_time() - began)

    for number in range(len(clips)):
        decode(number)  # once, to compile and to touch memory
    print(len(clips), flush=True)
    for line in sys.stdin:
        print(decode(int(line)), flush=True)


def server(tree: Path, folder: Path) -> tuple[Callable[[int], float], int]:
    """What decodes a clip of a set with the code of a tree, and how many clips there are."""
    command = [sys.executable, str(Path(__file__).resolve()), "--serve", str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    process = subprocess.Popen(
        command, cwd=tree, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None and process.stdout is not None
    ask, answer = process.stdin, process.stdout

    def milliseconds(number: int) -> float:
        print(number, file=ask, flush=True)
        return float(answer.readline())

    return milliseconds, int(answer.readline())


def stored(tree: Path, material: Path, codec: str, seconds: int) -> Path:
    """The set that the tool of a tree makes of the material."""
    from benchmarks.loader.footage import shard_command

    out = material / f"{tree.name}-{codec}-{seconds}s"
    command = shard_command(material / f"annotations-{seconds}s", material / "videos", out, codec, seconds)
    quiet = {**os.environ, "PYTHONPATH": str(tree), "TQDM_DISABLE": "1"}
    subprocess.run(command, cwd=tree, check=True, env=quiet, stdout=subprocess.DEVNULL)
    return out


def size(folder: Path) -> float:
    """Bytes of a set's tars, in MB."""
    return sum(path.stat().st_size for path in folder.glob("*.tar")) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("revision", help="the commit to compare with, as git knows it")
    parser.add_argument("--codec", default="vp9", help="vp9, h264, hevc or av1 (vp9)")
    parser.add_argument("--seconds", type=int, default=3, help="of each clip (3)")
    parser.add_argument("--rounds", type=int, default=7, help="times that each clip is decoded (7)")
    parser.add_argument("--same-set", action="store_true", help="both trees decode the set of the earlier commit")
    args = parser.parse_args()
    from benchmarks.common import ROOT, earlier_tree
    from benchmarks.loader.footage import Material

    with tempfile.TemporaryDirectory() as name:
        before = earlier_tree(args.revision, Path(name) / "before")
        footage = max(VIDEO_SECONDS, 2 * args.seconds)
        material = Material(folder=Path(name), video_seconds=footage, clips={args.seconds: CLIPS})
        material.make_sources()
        material.write_annotations(args.seconds)
        sets = [stored(before, material.folder, args.codec, args.seconds)]
        sets.append(sets[0] if args.same_set else stored(ROOT, material.folder, args.codec, args.seconds))
        sides = [server(tree, folder) for tree, folder in zip((before, ROOT), sets, strict=True)]
        pairs: list[tuple[float, float]] = []
        for turn in range(args.rounds):
            for clip in range(sides[0][1]):
                order = (0, 1) if (turn + clip) % 2 else (1, 0)
                found = {side: sides[side][0](clip) for side in order}
                pairs.append((found[0], found[1]))
        old, new = (statistics.median(one) for one in zip(*pairs, strict=True))
        ratio = statistics.median(a / b for a, b in pairs)
        print(
            f"16 frames of {args.seconds} s, {args.codec}: {old:.1f} ms before ({size(sets[0]):.2f} MB), {new:.1f} ms "
            f"now ({size(sets[1]):.2f} MB), {ratio:.2f} times as fast"
        )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(Path(sys.argv[2]))
    else:
        main()
