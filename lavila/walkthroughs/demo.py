"""Something to search in, and the demo's page on it: a tiny dual encoder, and videos that it has not seen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lavila.walkthroughs import quickstart
from lavila.walkthroughs.learning import folder
from lavila.walkthroughs.quickstart import FOOTAGE
from lavila.walkthroughs.steps import Step

SOURCE, INDEX, RUNS = Path("data/demo/source"), Path("data/demo/features"), Path("runs/demo")
TRAIN_VIDEOS, VAL_VIDEOS = 1, 13  # the sample needs one of the training part, which is left out here
QUERIES = (
    "the camera zooms in on the ruins",
    "the camera pans right over the meadow",
    "the camera rotates clockwise over the woods",
)


def steps(demo: Sequence[str]) -> list[Step]:
    """All steps. demo: further options of tools/demo.py."""
    trained = folder(0, "pretraining")  # that of `make learn`
    sample = ["tools/make_sample_dataset.py", "--footage", FOOTAGE, "--out", str(SOURCE), "--seed", "1"]
    sample += ["--videos", str(TRAIN_VIDEOS + VAL_VIDEOS), "--train-clips", "14", "--val-clips", "252"]
    videos = [str(SOURCE / f"videos/P01/P01_{TRAIN_VIDEOS + 1 + number:02}.MP4") for number in range(VAL_VIDEOS)]
    command = ["tools/demo.py", "--videos", *videos, "--model", str(trained / "checkpoints"), "--index", str(INDEX)]
    command += ["--window", "1.5", "--every", "0.25", "--suggest", *QUERIES, *demo]
    return [
        *quickstart.data_steps(),
        Step("pretrain", None, ["train.py", "--config", "learn_dual", "seed=0", f"run_dir={trained}"]),
        Step("footage", SOURCE, [*sample, "--height", "240", "--fps", "25", "--between", "cut"]),
        Step("demo", None, command),
    ]
