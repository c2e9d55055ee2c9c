"""The published score stands beside ours where checkpoint and protocol are the published ones, and nowhere else."""

from __future__ import annotations

from pathlib import Path

import pytest

from lavila.checkpoints.zoo import PROTOCOLS, ZOO
from lavila.checkpoints.zoo_command import commands
from lavila.config.load import load_config
from lavila.engine.published import published_scores
from lavila.tasks.registry import KINDS

SCORED = [(model, score) for model in ZOO.values() for score in model.scores if score.how != "captions"]


@pytest.mark.parametrize(("model", "score"), SCORED, ids=lambda one: getattr(one, "name", getattr(one, "task", "")))
def test_every_command_of_the_zoo_follows_the_published_protocol(model, score) -> None:  # type: ignore[no-untyped-def]
    """Its recipe, with what the command sets, names the checkpoint and gives the published values."""
    recipe, *settings = commands()[model.name, score.task, score.frames]
    config = load_config(recipe, settings)
    assert config.checkpoint == model.name and config.task.name in KINDS
    found = published_scores(config, Path(model.path), dataset=score.task)
    assert list(found.values()) == list(score.values.values())
    assert set(found) == set(PROTOCOLS[score.task, score.how].metrics.values())


def test_other_protocols_and_models_have_none() -> None:
    file = Path(ZOO["lavila_tsf_b_ep5"].path)
    for changes in (["data.frames=8"], ["views.clips=2"], ["views.crops=three"], ["data.sampling=strided"]):
        assert published_scores(load_config("ek100_mir_zeroshot_tsf_b", changes), file, dataset="ek100_mir") == {}
    config = load_config("ek100_mir_zeroshot_tsf_b")
    assert published_scores(config, Path("mine.safetensors"), dataset="ek100_mir") == {}
    choice = load_config("egomcq_zeroshot_tsf_b")
    assert published_scores(choice, file, dataset="egomcq") == {"intra_accuracy": 59.9}
    choice = load_config("egomcq_zeroshot_tsf_b", ["task.similarity=cosine"])
    assert published_scores(choice, file, dataset="egomcq") == {}
    assert published_scores(config, file, dataset="egtea") == {}
    fused = load_config("egtea_zeroshot_tsf_b", ["views.fusion=mean_logits"])
    assert published_scores(fused, file, dataset="egtea") == {}
    charades = load_config("charades_ego_zeroshot_tsf_b", ["views.fusion=max_similarity"])
    assert published_scores(charades, Path(ZOO["lavila_tsf_b_ep1"].path), dataset="charades_ego") == {}
