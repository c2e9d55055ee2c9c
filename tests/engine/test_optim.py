"""Learning rates and parameter groups equal the reference's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from torch import nn

from lavila.config.load import load_config
from lavila.config.schema import ConfigError, MultiplierScope, OptimConfig, Optimizer, Schedule
from lavila.engine.optim import (
    InBackbone,
    LearningRate,
    blank_state,
    build_optimizer,
    cosine_schedule,
    fitting,
    freeze,
    parameter_groups,
    train_mode,
)
from lavila.models.classifier import VideoClassifier
from lavila.models.dual_encoder import ClipDualEncoder
from lavila.models.text_tower import ClipTextConfig
from lavila.models.timesformer import TimeSformer, TimeSformerConfig
from lavila.tasks import ModelParts, TaskOptions, Temperature, TextOptions
from lavila.tasks.contrastive import Contrastive
from lavila.tasks.tables import Tables
from tests.golden_files import golden_json

GOLDEN = golden_json("scheduler")


def below_the_heads(name: str) -> bool:
    return not name.startswith("fc_cls.")


def tiny(heads: tuple[int, ...]) -> VideoClassifier:
    tower = TimeSformerConfig(image_size=32, patch_size=8, width=48, depth=2, heads=4, num_frames=4)
    return VideoClassifier(TimeSformer(tower), num_classes=heads, dropout=0.0)


@pytest.mark.parametrize("case", GOLDEN["cosine_scheduler"], ids=lambda c: f"{c['epochs']}x{c['niter_per_ep']}")
def test_schedule_equals_the_reference(case: dict[str, float]) -> None:
    values = cosine_schedule(
        peak=case["base_value"],
        end=case["final_value"],
        start=case["start_warmup_value"],
        epochs=int(case["epochs"]),
        warmup_epochs=case["warmup_epochs"],
        steps=int(case["niter_per_ep"]),
    )
    assert np.allclose(values, case["values"], rtol=1e-12, atol=0)


@pytest.mark.parametrize(("name", "heads"), [("single_head", (7,)), ("multi_head", (5, 7, 11))])
def test_parameter_groups_equal_the_reference(name: str, heads: tuple[int, ...]) -> None:
    model = tiny(heads)
    # As the reference hands them to its optimiser; its schedule then multiplies the head's rate as well.
    config = OptimConfig(lr=3e-3, weight_decay=0.01, lr_multiplier=0.1, lr_multiplier_for="backbone")
    got = named_groups(model, config, below_the_heads)
    assert got == GOLDEN["param_groups"][f"classification.{name}"]


def named_groups(model: nn.Module, config: OptimConfig, in_backbone: InBackbone) -> list[dict[str, object]]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [
        {
            "weight_decay": group["weight_decay"],
            "initial_lr": group["lr"],
            "names": [names[id(p)] for p in group["params"]],  # type: ignore[attr-defined]
        }
        for group in parameter_groups(model, config, in_backbone=in_backbone)
    ]


DUAL = {
    "pretrain.clip": (Contrastive(), Temperature(learned=True)),
    "pretrain.clip (both temperatures frozen, pseudo labels)": (Contrastive(), Temperature()),
    "pretrain.clip (pseudo temperature learned)": (Contrastive(), Temperature(learned=True, pseudo_learned=True)),
    "pretrain.clip_hf frozen_in_time": (Contrastive(), Temperature(learned=True)),
}


@pytest.mark.parametrize("name", DUAL)
def test_parameter_groups_of_dual_encoders_equal_the_reference(name: str, tmp_path: Path) -> None:
    """All in the backbone or not: with a multiplier of 1 the groups of both parts have one rate, as published."""
    kind, temperature = DUAL[name]
    bert = "clip_hf" in name
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]))
    text = TextOptions(
        kind="distilbert" if bert else "clip", width=32, depth=1, heads=4, vocabulary=str(tmp_path), init="random"
    )
    options = TaskOptions(text=text, embed_dim=24, projection="frozen_in_time", temperature=temperature)
    tower = TimeSformerConfig(
        image_size=32, patch_size=8, width=48, depth=2, heads=4, num_frames=4, pre_norm=not bert,
        activation="gelu" if bert else "quick_gelu",
    )  # fmt: skip
    model = kind.model(ModelParts(tower=TimeSformer(tower)), {}, options)
    config = OptimConfig(lr=3e-5, weight_decay=0.01, lr_multiplier=1.0)
    got = named_groups(model, config, lambda _: True)
    wanted = GOLDEN["param_groups"][name]
    for group in wanted:
        group["names"] = [n.replace("<criterion>.logit_scale_pseudo", "pseudo.logit_scale") for n in group["names"]]
    assert got == wanted
    task = kind.task(model, {}, options, Tables(of="here"))
    split = named_groups(model, config, task.in_backbone)
    assert {(g["weight_decay"], n) for g in got for n in g["names"]} == {
        (g["weight_decay"], n) for g in split for n in g["names"]
    }


@pytest.mark.parametrize("schedule", get_args(Schedule))
@pytest.mark.parametrize(("scope", "head"), [("all", 0.1), ("backbone", 1.0)])
def test_the_multiplier_is_for_whom_it_says_with_any_schedule(
    scope: MultiplierScope, head: float, schedule: Schedule
) -> None:
    config = OptimConfig(
        lr=1.0, lr_start=0.0, lr_end=0.0, epochs=2, warmup_epochs=1, lr_multiplier=0.1, lr_multiplier_for=scope,
        schedule=schedule,
    )  # fmt: skip
    model = tiny((5,))
    optimizer, rate = (
        build_optimizer(model, config, in_backbone=below_the_heads),
        LearningRate.of(config, model, steps=5, in_backbone=below_the_heads),
    )
    for step in (4, 5) if schedule == "cosine" else range(10):
        rate.set(optimizer.param_groups, step)
        assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.1, head, head]


@pytest.mark.parametrize("case", GOLDEN["cosine_scheduler"], ids=lambda c: f"{c['epochs']}x{c['niter_per_ep']}")
def test_published_recipes_have_the_rates_of_the_reference(case: dict[str, float]) -> None:
    """All groups at the schedule's value times the multiplier, momentum 0.9."""
    recipe = load_config("ek100_cls_tsf_l").optim
    config = replace(
        recipe, lr=case["base_value"], lr_end=case["final_value"], lr_start=case["start_warmup_value"],
        epochs=int(case["epochs"]), warmup_epochs=case["warmup_epochs"],
    )  # fmt: skip
    model = tiny((5, 7))
    optimizer = build_optimizer(model, config, in_backbone=below_the_heads)
    rate = LearningRate.of(config, model, steps=int(case["niter_per_ep"]), in_backbone=below_the_heads)
    assert len(optimizer.param_groups) == 4 and {group["momentum"] for group in optimizer.param_groups} == {0.9}
    for step, value in enumerate(case["values"]):  # type: ignore[arg-type]
        rate.set(optimizer.param_groups, step)
        for group in optimizer.param_groups:
            assert group["lr"] == pytest.approx(value * 0.1, rel=1e-12)


