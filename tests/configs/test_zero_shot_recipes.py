"""Each zero-shot recipe has the published views, frames and checkpoint; its header says what it is."""

from __future__ import annotations

import re
from typing import Any

import pytest

from lavila.checkpoints.zoo import ZOO
from lavila.config.load import CONFIG_DIR, load_config
from lavila.tasks.registry import KINDS
from tests.golden_files import golden_json

GOLDEN = golden_json("zero_shot_recipes")
BENCHMARKS = list(GOLDEN["recipes"])
NAMES = [f"{benchmark}_zeroshot_{weights}" for benchmark in BENCHMARKS for weights in ("egovlp", "tsf_b", "tsf_l")]
TASKS = {"ek100_mir": "retrieval", "egomcq": "multiple_choice"}  # the others classify
CROPS = {1: "center", 3: "three"}


@pytest.mark.parametrize("name", NAMES)
def test_views_and_frames_are_the_published_ones(name: str) -> None:
    benchmark = name.partition("_zeroshot_")[0]
    published, config = GOLDEN["recipes"][benchmark], load_config(name)
    expected: dict[str, Any] = {
        "clips": published["num_clips"],
        "crops": CROPS[published["num_crops"]],
        "frames": published["clip_length"],
        # EGTEA's views take every n-th frame; the others one of each of as many parts, whatever --clip-stride says.
        "sampling": "strided" if benchmark == "egtea" else "segments",
        "task": TASKS.get(benchmark, "zero_shot"),
    }
    views, data = config.views, config.data
    assert expected == {
        "clips": views.clips,
        "crops": views.crops,
        "frames": data.frames,
        "sampling": data.sampling,
        "task": config.task.name,
    }
    if benchmark == "egtea":
        assert data.stride == published["clip_stride"]
    # EgoMCQ's published scores are of products of features as the encoders give them.
    assert config.task.similarity == ("dot" if benchmark == "egomcq" else "cosine")
    if config.task.name == "zero_shot":
        # The reference has a softmax after the maximum over several views, and none for a single view. Only a mean
        # average precision depends on it.
        assert views.fusion == ("max_cosine" if benchmark == "charades_ego" else "max_similarity")
        assert list(config.task.templates) == GOLDEN["templates"] and not published["cls_use_template"]
    assert config.task.name in KINDS and not data.mean and not data.std  # statistics are the checkpoint's


@pytest.mark.parametrize("name", NAMES)
def test_the_header_has_command_cost_and_the_published_score(name: str) -> None:
    text = (CONFIG_DIR / f"{name}.yaml").read_text()
    header = "".join(line for line in text.splitlines(keepends=True) if line.startswith("#"))
    assert f"evaluate.py --config {name}\n" in header and "# cost:" in header and "# score:" in header
    model, benchmark = ZOO[load_config(name).checkpoint], name.partition("_zeroshot_")[0]
    scores = [score for score in model.scores if score.task == benchmark]
    assert {score.frames for score in scores} == set(map(int, re.findall(r"(\d+) frames", header)))
    for score in scores:
        for value in score.values.values():
            assert str(value) in header
    if len(scores) == 2:
        assert f"--config {name} data.frames=16\n" in header
