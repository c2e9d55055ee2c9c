"""The whole way at once: sample dataset, shards, training, evaluation, report. What other walkthroughs begin with."""

from __future__ import annotations

from pathlib import Path

from lavila.walkthroughs.steps import Step

SOURCE, SHARDS, RUN = Path("data/sample/source"), Path("data/sample/shards"), Path("runs/quickstart")
FOOTAGE = "assets/bigbuckbunny.mp4"


def steps() -> list[Step]:
    """All steps, in order."""
    return [
        *data_steps(),
        Step("train", None, ["train.py", "--config", "quickstart"]),
        Step("evaluate", None, ["evaluate.py", "--config", "quickstart"]),
    ]


def data_steps() -> list[Step]:
    """The steps that make the sample dataset and its two shard sets."""
    sample = ["tools/make_sample_dataset.py", "--footage", FOOTAGE, "--out", str(SOURCE)]
    return [
        Step("sample_dataset", SOURCE, [*sample, "--height", "80", "--fps", "15", "--train-clips", "720"]),
        shard("train", dataset="ek100_cls", split="train", out=SHARDS / "train"),
        shard("val", dataset="ek100_cls", split="val", out=SHARDS / "val"),
    ]


def shard(
    name: str,
    *,
    dataset: str,
    split: str,
    out: Path,
    annotations: Path = SOURCE / "annotations",
    videos: Path = SOURCE / "videos",
) -> Step:
    """The step that stores a split of a sample dataset as a shard set."""
    # The model sees 32 pixels of crops that are nearly as high as the picture: 64 lines are enough for them.
    command = ["tools/shard_videos.py", "--dataset", dataset, "--annotations", str(annotations)]
    command += ["--videos", str(videos), "--short-side", "64"]
    # On CPUs H.264 decodes in half the time of VP9. GPUs decode it at this size, and VP9 only from 128 lines on.
    # To code clips as small as possible (the default) takes twice as long, and these are read from memory.
    command += ["--codec", "h264", "--speed", "superfast"]
    return Step(f"shard_{name}", out, [*command, "--split", split, "--out", str(out)])
