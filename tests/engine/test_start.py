"""What a run starts from: named weights, CLIP's, random ones that were asked for; and what those weights decide."""

from __future__ import annotations

import logging
import socket
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from torch import nn

from lavila.checkpoints.errors import CheckpointError
from lavila.checkpoints.store import load_model, save_model, trained_on
from lavila.checkpoints.zoo import ZOO
from lavila.config.load import load_config
from lavila.config.schema import ConfigError, RunConfig
from lavila.engine import build
from lavila.engine.evaluator import evaluate
from lavila.engine.trainer import train
from lavila.models.classifier import VideoClassifier
from lavila.models.dual_encoder import ClipDualEncoder, DualEncoder
from lavila.models.tokenizers import ClipTokenizer
from lavila.report.files import read_metrics
from lavila.shards.format import ShardSetError
from lavila.shards.reader import ShardSet
from lavila.tasks import TaskError
from tests.checkpoints.published_files import published_state, tiny, write
from tests.engine.test_runs import config_file

CONTEXT = 16
DUAL = [
    "task.name=contrastive", "model.text.width=32", "model.text.depth=1", "model.text.heads=2",
    f"model.text.context={CONTEXT}", "model.embed_dim=8", "optim.epochs=1", "model.drop_path=0",
]  # fmt: skip


def dual_config(folder: Path, shards: ShardSet, *overrides: str) -> RunConfig:
    path = config_file(folder, shards, views={"clips": 1, "crops": "center"})
    return load_config(path, [*DUAL, *overrides])


def a_clip(folder: Path) -> Path:
    """A file of CLIP's weights of the size of `dual_config`'s towers; one head, for open_clip's have 64 channels."""
    torch.manual_seed(0)
    vision = open_clip.CLIPVisionCfg(layers=2, width=64, patch_size=16, image_size=32)
    vocabulary = ClipTokenizer().vocab_size
    text = open_clip.CLIPTextCfg(context_length=CONTEXT, vocab_size=vocabulary, width=32, heads=2, layers=1)
    clip: nn.Module = open_clip.CLIP(20, vision, text, quick_gelu=True)
    torch.save(clip.state_dict(), folder / "clip.pt")
    return folder / "clip.pt"


def test_random_weights_are_asked_for_and_said(
    tmp_path: Path, vp9_shards: ShardSet, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ConfigError, match=r"model\.init is empty.*model\.init=random"):
        train(load_config(config_file(tmp_path, vp9_shards), ["model.init="]))
    assert not (tmp_path / "run").exists()
    with caplog.at_level(logging.INFO):
        train(load_config(config_file(tmp_path, vp9_shards), ["optim.epochs=1"]))
    assert "model.init=random" in caplog.text


def test_both_towers_start_from_clip(tmp_path: Path, vp9_shards: ShardSet) -> None:
    clip = a_clip(tmp_path)
    same = [f"model.init=clip:{clip}", "model.width=64", "model.heads=1", "data.frames=2"]
    theirs = torch.load(clip, weights_only=True)
    config = dual_config(tmp_path, vp9_shards, *same)
    model = build.fresh_model(config, build.task_facts(config, vp9_shards))
    assert isinstance(model, ClipDualEncoder)
    assert torch.equal(model.token_embedding.weight, theirs["token_embedding.weight"])
    assert torch.equal(model.visual.blocks[1].mlp.fc1.weight, theirs["visual.transformer.resblocks.1.mlp.c_fc.weight"])  # type: ignore[union-attr,index]
    assert float(model.temperature_scale().detach()) == pytest.approx(
        1 / 0.07
    )  # CLIP's embedding is wider, so not its own
    heads = load_config(config_file(tmp_path, vp9_shards), same)
    classifier = build.fresh_model(heads, build.task_facts(heads, vp9_shards))
    assert isinstance(classifier, VideoClassifier)
    assert torch.equal(classifier.visual.norm.weight, theirs["visual.ln_post.weight"])
    resumed = build.fresh_model(config, build.task_facts(config, vp9_shards), resumed=True)
    assert isinstance(resumed, ClipDualEncoder)  # what CLIP decided is in the checkpoint, and need not be there
    assert not torch.equal(resumed.token_embedding.weight, theirs["token_embedding.weight"])


def test_clip_weights_that_are_not_available_are_named(tmp_path: Path, vp9_shards: ShardSet) -> None:
    with pytest.raises(ValueError, match=r"nothing-of-the-kind.*ViT-B-16"):
        train(dual_config(tmp_path, vp9_shards, "model.init=clip:nothing-of-the-kind"))