def test_optimisers_and_their_settings() -> None:
    sgd = build_optimizer(
        tiny((5,)), OptimConfig(optimizer="sgd", momentum=0.8, betas=(0.7, 0.99)), in_backbone=below_the_heads
    )
    assert isinstance(sgd, torch.optim.SGD) and sgd.param_groups[0]["momentum"] == 0.8
    adamw = build_optimizer(
        tiny((5,)), OptimConfig(optimizer="adamw", betas=(0.8, 0.99), eps=1e-6), in_backbone=below_the_heads
    )
    assert isinstance(adamw, torch.optim.AdamW)
    assert adamw.param_groups[0]["betas"] == (0.8, 0.99) and adamw.param_groups[0]["eps"] == 1e-6


def test_frozen_parameters_stay_out() -> None:
    model = nn.Linear(3, 3)
    model.weight.requires_grad_(False)
    (group,) = parameter_groups(model, OptimConfig(), in_backbone=lambda _: True)
    assert len(group["params"]) == 1


def dual() -> ClipDualEncoder:
    tower = TimeSformerConfig(image_size=16, patch_size=8, width=8, depth=2, heads=1, num_frames=2, drop_path=0.5)
    text = ClipTextConfig(width=8, depth=1, heads=1, context_length=8, vocab_size=16)
    return ClipDualEncoder(TimeSformer(tower), text=text, embed_dim=4)


@pytest.mark.parametrize(
    ("names", "trained"),
    [
        (["video", "text", "projections"], {"logit_scale"}),
        (["visual.*", "text", "temperature"], {"image_projection", "text_projection"}),
        (["temperature", "*projection", "text", "visual.[!n]*"], {"visual.norm.weight", "visual.norm.bias"}),
    ],
)
def test_parts_and_patterns_are_frozen(names: list[str], trained: set[str]) -> None:
    model = dual()
    freeze(model, names)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == trained
    optimizer = build_optimizer(model, OptimConfig(), in_backbone=lambda _: True)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(trained)


def test_what_cannot_be_frozen_is_named_with_what_can() -> None:
    with pytest.raises(ConfigError, match=r"model\.freeze=head: .* video, heads, .* fc_cls\.\*, visual\.\*"):
        freeze(tiny((2,)), ["video", "head"])
    with pytest.raises(ConfigError, match=r"video, text, projections, temperature, .* image_projection"):
        freeze(dual(), ["textual.*"])
    with pytest.raises(ConfigError, match="nothing is left to train"):
        freeze(tiny((2,)), ["video", "heads"])


def test_frozen_modules_stay_as_in_evaluation() -> None:
    model = dual()
    freeze(model, ["video"])
    model.eval()
    train_mode(model)
    assert model.training and model.transformer.training
    assert not any(module.training for module in model.visual.modules())
    video = torch.zeros(1, 3, 2, 16, 16)
    assert torch.equal(model.encode_video(video), model.encode_video(video))  # though drop_path is 0.5


def test_the_state_of_an_optimizer_is_known_before_it_has_any() -> None:
    for kind in Optimizer:
        model = tiny((2,))
        optimizer = build_optimizer(model, OptimConfig(optimizer=kind), in_backbone=below_the_heads)
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        for parameter in model.parameters():
            kept, blank = optimizer.state[parameter], blank_state(optimizer, parameter)
            assert {name: (t.shape, t.dtype, t.device) for name, t in kept.items()} == {
                name: (t.shape, t.dtype, t.device) for name, t in blank.items()
            }


def test_names_fit_patterns_but_for_those_that_are_left_out() -> None:
    names = ["a.x", "a.y", "b.x"]
    assert fitting(names, ["a.*", "!*.y"]) == ["a.x"]
    assert fitting(names, ["*.x", "!c.*"]) == ["a.x", "b.x"] and fitting(names, ["!a.*"]) == []
