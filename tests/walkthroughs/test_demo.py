"""`make demo`: its commands fit each other."""

from __future__ import annotations

from pathlib import Path

import demo
import make_sample_dataset

from lavila.sample.camera import read_source
from lavila.sample.make import plan_videos
from lavila.walkthroughs.demo import steps as demo_steps
from tests.test_docs import ROOT


def test_make_demo_asks_for_videos_that_the_encoder_has_not_seen() -> None:
    steps = {step.name: step for step in demo_steps(["--no-open"])}
    assert list(steps) == ["sample_dataset", "shard_train", "shard_val", "pretrain", "footage", "demo"]
    asked = demo.parser().parse_args(steps["demo"].command[1:])
    assert len(asked.suggest) == 3 and not asked.open
    assert any(f"run_dir={Path(asked.model).parent}" == word for word in steps["pretrain"].command)
    sample = make_sample_dataset.parse_arguments(steps["footage"].command[1:])
    clips = {"train": sample.train_clips, "val": sample.val_clips}
    source = read_source(ROOT / steps["footage"].command[2])
    planned = plan_videos([source], clips=clips, videos=sample.videos, height=sample.height, seed=sample.seed)
    assert {video.stem for video in asked.videos} == {video.video_id for video in planned if video.split == "val"}
    assert sample.seed != 0  # other moves than those of the training set