def test_a_published_checkpoint_without_a_network_says_where_to_put_it(
    tmp_path: Path, vp9_shards: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(*_: Any, **__: Any) -> None:
        raise urllib.error.URLError(socket.gaierror(-3, "no name"))

    monkeypatch.setenv("LAVILA_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    with pytest.raises(CheckpointError) as caught:
        train(dual_config(tmp_path, vp9_shards, "model.init=lavila_tsf_b_ep5"))
    message = str(caught.value)
    assert (
        str(ZOO["lavila_tsf_b_ep5"].file) in message and ZOO["lavila_tsf_b_ep5"].url in message and "\n" not in message
    )


def test_a_dual_encoder_continues_whole_and_decides_frames_and_size(tmp_path: Path, vp9_shards: ShardSet) -> None:
    """As published: first trained on few frames, then on more, with both towers and the temperature."""
    first = dual_config(tmp_path, vp9_shards, "task.temperature=0.2")
    last = train(first)
    found = trained_on(last)
    assert (found.text, found.frames, found.image_size) == ("clip", 4, 32)
    assert found.task_facts == {"tokenizer": "clip", "context_length": CONTEXT}
    again = [
        f"model.init={last}",
        f"run_dir={tmp_path / 'again'}",
        "optim.lr=1e-12",
        "optim.lr_start=0",
        "optim.lr_end=0",
    ]
    second = train(dual_config(tmp_path, vp9_shards, *again, "data.frames=0", "data.image_size=0"))
    old, new = load_model(last), load_model(second)
    assert trained_on(second).frames == 4 and trained_on(second).image_size == 32
    assert isinstance(new, DualEncoder) and float(new.temperature_scale().detach()) == pytest.approx(5.0)
    for name, tensor in old.state_dict().items():
        assert torch.allclose(tensor, new.state_dict()[name], atol=1e-6), name
    more = dual_config(tmp_path, vp9_shards, *again, "data.frames=8")
    longer = build.fresh_model(more, build.task_facts(more, vp9_shards))
    assert longer.get_parameter("visual.temporal_embed").shape[1] == 8
    losses = [line["loss"] for line in read_metrics(tmp_path / "again" / "metrics.jsonl")]
    assert len(losses) == 3
    page = evaluate(dual_config(tmp_path, vp9_shards, "data.frames=0", f"checkpoint={last}"))
    assert page is not None and page.is_file()


def test_a_text_tower_of_another_kind_is_an_error_that_names_both(tmp_path: Path, vp9_shards: ShardSet) -> None:
    file = write(tmp_path / "published.pth", published_state(tiny("egovlp")))
    found = trained_on(file)
    resolved = build.with_weights(dual_config(tmp_path, vp9_shards), found)
    assert resolved.model.text.kind == "distilbert"
    with pytest.raises(ConfigError, match=r"model\.text\.kind=clip.*published\.pth.*distilbert"):
        build.with_weights(dual_config(tmp_path, vp9_shards, "model.text.kind=clip"), found)


def test_a_set_without_words_is_refused_before_the_first_step(
    tmp_path: Path, vp9_shards: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lavila.shards.captions._Layer.worded", lambda _, ids: np.zeros(len(ids), np.bool_))
    with pytest.raises(ConfigError, match=r"data\.captions.*contrastive"):
        train(dual_config(tmp_path, vp9_shards))
    with pytest.raises(ShardSetError, match="sentences"):
        train(dual_config(tmp_path, vp9_shards, "task.name=retrieval"))
    assert not (tmp_path / "run").exists()
    train(load_config(config_file(tmp_path, vp9_shards), ["optim.epochs=1"]))  # which needs labels alone


def test_a_classifier_is_no_dual_encoder(tmp_path: Path, vp9_shards: ShardSet) -> None:
    file = tmp_path / "heads.safetensors"
    config = load_config(config_file(tmp_path, vp9_shards))
    save_model(build.fresh_model(config, build.task_facts(config, vp9_shards)), file)
    with pytest.raises(TaskError, match="VideoClassifier"):
        evaluate(dual_config(tmp_path, vp9_shards, f"checkpoint={file}"))


def test_a_dual_encoder_is_no_classifier(tmp_path: Path, vp9_shards: ShardSet) -> None:
    """An error before the first step, not after the first epoch."""
    with pytest.raises(TaskError, match=r"^evals\.x: .*a classifier.*ClipDualEncoder"):
        train(dual_config(tmp_path, vp9_shards, "evals.x.task.name=classification"))
    assert not (tmp_path / "run").exists()


def test_a_set_of_the_other_split_is_named(
    tmp_path: Path, vp9_shards: ShardSet, caplog: pytest.LogCaptureFixture
) -> None:
    config = load_config(config_file(tmp_path, vp9_shards))
    for which in ("train", "val"):
        caplog.clear()
        build.shard_set(config, which)
        assert ("--split" in caplog.text) == (which != vp9_shards.manifest["split"])


def test_a_checkpoint_that_training_does_not_read_is_named(
    tmp_path: Path, vp9_shards: ShardSet, caplog: pytest.LogCaptureFixture
) -> None:
    build.start_weights(load_config(config_file(tmp_path, vp9_shards), ["checkpoint=lavila_tsf_b_ep5"]))
    assert "checkpoint=lavila_tsf_b_ep5" in caplog.text and "model.init=random" in caplog.text


def test_a_size_that_no_patch_divides_is_refused_when_it_is_known(tmp_path: Path, vp9_shards: ShardSet) -> None:
    config = load_config(config_file(tmp_path, vp9_shards), ["data.image_size=0", "model.patch_size=9"])
    with pytest.raises(ConfigError, match=r"data\.image_size=224.*model\.patch_size=9"):
        train(config)
