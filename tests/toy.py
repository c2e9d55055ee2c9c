"""The datasets that `--config toy` reads, made by the commands of tools/make_toy_data.py in this process."""

from __future__ import annotations

from pathlib import Path

import make_captions
import make_sample_dataset
import make_toy_data
import shard_videos

from lavila.sample.forms import FORMS

FOOTAGE = Path(__file__).resolve().parents[1] / "assets/bigbuckbunny.mp4"
CLIPS = {"train": 8, "val": 12}  # of EVERY_FORM
EVERY_FORM = [
    "--footage", str(FOOTAGE), "--train-clips", str(CLIPS["train"]), "--val-clips", str(CLIPS["val"]), "--videos", "4",
    "--height", "64", "--chunk-seconds", "2", "--form", *FORMS,
]  # fmt: skip
MAINS = {
    "make_sample_dataset.py": make_sample_dataset.main,
    "shard_videos.py": shard_videos.main,
    "make_captions.py": make_captions.main,
}


def make_toy_datasets(out: Path) -> Path:
    """All of them below `out`. Takes 20 s of one core, most of it in the processes that code the clips."""
    for target, (script, *arguments) in make_toy_data.commands(out):
        assert MAINS[script](arguments) == 0, script
        assert target.exists()
    return out
