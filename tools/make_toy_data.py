"""Makes what `--config toy` reads: the sample dataset in every published form, small, as shard sets below data/toy.

    python tools/make_toy_data.py
    python train.py --config ek100_mir_tsf_b --config toy

Every step is one of the commands that one would type for real data; each is shown before it runs. What is there
already is kept. Takes about a minute.
"""

from __future__ import annotations

if __name__ == "__main__":
    from lavila.interrupts import end_early, run_main

    end_early()

import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from lavila.arguments import parser_of
from lavila.files import user_path
from lavila.sample import ego4d
from lavila.sample.forms import FORMS

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = {"ek100": "ek100"}  # where a form's shard sets are not in a folder with the name of the dataset
CAPTIONS = {"rephrased": ego4d.REPHRASED, "narrated": ego4d.NARRATED}  # table -> pickle
QUICK = ["--codec", "h264", "--speed", "superfast", "--short-side", "64", "--fps", "15"]
SOURCES = {"rephrased": "rephrased", "narrated": "machine"}


def commands(out: Path) -> list[tuple[Path, list[str]]]:
    """What each command makes, and the command: a script of tools/ and its arguments."""
    source = out / "source"
    size = ["--train-clips", "16", "--val-clips", "16", "--videos", "4", "--height", "64"]
    sample = ["make_sample_dataset.py", "--footage", str(ROOT / "assets/bigbuckbunny.mp4"), "--out", str(source), *size]
    made: list[tuple[Path, list[str]]] = [(source, [*sample, "--form", *FORMS])]
    for name, form in FORMS.items():
        for split in form.splits:
            target = out / FOLDERS.get(name, form.dataset) / "shards" / split
            command = ["shard_videos.py", "--dataset", form.dataset, "--split", split, "--out", str(target)]
            command += ["--annotations", f"{source}/{form.annotations}", "--videos", f"{source}/{form.videos}"]
            made.append((target, [*command, *QUICK]))
    for table, file in CAPTIONS.items():
        target = out / "ego4d" / f"{table}.parquet"
        command = ["make_captions.py", "--ego4d", f"{source}/{ego4d.FOLDER}/{file}", "--out", str(target)]
        made.append((target, [*command, "--source", SOURCES[table], "--shards", f"{out}/ego4d/shards/train"]))
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    parser = parser_of(__doc__)
    parser.add_argument("--out", type=user_path, default=Path("data/toy"), metavar="DIR", help="default %(default)s")
    out = parser.parse_args(arguments).out
    for target, command in commands(out):
        if target.exists():
            continue
        print(f"\n$ python tools/{shlex.join(command)}", flush=True)
        script, *rest = command
        done = subprocess.run([sys.executable, str(ROOT / "tools" / script), *rest], check=False)
        if done.returncode:
            print(f"make_toy_data stopped: {target} could not be made; see above", file=sys.stderr)
            return done.returncode
    print(f"\nAll there, in {out}. Next: python train.py --config ek100_mir_tsf_b --config toy")
    return 0


if __name__ == "__main__":
    run_main(main)
